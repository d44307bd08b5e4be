#include "server/engine/proposal_spec.h"

#include <algorithm>

#include "base/status.h"
#include "server/engine/python_check.h"

namespace optod::engine {
namespace {

constexpr size_t kMostRounds = 1000;     // kept where all of them may matter
constexpr double kEstimateMargin = 0.9;  // token counts are estimates

std::string Trim(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\n");
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(" \t\n") - begin + 1);
}

/// "a, b; c" -> {"a", "b", "c"}
std::vector<std::string> Split(const std::string& text, const char* separators) {
  std::vector<std::string> out;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find_first_of(separators, begin), text.size());
    if (std::string piece = Trim(text.substr(begin, end - begin)); !piece.empty()) out.push_back(std::move(piece));
    begin = end + 1;
  }
  return out;
}

absl::StatusOr<trace::Section> SectionOf(const std::string& field, const std::string& title) {
  if (auto section = trace::ParseSection(title)) return *section;
  return InvalidArgument(field, ": \"", title, "\" is no section; #Code, #Feedback, ... are");
}

absl::Status AddTitle(const std::string& field, const std::string& section, const std::string& title,
                      trace::RenderOptions* render) {
  ASSIGN_OR_RETURN(trace::Section s, SectionOf(field, section));
  if (title.empty() || title.size() > 100 || title.find('\n') != std::string::npos)
    return InvalidArgument(field, ".", section, ": a title is one line of 1 to 100 bytes");
  std::erase_if(render->titles, [&](const auto& pair) { return pair.first == s; });
  render->titles.emplace_back(s, title);
  return absl::OkStatus();
}

absl::Status FillRender(const v1::Session& session, const google::protobuf::RepeatedPtrField<std::string>& mask,
                        const google::protobuf::Map<std::string, std::string>& titles, trace::RenderOptions* render) {
  for (const std::string& title : Split(HyperText(session, "mask", ""), ",;")) {
    ASSIGN_OR_RETURN(trace::Section section, SectionOf("optimizer.hyperparameters.mask", title));
    render->mask.push_back(section);
  }
  for (const std::string& title : mask) {
    ASSIGN_OR_RETURN(trace::Section section, SectionOf("mask", title));
    render->mask.push_back(section);
  }
  for (const std::string& pair : Split(HyperText(session, "titles", ""), ";")) {
    const size_t equals = pair.find('=');
    if (equals == std::string::npos)
      return InvalidArgument("optimizer.hyperparameters.titles: \"", pair, "\" is no Section=title");
    RETURN_IF_ERROR(AddTitle("optimizer.hyperparameters.titles", Trim(pair.substr(0, equals)),
                             Trim(pair.substr(equals + 1)), render));
  }
  for (const auto& [section, title] : titles) RETURN_IF_ERROR(AddTitle("titles", section, title, render));
  render->value_limit = static_cast<uint32_t>(HyperNumber(session, "initial_var_char_limit", render->value_limit));
  if (HyperText(session, "prompt", "full") == "brief") render->form = trace::PromptForm::kBrief;
  const auto& hyper = session.optimizer().hyperparameters();
  if (auto it = hyper.find("include_example"); it != hyper.end()) render->include_example = it->second.flag();
  return absl::OkStatus();
}

}  // namespace

double HyperNumber(const v1::Session& session, const std::string& name, double fallback) {
  const auto& hyper = session.optimizer().hyperparameters();
  auto it = hyper.find(name);
  return it == hyper.end() || it->second.value_case() != v1::HyperValue::kNumber ? fallback : it->second.number();
}

std::string HyperText(const v1::Session& session, const std::string& name, const std::string& fallback) {
  const auto& hyper = session.optimizer().hyperparameters();
  auto it = hyper.find(name);
  return it == hyper.end() || it->second.value_case() != v1::HyperValue::kText ? fallback : it->second.text();
}

absl::StatusOr<ProposalSpec> MakeProposalSpec(const v1::Session& session,
                                              const google::protobuf::RepeatedPtrField<std::string>& mask,
                                              const google::protobuf::Map<std::string, std::string>& titles,
                                              const std::optional<trace::EndpointConfig>& endpoint) {
  ProposalSpec out;
  trace::ProposerSpec& spec = out.proposer;
  spec.optimizer = session.optimizer().name();
  const bool multi = spec.optimizer == "optoprime-multi";
  spec.candidates = static_cast<uint32_t>(HyperNumber(session, "candidates", 1));
  spec.temperature = HyperNumber(session, multi ? "temperature_max" : "temperature", 0.7);
  spec.temperature_low = multi ? HyperNumber(session, "temperature", 0) : 0;
  spec.generation =
      trace::ParseGeneration(HyperText(session, "generation", "temperature")).value_or(trace::Generation::kTemperature);
  spec.selection = trace::ParseSelection(HyperText(session, "selection", multi ? "last_of_n" : "first"))
                       .value_or(trace::Selection::kFirst);
  spec.problem.instruction = HyperText(session, "objective", "");
  RETURN_IF_ERROR(FillRender(session, mask, titles, &spec.render));
  spec.reply.check_python = CheckWithPython;

  out.memory.size = static_cast<size_t>(HyperNumber(session, "memory", 0));
  out.memory.by = trace::ParseMemoryBy(HyperText(session, "memory_by", "recency")).value_or(trace::MemoryBy::kRecency);
  out.memory.maximize = session.direction() != v1::MINIMIZE;
  if (spec.optimizer == "opro" && out.memory.size == 0) out.memory.size = kMostRounds;
  out.memory_kept = out.memory.size == 0 || out.memory.by == trace::MemoryBy::kRecency
                        ? out.memory.size
                        : std::max(out.memory.size, kMostRounds);

  if (!session.optimizer().llm().empty()) out.endpoint = session.optimizer().llm();
  out.max_tokens = static_cast<int>(HyperNumber(session, "max_tokens", 4096));
  if (endpoint) {
    out.max_tokens = std::min(out.max_tokens, std::max(64, endpoint->context_tokens / 4));
    spec.render.max_prompt_tokens =
        static_cast<uint32_t>(std::max(256.0, (endpoint->context_tokens - out.max_tokens) * kEstimateMargin));
  }
  return out;
}

}  // namespace optod::engine

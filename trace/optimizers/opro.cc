#include "trace/optimizers/opro.h"

#include <algorithm>

#include "base/status.h"
#include "trace/optimizers/fit.h"
#include "trace/optimizers/json_value.h"
#include "trace/optimizers/python_text.h"

namespace optod::trace {
namespace {

constexpr std::string_view kSystem =
    "You search for good values. You are shown an objective, the variables, and the values tried so far with the "
    "feedback each got. "
    "Propose values that should do better than all of them.\n\n"
    "Answer with one JSON object and nothing else:\n"
    "{\"reasoning\": \"what the feedback tells\", \"answer\": \"\", \"suggestion\": {\"variable name\": new value}}\n"
    "Name only variables you change, exactly as written, with values of the same type. If nothing should change, "
    "answer TERMINATE.";
constexpr std::string_view kObjective = "Choose values that make the feedback as good as possible.";

std::string RoundText(const MemoryRound& round) {
  std::string out = "{\"variables\": {";
  for (size_t i = 0; i < round.variables.size(); ++i) {
    out += (i ? ", " : "") + QuoteJson(round.variables[i].first) + ": " + QuoteJson(round.variables[i].second);
  }
  out += "}, \"feedback\": " + QuoteJson(round.feedback);
  if (round.score) out += ", \"score\": " + FloatRepr(*round.score);
  return out + "}\n";
}

}  // namespace

absl::StatusOr<std::vector<CandidateRequest>> BuildOproRequests(const Graph& graph, const FeedbackStore& feedback,
                                                                std::span<const NodeId> parameters,
                                                                const std::vector<MemoryRound>& memory,
                                                                const OproOptions& options) {
  if (options.candidates == 0) return InvalidArgument("candidates: 0; must be at least 1");
  if (feedback.empty()) return FailedPrecondition("feedback: none was given since the last step; call backward first");
  for (NodeId id : parameters) {
    if (!graph.Contains(id)) return NotFound("parameters: node ", id, " does not exist");
    if (!graph.IsParameter(id)) return InvalidArgument("parameters: ", graph.Name(id), " is no parameter");
  }
  const std::vector<ReplyParameter> reply_parameters = ReplyParameters(graph, parameters);
  std::string user =
      "Objective:\n" + (options.objective.empty() ? std::string(kObjective) : options.objective) + "\n\nVariables:\n";
  bool any = false;
  for (const ReplyParameter& p : reply_parameters) {
    if (!p.trainable) continue;
    any = true;
    const std::string rule = ConstraintText(p.constraint);
    user += Cat("(", p.is_code ? "code" : p.type_name, ") ", p.py_name, rule.empty() ? "" : ": ", rule, "\n");
  }
  if (!any) return FailedPrecondition("parameters: none is trainable");
  std::vector<MemoryRound> rounds = memory;
  rounds.push_back(MakeMemoryRound(graph, parameters, feedback));
  const auto render = [&](const Cut& cut) {
    Prompt prompt;
    prompt.system = kSystem;
    prompt.user = user + "\nTried so far, oldest first:\n";
    // The current round is always shown.
    const size_t most = std::min<size_t>(cut.memory == SIZE_MAX ? options.max_rounds : cut.memory, memory.size());
    const size_t skipped = memory.size() - most;
    if (skipped > 0) prompt.user += Cat("...[", skipped, " earlier rounds]\n");
    for (size_t i = skipped; i < rounds.size(); ++i) {
      MemoryRound round = rounds[i];
      const bool current = i + 1 == rounds.size();
      round.feedback = CutMiddle(round.feedback, current ? cut.feedback_limit : cut.value_limit);
      prompt.truncated_values += !current && round.feedback != rounds[i].feedback;
      prompt.user += RoundText(round);
    }
    prompt.user += "\nYour JSON object:\n";
    return prompt;
  };
  CandidateRequest request;
  request.prompt = FitPrompt(options.max_prompt_tokens, 0, std::min<size_t>(memory.size(), options.max_rounds), 0,
                             rounds.back().feedback.size(), render);
  request.response_schema = ReplySchema(reply_parameters);
  return SpreadCandidates(request, options.candidates, options.temperature);
}

}  // namespace optod::trace

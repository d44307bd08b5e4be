#include "trace/optimizers/optoprime_v2.h"

#include <algorithm>

#include "base/status.h"
#include "trace/optimizers/python_text.h"
#include "trace/optimizers/reply_internal.h"

namespace optod::trace {
namespace {

std::string TaggedValue(std::string_view tag, const ValueEntry& v, uint32_t limit, Prompt& prompt) {
  bool cut = false;
  std::string out = Cat("<", tag, " name=\"", v.py_name, "\" type=\"", v.type, "\">\n<value>\n",
                        limit == 0 ? v.text : TruncateValue(v.text, limit, &cut), "\n</value>\n");
  prompt.truncated_values += cut;
  if (tag == "variable" && !v.constraint.empty()) out += Cat("<constraint>\n", v.constraint, "\n</constraint>\n");
  return out + Cat("</", tag, ">\n");
}

std::string SystemText() {
  return "You tune a program. It was run once, the run was recorded, and its result was judged. You get what you are "
         "asked to achieve, the calls "
         "that were made, what each function does, the values you may change (<variable>), the other values (<node>), "
         "and the judgement. Trace "
         "the feedback back through the code to the variables, and decide which of them to change and how.\n\n"
         "Answer in this form:\n<reasoning>\nhow the feedback leads to your changes\n</reasoning>\n"
         "<variable>\n<name>variable name</name>\n<value>\nnew value\n</value>\n</variable>\n"
         "with one <variable> for each that you change, and none for the others. A new value has the type of the old "
         "one and obeys its "
         "<constraint>; source text is complete and keeps the function's name and arguments. Write values as they are, "
         "without quotes or escapes. "
         "If nothing should change, answer TERMINATE.";
}

// Text between `<tag>` and the `</tag>` that closes it (pairs may nest), from `*pos`; `*pos` moves behind it. nullopt:
// none is complete.
std::optional<std::string_view> NextBlock(std::string_view text, std::string_view tag, size_t* pos) {
  const std::string open = Cat("<", tag, ">"), close = Cat("</", tag, ">");
  const size_t begin = text.find(open, *pos);
  if (begin == std::string_view::npos) return std::nullopt;
  size_t at = begin + open.size();
  size_t next_close = text.find(close, at);
  for (int depth = 1; depth > 0;) {
    if (next_close == std::string_view::npos) return std::nullopt;
    // Each tag is passed once: openings up to the next closing, then that closing.
    const size_t next_open = text.substr(0, next_close).find(open, at);
    if (next_open != std::string_view::npos) {
      ++depth;
      at = next_open + open.size();
    } else {
      --depth;
      at = next_close + close.size();
      next_close = text.find(close, at);
    }
  }
  *pos = at;
  return text.substr(begin + open.size(), at - close.size() - begin - open.size());
}

// `name` and `value` of a variable block. The value reaches to the last closing tag: its text may hold tags of its own.
std::optional<std::pair<std::string, std::string>> NameAndValue(std::string_view block) {
  size_t pos = 0;
  const auto name = NextBlock(block, "name", &pos);
  if (!name || Strip(*name).empty()) return std::nullopt;
  const size_t open = block.find("<value>", pos), close = block.rfind("</value>");
  if (open == std::string_view::npos || close == std::string_view::npos || close < open) return std::nullopt;
  return std::pair(std::string(Strip(*name)), std::string(Strip(block.substr(open + 7, close - open - 7))));
}

}  // namespace

Prompt RenderTagged(const ProblemInstance& problem, const RenderOptions& options) {
  Prompt prompt;
  prompt.system = SystemText();
  std::string& out = prompt.user;
  auto shown = [&](Section s) {
    std::string title(DefaultTitle(s));
    for (const auto& [section, text] : options.titles) {
      if (section == s) title = text;
    }
    out += (out.empty() ? "" : "\n") + title + "\n";
    return std::find(options.mask.begin(), options.mask.end(), s) == options.mask.end();
  };
  auto values = [&](Section s, std::string_view tag, const std::vector<ValueEntry>& list, uint32_t limit) {
    if (!shown(s)) return;
    for (const ValueEntry& v : list) out += TaggedValue(tag, v, limit, prompt);
  };
  if (shown(Section::kInstruction)) out += problem.instruction + "\n";
  if (shown(Section::kCode)) {
    for (const CodeLine& line : problem.code) out += line.text + "\n";
  }
  if (shown(Section::kDocumentation)) {
    for (const DocumentationEntry& d : problem.documentation) out += d.function + ": " + d.text + "\n";
  }
  values(Section::kVariables, "variable", problem.variables, 0);
  values(Section::kInputs, "node", problem.inputs, options.value_limit);
  values(Section::kOthers, "node", problem.others, options.value_limit);
  values(Section::kOutputs, "node", problem.outputs, options.value_limit);
  if (shown(Section::kFeedback)) out += problem.feedback + "\n";
  int number = 1;
  for (const MemoryRound& round : options.memory) {
    out += Cat("\n<round ", number++, ">\n");
    for (const auto& [name, value] : round.variables) out += Cat(name, "=", value, "\n");
    if (round.score) out += "score: " + FloatRepr(*round.score) + "\n";
    out += "feedback: " + round.feedback + "\n</round>\n";
  }
  out += "\nVariables you may change:";
  for (const ValueEntry& v : problem.variables) out += " " + v.py_name;
  out += "\nYour answer:\n";
  if (options.max_prompt_tokens > 0 &&
      EstimateTokens(prompt.system) + EstimateTokens(out) > options.max_prompt_tokens) {
    RenderOptions shorter = options;
    shorter.value_limit = options.value_limit == 0 ? 4096 : options.value_limit / 2;
    if (shorter.value_limit >= 40) return RenderTagged(problem, shorter);
    prompt.over_limit = true;
  }
  return prompt;
}

ReplyOutcome ParseTaggedReply(std::string_view reply, const std::vector<ReplyParameter>& parameters,
                              const ReplyOptions& options) {
  ReplyOutcome out;
  auto fail = [&](ReplyKind kind, std::string reason) {
    out.kind = kind;
    out.reason = std::move(reason);
    return out;
  };
  if (Strip(reply).empty()) return fail(ReplyKind::kEmpty, "the reply is blank");
  if (reply.size() > options.max_bytes)
    return fail(ReplyKind::kUnparsable, Cat("the reply has ", reply.size(), " bytes"));
  const std::string visible = WithoutThoughts(reply);
  if (visible.size() != reply.size()) out.fixes.emplace_back(kFixThink);
  if (visible.find("TERMINATE") != std::string::npos)
    return fail(ReplyKind::kNoUpdateRequested, "the reply says TERMINATE");
  size_t pos = 0;
  if (visible.find("<reasoning>") != std::string::npos) {
    const auto reasoning = NextBlock(visible, "reasoning", &pos);
    if (!reasoning) return fail(ReplyKind::kUnparsable, "the reasoning is never closed");
    out.reasoning = Strip(*reasoning);
  }
  std::vector<std::pair<std::string, std::string>> values;
  while (const auto block = NextBlock(visible, "variable", &pos)) {
    if (auto pair = NameAndValue(*block)) values.push_back(*std::move(pair));
  }
  if (values.empty()) return fail(ReplyKind::kUnparsable, "no complete <variable> with a name and a value was found");
  return JudgeTexts(std::move(out), values, parameters, options);
}

absl::StatusOr<std::vector<CandidateRequest>> BuildOptoPrimeV2Requests(const Graph& graph,
                                                                       const FeedbackStore& feedback,
                                                                       std::span<const NodeId> parameters,
                                                                       const std::vector<MemoryRound>& memory,
                                                                       const OptoPrimeOptions& options) {
  ASSIGN_OR_RETURN(std::vector<CandidateRequest> out,
                   BuildOptoPrimeRequests(graph, feedback, parameters, memory, options));
  ASSIGN_OR_RETURN(const ProblemInstance problem, BuildProblem(graph, feedback, parameters, options.problem));
  RenderOptions render = options.render;
  render.memory = memory;
  const Prompt prompt = RenderTagged(problem, render);
  for (CandidateRequest& request : out) {
    request.prompt = prompt;
    request.response_schema.clear();
  }
  return out;
}

Candidate ReadTaggedCandidate(std::string_view reply, const Graph& graph, std::span<const NodeId> parameters,
                              const ReplyOptions& options) {
  return MakeCandidate(ParseTaggedReply(reply, ReplyParameters(graph, parameters), options), parameters);
}

}  // namespace optod::trace

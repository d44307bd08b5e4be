#include "trace/optimizers/optoprime_v2.h"

#include <algorithm>

#include "base/status.h"
#include "trace/optimizers/fit.h"
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

class TaggedRenderer {
 public:
  TaggedRenderer(const ProblemInstance& problem, const RenderOptions& options, const Cut& cut)
      : problem_(problem), options_(options), cut_(cut) {}

  Prompt Run() {
    prompt_.system = SystemText();
    if (Shown(Section::kInstruction)) out_ += problem_.instruction + "\n";
    if (Shown(Section::kCode)) Code();
    if (Shown(Section::kDocumentation)) {
      for (const DocumentationEntry& d : problem_.documentation) out_ += d.function + ": " + d.text + "\n";
    }
    Values(Section::kVariables, "variable", problem_.variables, 0);
    Values(Section::kInputs, "node", problem_.inputs, cut_.value_limit);
    Values(Section::kOthers, "node", problem_.others, cut_.value_limit);
    Values(Section::kOutputs, "node", problem_.outputs, cut_.value_limit);
    if (Shown(Section::kFeedback)) out_ += CutMiddle(problem_.feedback, cut_.feedback_limit) + "\n";
    Rounds();
    out_ += "\nVariables you may change:";
    for (const ValueEntry& v : problem_.variables) out_ += " " + v.py_name;
    prompt_.user = std::move(out_) + "\nYour answer:\n";
    return std::move(prompt_);
  }

 private:
  bool Shown(Section s) {
    std::string title(DefaultTitle(s));
    for (const auto& [section, text] : options_.titles) {
      if (section == s) title = text;
    }
    out_ += (out_.empty() ? "" : "\n") + title + "\n";
    return std::find(options_.mask.begin(), options_.mask.end(), s) == options_.mask.end();
  }

  void Code() {
    std::vector<const std::string*> lines;
    for (const CodeLine& line : problem_.code) {
      if (cut_.collapse && line.collapsed) {
        ++prompt_.collapsed_lines;
        continue;
      }
      lines.push_back(&line.text);
      if (!cut_.collapse) continue;
      auto note = std::lower_bound(problem_.collapse_notes.begin(), problem_.collapse_notes.end(),
                                   std::pair(line.node, std::string()));
      for (; note != problem_.collapse_notes.end() && note->first == line.node; ++note) lines.push_back(&note->second);
    }
    Some(lines.size(), "lines", [&](size_t i) { return *lines[i] + "\n"; });
  }

  void Values(Section s, std::string_view tag, const std::vector<ValueEntry>& list, uint32_t limit) {
    if (!Shown(s)) return;
    std::vector<const ValueEntry*> shown;
    for (const ValueEntry& v : list) {
      if (!cut_.collapse || !v.collapsed) shown.push_back(&v);
    }
    const auto one = [&](size_t i) { return TaggedValue(tag, *shown[i], limit, prompt_); };
    if (s == Section::kVariables || s == Section::kOutputs) {
      for (size_t i = 0; i < shown.size(); ++i) out_ += one(i);
    } else {
      Some(shown.size(), "values", one);
    }
    if (shown.size() < list.size()) out_ += Cat("...[", list.size() - shown.size(), " values of the calls left out]\n");
  }

  // All, or the first and last halves of cut_.lines.
  template <typename F>
  void Some(size_t count, std::string_view what, F one) {
    const size_t head = count <= cut_.lines ? count : cut_.lines / 2;
    const size_t tail = count <= cut_.lines ? count : count - (cut_.lines - head);
    for (size_t i = 0; i < head; ++i) out_ += one(i);
    if (tail > head) {
      out_ += Cat("...[", tail - head, " more ", what, "]\n");
      prompt_.omitted_lines += static_cast<uint32_t>(tail - head);
    }
    for (size_t i = tail; i < count; ++i) out_ += one(i);
  }

  void Rounds() {
    int number = 1;
    for (const MemoryRound& round : NewestRounds(options_.memory, cut_.memory)) {
      out_ += Cat("\n<round ", number++, ">\n");
      for (const auto& [name, value] : round.variables) out_ += Cat(name, "=", value, "\n");
      if (round.score) out_ += "score: " + FloatRepr(*round.score) + "\n";
      out_ += "feedback: " + round.feedback + "\n</round>\n";
    }
  }

  const ProblemInstance& problem_;
  const RenderOptions& options_;
  const Cut cut_;
  Prompt prompt_;
  std::string out_;
};

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
  const size_t lines = std::max({problem.code.size(), problem.others.size(), problem.inputs.size()});
  return FitPrompt(options.max_prompt_tokens, options.value_limit, options.memory.size(), lines,
                   problem.feedback.size(),
                   [&](const Cut& cut) { return TaggedRenderer(problem, options, cut).Run(); });
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

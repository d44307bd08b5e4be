#include "trace/optimizers/optoprime.h"

#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "trace/optimizers/json_value.h"
#include "trace/optimizers/python_text.h"

namespace optod::trace {
namespace {

constexpr double kMostListedValues = 64;   // an integer range up to this wide is listed value by value

// Small models tend to repeat the current value; where the allowed values are few, the schema offers every other one. A model that wants to keep a
// value leaves its key out.
std::string OtherValues(const ReplyParameter& p) {
  const Constraint& c = p.constraint;
  std::vector<std::string> allowed;
  if (p.type_name == "bool") {
    allowed = p.text == "True" ? std::vector<std::string>{"false"} : std::vector<std::string>{"true"};
  } else if (p.type_name == "int" && c.min && c.max && *c.max - *c.min <= kMostListedValues) {
    for (double v = std::ceil(*c.min); v <= *c.max; v += 1)
      if (FloatRepr(v) != p.text + ".0") allowed.push_back(std::to_string(static_cast<int64_t>(v)));
  } else if (p.type_name == "str") {
    for (const std::string& choice : c.enum_values)
      if (choice != p.text) allowed.push_back(QuoteJson(choice));
  }
  std::string out;
  for (const std::string& value : allowed) out += (out.empty() ? "" : ",") + value;
  return out;
}

// Schema of one value by its declared type. Types without a JSON form of their own go as text.
std::string ValueSchema(const ReplyParameter& p) {
  const Constraint& c = p.constraint;
  if (const std::string others = OtherValues(p); !others.empty()) return "{\"enum\":[" + others + "]}";
  std::string out = "{\"type\":";
  if (p.type_name == "int" || p.type_name == "float") {
    out += p.type_name == "int" ? "\"integer\"" : "\"number\"";
    if (c.min) out += ",\"minimum\":" + FloatRepr(*c.min);
    if (c.max) out += ",\"maximum\":" + FloatRepr(*c.max);
  } else if (p.type_name == "bool") {
    out += "\"boolean\"";
  } else if (p.type_name == "dict") {
    out += "\"object\"";
  } else if (p.type_name == "list" || p.type_name == "tuple" || p.type_name == "set") {
    out += "\"array\"";
  } else {
    out += "\"string\"";
    if (c.max_length) out += ",\"maxLength\":" + std::to_string(*c.max_length);
    if (!c.enum_values.empty()) {
      out += ",\"enum\":[";
      for (size_t i = 0; i < c.enum_values.size(); ++i) out += (i ? "," : "") + QuoteJson(c.enum_values[i]);
      out += "]";
    }
  }
  return out + "}";
}

}  // namespace

std::vector<CandidateRequest> SpreadCandidates(const CandidateRequest& request, uint32_t candidates,
                                               std::optional<double> temperature) {
  std::vector<CandidateRequest> out(candidates, request);
  for (uint32_t i = 0; i < candidates; ++i) {
    // From the top down to 0: the last of several candidates is the greedy one.
    out[i].temperature =
        candidates == 1 ? temperature : temperature.value_or(1.0) * (candidates - 1 - i) / (candidates - 1);
  }
  return out;
}

std::string ReplySchema(const std::vector<ReplyParameter>& parameters, PromptForm form) {
  std::string values, names;
  for (const ReplyParameter& p : parameters) {
    if (!p.trainable) continue;
    const std::string_view comma = values.empty() ? "" : ",";
    values += Cat(comma, QuoteJson(p.py_name), ":", ValueSchema(p));
    names += Cat(comma, QuoteJson(p.py_name));
  }
  const std::string object = R"({"type":"object","properties":{)";
  const std::string closed = R"("additionalProperties":false})";
  if (form == PromptForm::kBrief) {
    return Cat(object, R"("suggestion":)", object, values, R"(},"required":[)", names, "],", closed,
               R"(},"required":["suggestion"],)", closed);
  }
  return Cat(object, R"("reasoning":{"type":"string"},"answer":{"type":"string"},"suggestion":)", object, values, "},",
             closed, R"(},"required":["reasoning","answer","suggestion"],)", closed);
}

absl::StatusOr<std::vector<CandidateRequest>> BuildOptoPrimeRequests(const Graph& graph, const FeedbackStore& feedback,
                                                                     std::span<const NodeId> parameters,
                                                                     const std::vector<MemoryRound>& memory,
                                                                     const OptoPrimeOptions& options) {
  if (options.candidates == 0) return InvalidArgument("candidates: 0; must be at least 1");
  ASSIGN_OR_RETURN(const ProblemInstance problem, BuildProblem(graph, feedback, parameters, options.problem));
  const std::vector<ReplyParameter> reply_parameters = ReplyParameters(graph, parameters);
  const bool any = std::any_of(reply_parameters.begin(), reply_parameters.end(),
                               [](const ReplyParameter& p) { return p.trainable; });
  if (!any) return FailedPrecondition("parameters: none is trainable");
  RenderOptions render = options.render;
  render.memory = memory;
  CandidateRequest request{Render(problem, render), std::nullopt, ReplySchema(reply_parameters, render.form)};
  return SpreadCandidates(request, options.candidates, options.temperature);
}

Candidate ReadCandidate(std::string_view reply, const Graph& graph, std::span<const NodeId> parameters,
                        const ReplyOptions& options) {
  return MakeCandidate(ParseReply(reply, ReplyParameters(graph, parameters), options), parameters);
}

Candidate MakeCandidate(ReplyOutcome outcome, std::span<const NodeId> parameters) {
  Candidate out;
  out.outcome = std::move(outcome);
  for (const KeyResult& key : out.outcome.keys) {
    if (key.outcome != KeyOutcome::kApplied) continue;
    out.values.push_back({parameters[static_cast<size_t>(key.parameter)], key.new_text, key.new_json});
  }
  return out;
}

absl::Status ApplyCandidate(Graph& graph, const Candidate& candidate) {
  for (const NewValue& v : candidate.values) {
    if (!graph.Contains(v.node)) return NotFound("node ", v.node, ": does not exist");
    if (!graph.IsParameter(v.node)) return FailedPrecondition("node ", graph.Name(v.node), ": is no parameter");
  }
  for (const NewValue& v : candidate.values) {
    RETURN_IF_ERROR(graph.SetValue(v.node, v.text, v.json ? std::optional<std::string_view>(*v.json) : std::nullopt));
  }
  return absl::OkStatus();
}

MemoryRound MakeMemoryRound(const Graph& graph, std::span<const NodeId> parameters, const FeedbackStore& feedback,
                            std::optional<double> score) {
  MemoryRound round;
  for (NodeId id : parameters) {
    if (graph.Trainable(id)) round.variables.emplace_back(graph.PyName(id), std::string(graph.ValueText(id)));
  }
  round.feedback = feedback.JoinedText(graph);
  round.score = score;
  return round;
}

void PushMemory(std::vector<MemoryRound>& memory, MemoryRound round, uint32_t size) {
  memory.push_back(std::move(round));
  if (memory.size() > size) memory.erase(memory.begin(), memory.end() - size);
}

}  // namespace optod::trace

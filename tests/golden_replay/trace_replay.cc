#include "golden_replay/trace_replay.h"

#include <algorithm>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>

#include "base/status.h"
#include "golden_replay/trace_compare.h"
#include "trace/graph/graph_codec.h"
#include "trace/optimizers/optoprime.h"

namespace optod {
namespace {

using nlohmann::json;
using trace::Graph;
using trace::NodeId;

/// A recorded workflow in a graph.
struct Workflow {
  Graph graph;
  std::map<std::string, NodeId> ids;  // by recorded name
  trace::FeedbackStore feedback;
  std::vector<NodeId> parameters;
};

// Texts that a NodeInput only points at.
using Keep = std::deque<std::string>;

trace::NodeInput InputOf(const json& node, const std::map<std::string, NodeId>& ids, Keep& keep,
                         trace::Constraint& constraint) {
  auto view = [&](std::string text) -> std::string_view { return keep.emplace_back(std::move(text)); };
  const std::string name = node.at("name");
  trace::NodeInput in;
  in.base_name = view(name.substr(0, name.rfind(':')));
  in.kind = trace::ParseNodeKind(node.at("kind").get<std::string>()).value();
  in.type_name = view(node.at("value").at("type"));
  in.value_text = view(node.at("value").at("text"));
  if (node.at("value").contains("json")) in.value_json = view(node.at("value").at("json").dump());
  in.op = view(node.at("op"));
  if (node.contains("fun_name") && node.at("fun_name").is_string()) in.function_name = view(node.at("fun_name"));
  if (node.at("description").is_string()) in.description = view(node.at("description"));
  for (const json& input : node.value("inputs", json::array())) {
    in.inputs.push_back({view(input.at(0)), {ids.at(input.at(1)), false}});
  }
  for (const json& name_of_hidden : node.value("hidden_parameters", json::array())) {
    in.hidden_parameters.push_back({ids.at(name_of_hidden), false});
  }
  if (node.at("constraint").is_string()) {
    constraint.text = node.at("constraint");
    in.constraint = &constraint;
  }
  in.trainable = node.at("trainable");
  // A detached copy is a root that keeps its level.
  if (in.inputs.empty() && node.at("level").get<uint32_t>() > 0) in.level = node.at("level").get<uint32_t>();
  return in;
}

absl::StatusOr<Workflow> Load(const json& golden) {
  Workflow w;
  for (const json& node : golden.at("nodes")) {
    Keep keep;
    trace::Constraint constraint;
    const trace::NodeInput in = InputOf(node, w.ids, keep, constraint);
    ASSIGN_OR_RETURN(const std::vector<NodeId> added, w.graph.AddNodes({&in, 1}));
    w.ids[node.at("name")] = added[0];
  }
  for (const json& name : golden.at("optimizer_parameters")) w.parameters.push_back(w.ids.at(name));
  RETURN_IF_ERROR(
      w.feedback.Backward(w.graph, w.ids.at(golden.at("output")), golden.at("feedback").get<std::string>()));
  return w;
}

json ValuesOf(const std::vector<trace::ValueEntry>& values) {
  json out = json::object();
  for (const trace::ValueEntry& v : values) {
    out[v.py_name] = {{"type", v.type},
                      {"text", v.text},
                      {"hidden", v.hidden},
                      {"constraint", v.constraint.empty() ? json() : json(v.constraint)}};
  }
  return out;
}

absl::StatusOr<json> Observe(const Workflow& w) {
  json out;
  for (NodeId id = 0; id < w.graph.size(); ++id) {
    out["nodes"].push_back({{"name", w.graph.Name(id)}, {"py_name", w.graph.PyName(id)}, {"level", w.graph.Level(id)}});
  }
  ASSIGN_OR_RETURN(const trace::Subgraph sub, trace::ComputeSubgraph(w.graph, w.feedback.Outputs(), w.parameters));
  out["subgraph"] = json::array();
  for (NodeId id : sub.nodes) out["subgraph"].push_back({w.graph.Level(id), w.graph.Name(id)});
  out["parameters_with_feedback"] = json::array();
  for (NodeId id : sub.parameters) out["parameters_with_feedback"].push_back(w.graph.Name(id));
  ASSIGN_OR_RETURN(const trace::ProblemInstance problem, trace::BuildProblem(w.graph, w.feedback, w.parameters));
  out["code_lines"] = json::array();
  for (const trace::CodeLine& line : problem.code) out["code_lines"].push_back(line.text);
  out["documented_functions"] = json::object();
  for (const trace::DocumentationEntry& d : problem.documentation) out["documented_functions"][d.function] = d.text;
  out["variables"] = ValuesOf(problem.variables);
  out["inputs"] = ValuesOf(problem.inputs);
  out["others"] = ValuesOf(problem.others);
  out["outputs"] = ValuesOf(problem.outputs);
  return out;
}

json ObserveReply(const std::string& reply, const std::vector<trace::ReplyParameter>& parameters, bool reference_mode) {
  const trace::ReplyOutcome outcome = trace::ParseReply(reply, parameters, {.peer_compat = reference_mode});
  json out = {{"updated", json::object()}, {"warnings", 0}, {"fixes", outcome.fixes}};
  if (outcome.kind == trace::ReplyKind::kRaises) out["raises"] = outcome.reason;
  int warnings = 0;
  for (const trace::KeyResult& key : outcome.keys) {
    warnings += key.outcome == trace::KeyOutcome::kCastFailed;
    if (key.outcome != trace::KeyOutcome::kApplied) continue;
    const trace::ReplyParameter& p = parameters[static_cast<size_t>(key.parameter)];
    json value = {{"type", p.type_name}, {"text", key.new_text}};
    if (key.new_json) value["json"] = json::parse(*key.new_json);
    out["updated"][p.py_name] = std::move(value);
  }
  out["warnings"] = warnings;
  return out;
}

// Both modes: the recorded facts in reference mode, the documented outcome in the default one.
std::string ReplayReply(const json& golden, const std::vector<trace::ReplyParameter>& parameters) {
  for (bool reference_mode : {true, false}) {
    const json observed = ObserveReply(golden.at("reply"), parameters, reference_mode);
    const std::string difference = CompareReply(golden, observed, reference_mode);
    if (!difference.empty()) return (reference_mode ? "reference mode: " : "default mode: ") + difference;
  }
  return {};
}

std::string ReplayWorkflow(const json& golden) {
  absl::StatusOr<Workflow> w = Load(golden);
  if (!w.ok()) return std::string(w.status().message());
  absl::StatusOr<json> observed = Observe(*w);
  if (!observed.ok()) return std::string(observed.status().message());
  if (std::string difference = CompareWorkflow(golden, *observed); !difference.empty()) return difference;

  // The stored form of every node gives the same graph again.
  Graph restored;
  for (NodeId id = 0; id < w->graph.size(); ++id) {
    const std::string bytes = trace::EncodeNode(w->graph, id);
    const absl::StatusOr<NodeId> again = trace::RestoreNode(restored, bytes);
    if (!again.ok()) return std::string(again.status().message());
    if (trace::EncodeNode(restored, *again) != bytes) return "stored form of " + w->graph.Name(id) + " changes";
  }
  if (!golden.contains("reply_case") || golden.at("reply_case").is_null()) return {};
  const std::string difference = ReplayReply(ReplyCaseOf(golden), trace::ReplyParameters(w->graph, w->parameters));
  return difference.empty() ? difference : "reply_case: " + difference;
}

// How Python prints a JSON value: what the client would have sent as text.
std::string TextOf(const json& value, const std::string& type) {
  const std::vector<trace::ReplyParameter> one = {{.py_name = "v", .type_name = type}};
  const json reply = {{"suggestion", {{"v", value}}}};
  const trace::ReplyOutcome cast = trace::ParseReply(reply.dump(), one, {.peer_compat = true});
  return cast.keys.empty() ? std::string() : cast.keys[0].new_text;
}

std::string ReplayReplies(const json& golden) {
  std::vector<trace::ReplyParameter> parameters;
  for (const auto& [name, p] : golden.at("parameters").items()) {
    trace::ReplyParameter parameter;
    parameter.py_name = name;
    parameter.type_name = p.at("type");
    parameter.text =
        p.at("value").is_string() ? p.at("value").get<std::string>() : TextOf(p.at("value"), parameter.type_name);
    parameter.json = p.at("value").dump();
    parameter.is_code = name.find("__code") != std::string::npos;
    parameters.push_back(std::move(parameter));
  }
  const json& cases = golden.at("cases");
  for (size_t i = 0; i < cases.size(); ++i) {
    const std::string difference = ReplayReply(cases[i], parameters);
    if (!difference.empty())
      return "cases[" + std::to_string(i) + "] " + cases[i].at("reply").dump() + ": " + difference;
  }
  return {};
}

}  // namespace

CaseResult ReplayTraceFile(const std::string& path) {
  CaseResult result;
  result.name = std::filesystem::path(path).stem().string();
  try {
    std::ifstream in(path);
    const json golden = json::parse(in);
    result.first_difference = golden.contains("cases") ? ReplayReplies(golden) : ReplayWorkflow(golden);
  } catch (const std::exception& error) {
    result.first_difference = std::string("cannot be replayed: ") + error.what();
  }
  result.passed = result.first_difference.empty();
  return result;
}

std::vector<CaseResult> ReplayTraceGolden(const std::string& dir) {
  std::error_code error;
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(dir, error)) {
    if (entry.path().extension() == ".json") files.push_back(entry.path().string());
  }
  if (error || files.empty()) return {{dir, false, error ? error.message() : "holds no *.json"}};
  std::sort(files.begin(), files.end());
  std::vector<CaseResult> results;
  for (const std::string& file : files) results.push_back(ReplayTraceFile(file));
  return results;
}

}  // namespace optod

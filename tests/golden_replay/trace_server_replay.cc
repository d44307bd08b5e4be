#include "golden_replay/trace_server_replay.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>

#include "base/status.h"
#include "clients/cli/optimize/private_server.h"
#include "clients/cpp/client.h"
#include "golden_replay/trace_compare.h"

namespace optod {
namespace {

using nlohmann::json;

v1::Node NodeOf(const json& node, const std::map<std::string, int64_t>& ids) {
  static const std::map<std::string, v1::Node::Kind> kKinds = {{"node", v1::Node::NODE},
                                                               {"parameter", v1::Node::PARAMETER},
                                                               {"message", v1::Node::MESSAGE},
                                                               {"exception", v1::Node::EXCEPTION}};
  const std::string name = node.at("name");
  v1::Node out;
  out.set_base(name.substr(0, name.rfind(':')));
  out.set_kind(kKinds.at(node.at("kind")));
  out.set_type(node.at("value").at("type"));
  out.set_text(node.at("value").at("text"));
  if (node.at("value").contains("json")) out.set_json(node.at("value").at("json").dump());
  out.set_op(node.at("op"));
  if (node.contains("fun_name") && node.at("fun_name").is_string()) out.set_function(node.at("fun_name"));
  if (node.at("description").is_string()) out.set_description(node.at("description"));
  for (const json& input : node.value("inputs", json::array())) {
    v1::NodeInput* in = out.add_inputs();
    in->set_argument(input.at(0));
    in->set_node(ids.at(input.at(1)));
  }
  for (const json& hidden : node.value("hidden_parameters", json::array())) out.add_hidden_parameters(ids.at(hidden));
  if (node.at("constraint").is_string()) out.set_constraint(node.at("constraint"));
  out.set_trainable(node.at("trainable"));
  // A detached copy is a root that keeps its level.
  if (out.inputs().empty() && node.at("level").get<int64_t>() > 0) out.set_level(node.at("level"));
  return out;
}

json ValuesOf(const google::protobuf::RepeatedPtrField<v1::ProblemValue>& values) {
  json out = json::object();
  for (const v1::ProblemValue& v : values) {
    out[v.name()] = {{"type", v.type()},
                     {"text", v.text()},
                     {"hidden", v.hidden()},
                     {"constraint", v.constraint().empty() ? json() : json(v.constraint())}};
  }
  return out;
}

class ServerReplay {
 public:
  ServerReplay(client::Client& client, CannedModel& model) : client_(client), model_(model) {}

  absl::StatusOr<std::string> Workflow(const json& golden) {
    RETURN_IF_ERROR(Create({}));
    RETURN_IF_ERROR(Record(golden.at("nodes")));
    v1::BackwardRequest backward;
    backward.set_session(session_);
    backward.set_output_node(ids_.at(golden.at("output")));
    backward.set_feedback(golden.at("feedback").get<std::string>());
    ASSIGN_OR_RETURN(const v1::BackwardResponse reached, client_.Backward(backward));
    ASSIGN_OR_RETURN(const json observed, Observe(golden, reached));
    if (std::string difference = CompareWorkflow(golden, observed); !difference.empty()) return difference;
    if (!golden.contains("reply_case") || golden.at("reply_case").is_null()) return std::string();
    ASSIGN_OR_RETURN(std::string difference, Reply(ReplyCaseOf(golden), golden.at("optimizer_parameters")));
    return difference.empty() ? difference : "reply_case: " + difference;
  }

  // Every case on a fresh session with the file's parameters.
  absl::StatusOr<std::string> Replies(const json& golden) {
    const json& cases = golden.at("cases");
    for (size_t i = 0; i < cases.size(); ++i) {
      RETURN_IF_ERROR(Create(golden.at("parameters")));
      json names = json::array();
      for (const auto& [py_name, p] : golden.at("parameters").items()) names.push_back(py_name);
      RETURN_IF_ERROR(JudgeParameters(names));
      ASSIGN_OR_RETURN(std::string difference, Reply(cases[i], names));
      if (!difference.empty()) return Cat("cases[", i, "] ", cases[i].at("reply").dump(), ": ", difference);
    }
    return std::string();
  }

 private:
  // `parameters`: py_name -> {type, value}; a py_name is base and index 0.
  absl::Status Create(const json& parameters) {
    v1::CreateSessionRequest request;
    request.mutable_optimizer()->set_name("optoprime");
    for (const auto& [py_name, p] : parameters.items()) {
      v1::ParameterSpec* spec = request.add_parameters();
      spec->set_name(py_name.substr(0, py_name.size() - 1));
      spec->set_type(p.at("type"));
      const json& value = p.at("value");
      if (value.is_string())
        spec->mutable_initial()->set_text(value);
      else
        spec->mutable_initial()->set_json(value.dump());
    }
    ASSIGN_OR_RETURN(const v1::Session session, client_.CreateSession(request));
    session_ = session.name();
    ids_.clear();
    return List();
  }

  absl::Status Record(const json& nodes) {
    for (const json& node : nodes) {
      v1::RecordNodesRequest request;
      request.set_session(session_);
      *request.add_nodes() = NodeOf(node, ids_);
      ASSIGN_OR_RETURN(const v1::RecordNodesResponse response, client_.RecordNodes(request));
      ids_[node.at("name")] = response.nodes(0).id();
    }
    return List();
  }

  absl::Status List() {
    nodes_.clear();
    v1::ListNodesRequest request;
    request.set_session(session_);
    request.set_page_size(7);  // several pages
    do {
      ASSIGN_OR_RETURN(v1::ListNodesResponse page, client_.ListNodes(request));
      for (v1::Node& node : *page.mutable_nodes()) {
        ids_[node.py_name()] = node.id();
        nodes_.push_back(std::move(node));
      }
      request.set_page_token(page.next_page_token());
    } while (!request.page_token().empty());
    return absl::OkStatus();
  }

  // One call on all parameters and feedback on it.
  absl::Status JudgeParameters(const json& names) {
    v1::RecordNodesRequest record;
    record.set_session(session_);
    v1::Node* call = record.add_nodes();
    call->set_base("f");
    call->set_kind(v1::Node::MESSAGE);
    call->set_op("f");
    call->set_type("int");
    call->set_text("1");
    for (const json& name : names) {
      v1::NodeInput* input = call->add_inputs();
      input->set_argument(name);
      input->set_node(ids_.at(name));
    }
    ASSIGN_OR_RETURN(const v1::RecordNodesResponse recorded, client_.RecordNodes(record));
    v1::BackwardRequest backward;
    backward.set_session(session_);
    backward.set_output_node(recorded.nodes(0).id());
    backward.set_feedback("too low");
    return client_.Backward(backward).status();
  }

  absl::StatusOr<json> Observe(const json& golden, const v1::BackwardResponse& reached) {
    json out = {{"nodes", json::array()}, {"subgraph", json::array()}, {"parameters_with_feedback", json::array()}};
    for (const v1::Node& node : nodes_)
      out["nodes"].push_back({{"name", node.name()}, {"py_name", node.py_name()}, {"level", node.level()}});
    v1::GetProblemRequest request;
    request.set_session(session_);
    std::vector<int64_t> own;
    for (const json& name : golden.at("optimizer_parameters")) own.push_back(ids_.at(name));
    request.mutable_parameters()->Assign(own.begin(), own.end());
    ASSIGN_OR_RETURN(const v1::Problem problem, client_.GetProblem(request));
    for (int64_t id : problem.subgraph()) {
      const v1::Node& node = nodes_[static_cast<size_t>(id)];
      out["subgraph"].push_back({node.level(), node.name()});
    }
    for (int64_t id : reached.parameters()) {
      if (std::find(own.begin(), own.end(), id) != own.end())
        out["parameters_with_feedback"].push_back(nodes_[static_cast<size_t>(id)].name());
    }
    out["code_lines"] = problem.code_lines();
    out["documented_functions"] = json::object();
    for (const auto& [function, text] : problem.documentation()) out["documented_functions"][function] = text;
    out["variables"] = ValuesOf(problem.variables());
    out["inputs"] = ValuesOf(problem.inputs());
    out["others"] = ValuesOf(problem.others());
    out["outputs"] = ValuesOf(problem.outputs());
    if (problem.feedback() != golden.at("feedback")) return Internal("feedback: got ", problem.feedback());
    return out;
  }

  // Proposes with the recorded reply; the outcome and the version that it made must agree with the file and with each
  // other.
  absl::StatusOr<std::string> Reply(const json& golden, const json& parameters) {
    model_.Answer(golden.at("reply"));
    v1::ProposeRequest request;
    request.set_session(session_);
    request.set_apply(true);
    for (const json& name : parameters) request.add_parameters(ids_.at(name));
    ASSIGN_OR_RETURN(const v1::ProposeResponse response, client_.ProposeAndWait(request));
    if (response.candidates_size() != 1) return Cat("got ", response.candidates_size(), " candidates");
    const v1::CandidateOutcome& outcome = response.candidates(0);
    json observed = {{"updated", json::object()}, {"fixes", json::array()}};
    for (const std::string& fix : outcome.fixes()) observed["fixes"].push_back(fix);
    for (const v1::KeyOutcome& key : outcome.keys()) {
      if (key.kind() != v1::KEY_APPLIED) continue;
      const v1::Node& node =
          nodes_.at(static_cast<size_t>(ids_.at(ids_.contains(key.key()) ? key.key() : Without(key.key()))));
      json value = {{"type", node.type()}, {"text", key.new_text()}};
      if (!key.new_json().empty()) value["json"] = json::parse(key.new_json());
      observed["updated"][node.py_name()] = value;
    }
    if (outcome.has_version() == observed["updated"].empty())
      return Cat("version and values disagree: ", outcome.ShortDebugString());
    const std::string reply = golden.at("reply");
    if (reply.empty() != (outcome.kind() == v1::REPLY_EMPTY))
      return Cat("reply kind: ", v1::ReplyKind_Name(outcome.kind()));
    if (outcome.has_version()) RETURN_IF_ERROR(CheckVersion(outcome));
    return CompareReply(golden, observed, /*reference_mode=*/false);
  }

  static std::string Without(std::string name) {
    name.erase(std::remove(name.begin(), name.end(), ':'), name.end());
    return name;
  }

  // The new version is the head and holds what the outcome says; the node shows it too.
  absl::Status CheckVersion(const v1::CandidateOutcome& outcome) {
    v1::GetSessionRequest get;
    get.set_name(session_);
    ASSIGN_OR_RETURN(const v1::Session session, client_.GetSession(get));
    if (session.head_version() != outcome.version())
      return Internal("head: ", session.head_version(), ", want ", outcome.version());
    RETURN_IF_ERROR(List());
    for (const v1::KeyOutcome& key : outcome.keys()) {
      if (key.kind() != v1::KEY_APPLIED) continue;
      const v1::Node& node = nodes_.at(static_cast<size_t>(ids_.at(Without(key.key()))));
      if (node.text() != key.new_text()) return Internal(node.name(), ": is ", node.text(), ", want ", key.new_text());
    }
    return absl::OkStatus();
  }

  client::Client& client_;
  CannedModel& model_;
  std::string session_;
  std::map<std::string, int64_t> ids_;  // by name and by py_name
  std::vector<v1::Node> nodes_;
};

CaseResult ReplayFile(const std::string& path, client::Client& client, CannedModel& model) {
  CaseResult result;
  result.name = std::filesystem::path(path).stem().string();
  try {
    std::ifstream in(path);
    const json golden = json::parse(in);
    ServerReplay replay(client, model);
    const absl::StatusOr<std::string> difference =
        golden.contains("cases") ? replay.Replies(golden) : replay.Workflow(golden);
    result.first_difference = difference.ok() ? *difference : difference.status().ToString();
  } catch (const std::exception& error) {
    result.first_difference = std::string("cannot be replayed: ") + error.what();
  }
  result.passed = result.first_difference.empty();
  return result;
}

}  // namespace

std::vector<CaseResult> ReplayTraceThroughServer(const std::string& dir, const std::string& address,
                                                 CannedModel& model) {
  std::error_code error;
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(dir, error)) {
    if (entry.path().extension() == ".json") files.push_back(entry.path().string());
  }
  if (error || files.empty()) return {{dir, false, error ? error.message() : "holds no *.json"}};
  std::sort(files.begin(), files.end());
  client::ClientOptions options = client::OptionsFromEnv();
  options.address = address;
  auto client = client::Client::Connect(options);
  if (!client.ok()) return {{address, false, client.status().ToString()}};
  std::vector<CaseResult> results;
  for (const std::string& file : files) results.push_back(ReplayFile(file, **client, model));
  return results;
}

std::vector<CaseResult> ReplayTraceThroughOwnServer(const std::string& dir) {
  CannedModel model;
  setenv("OPTOD_LLM_URL", model.url().c_str(), 1);  // the server's environment is ours
  setenv("OPTOD_LLM_MODEL", "canned", 1);
  unsetenv("OPTOD_LLM_KEY");
  auto server = cli::PrivateServer::Start({});
  if (!server.ok()) return {{"optod", false, server.status().ToString()}};
  return ReplayTraceThroughServer(dir, (*server)->address(), model);
}

}  // namespace optod

#include "server/engine/trace_family.h"

#include <algorithm>

#include "base/status.h"
#include "trace/llm/gateway.h"
#include "server/engine/engine_impl.h"
#include "server/engine/trace_search.h"
#include "trace/optimizers/constraint_check.h"

namespace optod::engine {
namespace {

using trace::NodeId;

constexpr int kMaxNodesPerCall = 10'000;
constexpr int64_t kNodePage = 4096;

bool IsIdentifier(const std::string& name) {
  if (name.empty() || name.size() > 255 || (name[0] >= '0' && name[0] <= '9')) return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
  });
}

store::ObservationRow Observation(int64_t session_uid, const std::string& kind, int64_t a, int64_t b, std::string payload) {
  store::ObservationRow row;
  row.session_uid = session_uid;
  row.kind = kind;
  row.a = a;
  row.b = b;
  row.payload = std::move(payload);
  return row;
}

v1::MemoryRound RoundToWire(const trace::MemoryRound& round) {
  v1::MemoryRound out;
  for (const auto& [name, value] : round.variables) {
    out.add_names(name);
    out.add_values(value);
  }
  out.set_feedback(round.feedback);
  if (round.score) out.set_score(*round.score);
  return out;
}

trace::MemoryRound RoundFromWire(const v1::MemoryRound& round) {
  trace::MemoryRound out;
  for (int i = 0; i < round.names_size() && i < round.values_size(); ++i) out.variables.emplace_back(round.names(i), round.values(i));
  out.feedback = round.feedback();
  if (round.has_score()) out.score = round.score();
  return out;
}

v1::KeyOutcomeKind ToWire(trace::KeyOutcome outcome) {
  switch (outcome) {
    case trace::KeyOutcome::kApplied: return v1::KEY_APPLIED;
    case trace::KeyOutcome::kUnchanged: return v1::KEY_UNCHANGED;
    case trace::KeyOutcome::kCastFailed: return v1::KEY_CAST_FAILED;
    case trace::KeyOutcome::kUnknownKey: return v1::KEY_UNKNOWN;
    case trace::KeyOutcome::kNotTrainable: return v1::KEY_NOT_TRAINABLE;
    case trace::KeyOutcome::kConstraintRejected: return v1::KEY_CONSTRAINT_REJECTED;
    case trace::KeyOutcome::kSkippedBlankCode: return v1::KEY_SKIPPED;
  }
  return v1::KEY_OUTCOME_UNSPECIFIED;
}

v1::ReplyKind ToWire(trace::ReplyKind kind) {
  switch (kind) {
    case trace::ReplyKind::kApplied: return v1::REPLY_APPLIED;
    case trace::ReplyKind::kNothingApplied: return v1::REPLY_UNCHANGED;
    case trace::ReplyKind::kNoUpdateRequested: return v1::REPLY_STOP;
    case trace::ReplyKind::kEmpty: return v1::REPLY_EMPTY;
    case trace::ReplyKind::kUnparsable:
    case trace::ReplyKind::kRaises: return v1::REPLY_UNPARSABLE;
  }
  return v1::REPLY_KIND_UNSPECIFIED;
}

absl::Status Create(Context&, const v1::CreateSessionRequest& request, v1::Session* session, store::VersionRow* version0, Effects* effects) {
  std::vector<v1::Node> nodes;
  std::map<std::string, int> seen;
  for (int i = 0; i < request.parameters_size(); ++i) {
    const v1::ParameterSpec& spec = request.parameters(i);
    const std::string field = Cat("parameters[", i, "]");
    if (!IsIdentifier(spec.name())) return InvalidArgument(field, ".name: \"", spec.name(), "\" must match [A-Za-z_][A-Za-z0-9_]*");
    if (!seen.emplace(spec.name(), i).second) return InvalidArgument(field, ".name: \"", spec.name(), "\" stands twice");
    ASSIGN_OR_RETURN(v1::Node node, NodeOfParameter(spec, field));
    session->mutable_parameters(i)->set_type(node.type());
    nodes.push_back(std::move(node));
  }
  if (!request.initial().empty()) return InvalidArgument("initial: trace sessions have parameters, not tensors");
  trace::Graph graph;
  auto ids = AddWireNodes(graph, nodes);
  if (!ids.ok()) return ids.status();
  store::InsertNodes rows;
  for (size_t i = 0; i < nodes.size(); ++i) rows.rows.push_back({0, static_cast<int64_t>(i), nodes[i].SerializeAsString()});
  if (!rows.rows.empty()) effects->mutations.push_back(std::move(rows));
  v1::Version version;
  version.set_kind("initial");
  version0->payload = version.SerializeAsString();
  session->set_has_values(true);
  return absl::OkStatus();
}

/// A fork gets the whole trace, with the parameters standing at the version.
absl::Status Fork(Context& context, LiveSession& source, int64_t version, LiveSession& fork, store::VersionRow* version0, Effects* effects) {
  for (int64_t first = 0;;) {
    ASSIGN_OR_RETURN(auto rows, context.store->ListNodes(source.row.uid, first, kNodePage));
    if (rows.empty()) break;
    first = rows.back().id + 1;
    for (store::NodeRow& row : rows) row.session_uid = fork.row.uid;
    effects->mutations.push_back(store::InsertNodes{std::move(rows)});
  }
  ASSIGN_OR_RETURN(TraceFamily * family, AsTrace(source));
  v1::Version values;
  values.set_number(version);
  RETURN_IF_ERROR(family->FillVersion(source, &values));
  v1::Version initial;
  initial.set_kind("initial");
  *initial.mutable_values() = values.values();
  version0->payload = initial.SerializeAsString();
  return absl::OkStatus();
}

}  // namespace

FamilyFactory MakeTraceFamilyFactory() {
  FamilyFactory factory;
  factory.optimizers = {"optoprime", "optoprime-multi", "optoprime-v2", "opro", "textgrad"};
  factory.create = Create;
  factory.load = TraceFamily::Load;
  factory.fork = Fork;
  return factory;
}

absl::StatusOr<TraceFamily*> AsTrace(LiveSession& session) {
  if (auto* family = dynamic_cast<TraceFamily*>(session.family.get())) return family;
  return FailedPrecondition("session ", session.name().Full(), " has optimizer ", session.proto.optimizer().name(), ", which has no trace");
}

TraceFamily::TraceFamily(Context& context) : context_(context), searches_(std::make_unique<TraceSearches>(*this)) {}
TraceFamily::~TraceFamily() = default;

// ---- loading

absl::StatusOr<std::unique_ptr<Family>> TraceFamily::Load(Context& context, LiveSession& session) {
  std::unique_ptr<TraceFamily> family(new TraceFamily(context));
  RETURN_IF_ERROR(family->LoadNodes(session));
  ASSIGN_OR_RETURN(Values values, family->ValuesAt(session, session.row.head_version));
  RETURN_IF_ERROR(family->SetGraphValues(values));
  ASSIGN_OR_RETURN(store::VersionRow head, context.store->GetVersion(session.row.uid, session.row.head_version));
  family->head_step_ = head.step;
  RETURN_IF_ERROR(family->LoadFeedback(session));
  RETURN_IF_ERROR(family->replies_.Load(*context.store, session.row.uid));
  RETURN_IF_ERROR(family->searches_->Load(session));
  return std::unique_ptr<Family>(std::move(family));
}

absl::Status TraceFamily::LoadNodes(LiveSession& session) {
  for (int64_t first = 0;;) {
    ASSIGN_OR_RETURN(auto rows, context_.store->ListNodes(session.row.uid, first, kNodePage));
    if (rows.empty()) return absl::OkStatus();
    std::vector<v1::Node> nodes(rows.size());
    for (size_t i = 0; i < rows.size(); ++i)
      if (!nodes[i].ParseFromString(rows[i].payload)) return DataLoss("node ", rows[i].id, " of ", session.name().Full(), " cannot be read");
    // Rows hold absolute ids; a call names its own nodes by -1-i.
    const auto relative = [&](int64_t node) { return node < rows.front().id ? node : -1 - (node - rows.front().id); };
    for (v1::Node& node : nodes) {
      for (auto& input : *node.mutable_inputs()) input.set_node(relative(input.node()));
      for (auto& hidden : *node.mutable_hidden_parameters()) hidden = relative(hidden);
    }
    auto ids = AddWireNodes(graph_, nodes);
    if (!ids.ok()) return DataLoss("the trace of ", session.name().Full(), " cannot be rebuilt: ", std::string(ids.status().message()));
    for (NodeId id : *ids) Register(id);
    first = rows.back().id + 1;
  }
}

absl::Status TraceFamily::LoadFeedback(LiveSession& session) {
  ASSIGN_OR_RETURN(auto feedback, context_.store->ListObservations(session.row.uid, "feedback", 0, INT64_MAX));
  for (const auto& row : feedback) {
    RETURN_IF_ERROR(feedback_.Backward(graph_, static_cast<NodeId>(row.b), row.payload));
    next_feedback_ = row.a + 1;
  }
  ASSIGN_OR_RETURN(auto memory, context_.store->ListObservations(session.row.uid, "memory", 0, INT64_MAX));
  for (const auto& row : memory) {
    v1::MemoryRound round;
    round.ParseFromString(row.payload);
    memory_.push_back(RoundFromWire(round));
    next_memory_ = row.a + 1;
  }
  return absl::OkStatus();
}

void TraceFamily::Register(NodeId id) {
  if (!graph_.IsParameter(id)) return;
  parameters_.push_back(id);
  TraceValue value{std::string(graph_.ValueText(id)), std::nullopt};
  if (auto json = graph_.ValueJson(id)) value.json = std::string(*json);
  initial_[id] = std::move(value);
}

std::vector<NodeId> TraceFamily::Trainable() const {
  std::vector<NodeId> out;
  for (NodeId id : parameters_)
    if (graph_.Trainable(id)) out.push_back(id);
  return out;
}

std::string TraceFamily::KeyOf(LiveSession& session, NodeId id) const {
  if (static_cast<int>(id) < session.proto.parameters_size()) return session.proto.parameters(static_cast<int>(id)).name();
  return graph_.Name(id);
}

absl::StatusOr<NodeId> TraceFamily::FindParameter(const std::string& key) const {
  NodeId id = graph_.FindByName(key);
  if (id == trace::kNoNode) id = graph_.FindByName(key + ":0");
  if (id == trace::kNoNode || !graph_.IsParameter(id)) return InvalidArgument("values: \"", key, "\" is no parameter of this session");
  return id;
}

absl::StatusOr<TraceFamily::Values> TraceFamily::ValuesAt(LiveSession& session, int64_t version) {
  Values out;
  WaitDurable(*context_.store, session);
  for (int64_t at = version; at >= 0 && out.size() < parameters_.size();) {
    ASSIGN_OR_RETURN(store::VersionRow row, context_.store->GetVersion(session.row.uid, at));
    v1::Version payload;
    payload.ParseFromString(row.payload);
    for (const auto& [key, value] : payload.values()) {
      auto id = FindParameter(key);
      if (!id.ok() || out.contains(*id)) continue;
      ASSIGN_OR_RETURN(out[*id], FromWire(value, std::string(graph_.TypeName(*id)), "values." + key));
    }
    at = row.parent;
  }
  for (const auto& [id, value] : initial_) out.emplace(id, value);
  return out;
}

absl::Status TraceFamily::SetGraphValues(const Values& values) {
  for (const auto& [id, value] : values) {
    std::optional<std::string_view> json;
    if (value.json) json = *value.json;
    RETURN_IF_ERROR(graph_.SetValue(id, value.text, json));
  }
  return absl::OkStatus();
}

// ---- Family

absl::StatusOr<v1::AskResponse> TraceFamily::Ask(LiveSession& session, const v1::AskRequest& request, const Caller&) {
  v1::AskResponse out;
  out.set_head_version(session.row.head_version);
  out.set_seq(session.row.seq);
  const int count = request.count() == 0 ? 1 : request.count();
  const int64_t first = session.row.head_version + 1;
  ASSIGN_OR_RETURN(auto rows, context_.store->ListVersions(session.row.uid, first, session.row.version_count, 1000));
  std::vector<int64_t> wanted;
  for (const auto& row : rows) {
    v1::Version version;
    version.ParseFromString(row.payload);
    if (version.kind() == "candidate" && !version.has_score() && static_cast<int>(wanted.size()) < count) wanted.push_back(row.number);
  }
  if (wanted.empty()) wanted.push_back(session.row.head_version);
  for (int64_t number : wanted) {
    v1::Version version;
    version.set_number(number);
    RETURN_IF_ERROR(FillVersion(session, &version));
    v1::Point* point = out.add_points();
    point->set_version(number);
    *point->mutable_values() = version.values();
  }
  return out;
}

absl::Status TraceFamily::Tell(LiveSession&, const v1::TellRequest&, v1::TellResponse*, Effects*) {
  return InvalidArgument("observation: trace sessions are told scores here and feedback by TraceService.Backward, not gradients or losses");
}

absl::Status TraceFamily::MoveHead(LiveSession& session, const store::VersionRow& version, Effects* effects) {
  ASSIGN_OR_RETURN(Values values, ValuesAt(session, version.number));
  RETURN_IF_ERROR(SetGraphValues(values));
  head_step_ = version.step;
  if (version.number != session.row.head_version) DropFeedback(session, effects);   // it was about other values
  return absl::OkStatus();
}

absl::Status TraceFamily::FillVersion(LiveSession& session, v1::Version* version) {
  ASSIGN_OR_RETURN(Values values, ValuesAt(session, version->number()));
  version->clear_values();
  for (const auto& [id, value] : values) (*version->mutable_values())[KeyOf(session, id)] = engine::ToWire(std::string(graph_.TypeName(id)), value);
  return absl::OkStatus();
}

// ---- nodes and feedback

absl::Status TraceFamily::RecordNodes(LiveSession& session, const v1::RecordNodesRequest& request, v1::RecordNodesResponse* response,
                                      Effects* effects) {
  if (request.nodes_size() > kMaxNodesPerCall) return InvalidArgument("nodes: ", request.nodes_size(), " nodes; at most ", kMaxNodesPerCall);
  std::vector<v1::Node> nodes(request.nodes().begin(), request.nodes().end());
  ASSIGN_OR_RETURN(std::vector<NodeId> ids, AddWireNodes(graph_, nodes));
  store::InsertNodes rows;
  rows.rows.reserve(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    Register(ids[i]);
    rows.rows.push_back({session.row.uid, ids[i], nodes[i].SerializeAsString()});
    v1::RecordedNode* out = response->add_nodes();
    out->set_id(ids[i]);
    out->set_name(graph_.Name(ids[i]));
    out->set_level(graph_.Level(ids[i]));
  }
  effects->row_changed = false;
  if (!rows.rows.empty()) effects->mutations.push_back(std::move(rows));
  return absl::OkStatus();
}

absl::Status TraceFamily::Backward(LiveSession& session, const v1::BackwardRequest& request, v1::BackwardResponse* response, Effects* effects) {
  if (request.feedback().empty()) return InvalidArgument("feedback: empty; say how the result was");
  if (request.feedback().size() > (1u << 20)) return InvalidArgument("feedback: ", request.feedback().size(), " bytes; at most 1 MiB");
  if (request.output_node() < 0 || request.output_node() >= graph_.size())
    return NotFound("output_node: ", request.output_node(), " does not exist; the trace has nodes 0 to ", static_cast<int64_t>(graph_.size()) - 1);
  const auto output = static_cast<NodeId>(request.output_node());
  RETURN_IF_ERROR(feedback_.Backward(graph_, output, request.feedback()));
  effects->mutations.push_back(
      store::PutObservation{Observation(session.row.uid, "feedback", next_feedback_++, request.output_node(), request.feedback())});
  auto subgraph = trace::ComputeSubgraph(graph_, feedback_.Outputs(), Trainable());
  if (subgraph.ok()) {
    response->set_subgraph_nodes(static_cast<int64_t>(subgraph->nodes.size()));
    for (NodeId id : subgraph->parameters) response->add_parameters(id);
  }
  response->set_feedback_count(static_cast<int64_t>(feedback_.entries().size()));
  return absl::OkStatus();
}

void TraceFamily::DropFeedback(LiveSession& session, Effects* effects) {
  if (feedback_.empty()) return;
  feedback_.ZeroFeedback();
  effects->mutations.push_back(store::DeleteObservations{session.row.uid, "feedback", INT64_MAX});
}

void TraceFamily::ZeroFeedback(LiveSession& session, v1::ZeroFeedbackResponse* response, Effects* effects) {
  response->set_dropped(static_cast<int64_t>(feedback_.entries().size()));
  DropFeedback(session, effects);
}

absl::StatusOr<std::vector<NodeId>> TraceFamily::Chosen(const google::protobuf::RepeatedField<int64_t>& ids) const {
  if (ids.empty()) return Trainable();
  std::vector<NodeId> out;
  for (int64_t id : ids) {
    if (id < 0 || id >= graph_.size()) return NotFound("parameters: node ", id, " does not exist");
    out.push_back(static_cast<NodeId>(id));
  }
  return out;
}

// ---- versions

store::VersionRow TraceFamily::MakeVersion(LiveSession& session, int64_t parent, const Values& changed, const std::string& kind,
                                           const std::string& note, const v1::Usage* cost) {
  v1::Version version;
  version.set_kind(kind);
  version.set_note(note);
  if (cost != nullptr && cost->llm_calls() > 0) *version.mutable_cost() = *cost;
  for (const auto& [id, value] : changed)
    (*version.mutable_values())[KeyOf(session, id)] = engine::ToWire(std::string(graph_.TypeName(id)), value);
  int64_t parent_step = head_step_;
  if (parent != session.row.head_version) {
    WaitDurable(*context_.store, session);
    auto parent_row = context_.store->GetVersion(session.row.uid, parent);
    if (parent_row.ok()) parent_step = parent_row->step;
  }
  store::VersionRow row = session.NewVersion(&version, parent_step, context_.clock->NowUnixMs());
  row.parent = parent;
  version.set_parent(parent);
  row.payload = version.SerializeAsString();
  return row;
}

absl::Status TraceFamily::SetValues(LiveSession& session, const v1::SetValuesRequest& request, v1::Version* out, Effects* effects) {
  if (request.values().empty()) return InvalidArgument("values: empty; name at least one parameter");
  Values changed;
  for (const auto& [key, value] : request.values()) {
    ASSIGN_OR_RETURN(NodeId id, FindParameter(key));
    const std::string type(graph_.TypeName(id));
    ASSIGN_OR_RETURN(TraceValue cast, FromWire(value, type, "values." + key));
    if (const trace::Constraint* constraint = graph_.ConstraintOf(id)) RETURN_IF_ERROR(CheckAllowed(*constraint, type, cast, "values." + key));
    changed[id] = std::move(cast);
  }
  store::VersionRow row = MakeVersion(session, session.row.head_version, changed, request.keep_head() ? "candidate" : "set", request.note());
  effects->mutations.push_back(store::InsertVersion{row});
  *out = VersionFromRow(row, session.name());
  if (!request.keep_head()) {
    RETURN_IF_ERROR(SetGraphValues(changed));
    DropFeedback(session, effects);
    session.row.head_version = row.number;
    head_step_ = row.step;
    ++session.row.seq;
  }
  return absl::OkStatus();
}

// ---- proposals

absl::StatusOr<ProposalSpec> TraceFamily::SpecFor(LiveSession& session, const google::protobuf::RepeatedPtrField<std::string>& mask,
                                                  const google::protobuf::Map<std::string, std::string>& titles) {
  if (context_.trace == nullptr || context_.trace->gateway == nullptr) return FailedPrecondition("llm: this server has no language models");
  const std::string name = session.proto.optimizer().llm().empty() ? "default" : session.proto.optimizer().llm();
  auto endpoint = context_.trace->gateway->Endpoint(name);
  if (!endpoint.ok()) return FailedPrecondition("llm: ", std::string(endpoint.status().message()));
  return MakeProposalSpec(session.proto, mask, titles, *endpoint);
}

absl::StatusOr<v1::Problem> TraceFamily::GetProblem(LiveSession& session, const v1::GetProblemRequest& request) {
  ASSIGN_OR_RETURN(std::vector<NodeId> parameters, Chosen(request.parameters()));
  absl::StatusOr<ProposalSpec> spec = SpecFor(session, request.mask(), request.titles());
  if (absl::IsFailedPrecondition(spec.status())) spec = MakeProposalSpec(session.proto, request.mask(), request.titles(), std::nullopt);
  if (!spec.ok()) return spec.status();
  ASSIGN_OR_RETURN(trace::ProblemInstance problem, trace::BuildProblem(graph_, feedback_, parameters, spec->proposer.problem));
  v1::Problem out;
  ASSIGN_OR_RETURN(trace::Subgraph subgraph, trace::ComputeSubgraph(graph_, feedback_.Outputs(), parameters));
  for (NodeId id : subgraph.nodes) out.add_subgraph(id);
  for (const auto& line : problem.code) out.add_code_lines(line.text);
  for (const auto& entry : problem.documentation) (*out.mutable_documentation())[entry.function] = entry.from_user ? entry.text : "";
  auto fill = [](const std::vector<trace::ValueEntry>& entries, google::protobuf::RepeatedPtrField<v1::ProblemValue>* values) {
    for (const auto& entry : entries) {
      v1::ProblemValue* value = values->Add();
      value->set_name(entry.py_name);
      value->set_type(entry.type);
      value->set_text(entry.text);
      value->set_constraint(entry.constraint);
      value->set_hidden(entry.hidden);
    }
  };
  fill(problem.variables, out.mutable_variables());
  fill(problem.inputs, out.mutable_inputs());
  fill(problem.others, out.mutable_others());
  fill(problem.outputs, out.mutable_outputs());
  out.set_feedback(problem.feedback);
  spec->proposer.memory = trace::SelectMemory(memory_, spec->memory);
  out.set_token_limit(spec->proposer.render.max_prompt_tokens);
  const auto prompt = trace::FirstPrompt(spec->proposer, graph_, feedback_, parameters);
  if (!prompt.ok()) {   // the lists are right all the same
    out.add_left_out(Cat("prompt: there is none: ", prompt.status().message()));
    return out;
  }
  out.set_system_prompt(prompt->system);
  out.set_user_prompt(prompt->user);
  out.set_estimated_tokens(static_cast<int64_t>(trace::EstimateTokens(prompt->system) + trace::EstimateTokens(prompt->user)));
  for (const std::string& what : prompt->left_out) out.add_left_out(what);
  out.set_over_limit(prompt->over_limit);
  return out;
}

void TraceFamily::FillBudget(LiveSession& session, Proposal* out) {
  const v1::Budget& budget = session.proto.budget();
  const v1::Usage& usage = session.proto.usage();
  if (budget.max_llm_tokens() > 0) out->limits.max_tokens = budget.max_llm_tokens();
  if (budget.max_llm_usd() > 0) out->limits.max_usd = budget.max_llm_usd();
  out->used = {usage.llm_calls(), usage.llm_prompt_tokens(), usage.llm_completion_tokens(), usage.llm_usd()};
}

absl::StatusOr<TraceFamily::Proposal> TraceFamily::PrepareProposal(LiveSession& session, const v1::ProposeRequest& request) {
  if (session.row.state != v1::Session::ACTIVE) return FailedPrecondition("session ", session.name().Full(), " is closed");
  if (request.candidates() < 0 || request.candidates() > 64) return InvalidArgument("candidates: ", request.candidates(), " is outside [0, 64]");
  RETURN_IF_ERROR(CheckBudget(session.proto, session.row.create_ms, context_.clock->NowUnixMs()));
  if (request.replies_size() > 0 && !request.client_model()) return InvalidArgument("replies: given without client_model");
  if (request.replies_size() > 10'000) return InvalidArgument("replies: ", request.replies_size(), " replies; at most 10000");
  for (const std::string& reply : request.replies())
    if (reply.size() > (1u << 20)) return InvalidArgument("replies: ", reply.size(), " bytes; at most 1 MiB");
  ASSIGN_OR_RETURN(ProposalSpec spec, request.client_model() ? MakeProposalSpec(session.proto, request.mask(), request.titles(), std::nullopt)
                                                             : SpecFor(session, request.mask(), request.titles()));
  Proposal out;
  out.client_model = request.client_model();
  out.given.assign(request.replies().begin(), request.replies().end());
  ASSIGN_OR_RETURN(out.nodes, Chosen(request.parameters()));
  if (request.candidates() > 0) spec.proposer.candidates = static_cast<uint32_t>(request.candidates());
  spec.proposer.memory = trace::SelectMemory(memory_, spec.memory);
  ASSIGN_OR_RETURN(out.proposer, trace::MakeProposer(spec.proposer, graph_, feedback_, out.nodes));
  out.endpoint = spec.endpoint;
  out.max_tokens = spec.max_tokens;
  std::optional<double> score;
  if (auto head = context_.store->GetVersion(session.row.uid, session.row.head_version); head.ok()) {
    v1::Version version;
    version.ParseFromString(head->payload);
    if (version.has_score()) score = version.score();
  }
  out.round = trace::MakeMemoryRound(graph_, out.nodes, feedback_, score);
  out.base_version = session.row.head_version;
  out.apply = request.apply();
  FillBudget(session, &out);
  // One seed a request, the same in every run with the session's seed: what a cassette and a deterministic endpoint need.
  out.first_seed = static_cast<int64_t>((session.proto.optimizer().seed() * 1'000'003 + static_cast<uint64_t>(session.proto.usage().steps()) * 64) &
                                        0x7fffffff);
  return out;
}

void TraceFamily::PushMemory(LiveSession& session, trace::MemoryRound round, Effects* effects) {
  auto spec = MakeProposalSpec(session.proto, {}, {}, std::nullopt);
  if (!spec.ok() || spec->memory_kept == 0) return;
  effects->mutations.push_back(
      store::PutObservation{Observation(session.row.uid, "memory", next_memory_++, 0, RoundToWire(round).SerializeAsString())});
  trace::PushMemory(memory_, std::move(round), static_cast<uint32_t>(spec->memory_kept));
  effects->mutations.push_back(store::DeleteObservations{session.row.uid, "memory", next_memory_ - static_cast<int64_t>(spec->memory_kept)});
}

v1::Usage TraceFamily::CostOf(const trace::ProposedCandidate& candidate, const std::vector<CallCost>& costs) {
  v1::Usage out;
  for (size_t call : candidate.calls) {
    if (call >= costs.size() || !costs[call].answered) continue;
    out.set_llm_calls(out.llm_calls() + 1);
    out.set_llm_prompt_tokens(out.llm_prompt_tokens() + costs[call].prompt_tokens);
    out.set_llm_completion_tokens(out.llm_completion_tokens() + costs[call].completion_tokens);
    out.set_llm_usd(out.llm_usd() + costs[call].usd);
  }
  return out;
}

void TraceFamily::FillOutcome(const Proposal& proposal, const trace::ProposedCandidate& candidate, const std::vector<CallCost>& costs,
                              v1::CandidateOutcome* out, Values* changed) {
  const trace::ReplyOutcome& outcome = candidate.outcome;
  out->set_kind(candidate.call_failed ? v1::REPLY_FAILED : ToWire(outcome.kind));
  out->set_reason(outcome.reason);
  out->set_reasoning(outcome.reasoning);
  out->set_reply(candidate.reply);
  for (const std::string& fix : outcome.fixes) out->add_fixes(fix);
  const v1::Usage cost = CostOf(candidate, costs);
  out->set_llm_calls(static_cast<int32_t>(cost.llm_calls()));
  out->set_prompt_tokens(cost.llm_prompt_tokens());
  out->set_completion_tokens(cost.llm_completion_tokens());
  for (const trace::KeyResult& key : outcome.keys) {
    v1::KeyOutcome* k = out->add_keys();
    k->set_key(key.key);
    k->set_kind(ToWire(key.outcome));
    k->set_old_text(key.old_text);
    k->set_new_text(key.new_text);
    k->set_new_json(key.new_json.value_or(""));
    k->set_reason(key.reason);
    if (key.outcome == trace::KeyOutcome::kApplied)
      (*changed)[proposal.nodes[static_cast<size_t>(key.parameter)]] = TraceValue{key.new_text, key.new_json};
  }
}

absl::Status TraceFamily::FinishProposal(LiveSession& session, const Proposal& proposal, const trace::ProposerResult& result,
                                         const std::vector<CallCost>& costs, v1::ProposeResponse* response, Effects* effects) {
  bool answered = false;
  v1::Usage* used = response->mutable_usage();
  for (const CallCost& cost : costs) {
    if (!cost.answered) continue;
    answered = true;
    used->set_llm_calls(used->llm_calls() + 1);
    used->set_llm_prompt_tokens(used->llm_prompt_tokens() + cost.prompt_tokens);
    used->set_llm_completion_tokens(used->llm_completion_tokens() + cost.completion_tokens);
    used->set_llm_usd(used->llm_usd() + cost.usd);
  }
  if (proposal.client_model)   // the session's usage counts the server's own calls when they are received
    session.proto.mutable_usage()->set_llm_calls(session.proto.usage().llm_calls() + used->llm_calls());
  if (result.selected) response->set_selected(static_cast<int32_t>(*result.selected));
  bool applied = false;
  for (size_t i = 0; i < result.candidates.size(); ++i) {
    v1::CandidateOutcome* out = response->add_candidates();
    Values changed;
    FillOutcome(proposal, result.candidates[i], costs, out, &changed);
    if (changed.empty()) continue;
    const bool apply = proposal.apply && result.selected == i && session.row.head_version == proposal.base_version;
    const v1::Usage cost = CostOf(result.candidates[i], costs);
    store::VersionRow row =
        MakeVersion(session, proposal.base_version, changed, apply ? "step" : "candidate", result.candidates[i].outcome.reasoning, &cost);
    out->set_version(row.number);
    effects->mutations.push_back(store::InsertVersion{row});
    if (!apply) continue;
    applied = true;
    RETURN_IF_ERROR(SetGraphValues(changed));
    session.row.head_version = row.number;
    head_step_ = row.step;
    ++session.row.seq;
  }
  if (answered) {
    session.proto.mutable_usage()->set_steps(session.proto.usage().steps() + 1);
    used->set_steps(1);
    PushMemory(session, proposal.round, effects);
  }
  if (applied) DropFeedback(session, effects);
  response->set_head_version(session.row.head_version);
  return absl::OkStatus();
}

}  // namespace optod::engine

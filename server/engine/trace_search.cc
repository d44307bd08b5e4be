#include "server/engine/trace_search.h"

#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "google/protobuf/util/time_util.h"
#include "server/engine/engine_impl.h"
#include "trace/optimizers/python_text.h"

namespace optod::engine {
namespace {

using trace::NodeId;

constexpr char kSpecKind[] = "search", kEventKind[] = "search_event";
constexpr int64_t kDefaultLeaseNs = 60'000'000'000, kLongestLeaseNs = 86'400'000'000'000;
constexpr uint32_t kEvaluationsSlot = UINT32_MAX;  // stands for the server's own evaluations among the reservations

store::ObservationRow Row(const LiveSession& session, const char* kind, int64_t a, int64_t b, std::string payload) {
  store::ObservationRow row;
  row.session_uid = session.row.uid;
  row.kind = kind;
  row.a = a;
  row.b = b;
  row.payload = std::move(payload);
  return row;
}

/// Fills the defaults in and translates.
absl::StatusOr<trace::SearchOptions> OptionsOf(v1::SearchSpec* spec, bool maximize) {
  const auto fill = [](int32_t value, int32_t fallback) { return value == 0 ? fallback : value; };
  const std::pair<const char*, int32_t> counts[] = {
      {"tasks", spec->tasks()},         {"validation_tasks", spec->validation_tasks()},
      {"batch", spec->batch()},         {"candidates", spec->candidates()},
      {"proposals", spec->proposals()}, {"memory", spec->memory()},
      {"max_steps", spec->max_steps()}};
  for (const auto& [name, value] : counts) {
    if (value < 0) return InvalidArgument("spec.", name, ": ", value, " is negative");
  }
  if (spec->max_evaluations() < 0)
    return InvalidArgument("spec.max_evaluations: ", spec->max_evaluations(), " is negative");
  if (spec->data_set().size() > 255) return InvalidArgument("spec.data_set: at most 255 bytes");
  const bool beam = spec->algorithm() == v1::SearchSpec::BEAM;
  spec->set_tasks(fill(spec->tasks(), 1));
  spec->set_batch(fill(spec->batch(), std::min(4, spec->tasks())));
  spec->set_candidates(fill(spec->candidates(), 1));
  spec->set_proposals(fill(spec->proposals(), beam ? 2 : 1));
  spec->set_memory(fill(spec->memory(), beam ? spec->candidates() : std::max(100, spec->candidates())));
  spec->set_max_steps(fill(spec->max_steps(), 10));
  if (spec->exploration() == 0) spec->set_exploration(1);
  if (spec->min_score() == 0 && spec->max_score() == 0) spec->set_max_score(1);
  if (spec->priority() == v1::SearchSpec::PRIORITY_UNSPECIFIED) spec->set_priority(v1::SearchSpec::MEAN);
  trace::SearchOptions out;
  switch (spec->algorithm()) {
    case v1::SearchSpec::MINIBATCH:
      out.algorithm = trace::SearchAlgorithm::kMinibatch;
      break;
    case v1::SearchSpec::BEAM:
      out.algorithm = trace::SearchAlgorithm::kBeam;
      break;
    case v1::SearchSpec::UCB:
      out.algorithm = trace::SearchAlgorithm::kUcb;
      break;
    case v1::SearchSpec::PRIORITY:
      out.algorithm = trace::SearchAlgorithm::kPriority;
      break;
    case v1::SearchSpec::PARETO:
      out.algorithm = trace::SearchAlgorithm::kPareto;
      break;
    default:
      return InvalidArgument("spec.algorithm: missing; MINIBATCH, BEAM, UCB, PRIORITY or PARETO");
  }
  out.priority = spec->priority() == v1::SearchSpec::UPPER   ? trace::SearchPriority::kUpper
                 : spec->priority() == v1::SearchSpec::LOWER ? trace::SearchPriority::kLower
                                                             : trace::SearchPriority::kMean;
  out.tasks = static_cast<uint32_t>(spec->tasks());
  out.validation_tasks = static_cast<uint32_t>(spec->validation_tasks());
  out.batch = static_cast<uint32_t>(spec->batch());
  out.candidates = static_cast<uint32_t>(spec->candidates());
  out.proposals = static_cast<uint32_t>(spec->proposals());
  out.memory = static_cast<uint32_t>(spec->memory());
  out.ensure_improvement = spec->ensure_improvement() && out.algorithm == trace::SearchAlgorithm::kMinibatch;
  out.exploration = spec->exploration();
  out.min_score = spec->min_score();
  out.max_score = spec->max_score();
  out.maximize = maximize;
  out.seed = spec->seed();
  out.max_steps = static_cast<uint32_t>(spec->max_steps());
  out.max_evaluations = static_cast<uint64_t>(spec->max_evaluations());
  if (spec->has_target()) out.target = spec->target();
  if (absl::Status valid = trace::CheckSearchOptions(out); !valid.ok())
    return InvalidArgument("spec.", std::string(valid.message()));
  return out;
}

void AddCost(const v1::Usage& more, v1::Usage* usage) {
  usage->set_llm_calls(usage->llm_calls() + more.llm_calls());
  usage->set_llm_prompt_tokens(usage->llm_prompt_tokens() + more.llm_prompt_tokens());
  usage->set_llm_completion_tokens(usage->llm_completion_tokens() + more.llm_completion_tokens());
  usage->set_llm_usd(usage->llm_usd() + more.llm_usd());
}

bool Maximize(const LiveSession& session) { return session.proto.direction() != v1::MINIMIZE; }

/// "3-7" -> candidate 3, task 7.
absl::StatusOr<std::pair<size_t, uint32_t>> ParseEvaluation(const std::string& id) {
  const size_t dash = id.find('-');
  const auto number = [](const std::string& text) {
    return !text.empty() && text.size() < 10 && text.find_first_not_of("0123456789") == std::string::npos;
  };
  if (dash == std::string::npos || !number(id.substr(0, dash)) || !number(id.substr(dash + 1)))
    return InvalidArgument("evaluation_id: \"", id, "\" is none of AskSearch");
  return std::pair{static_cast<size_t>(std::stoul(id.substr(0, dash))),
                   static_cast<uint32_t>(std::stoul(id.substr(dash + 1)))};
}

}  // namespace

absl::StatusOr<std::pair<SessionName, int64_t>> ParseSearchName(const std::string& text, const Caller& caller,
                                                                const std::string& field) {
  const size_t at = text.rfind("/searches/");
  const std::string number = at == std::string::npos ? "" : text.substr(at + 10);
  if (number.empty() || number.size() > 9 || number.find_first_not_of("0123456789") != std::string::npos)
    return InvalidArgument(field, ": \"", text, "\" is no users/U/sessions/S/searches/N");
  ASSIGN_OR_RETURN(SessionName session, ParseSessionName(text.substr(0, at), caller, field));
  return std::pair{std::move(session), std::stoll(number)};
}

// ---- loading

absl::Status TraceSearches::Load(LiveSession& session) {
  Context& context = family_.context_;
  ASSIGN_OR_RETURN(auto specs, context.store->ListObservations(session.row.uid, kSpecKind, 0, INT64_MAX));
  for (const store::ObservationRow& row : specs) {
    Record& record = records_[row.a];
    if (!record.proto.ParseFromString(row.payload))
      return DataLoss("search ", row.a, " of ", session.name().Full(), " cannot be read");
    v1::SearchSpec spec = record.proto.spec();
    ASSIGN_OR_RETURN(const trace::SearchOptions options, OptionsOf(&spec, Maximize(session)));
    record.machine = std::make_unique<trace::Search>(options, row.b);
  }
  ASSIGN_OR_RETURN(auto events, context.store->ListObservations(session.row.uid, kEventKind, 0, INT64_MAX));
  for (const store::ObservationRow& row : events) {
    v1::SearchEvent event;
    if (!event.ParseFromString(row.payload))
      return DataLoss("search event ", row.a, " of ", session.name().Full(), " cannot be read");
    next_event_ = row.a + 1;
    if (auto it = records_.find(row.b); it != records_.end()) Apply(row.b, it->second, event);
  }
  Effects none;
  for (auto& [id, record] : records_) Reserve(session, record, &none);
  return absl::OkStatus();
}

bool TraceSearches::Apply(int64_t, Record& record, const v1::SearchEvent& event) {
  trace::Search& machine = *record.machine;
  switch (event.event_case()) {
    case v1::SearchEvent::kEvaluated: {
      const auto& e = event.evaluated();
      const std::pair<size_t, uint32_t> key{static_cast<size_t>(e.candidate()), static_cast<uint32_t>(e.task())};
      if (!machine.Evaluated(key.first, key.second, e.score())) return false;
      record.told[key] = {e.feedback(), e.output_node()};
      record.leases.erase(key);
      record.values_sha256[key.first] = e.values_sha256();
      cache_.try_emplace(CacheKey(record, e.values_sha256(), key.second), CacheEntry{e.score(), record.told[key]});
      AddCost(e.usage(), record.proto.mutable_usage());
      if (e.cached()) record.proto.set_cached_evaluations(record.proto.cached_evaluations() + 1);
      return true;
    }
    case v1::SearchEvent::kProposed: {
      const auto& p = event.proposed();
      if (!machine.Proposed(static_cast<uint32_t>(p.slot()), {p.versions().begin(), p.versions().end()})) return false;
      AddCost(p.usage(), record.proto.mutable_usage());
      return true;
    }
    case v1::SearchEvent::kStopped:
      machine.Stop(event.stopped());
      return true;
    case v1::SearchEvent::EVENT_NOT_SET:
      return false;
  }
  return false;
}

void TraceSearches::Journal(LiveSession& session, int64_t id, v1::SearchEvent event, Effects* effects) {
  event.set_search(id);
  effects->mutations.push_back(
      store::PutObservation{Row(session, kEventKind, next_event_++, id, event.SerializeAsString())});
}

std::string TraceSearches::CacheKey(const Record& record, const std::string& values_sha256, uint32_t task) {
  return Cat(values_sha256, "/", task, "/", record.proto.spec().data_set());
}

absl::StatusOr<std::string> TraceSearches::ValuesHash(LiveSession& session, Record& record, size_t candidate) {
  if (auto it = record.values_sha256.find(candidate); it != record.values_sha256.end() && !it->second.empty())
    return it->second;
  v1::Version version;
  version.set_number(record.machine->candidates()[candidate].version);
  RETURN_IF_ERROR(family_.FillVersion(session, &version));
  v1::Version values;
  *values.mutable_values() = version.values();
  return record.values_sha256[candidate] = RequestHash(CanonicalBytes(values));
}

// ---- RPCs

absl::StatusOr<TraceSearches::Record*> TraceSearches::Find(LiveSession& session, int64_t search) {
  auto it = records_.find(search);
  if (it == records_.end()) return NotFound("search ", session.name().Full(), "/searches/", search, " does not exist");
  return &it->second;
}

absl::Status TraceSearches::Create(LiveSession& session, const v1::CreateSearchRequest& request,
                                   const std::function<absl::Status(const trace::Workflow&)>& runnable, v1::Search* out,
                                   Effects* effects) {
  if (family_.Trainable().empty())
    return FailedPrecondition("session ", session.name().Full(), " has no trainable parameter");
  RETURN_IF_ERROR(family_.SpecFor(session, {}, {}).status());
  Record record;
  *record.proto.mutable_spec() = request.spec();
  RETURN_IF_ERROR(CheckWorkflow(session, runnable, record.proto.mutable_spec()));
  ASSIGN_OR_RETURN(const trace::SearchOptions options, OptionsOf(record.proto.mutable_spec(), Maximize(session)));
  const int64_t id = records_.empty() ? 1 : records_.rbegin()->first + 1;
  record.proto.set_name(Cat(session.name().Full(), "/searches/", id));
  *record.proto.mutable_create_time() =
      google::protobuf::util::TimeUtil::MillisecondsToTimestamp(family_.context_.clock->NowUnixMs());
  effects->mutations.push_back(
      store::PutObservation{Row(session, kSpecKind, id, session.row.head_version, record.proto.SerializeAsString())});
  record.machine = std::make_unique<trace::Search>(options, session.row.head_version);
  Record& kept = records_[id] = std::move(record);
  RETURN_IF_ERROR(Settle(session, id, kept, effects));
  *out = ToWire(session, kept, false);
  return absl::OkStatus();
}

v1::Search TraceSearches::ToWire(LiveSession&, const Record& record, bool with_candidates) const {
  const trace::Search& machine = *record.machine;
  v1::Search out = record.proto;
  if (out.spec().has_workflow()) out.mutable_spec()->mutable_workflow()->clear_rows();
  switch (machine.state()) {
    case trace::Search::State::kEvaluating:
      out.set_state(record.paused.empty() ? v1::Search::EVALUATING : v1::Search::PAUSED);
      break;
    case trace::Search::State::kProposing:
      out.set_state(record.paused.empty() ? v1::Search::PROPOSING : v1::Search::PAUSED);
      break;
    case trace::Search::State::kDone:
      out.set_state(machine.reason() == "stopped" ? v1::Search::STOPPED : v1::Search::DONE);
      break;
  }
  out.set_reason(machine.state() == trace::Search::State::kDone ? machine.reason() : record.paused);
  out.set_step(static_cast<int32_t>(machine.step()));
  out.set_evaluations(static_cast<int64_t>(machine.evaluations()) - record.proto.cached_evaluations());
  if (auto best = machine.best()) {
    out.set_best_version(machine.candidates()[*best].version);
    if (auto score = machine.best_score()) out.set_best_score(*score);
  }
  if (!with_candidates) return out;
  for (const trace::SearchCandidate& c : machine.candidates()) {
    v1::SearchCandidate* w = out.add_candidates();
    w->set_version(c.version);
    if (c.parent) w->set_parent(machine.candidates()[*c.parent].version);
    w->set_step(static_cast<int32_t>(c.step));
    if (auto mean = c.Mean()) w->set_mean_score(*mean);
    w->set_evaluations(static_cast<int64_t>(c.scores.size()));
    w->set_alive(c.alive);
    for (const auto& [task, score] : c.scores) {
      w->add_tasks(static_cast<int32_t>(task));
      w->add_scores(score);
    }
  }
  return out;
}

absl::StatusOr<v1::Search> TraceSearches::Get(LiveSession& session, int64_t search, bool with_candidates) {
  ASSIGN_OR_RETURN(Record * record, Find(session, search));
  return ToWire(session, *record, with_candidates);
}

v1::ListSearchesResponse TraceSearches::List(LiveSession& session) {
  v1::ListSearchesResponse out;
  for (const auto& [id, record] : records_) *out.add_searches() = ToWire(session, record, false);
  return out;
}

absl::StatusOr<v1::AskSearchResponse> TraceSearches::Ask(LiveSession& session, int64_t search,
                                                         const v1::AskSearchRequest& request,
                                                         const std::string& worker) {
  ASSIGN_OR_RETURN(Record * record, Find(session, search));
  if (request.count() < 0 || request.count() > 1000)
    return InvalidArgument("count: ", request.count(), " is outside [0, 1000]");
  int64_t lease_ns =
      request.has_lease() ? google::protobuf::util::TimeUtil::DurationToNanoseconds(request.lease()) : kDefaultLeaseNs;
  if (lease_ns <= 0 || lease_ns > kLongestLeaseNs) return InvalidArgument("lease: must be above 0 and at most 24 h");
  const bool active = session.row.state == v1::Session::ACTIVE;
  if (!active) return FailedPrecondition("session ", session.name().Full(), " is closed");
  RETURN_IF_ERROR(CheckBudget(session.proto, session.row.create_ms, family_.context_.clock->NowUnixMs()));
  v1::AskSearchResponse out;
  const int64_t now_ns = family_.context_.clock->NowMonotonicNs();
  const int wanted = request.count() == 0 ? 1 : request.count();
  std::map<size_t, v1::Version> values;
  for (const trace::Search::Evaluation& e : record->machine->Evaluations()) {
    if (out.evaluations_size() >= wanted || record->proto.spec().has_workflow()) break;
    const std::pair<size_t, uint32_t> key{e.candidate, e.task};
    auto lease = record->leases.find(key);
    if (lease != record->leases.end() && lease->second.second > now_ns && lease->second.first != worker) continue;
    record->leases[key] = {worker, now_ns + lease_ns};
    auto [version, is_new] = values.try_emplace(e.candidate);
    if (is_new) {
      version->second.set_number(record->machine->candidates()[e.candidate].version);
      RETURN_IF_ERROR(family_.FillVersion(session, &version->second));
    }
    v1::SearchEvaluation* w = out.add_evaluations();
    w->set_evaluation_id(Cat(e.candidate, "-", e.task));
    w->set_version(version->second.number());
    w->set_task(static_cast<int32_t>(e.task));
    w->set_validation(e.task >= record->machine->options().tasks);
    *w->mutable_values() = version->second.values();
  }
  *out.mutable_search() = ToWire(session, *record, false);
  return out;
}

absl::StatusOr<int64_t> TraceSearches::OutputNode(LiveSession& session, const v1::TellSearchRequest& request,
                                                  Effects* effects) {
  if (request.has_output_node()) {
    if (request.output_node() < 0 || request.output_node() >= family_.graph_.size())
      return NotFound("output_node: ", request.output_node(), " does not exist; the trace has ", family_.graph_.size(),
                      " nodes");
    return request.output_node();
  }
  v1::RecordNodesRequest record;
  v1::Node* node = record.add_nodes();
  node->set_base("evaluate");
  node->set_kind(v1::Node::MESSAGE);
  node->set_op("evaluate");
  node->set_description("runs the program with these parameters");
  node->set_type("float");
  node->set_text(trace::FloatRepr(request.score()));
  node->set_json(node->text());
  for (NodeId id : family_.Trainable()) {
    v1::NodeInput* input = node->add_inputs();
    input->set_argument(family_.graph_.PyName(id));
    input->set_node(id);
  }
  v1::RecordNodesResponse response;
  RETURN_IF_ERROR(family_.RecordNodes(session, record, &response, effects));
  effects->row_changed = true;
  return response.nodes(0).id();
}

absl::Status TraceSearches::Count(LiveSession& session, int64_t search, Record& record, std::pair<size_t, uint32_t> key,
                                  const v1::TellSearchRequest& request, const v1::Usage& usage, Effects* effects) {
  v1::ScoreTell score;
  score.set_version(record.machine->candidates()[key.first].version);
  score.set_score(request.score());
  score.set_feedback(request.feedback());
  v1::TellResponse ignored;
  ASSIGN_OR_RETURN(const std::string hash, ValuesHash(session, record, key.first));
  ASSIGN_OR_RETURN(Effects scored, ApplyScore(family_.context_, session, score, &ignored));
  for (store::Mutation& mutation : scored.mutations) effects->mutations.push_back(std::move(mutation));
  effects->row_changed = effects->row_changed || scored.row_changed;
  v1::SearchEvent event;
  auto* e = event.mutable_evaluated();
  e->set_candidate(static_cast<int64_t>(key.first));
  e->set_task(static_cast<int32_t>(key.second));
  e->set_score(request.score());
  e->set_feedback(request.feedback());
  e->set_values_sha256(hash);
  if (usage.llm_calls() > 0) *e->mutable_usage() = usage;
  ASSIGN_OR_RETURN(const int64_t node, OutputNode(session, request, effects));
  e->set_output_node(node);
  Apply(search, record, event);
  Journal(session, search, std::move(event), effects);
  return Settle(session, search, record, effects);
}

absl::Status TraceSearches::Tell(LiveSession& session, int64_t search, const v1::TellSearchRequest& request,
                                 v1::TellSearchResponse* out, Effects* effects) {
  ASSIGN_OR_RETURN(Record * record, Find(session, search));
  if (record->proto.spec().has_workflow())
    return FailedPrecondition("search ", record->proto.name(), " is evaluated by the server");
  ASSIGN_OR_RETURN(const auto key, ParseEvaluation(request.evaluation_id()));
  if (!std::isfinite(request.score())) return InvalidArgument("score: ", request.score(), " is not finite");
  if (request.feedback().size() > (1u << 20))
    return InvalidArgument("feedback: ", request.feedback().size(), " bytes; at most 1 MiB");
  const auto& machine = *record->machine;
  const auto open = machine.Evaluations();
  const bool wanted =
      std::find(open.begin(), open.end(), trace::Search::Evaluation{key.first, key.second}) != open.end();
  if (!wanted) {
    const bool known =
        key.first < machine.candidates().size() && machine.candidates()[key.first].scores.contains(key.second);
    if (!known && machine.state() != trace::Search::State::kDone)
      return NotFound("evaluation_id: \"", request.evaluation_id(), "\" is not wanted by ", record->proto.name());
    effects->row_changed = false;
    *out->mutable_search() = ToWire(session, *record, false);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(Count(session, search, *record, key, request, {}, effects));
  out->set_counted(true);
  *out->mutable_search() = ToWire(session, *record, false);
  return absl::OkStatus();
}

absl::Status TraceSearches::Stop(LiveSession& session, int64_t search, v1::Search* out, Effects* effects) {
  ASSIGN_OR_RETURN(Record * record, Find(session, search));
  if (record->machine->state() != trace::Search::State::kDone) {
    v1::SearchEvent event;
    event.set_stopped("stopped");
    Apply(search, *record, event);
    Journal(session, search, std::move(event), effects);
    RETURN_IF_ERROR(Settle(session, search, *record, effects));
  }
  *out = ToWire(session, *record, false);
  return absl::OkStatus();
}

// ---- between the events

absl::Status TraceSearches::Settle(LiveSession& session, int64_t id, Record& record, Effects* effects) {
  for (bool changed = true; changed;) {
    changed = false;
    for (const trace::Search::Evaluation& e : record.machine->Evaluations()) {
      // Versions made in this same batch cannot be read back yet: their values are hashed when they are made.
      auto known = record.values_sha256.find(e.candidate);
      std::string hash = known == record.values_sha256.end() ? "" : known->second;
      if (hash.empty()) {
        auto computed = ValuesHash(session, record, e.candidate);
        if (!computed.ok()) continue;  // then it is evaluated, not looked up
        hash = *std::move(computed);
      }
      auto hit = cache_.find(CacheKey(record, hash, e.task));
      if (hit == cache_.end()) continue;
      v1::SearchEvent event;
      auto* told = event.mutable_evaluated();
      told->set_candidate(static_cast<int64_t>(e.candidate));
      told->set_task(static_cast<int32_t>(e.task));
      told->set_score(hit->second.score);
      told->set_feedback(hit->second.told.feedback);
      told->set_output_node(hit->second.told.node);
      told->set_cached(true);
      told->set_values_sha256(hash);
      if (!Apply(id, record, event)) continue;
      Journal(session, id, std::move(event), effects);
      changed = true;
      break;  // the list has changed
    }
  }
  Reserve(session, record, effects);
  if (record.machine->state() == trace::Search::State::kDone) return EndOf(session, record, effects);
  return absl::OkStatus();
}

void TraceSearches::Reserve(LiveSession& session, Record& record, Effects* effects) {
  std::set<uint32_t> open;
  for (const trace::Search::Proposal& p : record.machine->Proposals()) open.insert(p.slot);
  if (record.proto.spec().has_workflow() && !record.machine->Evaluations().empty()) open.insert(kEvaluationsSlot);
  // First the end of what is done: what a finished phase received is forgotten before the next one receives anything.
  for (auto it = record.reserved.begin(); it != record.reserved.end();) {
    if (open.contains(*it)) {
      ++it;
    } else {
      family_.replies_.End(session, effects);
      it = record.reserved.erase(it);
    }
  }
  for (uint32_t slot : open) {
    if (record.reserved.insert(slot).second) family_.replies_.Begin();
  }
}

absl::Status TraceSearches::EndOf(LiveSession& session, Record& record, Effects* effects) {
  *record.cancelled = true;
  for (const auto& [evaluation, flag] : record.evaluating) *flag = true;
  if (record.proto.spec().keep_head() || !record.machine->best()) return absl::OkStatus();
  const int64_t best = record.machine->candidates()[*record.machine->best()].version;
  if (best == session.row.head_version) return absl::OkStatus();
  WaitDurable(*family_.context_.store, session);
  const auto row = family_.context_.store->GetVersion(session.row.uid, best);
  if (!row.ok() || !family_.MoveHead(session, *row, effects).ok())
    return absl::OkStatus();  // the best version stands in the answer all the same
  session.row.head_version = best;
  ++session.row.seq;
  return absl::OkStatus();
}

}  // namespace optod::engine

// What a search asks language models for: prepared from its candidates, and what comes of it.
#include <algorithm>

#include "base/status.h"
#include "server/engine/engine_impl.h"
#include "server/engine/trace_search.h"
#include "trace/optimizers/python_text.h"

namespace optod::engine {
namespace {

using trace::NodeId;

constexpr size_t kMostMemoryCandidates = 200;

}  // namespace

absl::StatusOr<std::vector<trace::MemoryRound>> TraceSearches::Memory(LiveSession& session, Record& record, size_t but,
                                                                      const std::vector<NodeId>& nodes) {
  std::vector<trace::MemoryRound> out;
  const auto& candidates = record.machine->candidates();
  for (size_t i = candidates.size() > kMostMemoryCandidates ? candidates.size() - kMostMemoryCandidates : 0;
       i < candidates.size(); ++i) {
    if (i == but || candidates[i].scores.empty()) continue;
    ASSIGN_OR_RETURN(const TraceFamily::Values values, family_.ValuesAt(session, candidates[i].version));
    trace::MemoryRound round;
    for (NodeId id : nodes) round.variables.emplace_back(family_.graph_.PyName(id), values.at(id).text);
    round.score = candidates[i].Mean();
    for (const auto& [task, score] : candidates[i].scores) {
      const std::string& feedback = record.told[{i, task}].feedback;
      if (!feedback.empty() && round.feedback.size() < 2000)
        round.feedback += Cat(round.feedback.empty() ? "" : "\n", "task ", task, ": ", feedback);
    }
    out.push_back(std::move(round));
  }
  return out;
}

absl::Status TraceSearches::Prepare(LiveSession& session, int64_t id, Record& record,
                                    const trace::Search::Proposal& wanted, TraceFamily::Proposal* out) {
  const trace::SearchCandidate& candidate = record.machine->candidates()[wanted.candidate];
  ASSIGN_OR_RETURN(ProposalSpec spec, family_.SpecFor(session, {}, {}));
  out->nodes = family_.Trainable();
  spec.proposer.candidates = wanted.count;
  if (spec.memory.size > 0) {
    ASSIGN_OR_RETURN(const auto rounds, Memory(session, record, wanted.candidate, out->nodes));
    spec.proposer.memory = trace::SelectMemory(rounds, spec.memory);
  }
  trace::FeedbackStore feedback;
  for (uint32_t task : wanted.batch) {
    const Told& told = record.told[{wanted.candidate, task}];
    const std::string text =
        Cat(wanted.batch.size() > 1 ? Cat("task ", task, ": ") : std::string(), "score ",
            trace::FloatRepr(candidate.scores.at(task)), told.feedback.empty() ? "" : ". ", told.feedback);
    RETURN_IF_ERROR(feedback.Backward(family_.graph_, static_cast<NodeId>(told.node), text));
  }
  // The prompt shows the candidate's values, whatever the head is.
  ASSIGN_OR_RETURN(const TraceFamily::Values values, family_.ValuesAt(session, candidate.version));
  ASSIGN_OR_RETURN(const TraceFamily::Values head, family_.ValuesAt(session, session.row.head_version));
  RETURN_IF_ERROR(family_.SetGraphValues(values));
  auto proposer = trace::MakeProposer(spec.proposer, family_.graph_, feedback, out->nodes);
  RETURN_IF_ERROR(family_.SetGraphValues(head));
  if (!proposer.ok()) return proposer.status();
  out->proposer = *std::move(proposer);
  out->endpoint = spec.endpoint;
  out->max_tokens = spec.max_tokens;
  out->base_version = candidate.version;
  out->scope = Cat("search/", id, "/", record.machine->step(), "/", wanted.slot);
  out->first_seed =
      static_cast<int64_t>((record.machine->options().seed * 1'000'003 + static_cast<uint64_t>(id) * 7919 +
                            uint64_t{record.machine->step()} * 4096 + uint64_t{wanted.slot} * 64) &
                           0x7fffffff);
  family_.FillBudget(session, out);
  return absl::OkStatus();
}

std::vector<std::unique_ptr<TraceSearches::Work>> TraceSearches::TakeWork(LiveSession& session, int64_t search,
                                                                          bool resume) {
  std::vector<std::unique_ptr<Work>> out;
  auto it = records_.find(search);
  if (it == records_.end() || session.row.state != v1::Session::ACTIVE) return out;
  if (resume) it->second.paused.clear();
  if (!it->second.paused.empty()) return out;
  Record& record = it->second;
  for (const trace::Search::Proposal& wanted : record.machine->Proposals()) {
    if (record.taken.contains(wanted.slot)) continue;
    auto work = std::make_unique<Work>();
    work->search = search;
    work->slot = wanted.slot;
    work->cancelled = record.cancelled;
    if (absl::Status prepared = Prepare(session, search, record, wanted, &work->proposal); !prepared.ok()) {
      record.paused = std::string(prepared.message());
      break;
    }
    record.taken.insert(wanted.slot);
    out.push_back(std::move(work));
  }
  return out;
}

absl::Status TraceSearches::Finish(LiveSession& session, const Work& work, const trace::ProposerResult& result,
                                   const std::vector<TraceFamily::CallCost>& costs, const absl::Status& failure,
                                   Effects* effects) {
  ASSIGN_OR_RETURN(Record * record, Find(session, work.search));
  record->taken.erase(work.slot);
  if (!failure.ok()) {
    record->paused = std::string(failure.message());
    effects->row_changed = false;
    return absl::OkStatus();
  }
  const auto open = record->machine->Proposals();
  if (std::none_of(open.begin(), open.end(), [&](const trace::Search::Proposal& p) { return p.slot == work.slot; }))
    return absl::OkStatus();  // stopped
  v1::SearchEvent event;
  auto* proposed = event.mutable_proposed();
  proposed->set_slot(static_cast<int32_t>(work.slot));
  v1::Usage* usage = proposed->mutable_usage();
  for (const TraceFamily::CallCost& cost : costs) {
    if (!cost.answered) continue;
    usage->set_llm_calls(usage->llm_calls() + 1);
    usage->set_llm_prompt_tokens(usage->llm_prompt_tokens() + cost.prompt_tokens);
    usage->set_llm_completion_tokens(usage->llm_completion_tokens() + cost.completion_tokens);
    usage->set_llm_usd(usage->llm_usd() + cost.usd);
  }
  ASSIGN_OR_RETURN(const TraceFamily::Values base, family_.ValuesAt(session, work.proposal.base_version));
  std::vector<std::string> hashes;
  std::set<std::string> seen;
  std::string note;
  for (const trace::ProposedCandidate& candidate : result.candidates) {
    v1::CandidateOutcome outcome;
    TraceFamily::Values changed;
    family_.FillOutcome(work.proposal, candidate, costs, &outcome, &changed);
    note += Cat(note.empty() ? "" : "; ", v1::ReplyKind_Name(outcome.kind()), outcome.reason().empty() ? "" : ": ",
                outcome.reason().substr(0, 200));
    if (changed.empty()) continue;
    v1::Version values;
    TraceFamily::Values all = base;
    for (const auto& [node, value] : changed) all[node] = value;
    for (const auto& [node, value] : all)
      (*values.mutable_values())[family_.KeyOf(session, node)] =
          engine::ToWire(std::string(family_.graph_.TypeName(node)), value);
    std::string hash = RequestHash(CanonicalBytes(values));
    if (!seen.insert(hash).second) continue;  // two candidates said the same
    const v1::Usage cost = TraceFamily::CostOf(candidate, costs);
    const store::VersionRow row = family_.MakeVersion(session, work.proposal.base_version, changed, "candidate",
                                                      candidate.outcome.reasoning, &cost);
    effects->mutations.push_back(store::InsertVersion{row});
    proposed->add_versions(row.number);
    hashes.push_back(std::move(hash));
  }
  proposed->set_note(note);
  session.proto.mutable_usage()->set_steps(session.proto.usage().steps() + 1);
  const size_t first = record->machine->candidates().size();
  Apply(work.search, *record, event);
  for (size_t i = 0; i < hashes.size(); ++i) record->values_sha256[first + i] = hashes[i];
  Journal(session, work.search, std::move(event), effects);
  return Settle(session, work.search, *record, effects);
}

}  // namespace optod::engine

// Searches that carry a workflow: what the server evaluates itself.
#include <algorithm>

#include "base/sha256.h"
#include "base/status.h"
#include "server/engine/engine_impl.h"
#include "server/engine/trace_search.h"
#include "trace/workflow/workflow.h"

namespace optod::engine {
namespace {

using trace::NodeId;

constexpr int kMostRows = 10'000;
constexpr int64_t kDefaultWallMs = 600'000, kMostWallMs = 24 * 3'600'000;
constexpr int32_t kDefaultParallel = 4, kMostParallel = 64;

absl::Status CheckNumbers(const v1::SearchWorkflow& workflow) {
  if (workflow.rows_size() < 1 || workflow.rows_size() > kMostRows)
    return InvalidArgument("spec.workflow.rows: ", workflow.rows_size(), " rows; must be 1 to ", kMostRows);
  if (workflow.wall_ms() < 0 || workflow.wall_ms() > kMostWallMs)
    return InvalidArgument("spec.workflow.wall_ms: ", workflow.wall_ms(), " is outside [0, ", kMostWallMs, "]");
  if (workflow.parallel() < 0 || workflow.parallel() > kMostParallel)
    return InvalidArgument("spec.workflow.parallel: ", workflow.parallel(), " is outside [0, ", kMostParallel, "]");
  return absl::OkStatus();
}

}  // namespace

absl::Status TraceSearches::CheckWorkflow(LiveSession& session,
                                          const std::function<absl::Status(const trace::Workflow&)>& runnable,
                                          v1::SearchSpec* spec) {
  if (!spec->has_workflow()) return absl::OkStatus();
  v1::SearchWorkflow& workflow = *spec->mutable_workflow();
  RETURN_IF_ERROR(CheckNumbers(workflow));
  if (workflow.wall_ms() == 0) workflow.set_wall_ms(kDefaultWallMs);
  if (workflow.parallel() == 0) workflow.set_parallel(kDefaultParallel);
  if (spec->tasks() == 0 && spec->validation_tasks() >= 0)
    spec->set_tasks(std::max(0, workflow.rows_size() - spec->validation_tasks()));
  if (int64_t{spec->tasks()} + spec->validation_tasks() != workflow.rows_size())
    return InvalidArgument("spec.workflow.rows: ", workflow.rows_size(), " rows for ", spec->tasks(), " tasks and ",
                           spec->validation_tasks(), " validation tasks; there must be one a task");
  // The cache knows a task by its number: rows and program are part of its key.
  if (spec->data_set().empty()) spec->set_data_set("workflow " + Sha256Hex(workflow.SerializeAsString()));
  std::set<std::string> names;
  for (NodeId id : family_.parameters_) {
    if (family_.graph_.Index(id) == 0) names.insert(std::string(family_.graph_.BaseName(id)));
  }
  auto parsed = trace::ParseWorkflowText(workflow.text(), "spec.workflow.text", names);
  if (!parsed.ok()) return parsed.status();
  if (parsed->guide.kind == trace::Guide::Kind::kNone)
    return InvalidArgument("spec.workflow.text: guide: missing: how a task is scored");
  if (parsed->guide.kind != trace::Guide::Kind::kScore && session.proto.direction() == v1::MINIMIZE)
    return InvalidArgument("spec.workflow.text: guide: gives 1 for good and 0 for bad, but the session minimizes");
  return runnable(*parsed);
}

absl::StatusOr<std::vector<std::unique_ptr<TraceSearches::Evaluating>>> TraceSearches::TakeEvaluations(
    LiveSession& session, int64_t search, bool resume) {
  std::vector<std::unique_ptr<Evaluating>> out;
  auto it = records_.find(search);
  if (it == records_.end() || session.row.state != v1::Session::ACTIVE) return out;
  Record& record = it->second;
  const v1::SearchSpec& spec = record.proto.spec();
  if (!spec.has_workflow()) return out;
  if (resume) record.paused.clear();
  if (!record.paused.empty()) return out;
  if (absl::Status budget = CheckBudget(session.proto, session.row.create_ms, family_.context_.clock->NowUnixMs());
      !budget.ok()) {
    record.paused = std::string(budget.message());
    return out;
  }
  // Equal values on a task are evaluated once: the second waits for the first one's entry in the cache.
  std::set<std::string> busy;
  const auto key_of = [&](size_t candidate, uint32_t task) -> absl::StatusOr<std::string> {
    ASSIGN_OR_RETURN(const std::string hash, ValuesHash(session, record, candidate));
    return CacheKey(record, hash, task);
  };
  for (const auto& [evaluation, flag] : record.evaluating) {
    ASSIGN_OR_RETURN(std::string key, key_of(evaluation.first, evaluation.second));
    busy.insert(std::move(key));
  }
  for (const trace::Search::Evaluation& e : record.machine->Evaluations()) {
    if (record.evaluating.size() >= static_cast<size_t>(spec.workflow().parallel())) break;
    if (record.evaluating.contains({e.candidate, e.task})) continue;
    ASSIGN_OR_RETURN(std::string key, key_of(e.candidate, e.task));
    if (!busy.insert(std::move(key)).second) continue;
    auto work = std::make_unique<Evaluating>();
    work->search = search;
    work->candidate = e.candidate;
    work->task = e.task;
    work->validation = e.task >= record.machine->options().tasks;
    work->min_score = spec.min_score();
    work->max_score = spec.max_score();
    work->workflow.set_text(spec.workflow().text());
    work->workflow.set_wall_ms(spec.workflow().wall_ms());
    work->row = spec.workflow().rows(static_cast<int>(e.task));
    work->version.set_number(record.machine->candidates()[e.candidate].version);
    RETURN_IF_ERROR(family_.FillVersion(session, &work->version));
    work->scope = Cat("evaluate/", search, "/", e.candidate, "-", e.task, "/");
    work->received = family_.replies_.Under(work->scope);
    work->operation.set_name(Cat(record.proto.name(), "/evaluations/", e.candidate, "-", e.task));
    work->cancelled = family_.context_.trace->operations->Begin(work->operation);
    record.evaluating[{e.candidate, e.task}] = work->cancelled;
    out.push_back(std::move(work));
  }
  return out;
}

absl::Status TraceSearches::Evaluated(LiveSession& session, const Evaluating& work, double score,
                                      const std::string& feedback, std::optional<int64_t> output_node,
                                      const v1::Usage& usage, Effects* effects) {
  ASSIGN_OR_RETURN(Record * record, Find(session, work.search));
  const std::pair<size_t, uint32_t> key{work.candidate, work.task};
  record->evaluating.erase(key);
  const auto open = record->machine->Evaluations();
  if (std::find(open.begin(), open.end(), trace::Search::Evaluation{key.first, key.second}) == open.end())
    return absl::OkStatus();  // stopped, or answered from the cache meanwhile
  v1::TellSearchRequest request;
  request.set_score(score);
  request.set_feedback(feedback);
  if (output_node) request.set_output_node(*output_node);
  return Count(session, work.search, *record, key, request, usage, effects);
}

void TraceSearches::Release(const Evaluating& work, const std::string& pause) {
  auto it = records_.find(work.search);
  if (it == records_.end()) return;
  it->second.evaluating.erase({work.candidate, work.task});
  if (!pause.empty() && it->second.machine->state() != trace::Search::State::kDone) it->second.paused = pause;
}

}  // namespace optod::engine

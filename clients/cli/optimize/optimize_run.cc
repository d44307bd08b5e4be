#include "clients/cli/optimize/optimize_run.h"

#include <algorithm>
#include <chrono>

#include "base/status.h"
#include "clients/cli/optimize/feedback.h"
#include "clients/cli/optimize/unified_diff.h"
#include "clients/cli/optimize/wire_values.h"
#include "clients/cli/optimize/workflow_runner.h"
#include "trace/workflow/record.h"

namespace optod::cli {
namespace {

using std::chrono::steady_clock;

const char* OutcomeName(v1::ReplyKind kind) {
  switch (kind) {
    case v1::REPLY_APPLIED:
      return "applied";
    case v1::REPLY_UNCHANGED:
      return "unchanged";
    case v1::REPLY_STOP:
      return "stop";
    case v1::REPLY_UNPARSABLE:
      return "unparsable";
    case v1::REPLY_EMPTY:
      return "empty";
    case v1::REPLY_FAILED:
      return "failed";
    default:
      return "unknown";
  }
}

struct Candidate {
  int number = 0;
  int64_t version = 0;
  Values values;
  std::string refused;  // why the values cannot be used
};

class Run {
 public:
  Run(client::Client& client, const OptimizeFile& file, const CandidateTree& tree, Evaluator& evaluator,
      Progress& progress, const RunOptions& options)
      : client_(client),
        file_(file),
        tree_(tree),
        evaluator_(evaluator),
        progress_(progress),
        options_(options),
        begin_(steady_clock::now()) {}

  RunOutcome Go() {
    out_.record.name = file_.name;
    out_.record.start_values = out_.record.best_values = tree_.start();
    out_.fatal = All();
    Finish();
    return std::move(out_);
  }

 private:
  absl::Status All() {
    RETURN_IF_ERROR(OpenSession());
    RETURN_IF_ERROR(EvaluateStart());
    for (step_ = 1; out_.record.stopped.empty(); ++step_) {
      if (!MayGoOn()) break;
      RETURN_IF_ERROR(Step());
    }
    return absl::OkStatus();
  }

  // ---- the session

  absl::Status OpenSession() {
    if (!options_.resume.empty()) return Resume();
    v1::CreateSessionRequest request;
    *request.mutable_optimizer() = ToOptimizerSpec(file_.optimizer);
    for (const ParameterEntry& entry : file_.parameters)
      *request.add_parameters() = ToParameterSpec(entry, tree_.start().at(entry.name));
    request.mutable_budget()->set_max_llm_tokens(file_.budget.llm_tokens);
    request.set_direction(file_.evaluate.maximize ? v1::MAXIMIZE : v1::MINIMIZE);
    request.set_display_name(file_.name);
    ASSIGN_OR_RETURN(session_, client_.CreateSession(request));
    return SessionOpened();
  }

  absl::Status Resume() {
    v1::GetSessionRequest request;
    request.set_name(options_.resume);
    ASSIGN_OR_RETURN(session_, client_.GetSession(request));
    for (const ParameterEntry& entry : file_.parameters) {
      const auto& specs = session_.parameters();
      if (std::none_of(specs.begin(), specs.end(), [&](const auto& spec) { return spec.name() == entry.name; }))
        return FailedPrecondition("resume: session ", options_.resume, " has no parameter ", entry.name);
    }
    if (session_.budget().max_llm_tokens() != file_.budget.llm_tokens) {
      v1::UpdateSessionRequest update;
      update.mutable_session()->set_name(session_.name());
      *update.mutable_session()->mutable_budget() = session_.budget();
      update.mutable_session()->mutable_budget()->set_max_llm_tokens(file_.budget.llm_tokens);
      update.mutable_update_mask()->add_paths("budget");
      ASSIGN_OR_RETURN(session_, client_.UpdateSession(update));
    }
    return SessionOpened();
  }

  absl::Status SessionOpened() {
    out_.record.session = session_.name();
    evaluator_.SetSession(session_.name());
    usage_before_ = session_.usage();
    ProgressEvent event = Event("session");
    event.session = session_.name();
    progress_.Show(event);
    return ReadParameterNodes();
  }

  absl::Status ReadParameterNodes() {
    v1::ListNodesRequest request;
    request.set_session(session_.name());
    do {
      ASSIGN_OR_RETURN(const v1::ListNodesResponse page, client_.ListNodes(request));
      for (const v1::Node& node : page.nodes())
        if (node.kind() == v1::Node::PARAMETER) nodes_.emplace(node.name().substr(0, node.name().find(':')), node.id());
      request.set_page_token(page.next_page_token());
    } while (!request.page_token().empty());
    for (const ParameterEntry& entry : file_.parameters)
      if (!nodes_.count(entry.name))
        return Internal("session ", session_.name(), " has no node for parameter ", entry.name);
    return absl::OkStatus();
  }

  // ---- evaluations

  // The start; for a resumed session also its best version, which must be known with its output.
  absl::Status EvaluateStart() {
    Candidate start;
    start.values = tree_.start();
    if (!options_.resume.empty()) {
      ASSIGN_OR_RETURN(start.values, ValuesOf(0));
      out_.record.start_values = start.values;
    }
    RETURN_IF_ERROR(EvaluateBatch({start}));
    if (Interrupted()) return absl::OkStatus();
    out_.record.start_score = out_.record.best_score;
    if (options_.resume.empty() || !session_.has_best_version() || session_.best_version() == 0) return MoveHead();
    Candidate best;
    best.version = session_.best_version();
    ASSIGN_OR_RETURN(best.values, ValuesOf(best.version));
    RETURN_IF_ERROR(EvaluateBatch({best}));
    return MoveHead();
  }

  absl::StatusOr<Values> ValuesOf(int64_t version) {
    v1::GetVersionRequest request;
    request.set_name(Cat(session_.name(), "/versions/", version));
    ASSIGN_OR_RETURN(const v1::Version found, client_.GetVersion(request));
    return FromVersion(found, file_, tree_.start());
  }

  absl::Status EvaluateBatch(const std::vector<Candidate>& batch) {
    std::vector<Values> values;
    for (const Candidate& candidate : batch)
      if (candidate.refused.empty()) values.push_back(candidate.values);
    ProgressEvent event = Event("evaluating");
    event.candidate = batch.front().number;
    progress_.Show(event);
    ASSIGN_OR_RETURN(const std::vector<Evaluation> results, evaluator_.EvaluateAll(values, options_.jobs));
    size_t next = 0;
    for (const Candidate& candidate : batch) {
      Evaluation evaluation;
      evaluation.failure = candidate.refused;
      if (candidate.refused.empty()) evaluation = results[next++];
      if (evaluation.cancelled) continue;
      RETURN_IF_ERROR(Take(candidate, evaluation));
    }
    return absl::OkStatus();
  }

  absl::Status Take(const Candidate& candidate, const Evaluation& evaluation) {
    const bool first = out_.record.evaluated.empty();
    if (!evaluation.cached && candidate.refused.empty()) ++out_.record.usage.evaluations;
    const double seconds = evaluation.cached ? 0 : static_cast<double>(evaluation.wall.count()) / 1000;
    out_.record.evaluated.push_back(
        {step_, candidate.number, candidate.version, evaluation.score, evaluation.failure, seconds, evaluation.cached});
    auto& best = out_.record.best_score;
    const bool better = evaluation.score && (!best || IsBetter(file_.evaluate.maximize, *evaluation.score, *best));
    if (evaluation.score) {
      v1::TellRequest tell;
      tell.set_session(session_.name());
      tell.mutable_score()->set_version(candidate.version);
      tell.mutable_score()->set_score(*evaluation.score);
      tell.mutable_score()->set_feedback(FeedbackText(evaluation, file_.evaluate.maximize));
      RETURN_IF_ERROR(client_.Tell(tell).status());
    }
    if (better || first) {
      if (better) best = evaluation.score;
      out_.record.best_version = candidate.version;
      out_.record.best_values = candidate.values;
      best_evaluation_ = evaluation;
      tried_.Clear();
    } else {
      tried_.Add(candidate.values, out_.record.best_values, evaluation);
    }
    ProgressEvent event = Event("evaluation");
    event.candidate = candidate.number;
    event.version = candidate.version;
    event.score = evaluation.score;
    event.text = evaluation.failure;
    event.cached = evaluation.cached;
    progress_.Show(event);
    return absl::OkStatus();
  }

  // ---- one step

  absl::Status Step() {
    RETURN_IF_ERROR(TellFeedback());
    auto response = Propose();
    if (!response.ok()) return ProposalFailed(response.status());
    ++out_.record.usage.steps;
    bool all_stop = response->candidates_size() > 0, all_failed = response->candidates_size() > 0;
    std::vector<Candidate> fresh;
    for (int i = 0; i < response->candidates_size(); ++i) {
      const v1::CandidateOutcome& outcome = response->candidates(i);
      all_stop = all_stop && outcome.kind() == v1::REPLY_STOP;
      all_failed = all_failed && outcome.kind() == v1::REPLY_FAILED;
      ProgressEvent event = Event("proposal");
      event.candidate = i + 1;
      if (outcome.has_version()) event.version = outcome.version();
      event.outcome = OutcomeName(outcome.kind());
      event.text = outcome.reason();
      progress_.Show(event);
      if (outcome.kind() != v1::REPLY_APPLIED && !outcome.reason().empty())
        out_.record.notes.push_back(Cat("step ", step_, ", candidate ", i + 1, ": ", outcome.reason()));
      if (!outcome.has_version()) continue;
      Candidate candidate;
      candidate.number = i + 1;
      candidate.version = outcome.version();
      auto values = ValuesOf(candidate.version);
      if (values.ok())
        candidate.values = *std::move(values);
      else if (values.status().code() == absl::StatusCode::kInvalidArgument)
        candidate.refused = std::string(values.status().message());
      else
        return values.status();
      if (!candidate.refused.empty()) candidate.values = out_.record.best_values;
      fresh.push_back(std::move(candidate));
    }
    if (all_failed) return ModelUnusable(response->candidates(0).reason());
    any_proposal_ = true;
    const size_t known = KnownCount();
    RETURN_IF_ERROR(EvaluateFresh(fresh));
    RETURN_IF_ERROR(MoveHead());
    idle_steps_ = KnownCount() > known ? 0 : idle_steps_ + 1;
    ProgressEvent event = Event("step");
    progress_.Show(event);
    if (all_stop) return Stop("the model says that nothing is left to improve");
    if (idle_steps_ >= kMaxIdleSteps) return Stop(Cat(kMaxIdleSteps, " steps in a row brought no new values"));
    return absl::OkStatus();
  }

  size_t KnownCount() const {
    return static_cast<size_t>(std::count_if(out_.record.evaluated.begin(), out_.record.evaluated.end(),
                                             [](const auto& v) { return !v.cached; }));
  }

  absl::Status EvaluateFresh(const std::vector<Candidate>& fresh) {
    std::vector<Candidate> batch;
    const auto flush = [&]() -> absl::Status {
      std::vector<Candidate> now;
      now.swap(batch);
      return now.empty() ? absl::OkStatus() : EvaluateBatch(now);
    };
    int64_t planned = out_.record.usage.evaluations;
    for (const Candidate& candidate : fresh) {
      if (Interrupted() || WallSpent()) break;
      const bool costs = candidate.refused.empty() && !evaluator_.IsCached(candidate.values);
      if (costs && file_.budget.evaluations > 0 && planned >= file_.budget.evaluations) {
        Note(Cat("step ", step_, ", candidate ", candidate.number,
                 ": not evaluated, the budget of evaluations is spent"));
        continue;
      }
      planned += costs;
      batch.push_back(candidate);
      if (static_cast<int>(batch.size()) >= options_.jobs) RETURN_IF_ERROR(flush());
    }
    return flush();
  }

  // Records the best evaluation as the program's trace and says what came out.
  absl::Status TellFeedback() {
    v1::ZeroFeedbackRequest zero;
    zero.set_session(session_.name());
    RETURN_IF_ERROR(client_.ZeroFeedback(zero).status());
    ASSIGN_OR_RETURN(const int64_t output, RecordRun());
    v1::BackwardRequest backward;
    backward.set_session(session_.name());
    backward.set_output_node(output);
    backward.set_feedback(FeedbackText(best_evaluation_, file_.evaluate.maximize) + tried_.Text());
    return client_.Backward(backward).status();
  }

  // The best run as nodes: a command is one, a workflow what its steps did. Returns what the feedback belongs to.
  absl::StatusOr<int64_t> RecordRun() {
    v1::RecordNodesRequest record;
    const auto& trace = best_evaluation_.trace;
    if (trace != nullptr)
      record = trace::NodesOf(*trace, [this](const std::string& name) { return nodes_.at(name); });
    else
      *record.add_nodes() = EvaluationNode(file_, nodes_, best_evaluation_);
    record.set_session(session_.name());
    const int expected = record.nodes_size();
    ASSIGN_OR_RETURN(const v1::RecordNodesResponse recorded, client_.RecordNodes(std::move(record)));
    if (recorded.nodes_size() != expected)
      return Internal("record: the server named ", recorded.nodes_size(), " nodes instead of ", expected);
    return recorded.nodes(trace != nullptr ? trace->output : 0).id();
  }

  absl::StatusOr<v1::ProposeResponse> Propose() {
    v1::ProposeRequest request;
    request.set_session(session_.name());
    request.set_candidates(file_.optimizer.candidates.value_or(0));
    stop_waiting_ = false;
    const auto on_progress = [&](const v1::Operation& operation) {
      stop_waiting_ = Interrupted() || WallSpent();
      ProgressEvent event = Event("proposing");
      event.text = operation.progress_message();
      progress_.Show(event);
    };
    progress_.Show(Event("proposing"));
    auto response = client_.ProposeAndWait(request, on_progress, &stop_waiting_);
    if (response.ok()) tokens_ += response->usage().llm_prompt_tokens() + response->usage().llm_completion_tokens();
    return response;
  }

  absl::Status ProposalFailed(const absl::Status& status) {
    if (Interrupted()) return Stop("interrupted");
    if (WallSpent()) return Stop("the time budget is spent");
    if (status.code() == absl::StatusCode::kResourceExhausted) {
      Note(std::string(status.message()));
      return Stop("a budget is spent");
    }
    Note(std::string(status.message()));
    v1::GetServerInfoRequest ping;
    RETURN_IF_ERROR(client_.GetServerInfo(ping).status());
    return ModelUnusable(std::string(status.message()));
  }

  absl::Status ModelUnusable(const std::string& why) {
    out_.no_proposal = !any_proposal_;
    return Stop("the language model cannot be used: " + why);
  }

  absl::Status MoveHead() {
    if (out_.record.best_version == session_.head_version()) return absl::OkStatus();
    v1::RollbackRequest request;
    request.set_session(session_.name());
    request.set_version(out_.record.best_version);
    ASSIGN_OR_RETURN(session_, client_.Rollback(request));
    return absl::OkStatus();
  }

  // ---- when to end

  bool Interrupted() const { return options_.interrupted && *options_.interrupted; }
  bool WallSpent() const { return file_.budget.wall.count() > 0 && steady_clock::now() - begin_ >= file_.budget.wall; }
  absl::Status Stop(const std::string& why) {
    out_.record.stopped = why;
    return absl::OkStatus();
  }
  bool MayGoOn() {
    const auto& usage = out_.record.usage;
    const int64_t all_tokens = tokens_ + usage_before_.llm_prompt_tokens() + usage_before_.llm_completion_tokens();
    std::string why;
    if (Interrupted())
      why = "interrupted";
    else if (WallSpent())
      why = "the time budget is spent";
    else if (usage.steps >= file_.budget.steps)
      why = Cat("all ", file_.budget.steps, " steps are done");
    else if (file_.budget.evaluations > 0 && usage.evaluations >= file_.budget.evaluations)
      why = "the budget of evaluations is spent";
    else if (file_.budget.llm_tokens > 0 && all_tokens >= file_.budget.llm_tokens)
      why = "the token budget is spent";
    out_.record.stopped = why;
    return why.empty();
  }

  void Finish() {
    auto& record = out_.record;
    if (record.stopped.empty()) record.stopped = out_.fatal.ok() ? "done" : std::string(out_.fatal.message());
    record.gate = JudgeGate(file_.gate, file_.evaluate.maximize, record.start_score, record.best_score);
    if (!session_.name().empty()) {
      v1::GetSessionRequest request;
      request.set_name(session_.name());
      if (const auto session = client_.GetSession(request); session.ok()) {
        const v1::Usage& usage = session->usage();
        record.usage.llm_calls = usage.llm_calls() - usage_before_.llm_calls();
        record.usage.llm_prompt_tokens = usage.llm_prompt_tokens() - usage_before_.llm_prompt_tokens();
        record.usage.llm_completion_tokens = usage.llm_completion_tokens() - usage_before_.llm_completion_tokens();
        record.usage.llm_usd = usage.llm_usd() - usage_before_.llm_usd();
      }
    }
    record.usage.wall_seconds = std::chrono::duration<double>(steady_clock::now() - begin_).count();
    if (auto changes = tree_.Changes(record.best_values, true); changes.ok())
      for (const FileChange& change : *changes) record.patch += UnifiedDiff(change.path, change.before, change.after);
    progress_.Done();
  }

  void Note(const std::string& text) {
    out_.record.notes.push_back(text);
    ProgressEvent event = Event("note");
    event.text = text;
    progress_.Show(event);
  }

  ProgressEvent Event(const char* kind) const {
    ProgressEvent event;
    event.kind = kind;
    event.step = step_;
    event.steps = file_.budget.steps;
    event.best = out_.record.best_score;
    event.tokens = tokens_;
    event.seconds = std::chrono::duration<double>(steady_clock::now() - begin_).count();
    return event;
  }

  client::Client& client_;
  const OptimizeFile& file_;
  const CandidateTree& tree_;
  Evaluator& evaluator_;
  Progress& progress_;
  const RunOptions& options_;
  const steady_clock::time_point begin_;
  RunOutcome out_;
  v1::Session session_;
  v1::Usage usage_before_;
  std::map<std::string, int64_t> nodes_;
  Evaluation best_evaluation_;
  Tried tried_;
  std::atomic<bool> stop_waiting_{false};
  bool any_proposal_ = false;
  int step_ = 0, idle_steps_ = 0;
  int64_t tokens_ = 0;
};

}  // namespace

RunOutcome RunOptimization(client::Client& client, const OptimizeFile& file, const CandidateTree& tree,
                           Evaluator& evaluator, Progress& progress, const RunOptions& options) {
  return Run(client, file, tree, evaluator, progress, options).Go();
}

}  // namespace optod::cli

#include "trace/workflow/executor.h"

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <semaphore>
#include <thread>

#include "base/status.h"
#include "trace/llm/json_parse.h"
#include "trace/llm/limiter.h"
#include "trace/workflow/step_runner.h"

namespace optod::trace {
namespace {

constexpr std::chrono::milliseconds kFirstWait{100}, kLongestWait{5'000}, kLook{50};

enum class State { kWaiting, kDone, kFailed, kBlocked };

/// One row under way.
struct OpenRow {
  size_t number = 0;
  std::vector<State> state;  // of each step
  std::vector<StepOutcome> outcome;
  std::vector<bool> skipped;      // `when` was false
  std::vector<size_t> waits_for;  // steps of ours that each still waits for; the last entry is the guide's
  size_t left = 0;                // steps that have not ended
  std::string item, index;
};

struct Task {
  std::shared_ptr<OpenRow> row;
  size_t step = 0;  // steps.size() = the guide
};

/// Which steps each step (and the guide, last) waits for, and the way back.
struct Edges {
  std::vector<std::vector<size_t>> needs, feeds;
};

Edges EdgesOf(const Workflow& workflow) {
  std::map<std::string, size_t> position;
  for (size_t i = 0; i < workflow.steps.size(); ++i) position[workflow.steps[i].name] = i;
  Edges edges;
  edges.needs.resize(workflow.steps.size() + 1);
  edges.feeds.resize(workflow.steps.size());
  for (size_t i = 0; i <= workflow.steps.size(); ++i) {
    const auto& uses = i < workflow.steps.size() ? workflow.steps[i].uses : workflow.guide.uses;
    for (const std::string& name : uses) {
      const auto found = position.find(name);
      if (found == position.end()) continue;
      edges.needs[i].push_back(found->second);
      if (i < workflow.steps.size()) edges.feeds[found->second].push_back(i);
    }
  }
  return edges;
}

class Run {
 public:
  Run(const Workflow& workflow, const WorkflowInput& input, const WorkflowServices& services,
      const std::vector<std::string>& rows)
      : workflow_(workflow),
        input_(input),
        services_(services),
        rows_(rows),
        edges_(EdgesOf(workflow)),
        runner_(services, &stop_),
        slots_(workflow.parallel),
        spare_threads_(workflow.parallel) {
    result_.rows.resize(rows.size());
  }

  WorkflowRun Go() {
    const int64_t start_ns = services_.clock->NowMonotonicNs();  // before any step: its time counts
    std::vector<std::thread> threads;
    for (int64_t i = 0; i < workflow_.parallel; ++i) threads.emplace_back([this] { Work(); });
    Watch(start_ns);
    for (std::thread& thread : threads) thread.join();
    Finish();
    return std::move(result_);
  }

 private:
  // ---- scheduling

  /// Looks after cancellation and the wall clock until all rows have ended.
  void Watch(int64_t start_ns) {
    std::unique_lock lock(mutex_);
    while (ended_ < rows_.size()) {
      changed_.wait_for(lock, kLook);
      if (input_.cancelled != nullptr && input_.cancelled->load()) result_.cancelled = true;
      const auto spent = std::chrono::nanoseconds(services_.clock->NowMonotonicNs() - start_ns);
      if (input_.wall.count() > 0 && spent >= input_.wall) out_of_time_ = true;
      if (result_.cancelled || out_of_time_) stop_ = true;
    }
  }

  void Work() {
    std::unique_lock lock(mutex_);
    while (true) {
      if (ready_.empty() && next_row_ < rows_.size()) {
        OpenNext();
        continue;
      }
      if (ready_.empty()) {
        if (ended_ == rows_.size()) break;
        changed_.wait(lock);
        continue;
      }
      Task task = std::move(ready_.front());
      ready_.pop_front();
      lock.unlock();
      StepOutcome outcome;
      Verdict verdict;
      bool skipped = false;
      const bool guide = task.step == workflow_.steps.size();
      if (guide)
        verdict = Judge(*task.row);
      else
        outcome = RunStep(*task.row, workflow_.steps[task.step], &skipped);
      lock.lock();
      if (guide)
        Close(*task.row, &verdict);
      else
        StepEnded(task, std::move(outcome), skipped);
      changed_.notify_all();
    }
    changed_.notify_all();
  }

  /// A new row only when nothing else is ready: few rows are open at once, whatever the size of the data set.
  void OpenNext() {
    auto row = std::make_shared<OpenRow>();
    const size_t steps = workflow_.steps.size();
    row->number = next_row_++;
    row->state.assign(steps, State::kWaiting);
    row->outcome.resize(steps);
    row->skipped.assign(steps, false);
    row->left = steps;
    row->item = rows_[row->number];
    row->index = Cat(row->number);
    for (const auto& needs : edges_.needs) row->waits_for.push_back(needs.size());
    for (size_t i = 0; i < steps; ++i)
      if (row->waits_for[i] == 0) ready_.push_back({row, i});
    changed_.notify_all();
  }

  void StepEnded(const Task& task, StepOutcome outcome, bool skipped) {
    OpenRow& row = *task.row;
    const bool good = outcome.ok;
    row.outcome[task.step] = std::move(outcome);
    row.skipped[task.step] = skipped;
    Settle(task.row, task.step, good ? State::kDone : State::kFailed);
    if (row.left > 0) return;
    const auto& needs = edges_.needs.back();
    const bool judge = workflow_.guide.kind != Guide::Kind::kNone &&
                       std::all_of(needs.begin(), needs.end(), [&](size_t i) { return row.state[i] == State::kDone; });
    if (judge)
      ready_.push_front({task.row, workflow_.steps.size()});
    else
      Close(row, nullptr);
  }

  /// Ends a step, and those that can no longer run because of it.
  void Settle(const std::shared_ptr<OpenRow>& row, size_t step, State state) {
    row->state[step] = state;
    --row->left;
    for (const size_t next : edges_.feeds[step]) {
      if (row->state[next] != State::kWaiting) continue;
      if (state != State::kDone)
        Settle(row, next, State::kBlocked);
      else if (--row->waits_for[next] == 0)
        ready_.push_back({row, next});
    }
  }

  // ---- one step

  Expression::Lookup LookupOf(const OpenRow& row) const {
    return [this, &row](const std::string& name) -> const std::string* {
      if (const auto found = input_.parameters.find(name); found != input_.parameters.end()) return &found->second;
      if (workflow_.has_data && name == "item") return &row.item;
      if (workflow_.has_data && name == "index") return &row.index;
      for (size_t i = 0; i < workflow_.steps.size(); ++i) {
        // Only what a step declared to use is asked for, and that has ended: no other thread writes it.
        if (workflow_.steps[i].name == name) return &row.outcome[i].value;
      }
      return nullptr;
    };
  }

  template <typename F>
  auto InASlot(const F& f) {
    slots_.acquire();
    auto outcome = f();
    slots_.release();
    return outcome;
  }

  StepOutcome RunStep(const OpenRow& row, const Step& step, bool* skipped) {
    return RunStep(step, LookupOf(row), step.retries, skipped);
  }

  /// `lookup` knows the entries of the maps around the step.
  StepOutcome RunStep(const Step& step, const Expression::Lookup& lookup, int64_t retries, bool* skipped) {
    if (step.when) {
      const auto when = step.when->Evaluate(lookup);
      if (!when.ok()) return BadStatus(when.status());
      *skipped = !IsTruthy(*when);
      if (*skipped) return Good("null");
    }
    if (const auto* map = std::get_if<MapStep>(&step.work)) return RunMap(*map, lookup, retries);
    return Attempts(step, retries, lookup);
  }

  StepOutcome Attempts(const Step& step, int64_t retries, const Expression::Lookup& lookup) {
    std::chrono::milliseconds wait = kFirstWait;
    for (int64_t left = retries;; --left) {
      if (stop_) return BadStatus(absl::CancelledError("cancelled"));
      StepOutcome outcome = InASlot([&] { return runner_.Run(step, lookup); });
      if (outcome.ok || outcome.cancelled || !outcome.retryable || left <= 0) {
        if (!outcome.ok && !outcome.cancelled && retries > 0 && outcome.retryable)
          outcome.error += Cat(" (", retries + 1, " attempts)");
        return outcome;
      }
      if (!SleepUnlessCancelled(*services_.clock, wait, &stop_).ok())
        return BadStatus(absl::CancelledError("cancelled"));
      wait = std::min(wait * 2, kLongestWait);
    }
  }

  /// The entries at once, as slots allow; the thread that waits for them holds none. Maps, inner ones too, share
  /// `parallel` further threads.
  StepOutcome RunMap(const MapStep& map, const Expression::Lookup& lookup, int64_t retries) {
    const auto over = map.over.Evaluate(lookup);
    if (!over.ok()) return BadStatus(over.status());
    const Json list = ReadJson(*over);
    if (!list.is_array()) return Bad("TypeError", "map.over: " + over->substr(0, 60) + " is not a list", false);
    std::vector<std::string> entries;
    for (const Json& entry : list) entries.push_back(Dump(entry));
    std::vector<StepOutcome> outcomes(entries.size());
    std::atomic<size_t> next{0};
    const auto work = [&] {
      for (size_t i = next++; i < entries.size(); i = next++) {
        const Expression::Lookup inside = [&, i](const std::string& name) {
          return name == map.as ? &entries[i] : lookup(name);
        };
        bool skipped = false;
        outcomes[i] = RunStep(*map.step, inside, std::max(retries, map.step->retries), &skipped);
      }
    };
    std::vector<std::thread> threads;
    while (threads.size() + 1 < entries.size() && TakeThread()) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
    spare_threads_ += static_cast<int64_t>(threads.size());
    Json values = Json::array();
    for (size_t i = 0; i < outcomes.size(); ++i) {
      if (!outcomes[i].ok) {
        outcomes[i].error = Cat("entry ", i, ": ", outcomes[i].error);
        return outcomes[i];
      }
      values.push_back(ReadJson(outcomes[i].value));
    }
    return Good(Dump(values));
  }

  bool TakeThread() {
    int64_t left = spare_threads_;
    while (left > 0 && !spare_threads_.compare_exchange_weak(left, left - 1)) {
    }
    return left > 0;
  }

  Verdict Judge(const OpenRow& row) {
    Verdict verdict;
    verdict.failure = BadStatus(absl::CancelledError("cancelled"));
    if (stop_) return verdict;
    return InASlot([&] { return runner_.Judge(workflow_.guide, LookupOf(row)); });
  }

  // ---- the trace of a row

  void Close(const OpenRow& row, const Verdict* verdict) {
    RowRun& out = result_.rows[row.number];
    std::map<std::string, int> nodes;
    AddRowData(row, &out, &nodes);
    int first_failed = -1;
    for (size_t i = 0; i < workflow_.steps.size(); ++i) {
      const Step& step = workflow_.steps[i];
      if (row.state[i] != State::kDone && row.state[i] != State::kFailed) continue;
      if (row.outcome[i].cancelled) continue;
      AddNode(step.name, row.skipped[i] ? "skip" : OpOf(step), step.description, step.uses, row.outcome[i], nodes,
              &out);
      nodes[step.name] = static_cast<int>(out.nodes.size()) - 1;
      if (row.state[i] == State::kFailed && first_failed < 0) first_failed = nodes[step.name];
    }
    if (verdict != nullptr && !verdict->failure.cancelled) {
      AddNode("score", "guide", "the score of the row", workflow_.guide.uses,
              verdict->ok ? Good(Dump(Json(verdict->score))) : verdict->failure, nodes, &out);
      out.output = static_cast<int>(out.nodes.size()) - 1;
      if (verdict->ok) {
        out.score = verdict->score;
        out.feedback = verdict->feedback;
      }
    } else if (first_failed >= 0) {
      out.output = first_failed;
    } else if (verdict == nullptr && workflow_.guide.kind == Guide::Kind::kNone) {
      out.output = static_cast<int>(out.nodes.size()) - 1;
    }
    out.failed = out.output >= 0 && out.nodes[static_cast<size_t>(out.output)].kind == NodeKind::kException;
    if (out.failed) out.feedback = out.nodes[static_cast<size_t>(out.output)].text;
    ++ended_;
  }

  void AddRowData(const OpenRow& row, RowRun* out, std::map<std::string, int>* nodes) {
    if (!workflow_.has_data) return;
    for (const char* name : {"item", "index"}) {
      const auto uses = [&](const Step& step) { return step.uses.count(name) > 0; };
      if (!std::any_of(workflow_.steps.begin(), workflow_.steps.end(), uses) && !workflow_.guide.uses.count(name))
        continue;
      TraceNode node;
      node.base = name;
      node.kind = NodeKind::kNode;
      Fill(std::string(name) == "item" ? row.item : row.index, &node);
      out->nodes.push_back(std::move(node));
      (*nodes)[name] = static_cast<int>(out->nodes.size()) - 1;
    }
  }

  static std::string OpOf(const Step& step) {
    static constexpr const char* kNames[] = {"template", "llm", "command", "python", "http", "", "map"};
    const auto* op = std::get_if<OpStep>(&step.work);
    return op != nullptr ? op->op : kNames[step.work.index()];
  }

  static void Fill(const std::string& json, TraceNode* node) {
    const Json value = ReadJson(json);
    node->json = json;
    node->text = PlainText(json);
    node->type = value.is_null()             ? "NoneType"
                 : value.is_boolean()        ? "bool"
                 : value.is_number_integer() ? "int"
                 : value.is_number()         ? "float"
                 : value.is_string()         ? "str"
                 : value.is_array()          ? "list"
                                             : "dict";
  }

  void AddNode(const std::string& base, const std::string& op, const std::string& description,
               const std::set<std::string>& uses, const StepOutcome& outcome, const std::map<std::string, int>& nodes,
               RowRun* out) const {
    TraceNode node;
    node.base = base;
    node.op = op;
    node.description = description;
    for (const std::string& name : uses) {
      if (workflow_.parameters.count(name)) {
        node.inputs.push_back({name, name, -1});
      } else if (const auto found = nodes.find(name); found != nodes.end()) {
        node.inputs.push_back({name, "", found->second});
      }
    }
    if (outcome.ok) {
      Fill(outcome.value, &node);
    } else {
      node.kind = NodeKind::kException;
      node.base = "exception_" + base;
      node.type = outcome.error_type;
      node.text = "(" + outcome.error_type + ") " + outcome.error;
    }
    out->nodes.push_back(std::move(node));
  }

  void Finish() {
    double total = 0;
    for (size_t i = 0; i < result_.rows.size(); ++i) {
      const RowRun& row = result_.rows[i];
      total += row.score.value_or(0);
      result_.failed_rows += row.failed;
      if (row.failed && workflow_.guide.kind == Guide::Kind::kScore && result_.failure.empty())
        result_.failure = Cat(workflow_.has_data ? Cat("row ", i, ": ") : "", row.feedback);
    }
    result_.score = total / static_cast<double>(std::max<size_t>(result_.rows.size(), 1));
    if (out_of_time_) result_.failure = Cat("the workflow was still running after ", input_.wall.count(), " ms");
    if (result_.cancelled) result_.failure = "cancelled";
    result_.model_calls = runner_.meter.calls;
    result_.usage = runner_.meter.usage;
  }

  const Workflow& workflow_;
  const WorkflowInput& input_;
  const WorkflowServices& services_;
  const std::vector<std::string>& rows_;
  const Edges edges_;
  std::atomic<bool> stop_{false};
  StepRunner runner_;
  std::counting_semaphore<64> slots_;
  std::atomic<int64_t> spare_threads_;  // for the entries of maps
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> ready_;
  size_t next_row_ = 0, ended_ = 0;
  bool out_of_time_ = false;
  WorkflowRun result_;
};

absl::Status CheckStep(const Step& step, const WorkflowServices& services) {
  if (const auto* map = std::get_if<MapStep>(&step.work)) return CheckStep(*map->step, services);
  const auto* command = std::get_if<CommandStep>(&step.work);
  const std::string who = "step " + step.name + ": ";
  if (command != nullptr && !command->sandbox && !services.unprotected_commands)
    return absl::PermissionDeniedError(who + "`sandbox: false` is not allowed here");
  if (std::holds_alternative<HttpStep>(step.work) && services.http == nullptr)
    return absl::PermissionDeniedError(who + "http steps are not run here, only at the client");
  const bool boxed = std::holds_alternative<PythonStep>(step.work) || (command != nullptr && command->sandbox);
  if (boxed && services.sandbox == nullptr) return FailedPrecondition(who, "needs a sandbox and there is none");
  if (boxed && !services.sandbox->features().available)
    return FailedPrecondition(who, "needs a sandbox: ", services.sandbox->features().reason);
  if (std::holds_alternative<LlmStep>(step.work) && !services.complete)
    return FailedPrecondition(who, "needs a language model and there is none");
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckServices(const Workflow& workflow, const WorkflowServices& services) {
  for (const Step& step : workflow.steps) RETURN_IF_ERROR(CheckStep(step, services));
  Step guide;
  guide.name = "guide";
  if (workflow.guide.kind == Guide::Kind::kCommand) guide.work = workflow.guide.command;
  if (workflow.guide.kind == Guide::Kind::kJudge) guide.work = LlmStep();
  return CheckStep(guide, services);
}

absl::StatusOr<WorkflowRun> RunWorkflow(const Workflow& workflow, const WorkflowInput& input,
                                        const WorkflowServices& services) {
  if (services.clock == nullptr) return Internal("workflow: no clock");
  RETURN_IF_ERROR(CheckServices(workflow, services));
  for (const std::string& name : workflow.parameters) {
    if (!input.parameters.count(name)) return InvalidArgument("workflow: parameter ", name, " is not given");
  }
  std::vector<std::string> rows = !input.rows.empty() ? input.rows : workflow.rows;
  if (!workflow.has_data) rows = {"null"};
  if (rows.empty()) return InvalidArgument("workflow: data: the rows of ", workflow.data_file, " are not given");
  if (workflow.limit > 0 && rows.size() > static_cast<size_t>(workflow.limit))
    rows.resize(static_cast<size_t>(workflow.limit));
  return Run(workflow, input, services, rows).Go();
}

WorkflowTrace TraceOf(const Workflow& workflow, const WorkflowRun& run) {
  std::vector<size_t> order;
  for (size_t i = 0; i < run.rows.size(); ++i)
    if (run.rows[i].output >= 0) order.push_back(i);
  const auto worth = [&](size_t i) { return run.rows[i].failed ? -HUGE_VAL : run.rows[i].score.value_or(0); };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return worth(a) < worth(b); });
  if (order.size() > static_cast<size_t>(workflow.trace_rows)) order.resize(static_cast<size_t>(workflow.trace_rows));
  std::sort(order.begin(), order.end());
  WorkflowTrace trace;
  TraceNode last;
  last.base = "result";
  last.op = "collect";
  last.description = "the scores of the rows";
  for (const size_t i : order) {
    const RowRun& row = run.rows[i];
    const auto offset = static_cast<int>(trace.nodes.size());
    for (TraceNode node : row.nodes) {
      for (TraceNode::Input& input : node.inputs)
        if (input.node >= 0) input.node += offset;
      trace.nodes.push_back(std::move(node));
    }
    last.inputs.push_back({Cat("row_", i), "", row.output + offset});
    if (workflow.has_data) trace.feedback += Cat("row ", i, ": ");
    trace.feedback += (row.feedback.empty() ? std::string("no remarks") : row.feedback) + "\n";
  }
  if (order.empty()) return trace;
  if (!workflow.has_data) {  // one row needs no node that joins
    trace.output = last.inputs[0].node;
    return trace;
  }
  last.json = Dump(Json(run.score));
  last.text = Cat(run.score);
  last.type = "float";
  trace.output = static_cast<int>(trace.nodes.size());
  trace.nodes.push_back(std::move(last));
  return trace;
}

absl::StatusOr<std::vector<NodeId>> AddToGraph(const WorkflowTrace& trace,
                                               const std::map<std::string, NodeId>& parameters, Graph* graph) {
  std::vector<NodeInput> batch;
  for (const TraceNode& node : trace.nodes) {
    NodeInput input;
    input.base_name = node.base;
    input.kind = node.kind;
    input.type_name = node.type;
    input.value_text = node.text;
    if (node.json) input.value_json = *node.json;
    input.op = node.op;
    if (!node.description.empty()) input.description = node.description;
    for (const TraceNode::Input& from : node.inputs) {
      if (from.node >= 0) {
        input.inputs.push_back({from.argument, {static_cast<uint32_t>(from.node), true}});
        continue;
      }
      const auto found = parameters.find(from.parameter);
      if (found == parameters.end()) return NotFound("workflow: parameter ", from.parameter, " has no node");
      input.inputs.push_back({from.argument, {found->second, false}});
    }
    batch.push_back(std::move(input));
  }
  return graph->AddNodes(batch);
}

}  // namespace optod::trace

#include "server/services/search_evaluation.h"

#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "base/sha256.h"
#include "base/status.h"
#include "server/engine/trace_search.h"
#include "server/engine/operations.h"
#include "server/engine/trace_services.h"
#include "server/services/completion.h"
#include "server/services/workflow_on_server.h"
#include "trace/llm/chat_json.h"
#include "trace/llm/error.h"
#include "trace/llm/gateway.h"
#include "trace/optimizers/python_text.h"
#include "trace/workflow/record.h"

namespace optod::services {
namespace {

using engine::Caller;
using engine::Effects;
using engine::LiveSession;
using engine::SessionName;
using engine::TraceSearches;

std::string JsonOf(const v1::Value& value) {
  switch (value.kind_case()) {
    case v1::Value::kText:
      return trace::JsonOfText(value.text());
    case v1::Value::kNumber:
      return trace::FloatRepr(value.number());
    case v1::Value::kInteger:
      return std::to_string(value.integer());
    case v1::Value::kFlag:
      return value.flag() ? "true" : "false";
    case v1::Value::kJson:
      return value.json();
    case v1::Value::KIND_NOT_SET:
      break;
  }
  return "null";
}

/// "k" for "k" and "k:0": what a workflow calls a parameter.
std::string NameOf(const std::string& key) { return key.substr(0, key.find(':')); }

/// The model calls of one evaluation. Thread-safe: steps run at once.
class JournaledModel {
 public:
  JournaledModel(engine::Engine& engine, Caller caller, std::string session, const TraceSearches::Evaluating& work,
                 const SessionPurse& purse, const std::atomic<bool>* cancelled)
      : engine_(engine),
        services_(*engine.context().trace),
        caller_(std::move(caller)),
        session_(std::move(session)),
        work_(work),
        budget_(purse.limits, purse.used),
        cancelled_(cancelled) {}

  absl::StatusOr<trace::ChatReply> Complete(const std::string& endpoint, const trace::ChatRequest& chat,
                                            std::chrono::milliseconds timeout) {
    const std::string key = Key(endpoint, chat);
    if (auto it = work_.received.find(key); it != work_.received.end()) return Use(it->second);
    trace::CallOptions options;
    options.user = caller_.user;
    options.budget = &budget_;
    options.cancelled = cancelled_;
    options.cassette = services_.cassette;
    options.timeout = timeout;
    options.purpose = Cat(session_, " ", key);
    auto outcome = services_.gateway->Exchange(endpoint, chat, options);
    const absl::Status error = outcome.ok() ? outcome->error : outcome.status();
    const bool empty = trace::LlmErrorReason(error) == "empty";
    if (!error.ok() && !empty) {
      std::lock_guard lock(mutex_);
      if (not_asked_.ok()) not_asked_ = error;
      return error;
    }
    v1::ReceivedReply reply;
    reply.set_key(key);
    if (empty) reply.set_reason(std::string(error.message()));
    if (outcome.ok()) {
      if (!empty) reply.set_text(outcome->reply.text);
      reply.set_prompt_tokens(outcome->reply.usage.prompt_tokens);
      reply.set_completion_tokens(outcome->reply.usage.completion_tokens);
      reply.set_usd(outcome->reply.usage.usd);
    }
    Keep(reply);
    return Use(reply);
  }

  /// Of all replies used.
  v1::Usage usage() const {
    std::lock_guard lock(mutex_);
    return usage_;
  }
  /// The first failure that says nothing about the version: no endpoint, no budget, no connection.
  absl::Status not_asked() const {
    std::lock_guard lock(mutex_);
    return not_asked_;
  }

 private:
  /// Which call of this evaluation it is: equal ones are counted.
  std::string Key(const std::string& endpoint, const trace::ChatRequest& chat) {
    const std::string hash = Sha256Hex(trace::CanonicalRequest(endpoint, chat));
    std::lock_guard lock(mutex_);
    return Cat(work_.scope, hash, "/", occurrences_[hash]++);
  }

  absl::StatusOr<trace::ChatReply> Use(const v1::ReceivedReply& reply) {
    v1::Usage cost;
    cost.set_llm_calls(1);
    cost.set_llm_prompt_tokens(reply.prompt_tokens());
    cost.set_llm_completion_tokens(reply.completion_tokens());
    cost.set_llm_usd(reply.usd());
    {
      std::lock_guard lock(mutex_);
      AddUsage(cost, &usage_);
    }
    if (reply.text().empty()) return trace::LlmError(absl::StatusCode::kUnavailable, "empty", reply.reason());
    trace::ChatReply out;
    out.text = reply.text();
    out.usage = {reply.prompt_tokens(), reply.completion_tokens(), reply.usd()};
    return out;
  }

  /// Returns when the reply is durable. One that could not be kept is used all the same: it is paid for.
  void Keep(const v1::ReceivedReply& reply) {
    auto kept = std::make_shared<std::promise<void>>();
    std::future<void> done = kept->get_future();
    engine_.Mutate<v1::ReceivedReply>(
        caller_, session_, "ReceivedReply", "", "",
        [reply](LiveSession& session, v1::ReceivedReply*) -> absl::StatusOr<Effects> {
          ASSIGN_OR_RETURN(engine::TraceFamily * family, engine::AsTrace(session));
          Effects effects;
          family->replies().Add(session, reply, &effects);
          return effects;
        },
        [kept](absl::StatusOr<v1::ReceivedReply>) { kept->set_value(); });
    done.wait();
  }

  engine::Engine& engine_;
  engine::TraceServices& services_;
  const Caller caller_;
  const std::string session_;
  const TraceSearches::Evaluating& work_;
  trace::Budget budget_;
  const std::atomic<bool>* cancelled_;
  mutable std::mutex mutex_;
  std::map<std::string, int> occurrences_;
  v1::Usage usage_;
  absl::Status not_asked_;
};

/// One evaluation from its start to its end.
class EvaluationRun : public std::enable_shared_from_this<EvaluationRun> {
 public:
  EvaluationRun(const WorkflowParts& parts, Caller caller, SessionName name,
                std::unique_ptr<TraceSearches::Evaluating> work, const SessionPurse& purse,
                std::function<void()> on_told)
      : parts_(parts),
        engine_(*parts.engine),
        caller_(std::move(caller)),
        name_(std::move(name)),
        work_(std::move(work)),
        on_told_(std::move(on_told)),
        model_(engine_, caller_, name_.Full(), *work_, purse, work_->cancelled.get()),
        hold_(engine_.HoldDrain()) {}

  void Start() {
    engine_.context().trace->llm_pool->Post([self = shared_from_this()] { self->Work(); });
  }

 private:
  void Work() {
    failure_ = Run();
    if (failure_.ok() && run_.cancelled) failure_ = absl::CancelledError("");
    if (failure_.ok()) failure_ = model_.not_asked();
    End();
  }

  absl::Status Run() {
    trace::WorkflowInput input;
    std::set<std::string> names;
    for (const auto& [key, value] : work_->version.values()) {
      names.insert(NameOf(key));
      input.parameters[NameOf(key)] = JsonOf(value);
    }
    ASSIGN_OR_RETURN(workflow_, trace::ParseWorkflowText(work_->workflow.text(), "spec.workflow.text", names));
    input.rows = {work_->row};
    input.wall = std::chrono::milliseconds(work_->workflow.wall_ms());
    input.cancelled = work_->cancelled.get();
    trace::WorkflowServices services = ServicesHere(parts_);
    services.complete = [this](const std::string& endpoint, const trace::ChatRequest& chat,
                               std::chrono::milliseconds timeout,
                               const std::atomic<bool>*) { return model_.Complete(endpoint, chat, timeout); };
    ASSIGN_OR_RETURN(run_, trace::RunWorkflow(workflow_, input, services));
    return absl::OkStatus();
  }

  /// A version that fails, or takes too long, gets the worst score.
  double Score(const LiveSession& session) const {
    if (run_.failure.empty()) return run_.score;
    return session.proto.direction() == v1::MINIMIZE ? work_->max_score : work_->min_score;
  }

  absl::Status Tell(LiveSession& session, engine::TraceFamily& family, Effects* effects) {
    if (!failure_.ok()) {
      family.searches().Release(*work_, absl::IsCancelled(failure_) ? "" : std::string(failure_.message()));
      effects->row_changed = false;
      return absl::OkStatus();
    }
    std::optional<int64_t> output;
    const trace::WorkflowTrace trace = trace::TraceOf(workflow_, run_);
    if (trace.output >= 0 && !work_->validation) {  // of a validation task only the score is used
      std::map<std::string, trace::NodeId> parameters;
      for (const auto& [key, value] : work_->version.values())
        parameters[NameOf(key)] = family.graph().FindByName(NameOf(key) + ":0");
      v1::RecordNodesResponse recorded;
      RETURN_IF_ERROR(family.RecordNodes(session, trace::NodesOf(trace, [&](const std::string& name) { return parameters.at(name); }), &recorded, effects));
      output = recorded.nodes(trace.output).id();
    }
    const std::string feedback = trace.feedback.empty() ? run_.failure : trace.feedback;
    return family.searches().Evaluated(session, *work_, Score(session), feedback, output, model_.usage(), effects);
  }

  void End() {
    engine_.Mutate<v1::Search>(
        caller_, name_.Full(), "SearchEvaluated", "", "",
        [self = shared_from_this()](LiveSession& session, v1::Search*) -> absl::StatusOr<Effects> {
          ASSIGN_OR_RETURN(engine::TraceFamily * family, engine::AsTrace(session));
          Effects effects;
          if (absl::Status told = self->Tell(session, *family, &effects); !told.ok()) {
            family->searches().Release(*self->work_, std::string(told.message()));
            return told;
          }
          return effects;
        },
        [self = shared_from_this()](absl::StatusOr<v1::Search> told) {
          self->engine_.context().trace->operations->Ended(self->work_->operation);
          if (told.ok() && self->failure_.ok()) self->on_told_();
          self->hold_.reset();
        });
  }

  const WorkflowParts parts_;
  engine::Engine& engine_;
  const Caller caller_;
  const SessionName name_;
  const std::unique_ptr<TraceSearches::Evaluating> work_;
  const std::function<void()> on_told_;
  JournaledModel model_;
  std::shared_ptr<void> hold_;
  trace::Workflow workflow_;
  trace::WorkflowRun run_;
  absl::Status failure_;
};

}  // namespace

void LaunchEvaluations(const WorkflowParts& parts, Caller caller, const SessionName& name, int64_t search, bool resume,
                       std::function<void()> on_told) {
  caller.internal = false;  // a draining server takes nothing new
  struct Taken {
    std::vector<std::unique_ptr<TraceSearches::Evaluating>> work;
    SessionPurse purse;
  };
  auto taken = std::make_shared<Taken>();
  parts.engine->Mutate<v1::Search>(
      caller, name.Full(), "SearchEvaluate", "", "",
      [taken, search, resume, &engine = *parts.engine](LiveSession& session, v1::Search*) -> absl::StatusOr<Effects> {
        Effects effects;
        effects.row_changed = false;
        ASSIGN_OR_RETURN(engine::TraceFamily * family, engine::AsTrace(session));
        ASSIGN_OR_RETURN(taken->work, family->searches().TakeEvaluations(session, search, resume));
        if (!taken->work.empty()) {
          auto purse = PurseOf(session, engine.context().clock->NowUnixMs());
          if (!purse.ok()) {
            for (const auto& work : taken->work) {
              family->searches().Release(*work, std::string(purse.status().message()));
              engine.context().trace->operations->Ended(work->operation);
            }
            taken->work.clear();
          } else {
            taken->purse = *purse;
          }
        }
        return effects;
      },
      [taken, parts, caller, name, on_told = std::move(on_told)](absl::StatusOr<v1::Search> done) {
        if (!done.ok()) return;  // the session is gone or broken: loading it anew frees the work
        Caller worker = caller;
        worker.internal = true;  // what was taken is told, also in a drain
        for (auto& work : taken->work)
          std::make_shared<EvaluationRun>(parts, worker, name, std::move(work), taken->purse, on_told)->Start();
      });
}

}  // namespace optod::services

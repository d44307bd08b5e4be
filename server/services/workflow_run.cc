// ExecuteRun: a declared workflow in this server's sandbox, as an operation.
#include <google/protobuf/util/json_util.h>

#include <mutex>

#include "base/status.h"
#include "server/engine/trace_family.h"
#include "server/engine/operations.h"
#include "server/engine/trace_services.h"
#include "trace/llm/gateway.h"
#include "server/services/completion.h"
#include "server/services/workflow_on_server.h"
#include "server/services/workflow_service.h"
#include "trace/workflow/executor.h"
#include "trace/workflow/record.h"

namespace optod::services {
namespace {

using engine::Caller;
using engine::Effects;
using engine::LiveSession;
using engine::TraceFamily;

constexpr int kMaxRows = 10'000;
constexpr int64_t kDefaultWallMs = 600'000, kMaxWallMs = 24 * 3'600'000;

/// The text that the parser reads, whichever form came.
absl::StatusOr<std::string> TextOf(const v1::ExecuteRunRequest& request) {
  if (request.form_case() == v1::ExecuteRunRequest::kText) return request.text();
  if (request.form_case() != v1::ExecuteRunRequest::kDocument)
    return InvalidArgument("form: missing; give `text` or `document`");
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(request.document(), &json).ok())
    return InvalidArgument("document: has no JSON form");
  return json;
}

/// One run between its start and its end.
class WorkflowRunTask : public std::enable_shared_from_this<WorkflowRunTask> {
 public:
  WorkflowRunTask(const WorkflowParts& parts, Caller caller, std::string session, const v1::ExecuteRunRequest& request)
      : parts_(parts),
        engine_(*parts.engine),
        services_(*engine_.context().trace),
        caller_(std::move(caller)),
        session_(std::move(session)),
        request_(request) {
    caller_.internal = true;
  }

  v1::Operation operation;
  bool prepared = false;

  /// On the strand: everything that can be wrong with the request is found here.
  absl::Status Prepare(LiveSession& session) {
    ASSIGN_OR_RETURN(TraceFamily * family, engine::AsTrace(session));
    ASSIGN_OR_RETURN(purse_, PurseOf(session, engine_.context().clock->NowUnixMs()));
    std::set<std::string> names;
    const trace::Graph& graph = family->graph();
    for (trace::NodeId id = 0; id < graph.size(); ++id) {
      if (!graph.IsParameter(id) || graph.Index(id) != 0) continue;
      const std::string name(graph.BaseName(id));
      names.insert(name);
      nodes_[name] = id;
      const auto json = graph.ValueJson(id);
      input_.parameters[name] = json ? std::string(*json) : trace::JsonOfText(std::string(graph.ValueText(id)));
    }
    ASSIGN_OR_RETURN(const std::string text, TextOf(request_));
    ASSIGN_OR_RETURN(workflow_, trace::ParseWorkflowText(text, "workflow", names));
    if (!workflow_.data_file.empty() && request_.rows_size() == 0)
      return absl::PermissionDeniedError("data.file: the server reads no files for workflows; send the rows");
    input_.rows.assign(request_.rows().begin(), request_.rows().end());
    input_.wall = std::chrono::milliseconds(request_.wall_ms() > 0 ? request_.wall_ms() : kDefaultWallMs);
    return absl::OkStatus();
  }

  /// The start is durable.
  void Launch() {
    hold_ = engine_.HoldDrain();
    cancelled_ = services_.operations->Begin(operation);
    budget_ = std::make_unique<trace::Budget>(purse_.limits, purse_.used);
    services_.llm_pool->Post([self = shared_from_this()] { self->Work(); });
  }

 private:
  void Work() {
    input_.cancelled = cancelled_.get();
    trace::WorkflowServices services = ServicesHere(parts_);
    if (services_.gateway != nullptr)
      services.complete = [this](const std::string& endpoint, const trace::ChatRequest& chat,
                                 std::chrono::milliseconds timeout, const std::atomic<bool>* stop) {
        trace::CallOptions options;
        options.user = caller_.user;
        options.budget = budget_.get();
        options.cancelled = stop;
        options.cassette = services_.cassette;
        options.timeout = timeout;
        return services_.gateway->Complete(endpoint, chat, options);
      };
    run_ = trace::RunWorkflow(workflow_, input_, services);
    End();
  }

  v1::Usage Paid() const {
    const trace::BudgetUse used = budget_->used();
    v1::Usage paid;
    paid.set_llm_calls(used.calls - purse_.used.calls);
    paid.set_llm_prompt_tokens(used.prompt_tokens - purse_.used.prompt_tokens);
    paid.set_llm_completion_tokens(used.completion_tokens - purse_.used.completion_tokens);
    paid.set_llm_usd(used.usd - purse_.used.usd);
    return paid;
  }

  absl::Status Fill(LiveSession& session, v1::ExecuteRunResponse* response, Effects* effects) {
    RETURN_IF_ERROR(run_.status());
    response->set_score(run_->score);
    response->set_failure(run_->failure);
    response->set_failed_rows(run_->failed_rows);
    for (const trace::RowRun& row : run_->rows) {
      v1::RunRow* out = response->add_rows();
      if (row.score) out->set_score(*row.score);
      out->set_feedback(row.feedback);
      out->set_failed(row.failed);
    }
    const trace::WorkflowTrace trace = trace::TraceOf(workflow_, *run_);
    if (trace.output < 0) return absl::OkStatus();
    ASSIGN_OR_RETURN(TraceFamily * family, engine::AsTrace(session));
    v1::RecordNodesResponse recorded;
    RETURN_IF_ERROR(family->RecordNodes(session, trace::NodesOf(trace, [this](const std::string& name) { return nodes_.at(name); }), &recorded, effects));
    response->set_output_node(recorded.nodes(trace.output).id());
    response->set_feedback(trace.feedback);
    return absl::OkStatus();
  }

  void End() {
    auto self = shared_from_this();
    engine_.Mutate<v1::ExecuteRunResponse>(
        caller_, session_, "ExecuteRunEnd", "", "",
        [self](LiveSession& session, v1::ExecuteRunResponse* response) -> absl::StatusOr<Effects> {
          Effects effects;
          const absl::Status filled = self->Fill(session, response, &effects);
          *response->mutable_usage() = self->Paid();
          AddUsage(response->usage(), session.proto.mutable_usage());
          effects.row_changed = true;
          if (!filled.ok()) {
            effects.mutations.push_back(self->services_.operations->Finish(&self->operation, filled));
            return effects;
          }
          google::protobuf::Any packed;
          packed.PackFrom(*response);
          effects.mutations.push_back(self->services_.operations->Finish(&self->operation, packed));
          return effects;
        },
        [self](absl::StatusOr<v1::ExecuteRunResponse> result) {
          if (!result.ok()) {  // the session went away or its store failed: the operation must end all the same
            self->operation.clear_response();
            store::Batch batch;
            batch.mutations.push_back(self->services_.operations->Finish(&self->operation, result.status()));
            self->engine_.context().store->Commit(std::move(batch), [](absl::Status) {});
          }
          self->services_.operations->Ended(self->operation);
          self->hold_.reset();
        });
  }

  const WorkflowParts parts_;
  engine::Engine& engine_;
  engine::TraceServices& services_;
  Caller caller_;
  const std::string session_;
  const v1::ExecuteRunRequest request_;
  SessionPurse purse_;
  trace::Workflow workflow_;
  trace::WorkflowInput input_;
  std::map<std::string, trace::NodeId> nodes_;
  std::shared_ptr<void> hold_;
  std::shared_ptr<std::atomic<bool>> cancelled_;
  std::unique_ptr<trace::Budget> budget_;
  absl::StatusOr<trace::WorkflowRun> run_ = absl::UnknownError("not run");
};

}  // namespace

void StartWorkflowRun(const WorkflowParts& parts, const Caller& caller, const v1::ExecuteRunRequest& request,
                      engine::Done<v1::Operation> done) {
  if (absl::Status good = CheckExecutor(parts); !good.ok()) return done(good);
  if (request.rows_size() > kMaxRows)
    return done(InvalidArgument("rows: ", request.rows_size(), " rows; at most ", kMaxRows));
  if (request.wall_ms() < 0 || request.wall_ms() > kMaxWallMs)
    return done(InvalidArgument("wall_ms: ", request.wall_ms(), " is outside [0, ", kMaxWallMs, "]"));
  auto name = engine::ParseSessionName(request.session(), caller, "session");
  if (!name.ok()) return done(name.status());
  engine::Engine& engine = *parts.engine;
  auto task = std::make_shared<WorkflowRunTask>(parts, caller, name->Full(), request);
  engine.Mutate<v1::Operation>(
      caller, request.session(), "ExecuteRun", request.request_id(),
      request.request_id().empty() ? "" : engine::CanonicalBytes(request),
      [task, user = name->user, request, operations = engine.context().trace->operations](
          LiveSession& session, v1::Operation* out) -> absl::StatusOr<Effects> {
        RETURN_IF_ERROR(task->Prepare(session));
        store::Mutation row;
        task->operation =
            operations->Prepare(user, "execute-run", session.name().Full(), request.SerializeAsString(), &row);
        task->prepared = true;
        *out = task->operation;
        Effects effects;
        effects.row_changed = false;
        effects.mutations.push_back(std::move(row));
        return effects;
      },
      [task, done = std::move(done)](absl::StatusOr<v1::Operation> operation) mutable {
        if (operation.ok() && task->prepared) task->Launch();
        done(std::move(operation));
      });
}

}  // namespace optod::services

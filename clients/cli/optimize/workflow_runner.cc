#include "clients/cli/optimize/workflow_runner.h"

#include <algorithm>

#include "base/clock.h"
#include "base/fs.h"
#include "base/status.h"
#include "trace/workflow/executor.h"

namespace optod::cli {
namespace {

constexpr std::chrono::milliseconds kWaitsOfTheServer{180'000};  // for limits and retries, beside the model's own time

bool NeedsSandbox(const trace::Step& step) {
  if (const auto* map = std::get_if<trace::MapStep>(&step.work)) return NeedsSandbox(*map->step);
  const auto* command = std::get_if<trace::CommandStep>(&step.work);
  return std::holds_alternative<trace::PythonStep>(step.work) || (command != nullptr && command->sandbox);
}

bool NeedsSandbox(const trace::Workflow& workflow) {
  return (workflow.guide.kind == trace::Guide::Kind::kCommand && workflow.guide.command.sandbox) ||
         std::any_of(workflow.steps.begin(), workflow.steps.end(),
                     [](const trace::Step& step) { return NeedsSandbox(step); });
}

std::string JsonOf(const ParameterEntry& entry, const std::string& value) {
  const bool text = entry.type == ValueType::kText || entry.type == ValueType::kCode;
  return text ? trace::JsonOfText(value) : value;
}

}  // namespace

absl::StatusOr<std::unique_ptr<WorkflowRunner>> WorkflowRunner::Open(const OptimizeFile& file,
                                                                     const std::string& folder, client::Client& client,
                                                                     const std::string& path) {
  std::unique_ptr<WorkflowRunner> runner(new WorkflowRunner(file, client));
  const trace::Workflow& workflow = *file.workflow;
  if (!workflow.data_file.empty()) {
    auto text = PosixFs().ReadFile(folder + "/" + workflow.data_file);
    if (!text.ok()) return InvalidArgument("workflow.data.file: ", workflow.data_file, " cannot be read");
    ASSIGN_OR_RETURN(runner->rows_, trace::ParseRows(*text, workflow.data_file));
  }
  if (NeedsSandbox(workflow)) {
    runner->sandbox_ = trace::Sandbox::Detect(path);
    if (!runner->sandbox_->features().available)
      return FailedPrecondition(
          "workflow: its Python and commands need a sandbox: ", runner->sandbox_->features().reason,
          "; commands that you trust may say `sandbox: false`");
  }
  runner->http_ = MakeCurlTransport();
  return runner;
}

absl::StatusOr<trace::ChatReply> WorkflowRunner::Complete(const std::string& endpoint,
                                                          const trace::ChatRequest& request,
                                                          std::chrono::milliseconds timeout) const {
  v1::CompleteRequest call;
  call.set_session(session_);
  call.set_endpoint(endpoint);
  for (const trace::ChatMessage& message : request.messages) {
    v1::ChatTurn* turn = call.add_messages();
    turn->set_role(message.role);
    turn->set_content(message.content);
  }
  if (request.temperature) call.set_temperature(*request.temperature);
  call.set_max_tokens(request.max_tokens);
  if (request.seed) call.set_seed(*request.seed);
  for (const std::string& stop : request.stop) call.add_stop(stop);
  if (request.json_schema) {
    call.set_schema_name(request.json_schema->name);
    call.set_schema(request.json_schema->schema);
  }
  call.set_timeout_ms(timeout.count());
  client::CallOptions options;
  options.deadline = timeout + kWaitsOfTheServer;
  ASSIGN_OR_RETURN(const v1::CompleteResponse answer, client_.Complete(std::move(call), options));
  trace::ChatReply reply;
  reply.text = answer.text();
  reply.finish_reason = answer.finish_reason();
  reply.model = answer.model();
  reply.endpoint = answer.endpoint();
  reply.usage = {answer.usage().llm_prompt_tokens(), answer.usage().llm_completion_tokens(), answer.usage().llm_usd()};
  return reply;
}

absl::StatusOr<Evaluation> WorkflowRunner::Run(const Values& values, const std::string& folder,
                                               const std::atomic<bool>* cancelled) const {
  trace::WorkflowInput input;
  for (const ParameterEntry& entry : file_.parameters)
    input.parameters[entry.name] = JsonOf(entry, values.at(entry.name));
  input.rows = rows_;
  input.wall = file_.evaluate.timeout;
  input.cancelled = cancelled;
  trace::WorkflowServices services;
  services.clock = &SystemClock();
  services.sandbox = sandbox_.get();
  services.http = http_.get();
  services.unprotected_commands = true;
  services.folder = folder;
  services.complete = [this](const std::string& endpoint, const trace::ChatRequest& request,
                             std::chrono::milliseconds timeout,
                             const std::atomic<bool>*) { return Complete(endpoint, request, timeout); };
  const int64_t start = SystemClock().NowMonotonicNs();
  ASSIGN_OR_RETURN(const trace::WorkflowRun run, trace::RunWorkflow(*file_.workflow, input, services));
  auto trace = std::make_shared<trace::WorkflowTrace>(trace::TraceOf(*file_.workflow, run));
  Evaluation evaluation;
  evaluation.wall = std::chrono::milliseconds((SystemClock().NowMonotonicNs() - start) / 1'000'000);
  evaluation.cancelled = run.cancelled;
  evaluation.failure = run.failure;
  evaluation.out = trace->feedback;
  if (run.failure.empty()) evaluation.score = run.score;
  if (trace->output >= 0) evaluation.trace = std::move(trace);
  return evaluation;
}

}  // namespace optod::cli

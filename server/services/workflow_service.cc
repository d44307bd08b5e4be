#include "server/services/workflow_service.h"

#include <deque>
#include <mutex>

#include "base/status.h"
#include "optod/v1/workflow.grpc.pb.h"
#include "server/engine/trace_services.h"
#include "server/services/completion.h"
#include "server/services/unary.h"

namespace optod::services {
namespace {

using engine::Caller;
using engine::Done;
using grpc::CallbackServerContext;

absl::Status CheckComplete(const engine::Context& context, const v1::CompleteRequest& request) {
  if (context.trace == nullptr || context.trace->gateway == nullptr)
    return FailedPrecondition("llm: this server has no language models");
  if (request.session().empty()) return InvalidArgument("session: missing; model calls count to a session");
  if (request.timeout_ms() < 0) return InvalidArgument("timeout_ms: ", request.timeout_ms(), " is negative");
  if (request.messages_size() == 0) return InvalidArgument("messages: is empty; must hold at least one");
  return absl::OkStatus();
}

/// One streamed reply: chunks wait in a queue while one is written. Frees itself in OnDone, when the model call is over
/// too.
class CompletionStream final : public grpc::ServerWriteReactor<v1::CompleteChunk>,
                               public std::enable_shared_from_this<CompletionStream> {
 public:
  explicit CompletionStream(CallbackServerContext* context) : context_(context) {}

  void Start(std::shared_ptr<CompletionStream> self, engine::Engine& engine, const Caller& caller,
             const v1::CompleteRequest& request) {
    self_ = std::move(self);
    CompleteForSession(
        engine, caller, request, &cancelled_,
        [stream = self_](std::string_view text) {
          v1::CompleteChunk chunk;
          chunk.set_text(std::string(text));
          stream->Push(std::move(chunk));
        },
        [stream = self_](absl::StatusOr<v1::CompleteResponse> reply) {
          v1::CompleteChunk last;
          if (reply.ok()) *last.mutable_done() = *std::move(reply);
          stream->End(reply.status(), std::move(last));
        });
  }
  void Refuse(std::shared_ptr<CompletionStream> self, const absl::Status& status) {
    self_ = std::move(self);
    Finish(ToGrpc(status, context_));
  }

  void OnWriteDone(bool ok) override {
    std::unique_lock lock(mutex_);
    writing_ = false;
    queue_.pop_front();
    if (!ok) cancelled_ = true;
    Next(lock);
  }
  void OnCancel() override { cancelled_ = true; }
  void OnDone() override { self_.reset(); }

 private:
  void Push(v1::CompleteChunk chunk) {
    std::unique_lock lock(mutex_);
    queue_.push_back(std::move(chunk));
    Next(lock);
  }
  void End(const absl::Status& status, v1::CompleteChunk last) {
    std::unique_lock lock(mutex_);
    if (status.ok()) queue_.push_back(std::move(last));
    end_ = status;
    ended_ = true;
    Next(lock);
  }
  /// Exactly one of: a write is under way, there is nothing to do yet, the call is finished.
  void Next(std::unique_lock<std::mutex>& lock) {
    if (writing_ || finished_) return;
    if (!queue_.empty() && !cancelled_) {
      writing_ = true;
      const v1::CompleteChunk* chunk = &queue_.front();
      lock.unlock();
      return StartWrite(chunk);
    }
    if (!ended_) return;
    finished_ = true;
    const absl::Status end = cancelled_ && end_.ok() ? absl::CancelledError("the reader is gone") : end_;
    lock.unlock();
    Finish(ToGrpc(end, context_));
  }

  CallbackServerContext* context_;
  std::shared_ptr<CompletionStream> self_;
  std::atomic<bool> cancelled_{false};
  std::mutex mutex_;
  std::deque<v1::CompleteChunk> queue_;
  bool writing_ = false, ended_ = false, finished_ = false;
  absl::Status end_;
};

/// One plain call. Whoever asked may go away: then the call stops waiting for its turn or for another attempt.
class CompletionCall final : public grpc::ServerUnaryReactor {
 public:
  CompletionCall(CallbackServerContext* context, v1::CompleteResponse* response)
      : context_(context), response_(response) {}
  void Start(engine::Engine& engine, const Caller& caller, const v1::CompleteRequest& request) {
    CompleteForSession(engine, caller, request, &cancelled_, {}, [this](absl::StatusOr<v1::CompleteResponse> reply) {
      if (reply.ok()) *response_ = *std::move(reply);
      Finish(ToGrpc(reply.status(), context_));
    });
  }
  void OnCancel() override { cancelled_ = true; }
  void OnDone() override { delete this; }

 private:
  CallbackServerContext* context_;
  v1::CompleteResponse* response_;
  std::atomic<bool> cancelled_{false};
};

class WorkflowService final : public v1::WorkflowService::CallbackService {
 public:
  explicit WorkflowService(WorkflowParts parts) : parts_(std::move(parts)) {}

  grpc::ServerUnaryReactor* Complete(CallbackServerContext* context, const v1::CompleteRequest* request,
                                     v1::CompleteResponse* response) override {
    auto caller = parts_.authenticator->Authenticate(*context);
    if (absl::Status good = caller.ok() ? Check(*caller, *request) : caller.status(); !good.ok())
      return Refuse(context, good);
    auto* call = new CompletionCall(context, response);
    call->Start(*parts_.engine, *caller, *request);
    return call;
  }

  grpc::ServerWriteReactor<v1::CompleteChunk>* StreamComplete(CallbackServerContext* context,
                                                              const v1::CompleteRequest* request) override {
    auto stream = std::make_shared<CompletionStream>(context);
    auto caller = parts_.authenticator->Authenticate(*context);
    absl::Status good = caller.ok() ? Check(*caller, *request) : caller.status();
    if (good.ok())
      stream->Start(stream, *parts_.engine, *caller, *request);
    else
      stream->Refuse(stream, good);
    return stream.get();
  }

  grpc::ServerUnaryReactor* ExecuteRun(CallbackServerContext* context, const v1::ExecuteRunRequest* request,
                                       v1::Operation* response) override {
    return RunUnary(*parts_.authenticator, context, response,
                    [this, request](const Caller& caller, Done<v1::Operation> done) {
                      StartWorkflowRun(parts_, caller, *request, std::move(done));
                    });
  }

 private:
  absl::Status Check(const Caller& caller, const v1::CompleteRequest& request) {
    if (caller.viewer) return absl::PermissionDeniedError("a viewer may read, not ask models");
    return CheckComplete(parts_.engine->context(), request);
  }
  WorkflowParts parts_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeWorkflowService(WorkflowParts parts) {
  return std::make_unique<WorkflowService>(std::move(parts));
}

}  // namespace optod::services

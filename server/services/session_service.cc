#include "server/services/session_service.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>

#include "server/engine/numeric_family.h"
#include "server/services/shared_memory.h"
#include "server/services/status.h"
#include "server/services/tensor_streams.h"
#include "server/services/unary.h"

namespace optod::services {
namespace {

using engine::Caller;
using engine::Engine;
using grpc::CallbackServerContext;
using grpc::ServerUnaryReactor;

/// Errors of a streaming call with their details in its trailing metadata. Used while the call lives.
ToGrpcStatus WithDetails(CallbackServerContext* context) {
  return [context](const absl::Status& status) { return ToGrpc(status, context); };
}

/// Ask and tell over one stream. One message is in work at a time, so answers keep the order of the questions.
/// States: reading -> telling -> asking -> writing -> reading ... -> finished.
class AskTellReactor final : public grpc::ServerBidiReactor<v1::AskTellRequest, v1::AskTellResponse> {
 public:
  AskTellReactor(Engine& engine, Caller caller) : engine_(engine), caller_(std::move(caller)) { StartRead(&request_); }

  void OnReadDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::OK);
    response_.Clear();
    if (!request_.has_tell()) return StartAsk();
    engine_.Tell(caller_, std::move(*request_.mutable_tell()), [this](absl::StatusOr<v1::TellResponse> told) {
      if (!told.ok()) return Fail(told.status());
      *response_.mutable_tell() = *std::move(told);
      StartAsk();
    });
  }
  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::CANCELLED);
    StartRead(&request_);
  }
  void OnDone() override { delete this; }

 private:
  void StartAsk() {
    if (!request_.has_ask()) return StartWrite(&response_);
    engine_.Ask(caller_, std::move(*request_.mutable_ask()), [this](absl::StatusOr<v1::AskResponse> answer) {
      if (!answer.ok()) return Fail(answer.status());
      *response_.mutable_ask() = *std::move(answer);
      StartWrite(&response_);
    });
  }
  /// An error of one message; the stream goes on.
  void Fail(const absl::Status& status) {
    response_.set_error_code(static_cast<int>(status.code()));
    response_.set_error_message(std::string(status.message()));
    StartWrite(&response_);
  }

  Engine& engine_;
  const Caller caller_;
  v1::AskTellRequest request_;
  v1::AskTellResponse response_;
};

class RefusedAskTell final : public grpc::ServerBidiReactor<v1::AskTellRequest, v1::AskTellResponse> {
 public:
  explicit RefusedAskTell(grpc::Status status) { Finish(std::move(status)); }
  void OnDone() override { delete this; }
};

/// An export on its way: the engine hands over lines, which leave in pieces of about 256 KiB. The producer waits while a few pieces are unsent.
class ExportReactor final : public grpc::ServerWriteReactor<v1::ExportSessionResponse> {
 public:
  explicit ExportReactor(ToGrpcStatus to_grpc) : to_grpc_(std::move(to_grpc)) {}
  explicit ExportReactor(grpc::Status refused) { Finish(std::move(refused)); }

  void Start(Engine& engine, const Caller& caller, const v1::ExportSessionRequest& request) {
    Ref();
    engine.ExportSession(
        caller, request, [this](std::string line) { return Add(std::move(line)); },
        [this](absl::StatusOr<bool> result) {
          std::unique_lock lock(mutex_);
          if (result.ok() && !piece_.empty()) pieces_.push_back(std::move(piece_));
          ended_ = true;
          end_status_ = to_grpc_(result.status());
          Pump(lock);
          lock.unlock();
          Unref();
        });
  }
  void OnWriteDone(bool ok) override {
    std::unique_lock lock(mutex_);
    writing_ = false;
    if (!ok) cancelled_ = true;
    if (cancelled_) pieces_.clear();
    Pump(lock);
    room_.notify_all();
  }
  void OnCancel() override {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    room_.notify_all();
  }
  void OnDone() override { Unref(); }

 private:
  static constexpr size_t kPieceBytes = 256 << 10;
  static constexpr size_t kMaxPieces = 8;

  bool Add(std::string line) {
    std::unique_lock lock(mutex_);
    piece_ += line;
    if (piece_.size() >= kPieceBytes) {
      pieces_.push_back(std::move(piece_));
      piece_.clear();
      Pump(lock);
      // A reader that takes nothing for half a minute is gone.
      if (!room_.wait_for(lock, std::chrono::seconds(30), [&] { return cancelled_ || pieces_.size() < kMaxPieces; })) cancelled_ = true;
    }
    return !cancelled_;
  }
  void Pump(std::unique_lock<std::mutex>&) {
    if (writing_ || finished_) return;
    if (!pieces_.empty()) {
      message_.set_data(std::move(pieces_.front()));
      pieces_.pop_front();
      writing_ = true;
      StartWrite(&message_);
    } else if (ended_) {
      finished_ = true;
      Finish(cancelled_ ? grpc::Status::CANCELLED : end_status_);
    }
  }
  void Ref() { ++refs_; }
  void Unref() {
    if (--refs_ == 0) delete this;
  }

  std::atomic<int> refs_{1};
  const ToGrpcStatus to_grpc_;
  std::mutex mutex_;
  std::condition_variable room_;
  std::deque<std::string> pieces_;
  std::string piece_;
  v1::ExportSessionResponse message_;
  bool writing_ = false, ended_ = false, finished_ = false, cancelled_ = false;
  grpc::Status end_status_;
};

class SessionService final : public SessionServiceBase {
 public:
  SessionService(Engine& engine, const auth::Authenticator& authenticator) : engine_(engine), authenticator_(authenticator) {}

#define OPTOD_UNARY(Method, Request, Response)                                                                                        \
  ServerUnaryReactor* Method(CallbackServerContext* context, const v1::Request* request, v1::Response* response) override {           \
    return RunUnary(authenticator_, context, response, [&](const Caller& caller, engine::Done<v1::Response> done) {                   \
      engine_.Method(caller, *request, std::move(done));                                                                              \
    });                                                                                                                               \
  }
  OPTOD_UNARY(CreateSession, CreateSessionRequest, Session)
  OPTOD_UNARY(GetSession, GetSessionRequest, Session)
  OPTOD_UNARY(ListSessions, ListSessionsRequest, ListSessionsResponse)
  OPTOD_UNARY(UpdateSession, UpdateSessionRequest, Session)
  OPTOD_UNARY(DeleteSession, DeleteSessionRequest, Session)
  OPTOD_UNARY(UndeleteSession, UndeleteSessionRequest, Session)
  OPTOD_UNARY(Ask, AskRequest, AskResponse)
  OPTOD_UNARY(Tell, TellRequest, TellResponse)
  OPTOD_UNARY(ListVersions, ListVersionsRequest, ListVersionsResponse)
  OPTOD_UNARY(GetVersion, GetVersionRequest, Version)
  OPTOD_UNARY(Rollback, RollbackRequest, Session)
  OPTOD_UNARY(ForkSession, ForkSessionRequest, Session)
#undef OPTOD_UNARY

  ServerUnaryReactor* DescribeMemory(CallbackServerContext* context, const v1::DescribeMemoryRequest* request,
                                     v1::MemoryReport* response) override {
    return RunUnary(authenticator_, context, response, [&](const Caller& caller, engine::Done<v1::MemoryReport> done) {
      engine_.Read<v1::MemoryReport>(caller, request->session(), &engine::MemoryOf, std::move(done));
    });
  }

  ServerUnaryReactor* ListOptimizers(CallbackServerContext* context, const v1::ListOptimizersRequest* request,
                                     v1::ListOptimizersResponse* response) override {
    return RunUnary(authenticator_, context, response, [&](const Caller&, engine::Done<v1::ListOptimizersResponse> done) {
      engine_.ListOptimizers(*request, std::move(done));
    });
  }

  grpc::ServerBidiReactor<v1::AskTellRequest, v1::AskTellResponse>* AskTellStream(CallbackServerContext* context) override {
    auto caller = authenticator_.Authenticate(*context);
    if (!caller.ok()) return new RefusedAskTell(ToGrpc(caller.status(), context));
    return new AskTellReactor(engine_, *caller);
  }

  grpc::ServerWriteReactor<v1::ExportSessionResponse>* ExportSession(CallbackServerContext* context,
                                                                     const v1::ExportSessionRequest* request) override {
    auto caller = authenticator_.Authenticate(*context);
    if (!caller.ok()) return new ExportReactor(ToGrpc(caller.status(), context));
    auto* reactor = new ExportReactor(WithDetails(context));
    reactor->Start(engine_, *caller, *request);
    return reactor;
  }

  RawReadReactor* PushParameters(CallbackServerContext* context, grpc::ByteBuffer* response) override {
    auto caller = authenticator_.Authenticate(*context);
    if (!caller.ok()) return RefuseRead(ToGrpc(caller.status(), context));
    return MakePushParameters(engine_, *caller, response, WithDetails(context));
  }
  RawWriteReactor* PullParameters(CallbackServerContext* context, const grpc::ByteBuffer* request) override {
    auto caller = authenticator_.Authenticate(*context);
    if (!caller.ok()) return RefuseWrite(ToGrpc(caller.status(), context));
    return MakePullParameters(engine_, *caller, request, WithDetails(context));
  }
  RawWriteReactor* PullState(CallbackServerContext* context, const grpc::ByteBuffer* request) override {
    auto caller = authenticator_.Authenticate(*context);
    if (!caller.ok()) return RefuseWrite(ToGrpc(caller.status(), context));
    return MakePullState(engine_, *caller, request, WithDetails(context));
  }
  RawWriteReactor* ExportState(CallbackServerContext* context, const grpc::ByteBuffer* request) override {
    auto caller = authenticator_.Authenticate(*context);
    if (!caller.ok()) return RefuseWrite(ToGrpc(caller.status(), context));
    return MakeExportState(engine_, *caller, request, WithDetails(context));
  }
  RawReadReactor* ImportState(CallbackServerContext* context, grpc::ByteBuffer* response) override {
    auto caller = authenticator_.Authenticate(*context);
    if (!caller.ok()) return RefuseRead(ToGrpc(caller.status(), context));
    return MakeImportState(engine_, *caller, response, WithDetails(context));
  }
  RawBidiReactor* StepStream(CallbackServerContext* context) override {
    auto caller = authenticator_.Authenticate(*context);
    if (!caller.ok()) return RefuseBidi(ToGrpc(caller.status(), context));
    StreamOptions options;
    options.local_peer = IsLocalPeer(context->peer());
    return MakeStepStream(engine_, *caller, WithDetails(context), options);
  }

 private:
  Engine& engine_;
  const auth::Authenticator& authenticator_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeSessionService(Engine& engine, const auth::Authenticator& authenticator) {
  return std::make_unique<SessionService>(engine, authenticator);
}

}  // namespace optod::services

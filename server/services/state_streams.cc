// ExportState and ImportState: a session's state as one file, in chunks.
#include <atomic>

#include "base/sha256.h"
#include "base/status.h"
#include "server/engine/state_file.h"
#include "server/services/flat_write.h"

namespace optod::services {
namespace {

using engine::Caller;
using engine::Engine;

/// Header, then chunks into a buffer, then (client half-closed) the engine. One step at a time: no locks.
class ImportReactor final : public RawReadReactor {
 public:
  ImportReactor(Engine& engine, Caller caller, grpc::ByteBuffer* response, ToGrpcStatus to_grpc)
      : engine_(engine), caller_(std::move(caller)), response_(response), to_grpc_(std::move(to_grpc)) {
    StartRead(&message_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) return End();
    const absl::Status status =
        receiver_.buffer() == nullptr ? OnHeader() : ReceiveChunk<v1::ImportStateRequest>(message_, &receiver_);
    if (!status.ok()) return Finish(to_grpc_(status));
    StartRead(&message_);
  }
  void OnCancel() override { cancelled_ = true; }
  void OnDone() override { delete this; }

 private:
  absl::Status OnHeader() {
    v1::ImportStateRequest request;
    RETURN_IF_ERROR(ParseMessage(message_, &request));
    if (!request.has_header()) return InvalidArgument("header: missing; the first message must be the header");
    header_ = request.header();
    if (caller_.viewer) return absl::PermissionDeniedError("this token may read but not change");
    if (header_.total_bytes() < 8)
      return InvalidArgument("header.total_bytes: ", header_.total_bytes(), "; a safetensors file has at least 8");
    return receiver_.Start(header_.total_bytes());
  }

  /// The client has sent everything (or is gone).
  void End() {
    if (cancelled_) return Finish(grpc::Status::CANCELLED);
    if (receiver_.buffer() == nullptr) return Finish(to_grpc_(InvalidArgument("header: missing")));
    if (absl::Status status = receiver_.CheckComplete(); !status.ok()) return Finish(to_grpc_(status));
    engine_.context().pool->Post([this] { Import(); });
  }

  void Import() {
    std::shared_ptr<engine::TensorBuffer> file = receiver_.Take();
    std::string sha256 = Sha256Hex(file->bytes());
    if (!header_.sha256().empty() && header_.sha256() != sha256)
      return Finish(to_grpc_(DataLoss("header.sha256: ", header_.sha256(), "; what came has ", sha256)));
    engine::ImportState(engine_, caller_, header_, std::move(file), std::move(sha256), [this](absl::StatusOr<v1::Session> session) {
      if (session.ok()) *response_ = SerializeMessage(*session);
      Finish(to_grpc_(session.status()));
    });
  }

  Engine& engine_;
  const Caller caller_;
  grpc::ByteBuffer* response_;
  const ToGrpcStatus to_grpc_;
  std::atomic<bool> cancelled_{false};
  grpc::ByteBuffer message_;
  v1::ImportStateHeader header_;
  FlatReceiver receiver_;
};

void Send(FlatWriteReactor* reactor, const absl::StatusOr<engine::StateFile>& state) {
  if (!state.ok()) return reactor->Fail(state.status());
  auto file = engine::EncodeStateFile(*state);
  if (!file.ok()) return reactor->Fail(file.status());
  v1::ExportStateResponse first;
  first.mutable_header()->set_version(state->version);
  first.mutable_header()->set_total_bytes((*file)->size());
  const uint64_t size = (*file)->size();
  reactor->Start(first, *std::move(file), {{0, size}}, v1::ExportStateResponse::kChunkFieldNumber);
}

}  // namespace

RawReadReactor* MakeImportState(Engine& engine, const Caller& caller, grpc::ByteBuffer* response, ToGrpcStatus to_grpc) {
  return new ImportReactor(engine, caller, response, std::move(to_grpc));
}

RawWriteReactor* MakeExportState(Engine& engine, const Caller& caller, const grpc::ByteBuffer* request,
                                 ToGrpcStatus to_grpc, StreamOptions options) {
  auto* reactor = new FlatWriteReactor(std::move(to_grpc), options.chunk_bytes);
  v1::ExportStateRequest parsed;
  if (absl::Status status = ParseMessage(*request, &parsed); !status.ok()) {
    reactor->Fail(status);
    return reactor;
  }
  engine::ExportState(engine, caller, parsed, [&engine, reactor](absl::StatusOr<engine::StateFile> state) {
    engine.context().pool->Post([reactor, state = std::move(state)] { Send(reactor, state); });
  });
  return reactor;
}

}  // namespace optod::services

#pragma once
/// A call whose answer is one message and then the chunks of a flat buffer: PullParameters, PullState, ExportState.

#include <optional>

#include "server/services/tensor_streams.h"
#include "server/services/tensor_wire.h"

namespace optod::services {

class FlatWriteReactor final : public RawWriteReactor {
 public:
  FlatWriteReactor(ToGrpcStatus to_grpc, size_t chunk_bytes) : to_grpc_(std::move(to_grpc)), chunk_bytes_(chunk_bytes) {}

  void Fail(const absl::Status& status) { Finish(to_grpc_(status)); }
  /// `field`: number of the TensorChunk in the messages that follow `first`.
  void Start(const google::protobuf::MessageLite& first, std::shared_ptr<const engine::TensorBuffer> buffer,
             std::vector<FlatSender::Range> ranges, int field) {
    sender_.emplace(std::move(buffer), std::move(ranges), field, chunk_bytes_);
    message_ = SerializeMessage(first);
    StartWrite(&message_);
  }

  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::CANCELLED);
    if (sender_->done()) return Finish(grpc::Status::OK);
    message_ = sender_->Next();
    StartWrite(&message_);
  }
  void OnDone() override { delete this; }

 private:
  const ToGrpcStatus to_grpc_;
  const size_t chunk_bytes_;
  grpc::ByteBuffer message_;
  std::optional<FlatSender> sender_;
};

}  // namespace optod::services

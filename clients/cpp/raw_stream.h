#pragma once
/// Internal to clients/cpp: a bidirectional call whose messages are byte buffers. Tensor chunks go out as one small
/// slice (the message's head) and one slice that points into the caller's memory: on the wire the same bytes as the
/// generated message, without a copy on the way. One operation at a time; for one thread.

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "clients/cpp/client_impl.h"
#include "optod/v1/tensor.pb.h"

namespace optod::client {

constexpr size_t kChunkBytes = 1 << 20;

/// Head of a message that holds one TensorChunk in field `field`: everything before the bytes of `data`.
std::string ChunkHead(int field, uint64_t offset, uint32_t crc32c, size_t data_bytes);

/// One received message of the shape oneof { ...; TensorChunk chunk = `chunk_field`; }.
struct RawMessage {
  bool is_chunk = false;
  uint64_t offset = 0;  ///< of the chunk
  size_t bytes = 0;     ///< of the chunk's data, already copied to its place
  std::string other;    ///< serialized message when it is no chunk
};
/// Takes a message apart; chunk data is copied to target[offset ..). DATA_LOSS: checksum, bounds or encoding.
absl::Status ReadRawMessage(const grpc::ByteBuffer& buffer, int chunk_field, std::span<std::byte> target,
                            RawMessage* out);

class RawStream {
 public:
  RawStream(ClientImpl& impl, const std::string& method, std::chrono::milliseconds deadline);
  /// Cancels what is open and waits until no slice points into a caller's memory any more.
  ~RawStream();

  absl::Status Start();
  /// False: the stream is broken; Finish says why.
  bool Write(const google::protobuf::MessageLite& message);
  /// `data` in chunks of kChunkBytes, in field `field`. The memory is in use until Flushed() or destruction.
  bool WriteChunks(int field, std::span<const std::byte> data);
  /// False: no more messages.
  bool Read(grpc::ByteBuffer* message);
  bool WritesDone();
  /// The call's status. No operation may follow.
  absl::Status Finish();
  /// Blocks until no slice points into memory given to WriteChunks. After Finish it also lets go of the call, which may
  /// hold what could not be sent: nothing but destruction may follow then.
  void WaitReleased();

 private:
  struct Pins {
    std::mutex mutex;
    std::condition_variable released;
    int count = 0;
  };
  bool Next();
  bool WriteBuffer(const grpc::ByteBuffer& buffer);

  std::unique_ptr<grpc::ClientContext> context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
  Pins pins_;
  bool started_ = false, finished_ = false;
};

}  // namespace optod::client

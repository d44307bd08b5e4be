#pragma once
/// TensorChunk on the wire without protobuf's copy: parsed from and built of gRPC slices. Objects belong to one call.

#include <grpcpp/support/byte_buffer.h>

#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "base/status.h"
#include "google/protobuf/message_lite.h"
#include "optod/v1/tensor.pb.h"
#include "server/engine/flat_numbers.h"
#include "server/engine/tensor_buffer.h"

namespace optod::services {

inline constexpr size_t kMaxChunkBytes = 4u << 20;

/// A TensorChunk whose data still lies in the slices of a message.
struct ChunkView {
  uint64_t offset = 0;
  uint32_t crc32c = 0;
  size_t size = 0;              ///< of the data
  size_t slice = 0, begin = 0;  ///< where the data begins
};

/// True when the message is exactly one field `field` that holds a TensorChunk with each of its fields at most once and
/// data last, as every protobuf library writes it; anything else is left to protobuf.
bool ParseChunk(const std::vector<grpc::Slice>& slices, int field, ChunkView* chunk);
/// INVALID_ARGUMENT when the bytes are no such message.
absl::Status ParseMessage(const grpc::ByteBuffer& buffer, google::protobuf::MessageLite* message);
grpc::ByteBuffer SerializeMessage(const google::protobuf::MessageLite& message);

/// Puts chunks into a flat buffer, in order, without gaps. Checksum and the look at the numbers are taken block by block,
/// while the copy has the bytes in cache.
class FlatReceiver {
 public:
  /// `numbers`: what the bytes are, to find out whether all are finite; absent: not looked at. RESOURCE_EXHAUSTED when
  /// there is no memory.
  absl::Status Start(uint64_t total_bytes, std::optional<engine::FlatNumbers> numbers = std::nullopt);
  /// INVALID_ARGUMENT: offset is not the expected one, larger than 4 MiB, past the end. DATA_LOSS: checksum.
  absl::Status Add(const std::vector<grpc::Slice>& slices, const ChunkView& chunk);
  absl::Status Add(const v1::TensorChunk& chunk);
  /// INVALID_ARGUMENT when bytes are missing.
  absl::Status CheckComplete() const;
  /// Whether everything was looked at and is finite.
  bool finite() const { return numbers_ && finite_ && looked_ == buffer_->size(); }
  std::shared_ptr<engine::TensorBuffer> Take();
  /// What is filled so far is the first `received()` bytes of `buffer()`; they no longer change.
  const std::shared_ptr<engine::TensorBuffer>& buffer() const { return buffer_; }
  uint64_t received() const { return received_; }

 private:
  absl::Status CheckPlace(uint64_t offset, size_t size) const;
  /// `size` bytes to offset `at`; `crc` goes on over them when it is wanted.
  void Put(const void* data, size_t size, uint64_t at, uint32_t* crc);
  absl::Status CheckSum(uint32_t want, uint32_t have, size_t size);

  std::shared_ptr<engine::TensorBuffer> buffer_;
  std::optional<engine::FlatNumbers> numbers_;
  uint64_t received_ = 0, looked_ = 0;
  bool finite_ = true;
};

/// One message of a client's stream into the buffer: the fast way when it is a plain chunk, by protobuf otherwise.
template <typename Request>
absl::Status ReceiveChunk(const grpc::ByteBuffer& message, FlatReceiver* receiver) {
  std::vector<grpc::Slice> slices;
  ChunkView chunk;
  if (message.Dump(&slices).ok() && ParseChunk(slices, Request::kChunkFieldNumber, &chunk))
    return receiver->Add(slices, chunk);
  Request request;
  RETURN_IF_ERROR(ParseMessage(message, &request));
  if (!request.has_chunk()) return InvalidArgument("chunk: missing; chunks follow the header");
  return receiver->Add(request.chunk());
}

/// Cuts ranges of a flat buffer into messages whose field `field` is a TensorChunk. The messages refer to the buffer
/// and keep it alive.
class FlatSender {
 public:
  struct Range {
    uint64_t begin, size;
  };
  FlatSender(std::shared_ptr<const engine::TensorBuffer> buffer, std::vector<Range> ranges, int field,
             size_t chunk_bytes);
  bool done() const { return range_ == ranges_.size(); }
  /// The next message; not to be called when done().
  grpc::ByteBuffer Next();

 private:
  void SkipEmpty();
  std::shared_ptr<const engine::TensorBuffer> buffer_;
  std::vector<Range> ranges_;
  int field_;
  size_t chunk_bytes_;
  uint64_t offset_ = 0;  ///< in the stream of chunks
  size_t range_ = 0;
  uint64_t in_range_ = 0;
};

}  // namespace optod::services

#include "server/services/tensor_wire.h"

#include <grpcpp/impl/codegen/proto_utils.h>

#include <cstring>

#include "base/crc32c.h"
#include "base/status.h"

namespace optod::services {
namespace {

/// Reads bytes, varints and positions across slices.
class SliceCursor {
 public:
  explicit SliceCursor(const std::vector<grpc::Slice>& slices) : slices_(slices) {
    for (const grpc::Slice& slice : slices_) left_ += slice.size();
    Settle();
  }
  size_t left() const { return left_; }
  size_t slice() const { return slice_; }
  size_t at() const { return at_; }
  bool Byte(uint8_t* out) {
    if (left_ == 0) return false;
    *out = slices_[slice_].begin()[at_++];
    --left_;
    Settle();
    return true;
  }
  bool Varint(uint64_t* out) {
    *out = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      uint8_t byte;
      if (!Byte(&byte)) return false;
      *out |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }
  bool Fixed32(uint32_t* out) {
    *out = 0;
    for (int shift = 0; shift < 32; shift += 8) {
      uint8_t byte;
      if (!Byte(&byte)) return false;
      *out |= static_cast<uint32_t>(byte) << shift;
    }
    return true;
  }

 private:
  void Settle() {
    while (slice_ < slices_.size() && at_ == slices_[slice_].size()) {
      ++slice_;
      at_ = 0;
    }
  }
  const std::vector<grpc::Slice>& slices_;
  size_t slice_ = 0, at_ = 0, left_ = 0;
};

constexpr uint64_t Tag(int field, int wire_type) {
  return static_cast<uint64_t>(field) << 3 | static_cast<uint64_t>(wire_type);
}

uint8_t* PutVarint(uint8_t* at, uint64_t value) {
  for (; value >= 0x80; value >>= 7) *at++ = static_cast<uint8_t>(value | 0x80);
  *at++ = static_cast<uint8_t>(value);
  return at;
}

size_t VarintSize(uint64_t value) {
  uint8_t scratch[10];
  return static_cast<size_t>(PutVarint(scratch, value) - scratch);
}

}  // namespace

bool ParseChunk(const std::vector<grpc::Slice>& slices, int field, ChunkView* chunk) {
  SliceCursor cursor(slices);
  uint64_t tag = 0, length = 0;
  if (!cursor.Varint(&tag) || tag != Tag(field, 2) || !cursor.Varint(&length) || length != cursor.left()) return false;
  *chunk = {};
  bool has_offset = false, has_crc = false;
  while (cursor.left() > 0) {
    if (!cursor.Varint(&tag)) return false;
    if (tag == Tag(1, 0) && !has_offset) {
      has_offset = true;
      if (!cursor.Varint(&chunk->offset)) return false;
    } else if (tag == Tag(2, 5) && !has_crc) {
      has_crc = true;
      if (!cursor.Fixed32(&chunk->crc32c)) return false;
    } else if (tag == Tag(15, 2)) {
      if (!cursor.Varint(&length) || length != cursor.left()) return false;
      chunk->size = length;
      chunk->slice = cursor.slice();
      chunk->begin = cursor.at();
      return true;
    } else {
      return false;
    }
  }
  return true;  // no data: an empty chunk
}

absl::Status ParseMessage(const grpc::ByteBuffer& buffer, google::protobuf::MessageLite* message) {
  grpc::ByteBuffer copy(buffer);  // shares the slices
  grpc::ProtoBufferReader reader(&copy);
  if (!reader.status().ok() || !message->ParseFromZeroCopyStream(&reader))
    return InvalidArgument("request: cannot be parsed as ", message->GetTypeName());
  return absl::OkStatus();
}

grpc::ByteBuffer SerializeMessage(const google::protobuf::MessageLite& message) {
  const std::string bytes = message.SerializeAsString();
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

// ---- FlatReceiver

absl::Status FlatReceiver::Start(uint64_t total_bytes, std::optional<engine::FlatNumbers> numbers) {
  received_ = looked_ = 0;
  finite_ = true;
  numbers_ = std::move(numbers);
  buffer_ = engine::TensorBuffer::Make(total_bytes);
  if (buffer_ == nullptr) return ResourceExhausted("total_bytes: no memory for ", total_bytes, " bytes");
  return absl::OkStatus();
}

absl::Status FlatReceiver::CheckPlace(uint64_t offset, size_t size) const {
  if (offset != received_) return InvalidArgument("chunk.offset: ", offset, "; expected ", received_);
  if (size > kMaxChunkBytes) return InvalidArgument("chunk.data: ", size, " bytes; at most ", kMaxChunkBytes);
  if (size > buffer_->size() - received_)
    return InvalidArgument("chunk.data: ", size, " bytes at offset ", offset, " reach past the end at ",
                           buffer_->size());
  return absl::OkStatus();
}

void FlatReceiver::Put(const void* data, size_t size, uint64_t at, uint32_t* crc) {
  using engine::FlatNumbers;
  for (size_t done = 0; done < size;) {
    const size_t n = std::min<size_t>(FlatNumbers::kInCache, size - done);
    std::byte* to = buffer_->data() + at + done;
    std::memcpy(to, static_cast<const std::byte*>(data) + done, n);
    if (crc != nullptr) *crc = Crc32c(to, n, *crc);
    done += n;
    if (!numbers_) continue;
    const uint64_t here = at + done, whole = here == buffer_->size() ? here : here - here % FlatNumbers::kGrain;
    finite_ = finite_ && numbers_->Finite(buffer_->data(), looked_, whole);
    looked_ = whole;
  }
}

absl::Status FlatReceiver::CheckSum(uint32_t want, uint32_t have, size_t size) {
  if (want != 0 && have != want)
    return DataLoss("chunk.crc32c: ", want, " at offset ", received_, "; the data have ", have);
  received_ += size;
  return absl::OkStatus();
}

absl::Status FlatReceiver::Add(const std::vector<grpc::Slice>& slices, const ChunkView& chunk) {
  RETURN_IF_ERROR(CheckPlace(chunk.offset, chunk.size));
  uint32_t crc = 0;
  size_t left = chunk.size, begin = chunk.begin;
  for (size_t i = chunk.slice; left > 0; ++i, begin = 0) {
    const size_t n = std::min(left, slices[i].size() - begin);
    Put(slices[i].begin() + begin, n, received_ + chunk.size - left, chunk.crc32c != 0 ? &crc : nullptr);
    left -= n;
  }
  return CheckSum(chunk.crc32c, crc, chunk.size);
}

absl::Status FlatReceiver::Add(const v1::TensorChunk& chunk) {
  RETURN_IF_ERROR(CheckPlace(chunk.offset(), chunk.data().size()));
  uint32_t crc = 0;
  Put(chunk.data().data(), chunk.data().size(), received_, chunk.crc32c() != 0 ? &crc : nullptr);
  return CheckSum(chunk.crc32c(), crc, chunk.data().size());
}

absl::Status FlatReceiver::CheckComplete() const {
  if (received_ != buffer_->size())
    return InvalidArgument("chunks: ", received_, " of ", buffer_->size(), " bytes came");
  return absl::OkStatus();
}

std::shared_ptr<engine::TensorBuffer> FlatReceiver::Take() { return std::move(buffer_); }

// ---- FlatSender

FlatSender::FlatSender(std::shared_ptr<const engine::TensorBuffer> buffer, std::vector<Range> ranges, int field,
                       size_t chunk_bytes)
    : buffer_(std::move(buffer)),
      ranges_(std::move(ranges)),
      field_(field),
      chunk_bytes_(std::min(std::max<size_t>(1, chunk_bytes), kMaxChunkBytes)) {
  SkipEmpty();
}

void FlatSender::SkipEmpty() {
  while (range_ < ranges_.size() && in_range_ == ranges_[range_].size) {
    ++range_;
    in_range_ = 0;
  }
}

grpc::ByteBuffer FlatSender::Next() {
  std::vector<grpc::Slice> slices(1);  // the head comes first and is known last
  size_t size = 0;
  while (!done() && size < chunk_bytes_) {
    const Range& range = ranges_[range_];
    const size_t n = std::min<uint64_t>(chunk_bytes_ - size, range.size - in_range_);
    auto* keep = new std::shared_ptr<const engine::TensorBuffer>(buffer_);
    slices.emplace_back(
        const_cast<std::byte*>(buffer_->data()) + range.begin + in_range_, n,
        [](void* held) { delete static_cast<std::shared_ptr<const engine::TensorBuffer>*>(held); }, keep);
    size += n;
    in_range_ += n;
    SkipEmpty();
  }
  uint8_t head[40];
  uint8_t* at = head;
  const size_t inner = (offset_ > 0 ? 1 + VarintSize(offset_) : 0) + 1 + VarintSize(size) + size;
  at = PutVarint(at, Tag(field_, 2));
  at = PutVarint(at, inner);
  if (offset_ > 0) {
    at = PutVarint(at, Tag(1, 0));
    at = PutVarint(at, offset_);
  }
  at = PutVarint(at, Tag(15, 2));
  at = PutVarint(at, size);
  slices[0] = grpc::Slice(head, static_cast<size_t>(at - head));
  offset_ += size;
  return grpc::ByteBuffer(slices.data(), slices.size());
}

}  // namespace optod::services

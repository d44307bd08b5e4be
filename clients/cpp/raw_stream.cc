#include "clients/cpp/raw_stream.h"

#include <grpc/slice.h>

#include <algorithm>
#include <cstring>

#include "base/crc32c.h"
#include "base/status.h"

namespace optod::client {
namespace {

void AppendVarint(std::string* out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>(value | 0x80));
  out->push_back(static_cast<char>(value));
}

size_t VarintBytes(uint64_t value) {
  size_t n = 1;
  for (; value >= 0x80; value >>= 7) ++n;
  return n;
}

// Reads across the slices of a message without joining them.
class Cursor {
 public:
  explicit Cursor(const std::vector<grpc::Slice>& slices) : slices_(slices) {
    for (const grpc::Slice& slice : slices) left_ += slice.size();
  }
  size_t left() const { return left_; }
  bool Copy(size_t bytes, std::byte* to) {
    if (bytes > left_) return false;
    left_ -= bytes;
    while (bytes > 0) {
      const size_t here = std::min(bytes, slices_[slice_].size() - at_);
      if (to) {
        std::memcpy(to, slices_[slice_].begin() + at_, here);
        to += here;
      }
      bytes -= here;
      at_ += here;
      if (at_ == slices_[slice_].size()) ++slice_, at_ = 0;
    }
    return true;
  }
  bool Varint(uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      std::byte byte;
      if (!Copy(1, &byte)) return false;
      *value |= (static_cast<uint64_t>(byte) & 0x7f) << shift;
      if ((static_cast<uint64_t>(byte) & 0x80) == 0) return true;
    }
    return false;
  }

 private:
  const std::vector<grpc::Slice>& slices_;
  size_t slice_ = 0, at_ = 0, left_ = 0;
};

absl::Status BadEncoding() { return DataLoss("stream: a message of the server cannot be decoded"); }

absl::Status ReadChunkFields(Cursor& cursor, std::span<std::byte> target, RawMessage* out) {
  uint32_t crc = 0;
  std::span<std::byte> place;
  while (cursor.left() > 0) {
    uint64_t tag = 0, value = 0;
    if (!cursor.Varint(&tag)) return BadEncoding();
    if (tag == (1 << 3 | 0)) {
      if (!cursor.Varint(&out->offset)) return BadEncoding();
    } else if (tag == (2 << 3 | 5)) {
      if (!cursor.Copy(4, reinterpret_cast<std::byte*>(&crc))) return BadEncoding();
    } else if (tag == (15 << 3 | 2)) {
      if (!cursor.Varint(&value) || value > cursor.left()) return BadEncoding();
      if (out->offset > target.size() || value > target.size() - out->offset)
        return DataLoss("stream: chunk [", out->offset, ", ", out->offset + value, ") lies outside the ", target.size(),
                        " bytes of the layout");
      place = target.subspan(out->offset, value);
      cursor.Copy(value, place.data());
      out->bytes = value;
    } else {
      return BadEncoding();
    }
  }
  if (crc != 0 && Crc32c(std::span<const std::byte>(place)) != crc)
    return DataLoss("stream: the checksum of the chunk at byte ", out->offset, " does not fit");
  return absl::OkStatus();
}

}  // namespace

std::string ChunkHead(int field, uint64_t offset, uint32_t crc32c, size_t data_bytes) {
  const size_t chunk_bytes =
      (offset ? 1 + VarintBytes(offset) : 0) + (crc32c ? 5 : 0) + 1 + VarintBytes(data_bytes) + data_bytes;
  std::string head;
  AppendVarint(&head, static_cast<uint64_t>(field) << 3 | 2);
  AppendVarint(&head, chunk_bytes);
  if (offset) {
    AppendVarint(&head, 1 << 3 | 0);
    AppendVarint(&head, offset);
  }
  if (crc32c) {
    AppendVarint(&head, 2 << 3 | 5);
    for (int shift = 0; shift < 32; shift += 8) head.push_back(static_cast<char>(crc32c >> shift));
  }
  AppendVarint(&head, 15 << 3 | 2);
  AppendVarint(&head, data_bytes);
  return head;
}

absl::Status ReadRawMessage(const grpc::ByteBuffer& buffer, int chunk_field, std::span<std::byte> target,
                            RawMessage* out) {
  *out = RawMessage{};
  std::vector<grpc::Slice> slices;
  if (!buffer.Dump(&slices).ok()) return BadEncoding();
  Cursor probe(slices);
  uint64_t tag = 0, length = 0;
  if (probe.left() > 0 && (!probe.Varint(&tag) || (tag & 7) != 2 || !probe.Varint(&length) || length != probe.left()))
    return BadEncoding();
  if (tag == (static_cast<uint64_t>(chunk_field) << 3 | 2)) {
    out->is_chunk = true;
    return ReadChunkFields(probe, target, out);
  }
  Cursor whole(slices);
  out->other.resize(whole.left());
  whole.Copy(out->other.size(), reinterpret_cast<std::byte*>(out->other.data()));
  return absl::OkStatus();
}

RawStream::RawStream(ClientImpl& impl, const std::string& method, std::chrono::milliseconds deadline)
    : context_(std::make_unique<grpc::ClientContext>()) {
  impl.Prepare(context_.get(), deadline);
  call_ = impl.generic.PrepareCall(context_.get(), method, &queue_);
}

RawStream::~RawStream() {
  if (started_ && !finished_) {
    context_->TryCancel();
    (void)Finish();
  }
  WaitReleased();
  queue_.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok)) {
  }
}

bool RawStream::Next() {
  void* tag = nullptr;
  bool ok = false;
  return queue_.Next(&tag, &ok) && ok;
}

absl::Status RawStream::Start() {
  call_->StartCall(this);
  started_ = true;
  return Next() ? absl::OkStatus() : Finish();
}

bool RawStream::WriteBuffer(const grpc::ByteBuffer& buffer) {
  call_->Write(buffer, this);
  return Next();
}

bool RawStream::Write(const google::protobuf::MessageLite& message) {
  grpc::Slice slice(message.SerializeAsString());
  return WriteBuffer(grpc::ByteBuffer(&slice, 1));
}

bool RawStream::WriteChunks(int field, std::span<const std::byte> data) {
  for (size_t offset = 0; offset < data.size(); offset += kChunkBytes) {
    const auto piece = data.subspan(offset, std::min(kChunkBytes, data.size() - offset));
    {
      std::lock_guard lock(pins_.mutex);
      ++pins_.count;
    }
    // The transport may hold the slice after a failed write, so its release is counted.
    auto release = +[](void* pins_pointer) {
      auto* pins = static_cast<Pins*>(pins_pointer);
      std::lock_guard lock(pins->mutex);
      if (--pins->count == 0) pins->released.notify_all();
    };
    grpc::Slice slices[2] = {
        grpc::Slice(ChunkHead(field, offset, Crc32c(piece), piece.size())),
        grpc::Slice(grpc_slice_new_with_user_data(const_cast<std::byte*>(piece.data()), piece.size(), release, &pins_),
                    grpc::Slice::STEAL_REF)};
    if (!WriteBuffer(grpc::ByteBuffer(slices, 2))) return false;
  }
  return true;
}

bool RawStream::Read(grpc::ByteBuffer* message) {
  call_->Read(message, this);
  return Next();
}

bool RawStream::WritesDone() {
  call_->WritesDone(this);
  return Next();
}

absl::Status RawStream::Finish() {
  if (finished_) return FailedPrecondition("stream: it has ended already");
  finished_ = true;
  grpc::Status status;
  call_->Finish(&status, this);
  Next();
  return ToAbsl(status, *context_);
}

void RawStream::WaitReleased() {
  if (finished_) {
    call_.reset();  // lives in the memory of the call that the context owns: first the one, then the other
    context_.reset();
  }
  std::unique_lock lock(pins_.mutex);
  pins_.released.wait(lock, [this] { return pins_.count == 0; });
}

}  // namespace optod::client

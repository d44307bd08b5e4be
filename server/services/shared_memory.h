#pragma once
/// Memory of a client's process on the same machine, mapped into this one: where a step stream's tensors lie instead of
/// travelling (SharedMemory in session.proto). The file is the client's: an anonymous one (memfd), opened as
/// /proc/PID/fd/FD, which the kernel allows between processes of one user only. A mapping cannot fault under us,
/// because the seal F_SEAL_SHRINK is demanded; it holds what the caller says it does, because its first 32 bytes must
/// be the caller's nonce. What lies in it may change at any time: copy first, then check. Objects belong to one stream.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "optod/v1/session.pb.h"
#include "server/engine/flat_numbers.h"

namespace optod::services {

class SharedMemory {
 public:
  static constexpr uint64_t kHeaderBytes = 64;
  static constexpr size_t kNonceBytes = 32;
  /// Maps what `offer` names. `values_bytes`: what must fit behind values_offset. INVALID_ARGUMENT: sizes or nonce;
  /// FAILED_PRECONDITION: not to be opened, no memfd of ours, or not sealed.
  static absl::StatusOr<std::unique_ptr<SharedMemory>> Map(const v1::SharedMemory& offer, uint64_t values_bytes);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  /// Where gradients and extra inputs lie.
  std::span<const std::byte> input() const { return {data_ + kHeaderBytes, values_offset_ - kHeaderBytes}; }
  /// Where new parameters go.
  std::span<std::byte> values() { return {data_ + values_offset_, size_ - values_offset_}; }

 private:
  SharedMemory(std::byte* data, size_t size, size_t values_offset)
      : data_(data), size_(size), values_offset_(values_offset) {}
  std::byte* data_;
  size_t size_, values_offset_;
};

/// Whether gRPC's name of a peer ("unix:...", "ipv4:127.0.0.1:4711", "ipv6:[::1]:4711") is on this machine.
bool IsLocalPeer(const std::string& peer);

/// memcpy by up to four threads of the machine when it is worth it.
void CopyBytes(std::byte* to, const std::byte* from, size_t size);
/// CRC-32C of each of four equal pieces of a buffer, by several threads.
using PieceSums = std::array<uint32_t, 4>;
PieceSums SumPieces(std::span<const std::byte> data);
/// What is known of told bytes once they are here; both looked at while a copy has them in cache.
struct Arrived {
  PieceSums sums{};
  bool finite = true;  ///< all numbers (FlatNumbers::Finite)
};
Arrived CopyAndLook(std::byte* to, const std::byte* from, size_t size, const engine::FlatNumbers& numbers);

}  // namespace optod::services

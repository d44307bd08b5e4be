#pragma once
/// SHA-256 (FIPS 180-4). Names blobs and requests by content. Uses the CPU's SHA instructions where they are
/// (about 1.5-2 GB/s a core), portable code elsewhere (about 0.3 GB/s). A Sha256 object belongs to one thread; the free
/// functions are thread-safe.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace optod {

using Sha256Digest = std::array<std::byte, 32>;

class Sha256 {
 public:
  Sha256();
  void Update(std::span<const std::byte> data);
  void Update(std::string_view text);
  /// The digest of everything since construction. The object is spent afterwards.
  Sha256Digest Finish();
  std::string FinishHex();

 protected:
  using Compress = void (*)(uint32_t state[8], const uint8_t* blocks, size_t count);
  explicit Sha256(Compress compress);

 private:
  Compress compress_;
  uint32_t state_[8];
  uint64_t bytes_ = 0;
  uint8_t buffer_[64];
};

/// The portable code on any machine: the reference beside the fast path.
class PortableSha256 final : public Sha256 {
 public:
  PortableSha256();
};

/// 64 lower-case hex digits.
std::string Sha256Hex(std::span<const std::byte> data);
std::string Sha256Hex(std::string_view text);

/// Lower-case hex of any bytes.
std::string HexOf(std::span<const std::byte> bytes);

}  // namespace optod

#include "base/random_id.h"

#include <sys/random.h>

#include <array>
#include <cerrno>
#include <cstdlib>

namespace optod {
namespace {

/// Bytes of the kernel's generator, fetched 64 at a time, used up by rejection sampling.
class ByteSource {
 public:
  uint8_t Next() {
    if (used_ == bytes_.size()) {
      FillRandom(bytes_);
      used_ = 0;
    }
    return static_cast<uint8_t>(bytes_[used_++]);
  }
  /// Uniform in [0, n), n <= 256: bytes past the largest multiple of n are drawn again, which removes the modulo bias.
  unsigned Below(unsigned n) {
    const unsigned limit = 256 - 256 % n;
    while (true) {
      const unsigned byte = Next();
      if (byte < limit) return byte % n;
    }
  }

 private:
  std::array<std::byte, 64> bytes_;
  size_t used_ = bytes_.size();
};

}  // namespace

void FillRandom(std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t got = getrandom(out.data(), out.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) std::abort();  // no kernel this builds for refuses; an id that is not random must never be handed out
    out = out.subspan(static_cast<size_t>(got));
  }
}

uint64_t RandomU64() {
  uint64_t value;
  FillRandom(std::as_writable_bytes(std::span(&value, 1)));
  return value;
}

std::string RandomId(size_t length) {
  static constexpr char kAlphabet[] = "abcdefghijklmnopqrstuvwxyz0123456789";
  ByteSource source;
  std::string id;
  id.reserve(length);
  for (size_t i = 0; i < length; ++i) id += kAlphabet[source.Below(i == 0 ? 26 : 36)];
  return id;
}

std::string Uuid4() {
  static constexpr char kHex[] = "0123456789abcdef";
  std::array<std::byte, 16> bytes;
  FillRandom(bytes);
  bytes[6] = (bytes[6] & std::byte{0x0f}) | std::byte{0x40};
  bytes[8] = (bytes[8] & std::byte{0x3f}) | std::byte{0x80};
  std::string text;
  text.reserve(36);
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += kHex[static_cast<unsigned>(bytes[i]) >> 4];
    text += kHex[static_cast<unsigned>(bytes[i]) & 15];
  }
  return text;
}

}  // namespace optod

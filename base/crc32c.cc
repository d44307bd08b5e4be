#include "base/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace optod {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78;  // 0x1EDC6F41 with its bits reversed

constexpr std::array<uint32_t, 256> MakeByteTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? kPolynomial : 0);
    table[i] = crc;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kByte = MakeByteTable();

#if defined(__x86_64__)
// A lane of the three-lane loop. Long enough to hide the 3-cycle latency of crc32, short enough for the first-level
// cache. The lanes after these are asked for meanwhile: three streams so near each other are not foreseen by the
// hardware, and memory that is not in a cache is read a third faster.
constexpr size_t kLane = 1024;

void PrefetchLine(const uint8_t* p, size_t ahead) {
  _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(p) + ahead), _MM_HINT_T0);  // never faults
}

/// Moving a checksum over kLane zero bytes is linear over GF(2): the sum of one table entry for each of its four bytes.
struct ShiftTable {
  uint32_t entry[4][256];
  ShiftTable() {
    for (int byte = 0; byte < 4; ++byte) {
      for (uint32_t i = 0; i < 256; ++i) {
        uint32_t crc = i << (8 * byte);
        for (size_t zero = 0; zero < kLane; ++zero) crc = (crc >> 8) ^ kByte[crc & 255];
        entry[byte][i] = crc;
      }
    }
  }
  uint32_t Shift(uint32_t crc) const {
    return entry[0][crc & 255] ^ entry[1][crc >> 8 & 255] ^ entry[2][crc >> 16 & 255] ^ entry[3][crc >> 24];
  }
};

uint64_t Load64(const uint8_t* p) {
  uint64_t word;
  std::memcpy(&word, p, 8);
  return word;
}

__attribute__((target("sse4.2"))) uint32_t Crc32cHardware(const uint8_t* p, size_t size, uint32_t crc) {
  static const ShiftTable kShift;
  uint64_t a = ~crc;
  for (; size >= 3 * kLane; size -= 3 * kLane, p += 3 * kLane) {
    uint64_t b = 0, c = 0;
    for (size_t line = 0; line < kLane; line += 64) {
      for (size_t lane = 3; lane < 6; ++lane) PrefetchLine(p, lane * kLane + line);
      for (size_t i = line; i < line + 64; i += 8) {
        a = _mm_crc32_u64(a, Load64(p + i));
        b = _mm_crc32_u64(b, Load64(p + kLane + i));
        c = _mm_crc32_u64(c, Load64(p + 2 * kLane + i));
      }
    }
    a = kShift.Shift(kShift.Shift(static_cast<uint32_t>(a)) ^ static_cast<uint32_t>(b)) ^ static_cast<uint32_t>(c);
  }
  for (; size >= 8; size -= 8, p += 8) a = _mm_crc32_u64(a, Load64(p));
  for (; size > 0; --size, ++p) a = _mm_crc32_u8(static_cast<uint32_t>(a), *p);
  return ~static_cast<uint32_t>(a);
}
#endif

}  // namespace

uint32_t Crc32cPortable(std::span<const std::byte> data, uint32_t crc) {
  crc = ~crc;
  for (std::byte byte : data) crc = (crc >> 8) ^ kByte[(crc ^ static_cast<uint32_t>(byte)) & 255];
  return ~crc;
}

uint32_t Crc32c(std::span<const std::byte> data, uint32_t crc) {
#if defined(__x86_64__)
  static const bool has_instruction = __builtin_cpu_supports("sse4.2");
  if (has_instruction) return Crc32cHardware(reinterpret_cast<const uint8_t*>(data.data()), data.size(), crc);
#endif
  return Crc32cPortable(data, crc);
}

uint32_t Crc32c(std::string_view text, uint32_t crc) { return Crc32c(std::as_bytes(std::span(text)), crc); }

}  // namespace optod

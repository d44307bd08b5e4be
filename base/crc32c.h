#pragma once
/// CRC-32C (Castagnoli, polynomial 0x1EDC6F41 reflected; RFC 3720 appendix B.4): the checksum of tensor chunks on the
/// wire and in files. Uses the CPU's crc32 instruction in three interleaved lanes where it is, a table elsewhere.
/// Thread-safe. Check value: Crc32c("123456789") == 0xE3069283.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace optod {

/// The checksum of `data` behind bytes whose checksum is `crc`: Crc32c(b, Crc32c(a)) == Crc32c(a then b). Of nothing:
/// `crc`.
uint32_t Crc32c(std::span<const std::byte> data, uint32_t crc = 0);
uint32_t Crc32c(std::string_view text, uint32_t crc = 0);
inline uint32_t Crc32c(const void* data, size_t size, uint32_t crc = 0) {
  return Crc32c(std::span(static_cast<const std::byte*>(data), size), crc);
}

/// One table look-up a byte, on any machine: the reference beside the fast path.
uint32_t Crc32cPortable(std::span<const std::byte> data, uint32_t crc = 0);

}  // namespace optod

#pragma once
/// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78, initial value and final xor 0xffffffff), as iSCSI, ext4 and gRPC users know it.
/// Check value: Crc32c of the nine bytes "123456789" is 0xe3069283. Uses the CPU's instruction when there is one. Pure, thread-safe.

#include <cstddef>
#include <cstdint>

namespace optod {

/// CRC-32C of `size` bytes. To go on over several pieces hand the last result in as `crc`: Crc32c(b, nb, Crc32c(a, na)) is that of ab.
uint32_t Crc32c(const void* data, size_t size, uint32_t crc = 0);

}  // namespace optod

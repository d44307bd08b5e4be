#pragma once
/// The block formats of ggml that are read here. `bytes` hold `elements` consecutive values of a row.

#include <cstddef>
#include <cstdint>

namespace optod::nn {

struct BlockFormat {
  uint32_t type;  ///< ggml's number
  const char* name;
  uint64_t elements, bytes;
  void (*widen)(const std::byte* block, float* out);  ///< one block
};

/// nullptr for a format that is not read here.
const BlockFormat* FindBlockFormat(uint32_t type);

}  // namespace optod::nn

#pragma once
/// The codecs of optim/tier/codec.h between device buffers: what is uploaded is decoded, what is offloaded is encoded with
/// the seeded stochastic rounding. Same bytes as on the CPU. Calls launch on `stream` and return.

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/error.h"
#include "optim/tier/codec_elements.h"

namespace optod::cuda {

/// As tier::Rounding.
struct CodecRounding {
  uint64_t seed = 0;
  uint32_t step = 0, uid = 0;
  uint64_t first = 0;
};

/// `n` values, whole rows of `columns`, into tier::CodedBytes(codec, n, columns) bytes at `coded`, any address.
Error Encode(tier::Codec codec, const float* values, int64_t n, int64_t columns, const CodecRounding& rounding,
             std::byte* coded, cudaStream_t stream);
Error Decode(tier::Codec codec, const std::byte* coded, int64_t n, int64_t columns, float* values, cudaStream_t stream);

}  // namespace optod::cuda

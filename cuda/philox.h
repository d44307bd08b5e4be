#pragma once
/// The random stream of optim/zo/stream.h, one block of four values at a time, for host and device: the same bytes as
/// every other implementation (formula and constants: optim/zo/normal_constants.h). Needs a build without contraction of
/// a*b+c (nvcc -fmad=false, host -ffp-contract=off) and IEEE division and square root (nvcc's defaults).

#include <cstdint>

#include "optim/rules/half.h"

#if defined(__CUDACC__)
#define OPTOD_HD __host__ __device__ __forceinline__
#else
#define OPTOD_HD inline
#endif

namespace optod::cuda {

/// Words 0-3 of a block, and its key.
struct PhiloxBlock {
  uint32_t word[4];
};

/// Philox 4x32-10 (Salmon et al., SC 2011): counter (c0, c1, c2, c3), key (k0, k1).
OPTOD_HD PhiloxBlock Philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * c0, product1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

/// Which direction; as optim/zo's Direction with the tensor's number.
struct StreamId {
  uint64_t seed = 0;
  uint32_t step = 0, query = 0, tensor = 0;
};

/// The raw words of block `block` = element / 4 (< 2^40).
OPTOD_HD PhiloxBlock StreamBlock(const StreamId& id, uint64_t block) {
  return Philox(static_cast<uint32_t>(block), id.tensor + (static_cast<uint32_t>(block >> 32) << 24), id.query, id.step,
                static_cast<uint32_t>(id.seed), static_cast<uint32_t>(id.seed >> 32));
}

OPTOD_HD float SquareRoot(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}

/// Box-Muller on two words.
OPTOD_HD void NormalPair(uint32_t radius_word, uint32_t angle_word, float* z_even, float* z_odd) {
  using optim::half::BitsToFloat;
  using optim::half::FloatToBits;
  const float u = (static_cast<float>(static_cast<int32_t>(radius_word >> 1)) + 1.0f) * 0x1p-31f;
  const int32_t bits = static_cast<int32_t>(FloatToBits(u));
  const int32_t exponent = (bits - 0x3f3504f3) >> 23;
  const float f = BitsToFloat(static_cast<uint32_t>(bits - exponent * (1 << 23))) - 1.0f;
  float log = 0x1.9dfa7ep-3f;
  log = log * f + -0x1.4c3d12p-2f;
  log = log * f + 0x1.614c0ap-2f;
  log = log * f + -0x1.978e2ep-2f;
  log = log * f + 0x1.ff623cp-2f;
  log = log * f + -0x1.5559dcp-1f;
  log = log * f + 0x1.00007ap+0f;
  log = log * f + -0x1.fffffep+0f;
  float r = SquareRoot(static_cast<float>(exponent) * -0x1.62e43p+0f + f * log);
  r = BitsToFloat(FloatToBits(r) ^ (radius_word << 31));
  const float y = static_cast<float>(static_cast<int32_t>(angle_word)) * 0x1p-31f;
  const float y2 = y * y;
  float cosine = 0x1.c1f07cp-11f;
  cosine = cosine * y2 + -0x1.54f61ap-6f;
  cosine = cosine * y2 + 0x1.03bd06p-2f;
  cosine = cosine * y2 + -0x1.3bd3a6p+0f;
  cosine = cosine * y2 + 0x1.fffffep-1f;
  float sine = 0x1.3db004p-13f;
  sine = sine * y2 + -0x1.324cccp-8f;
  sine = sine * y2 + 0x1.4668bp-4f;
  sine = sine * y2 + -0x1.4abbc2p-1f;
  sine = sine * y2 + 0x1.921fb6p+0f;
  *z_even = r * cosine;
  *z_odd = r * (y * sine);
}

/// The four Gaussian values of a block.
OPTOD_HD void NormalBlock(const StreamId& id, uint64_t block, float z[4]) {
  const PhiloxBlock x = StreamBlock(id, block);
  NormalPair(x.word[0], x.word[1], &z[0], &z[1]);
  NormalPair(x.word[2], x.word[3], &z[2], &z[3]);
}

}  // namespace optod::cuda

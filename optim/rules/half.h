#pragma once
/// float16 and bfloat16 as 16 raw bits: to float32 (exact) and back (round to nearest even, NaN stays NaN). Branch-free
/// integer arithmetic, so that loops over them vectorise on any instruction set.

#include <cstdint>

namespace optod::optim::half {

#if defined(__CUDACC__)
#define OPTOD_HALF __host__ __device__ __forceinline__
#else
#define OPTOD_HALF inline __attribute__((always_inline))
#endif

#if defined(__CUDA_ARCH__)
OPTOD_HALF float BitsToFloat(uint32_t bits) { return __uint_as_float(bits); }
OPTOD_HALF uint32_t FloatToBits(float value) { return __float_as_uint(value); }
#else
OPTOD_HALF float BitsToFloat(uint32_t bits) { return __builtin_bit_cast(float, bits); }
OPTOD_HALF uint32_t FloatToBits(float value) { return __builtin_bit_cast(uint32_t, value); }
#endif

OPTOD_HALF float FromBf16(uint16_t bits) { return BitsToFloat(static_cast<uint32_t>(bits) << 16); }
OPTOD_HALF uint16_t ToBf16(float value) {
  const uint32_t u = FloatToBits(value);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const uint32_t quiet = (u >> 16) | 0x40u;
  return static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

/// Up or down at random, in proportion to the distance: `word`'s low 16 bits decide. NaN stays NaN, infinity infinity.
OPTOD_HALF uint16_t ToBf16Stochastic(float value, uint32_t word) {
  const uint32_t u = FloatToBits(value);
  const uint32_t rounded = (u + (word & 0xffffu)) >> 16;
  const uint32_t quiet = (u >> 16) | 0x40u;
  return static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

/// Exponent re-biased by one multiplication, which also turns subnormal halves into normal floats.
OPTOD_HALF float FromF16(uint16_t bits) {
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t finite = FloatToBits(BitsToFloat(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7f800000u;
  return BitsToFloat(sign | ((bits & 0x7c00u) == 0x7c00u ? special : finite));
}
/// Normal results: round in the integer domain. Subnormal results: adding 0.5 aligns the last kept bit with the float's
/// own last bit.
OPTOD_HALF uint16_t ToF16(float value) {
  const uint32_t u = FloatToBits(value);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t a = u & 0x7fffffffu;
  const uint32_t normal = (a + 0xc8000fffu + ((a >> 13) & 1u)) >> 13;
  const uint32_t subnormal = FloatToBits(BitsToFloat(a) + 0.5f) - 0x3f000000u;
  const uint32_t finite = a < 0x38800000u ? subnormal : normal;
  const uint32_t special = a > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return static_cast<uint16_t>(sign | (a >= 0x477ff000u ? special : finite));
}

#undef OPTOD_HALF

}  // namespace optod::optim::half

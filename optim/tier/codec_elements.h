#pragma once
/// The codecs of codec.h on one element, written once for CPU and GPU (cuda/codec.h). Knows neither absl nor the
/// standard library's mathematics: exponents are taken from the bits, so every path gives the same codes.

#include <cstddef>
#include <cstdint>

#include "optim/rules/half.h"

#if defined(__CUDACC__)
#define OPTOD_CODEC __host__ __device__ __forceinline__
#else
#define OPTOD_CODEC inline __attribute__((always_inline))
#endif

namespace optod::tier {

enum class Codec { kNone, kBf16, kF16, kFp8 };

/// The random words of a rounding come from stream (seed, step, this query, tensor, element): no direction has it.
inline constexpr uint32_t kCodecQuery = 0xfffffffeu;

/// Of whole rows. Codes of a run of rows begin where those of the rows before end.
constexpr size_t CodedBytes(Codec codec, size_t elements, size_t columns) {
  return codec == Codec::kNone  ? elements * sizeof(float)
         : codec == Codec::kFp8 ? elements + elements / columns * sizeof(float)
                                : elements * 2;
}

namespace element {

/// 2^exponent, exponent in -126 .. 127.
OPTOD_CODEC float PowerOfTwo(int exponent) {
  return optim::half::BitsToFloat(static_cast<uint32_t>(exponent + 127) << 23);
}
/// floor(log2 |x|) of a normal number; below 2^-126 it is -127.
OPTOD_CODEC int ExponentOf(float x) { return static_cast<int>(optim::half::FloatToBits(x) >> 23 & 0xffu) - 127; }

/// Rounded at random, exact for what float16 holds: a random fraction of one step is added, with so few bits that the
/// sum of it and a whole number of steps is exact in float32.
OPTOD_CODEC uint16_t ToF16Stochastic(float value, uint32_t word) {
  const uint32_t u = optim::half::FloatToBits(value), a = u & 0x7fffffffu;
  const auto sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  if (a >= 0x7f800000u) return optim::half::ToF16(value);
  if (a < 0x38800000u) {  // below 2^-14: steps of 2^-24; a positive number is truncated
    const float scaled = optim::half::BitsToFloat(a) * 0x1p24f;
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(scaled + static_cast<float>(word >> 19) * 0x1p-13f));
  }
  const uint32_t rounded = (a + (word & 0x1fffu) - 0x38000000u) >> 13;
  return static_cast<uint16_t>(sign | (rounded < 0x7c00u ? rounded : 0x7c00u));
}

/// e4m3: sign, 4 bits of exponent (bias 7), 3 of mantissa; 0x7f is NaN, 448 the largest.
OPTOD_CODEC uint8_t ToFp8Stochastic(float value, uint32_t word) {
  const uint32_t u = optim::half::FloatToBits(value);
  float a = optim::half::BitsToFloat(u & 0x7fffffffu);
  if (a != a) return 0x7f;
  if (a > 448.0f) a = 448.0f;
  const int of = ExponentOf(a), exponent = of < -6 ? -6 : of;
  const float steps = a * PowerOfTwo(3 - exponent);  // 8 .. 16 for normal values
  const int rounded = static_cast<int>(steps + static_cast<float>(word >> 13) * 0x1p-19f);
  const int code = (exponent + 6) * 8 + rounded;  // 16 steps carry into the exponent by themselves
  return static_cast<uint8_t>((u >> 24 & 0x80u) | static_cast<uint32_t>(code < 0x7e ? code : 0x7e));
}

OPTOD_CODEC float FromFp8(uint8_t code) {
  const int magnitude = code & 0x7f, exponent = magnitude >> 3, mantissa = magnitude & 7;
  if (magnitude == 0x7f) return optim::half::BitsToFloat(0x7fc00000u);
  const float a = exponent == 0 ? static_cast<float>(mantissa) * 0x1p-9f
                                : static_cast<float>(8 + mantissa) * PowerOfTwo(exponent - 10);
  return (code & 0x80) != 0 ? -a : a;
}

/// The scale of a row whose largest |x| is `top`: a power of two, so that dividing by it and multiplying again are
/// exact; top / scale <= 448 = 1.75 * 2^8. Rows too small for a normal scale keep the smallest; an infinite top: 1.
OPTOD_CODEC float RowScale(float top) {
  const uint32_t bits = optim::half::FloatToBits(top);
  if (!(top > 0) || bits >= 0x7f800000u) return 1.0f;
  const int exponent = ExponentOf(top) - 8 + ((bits & 0x7fffffu) > 0x600000u ? 1 : 0);
  return PowerOfTwo(exponent < -126 ? -126 : exponent);
}

}  // namespace element
}  // namespace optod::tier

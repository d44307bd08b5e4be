#pragma once
/// The dynamic-tree 8-bit code of Dettmers et al. 2022 (Sec. 2): a sign (signed code), a unary exponent of ten, a linear
/// fraction. 256 values in [-1, 1] (signed) or [0, 1] (unsigned), sorted; entry x of a block is held as the nearest
/// value to x / absolute maximum (ties, and what lies within 4e-6 of itself from a midpoint, go either way, the same way on
/// every path).
///
/// Seven decades 10^-6 ... 1; decade d holds parts = 2^d (signed) or 2^(d+1) (unsigned) fractions: the middles of equal
/// parts of [0.1, 1] times 10^(d-6). Zero and one complete the 256. So the place in the order, counted from zero, has
/// the decade as its highest bit and the part as the bits below, and both directions are straight lines within a decade:
/// a few float32 operations. Written once for CPU (scalar here, vectors in dynamic_vectors.h) and CUDA. Pure.

#include <cstdint>

#if defined(__CUDACC__)
#define OPTOD_CODE __host__ __device__ __forceinline__
#else
#define OPTOD_CODE inline __attribute__((always_inline))
#endif

namespace optod::optim {

/// The lines of one code. Piece k: 0 is zero, 1 ... 7 the decades, 8 the value 1 (the rest fills a vector).
struct DynamicDecades {
  float from[8];          ///< the piece of a magnitude is the number of these below it
  float rate[16];         ///< place = start + rate * magnitude, truncated
  float start[16];
  int32_t last[16];       ///< the piece's last place
  float value_slope[16];  ///< value = value_start + value_slope * place
  float value_start[16];
};

constexpr DynamicDecades MakeDynamicDecades(bool is_signed) {
  DynamicDecades out = {};
  const int zero = is_signed ? 0 : 1;
  out.start[0] = static_cast<float>(zero);
  out.last[0] = zero;
  double power = 1e-6, last = 0;  // last: greatest value of the decade before; 0 stands before the first
  for (int k = 1; k < 8; ++k, power *= 10) {
    const int first_place = 1 << (k - 1 + zero);
    const double parts = first_place, first = (0.1 + 0.45 / parts) * power;
    out.from[k - 1] = static_cast<float>(0.5 * (last + first));
    out.rate[k] = static_cast<float>(parts / (0.9 * power));
    out.start[k] = static_cast<float>(parts * 8 / 9);
    out.last[k] = 2 * first_place - 1;
    out.value_slope[k] = static_cast<float>(0.9 * power / parts);
    out.value_start[k] = static_cast<float>(first - 0.9 * power);
    last = (1 - 0.45 / parts) * power;
  }
  out.from[7] = static_cast<float>(0.5 * (last + 1));
  out.last[8] = is_signed ? 128 : 256;
  out.start[8] = static_cast<float>(out.last[8]);
  out.value_start[8] = 1;
  return out;
}
inline constexpr DynamicDecades kDynamicSigned = MakeDynamicDecades(true), kDynamicUnsigned = MakeDynamicDecades(false);

/// The value of a code.
OPTOD_CODE float DynamicValue(const DynamicDecades& t, bool is_signed, uint8_t code) {
  const int signed_place = is_signed ? static_cast<int>(code) - 127 : static_cast<int>(code) + 1;
  const int place = signed_place < 0 ? -signed_place : signed_place;
#if defined(__CUDA_ARCH__)
  const int bits = 32 - __clz(place);
#else
  const int bits = place == 0 ? 0 : 32 - __builtin_clz(static_cast<unsigned>(place));
#endif
  const int k = is_signed ? bits : bits - 1;
  const float value = t.value_start[k] + t.value_slope[k] * static_cast<float>(place);
  return signed_place < 0 ? -value : value;
}

/// The code of the nearest value. x in [-1, 1], or up to rounding beyond; NaN counts as zero.
OPTOD_CODE uint8_t DynamicNearest(const DynamicDecades& t, bool is_signed, float x) {
  const float a = x < 0 ? -x : x;
  int k = 0;
  for (int j = 0; j < 8; ++j) k += a > t.from[j] ? 1 : 0;
  int place = t.last[k];
  if (k > 0 && k < 8) {
    const int found = static_cast<int>(t.start[k] + t.rate[k] * a);
    place = found < place ? found : place;
  }
  if (!is_signed) return static_cast<uint8_t>(place - 1);
  if (x < 0) place = place > 127 ? -127 : -place;  // there is no -1
  return static_cast<uint8_t>(place + 127);
}

/// Both by name, for tests and one-off use.
class DynamicCode {
 public:
  static const DynamicCode& Signed() {
    static const DynamicCode code(true);
    return code;
  }
  static const DynamicCode& Unsigned() {
    static const DynamicCode code(false);
    return code;
  }
  float value(uint8_t code) const { return DynamicValue(decades_, is_signed_, code); }
  uint8_t Nearest(float x) const { return DynamicNearest(decades_, is_signed_, x); }

 private:
  explicit DynamicCode(bool is_signed)
      : is_signed_(is_signed), decades_(is_signed ? kDynamicSigned : kDynamicUnsigned) {}
  bool is_signed_;
  const DynamicDecades& decades_;
};

}  // namespace optod::optim

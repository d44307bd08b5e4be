#pragma once
/// The dynamic-tree 8-bit code of Dettmers et al. 2022 (Sec. 2): a sign (signed code), a unary exponent of ten, a linear
/// fraction. 256 values in [-1, 1] (signed) or [0, 1] (unsigned), sorted; entry x of a block is held as the nearest
/// value to x / absolute maximum (ties and the last bit of a midpoint go either way, the same way on every path).
///
/// Seven decades 10^-6 ... 1; decade d holds parts = 2^d (signed) or 2^(d+1) (unsigned) fractions: the middles of equal
/// parts of [0.1, 1] times 10^(d-6). Zero and one complete the 256. So the place in the order, counted from zero, has
/// the decade as its highest bit and the part as the bits below: both directions are a few float32 operations. Written
/// once for CPU (scalar here, vectors in kernels_body.h) and CUDA. Pure.

#include <cstdint>

#if defined(__CUDACC__)
#define OPTOD_CODE __host__ __device__ __forceinline__
#else
#define OPTOD_CODE inline __attribute__((always_inline))
#endif

namespace optod::optim {

/// Numbers of one code by decade; [7] stands for the value 1.
struct DynamicDecades {
  float first[8];  ///< value of part 0
  float span[8];   ///< value = first + span * (part / parts)
  float low[8];    ///< where part 0 begins
  float rate[8];   ///< parts a unit of value
  float from[8];   ///< values above belong to this decade or a later one; from[0]: above it, not zero
};

constexpr DynamicDecades MakeDynamicDecades(bool is_signed) {
  DynamicDecades out = {};
  double power = 1e-6, last = 0;  // last: greatest value of the decade before; 0 stands before the first
  for (int d = 0; d < 7; ++d, power *= 10) {
    const double parts = static_cast<double>(1 << (is_signed ? d : d + 1));
    const double first = (0.1 + 0.45 / parts) * power;
    out.first[d] = static_cast<float>(first);
    out.span[d] = static_cast<float>(0.9 * power);
    out.low[d] = static_cast<float>(0.1 * power);
    out.rate[d] = static_cast<float>(parts / (0.9 * power));
    out.from[d] = static_cast<float>(0.5 * (last + first));
    last = (1 - 0.45 / parts) * power;
  }
  out.first[7] = 1;
  out.from[7] = static_cast<float>(0.5 * (last + 1));
  return out;
}
inline constexpr DynamicDecades kDynamicSigned = MakeDynamicDecades(true), kDynamicUnsigned = MakeDynamicDecades(false);

/// The value of a code.
OPTOD_CODE float DynamicValue(const DynamicDecades& t, bool is_signed, uint8_t code) {
  const int signed_place = is_signed ? static_cast<int>(code) - 127 : static_cast<int>(code) + 1;
  const int place = signed_place < 0 ? -signed_place : signed_place;
  if (place < (is_signed ? 1 : 2)) return 0.0f;
#if defined(__CUDA_ARCH__)
  const int top = 31 - __clz(place);
#else
  const int top = 31 - __builtin_clz(static_cast<unsigned>(place));
#endif
  const int d = is_signed ? top : top - 1;
  const float fraction = static_cast<float>(place - (1 << top)) / static_cast<float>(1 << top);
  const float value = t.first[d] + t.span[d] * fraction;
  return signed_place < 0 ? -value : value;
}

/// The code of the nearest value. x in [-1, 1], or up to rounding beyond.
OPTOD_CODE uint8_t DynamicNearest(const DynamicDecades& t, bool is_signed, float x) {
  const float a = x < 0 ? -x : x;
  int d = 0;
  for (int k = 1; k < 8; ++k) d += a > t.from[k] ? 1 : 0;
  const int top = is_signed ? d : d + 1, parts = d == 7 ? 1 : 1 << top;
  int part = static_cast<int>((a - t.low[d]) * t.rate[d]);
  part = part < 0 ? 0 : part < parts ? part : parts - 1;
  int place = a > t.from[0] ? (1 << top) + part : is_signed ? 0 : 1;
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

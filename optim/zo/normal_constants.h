#pragma once
/// The numbers of the random stream, shared by every implementation (scalar, AVX2, AVX-512, and their twins in other
/// languages).
///
/// One block gives lanes x0..x3; (x0, x1) give z0, z1 and (x2, x3) give z2, z3 by Box-Muller. All operations are IEEE
/// float32, each rounded to nearest, none fused; `float(i)` is the conversion of a signed 32-bit integer, rounded to
/// nearest:
///
///   u     = (float(x0 >> 1) + 1) * 2^-31                     in (0, 1]
///   e     = (bits(u) - bits(sqrt 1/2)) >> 23                 (arithmetic shift)  u = m * 2^e, m in [sqrt 1/2, sqrt 2)
///   f     = from_bits(bits(u) - (e << 23)) - 1
///   r     = sqrt(float(e) * kMinusTwoLn2 + f * kLog(f))      = sqrt(-2 ln u)
///   r     = r with its sign bit flipped when x0 is odd       the half circle that the angle leaves out
///   y     = float(int32(x1)) * 2^-31                         in [-1, 1], the angle is y * pi/2
///   z0, z1 = r * kCos(y*y), r * (y * kSin(y*y))
///
/// Polynomials are evaluated by Horner's rule, highest coefficient first: p = c[n-1]; p = p * x + c[n-2]; ...
/// They are minimax fits (iteratively reweighted least squares in float64, then rounded): relative error 1.7e-7 for the
/// logarithm, 5e-9 for the sine, absolute 5e-8 for the cosine, all below or near the unit roundoff of float32.

#include <cstdint>

namespace optod::zo::constants {

// Philox 4x32 (Salmon et al., SC 2011, table 2 and section 3.3).
inline constexpr uint32_t kMul0 = 0xD2511F53u, kMul1 = 0xCD9E8D57u;
inline constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
inline constexpr int kRounds = 10;

inline constexpr int32_t kSqrtHalfBits = 0x3f3504f3;
inline constexpr float kTwoToMinus31 = 0x1p-31f;
inline constexpr float kMinusTwoLn2 = -0x1.62e43p+0f;

/// -2 ln(1 + f) / f on [sqrt 1/2 - 1, sqrt 2 - 1], in powers of f.
inline constexpr float kLog[8] = {-0x1.fffffep+0f, 0x1.00007ap+0f, -0x1.5559dcp-1f, 0x1.ff623cp-2f,
                                  -0x1.978e2ep-2f, 0x1.614c0ap-2f, -0x1.4c3d12p-2f, 0x1.9dfa7ep-3f};
/// sin(pi/2 y) / y on [-1, 1], in powers of y^2.
inline constexpr float kSin[5] = {0x1.921fb6p+0f, -0x1.4abbc2p-1f, 0x1.4668bp-4f, -0x1.324cccp-8f, 0x1.3db004p-13f};
/// cos(pi/2 y) on [-1, 1], in powers of y^2.
inline constexpr float kCos[5] = {0x1.fffffep-1f, -0x1.3bd3a6p+0f, 0x1.03bd06p-2f, -0x1.54f61ap-6f, 0x1.c1f07cp-11f};

}  // namespace optod::zo::constants

// The loops of kernels.h. Included once by each kernels_<isa>.cc, which is compiled with that instruction set;
// everything here has internal linkage and only the C++ language, builtins and intrinsics (always inlined) are used, so
// that no inline function of a wide build can leak into a narrow one.
#ifdef OPTOD_VECTOR_LANES
#include <immintrin.h>
#endif

#include <cstdint>

#include "optim/rules/dynamic_code.h"
#include "optim/rules/formulas.h"
#include "optim/rules/half.h"
#include "optim/rules/kernels.h"

namespace optod::optim {
namespace {

// One loop a number of operands; `f` is inlined into it and the compiler vectorises.
template <typename T, typename F>
inline void Loop0(const Lanes<T>& x, int64_t n, F f) {
  T* __restrict p = x.p;
  const T* __restrict g = x.g;
  for (int64_t i = 0; i < n; ++i) f(p[i], g[i]);
}
template <typename T, typename F>
inline void Loop1(const Lanes<T>& x, int64_t n, F f) {
  T* __restrict p = x.p;
  const T* __restrict g = x.g;
  T* __restrict s0 = x.s[0];
  for (int64_t i = 0; i < n; ++i) f(p[i], g[i], s0[i]);
}
template <typename T, typename F>
inline void Loop2(const Lanes<T>& x, int64_t n, F f) {
  T* __restrict p = x.p;
  const T* __restrict g = x.g;
  T* __restrict s0 = x.s[0];
  T* __restrict s1 = x.s[1];
  for (int64_t i = 0; i < n; ++i) f(p[i], g[i], s0[i], s1[i]);
}
template <typename T, typename F>
inline void Loop3(const Lanes<T>& x, int64_t n, F f) {
  T* __restrict p = x.p;
  const T* __restrict g = x.g;
  T* __restrict s0 = x.s[0];
  T* __restrict s1 = x.s[1];
  T* __restrict s2 = x.s[2];
  for (int64_t i = 0; i < n; ++i) f(p[i], g[i], s0[i], s1[i], s2[i]);
}

template <typename T>
void SgdPlainLoop(const void* constants, const Lanes<T>& x, int64_t n) {
  const auto c = *static_cast<const formula::Sgd<T>*>(constants);
  Loop0(
      x, n, [c](T & p, T g) __attribute__((always_inline)) { formula::SgdPlain(c, p, g); });
}
template <typename T, bool kNesterov>
void SgdMomentumLoop(const void* constants, const Lanes<T>& x, int64_t n) {
  const auto c = *static_cast<const formula::Sgd<T>*>(constants);
  Loop1(
      x, n, [c](T & p, T g, T & b) __attribute__((always_inline)) { formula::SgdMomentum<kNesterov>(c, p, g, b); });
}
template <typename T>
void AdamLoop(const void* constants, const Lanes<T>& x, int64_t n) {
  const auto c = *static_cast<const formula::Adam<T>*>(constants);
  Loop2(
      x, n, [c](T & p, T g, T & m, T & v) __attribute__((always_inline)) { formula::AdamStep(c, p, g, m, v); });
}
template <typename T>
void AmsgradLoop(const void* constants, const Lanes<T>& x, int64_t n) {
  const auto c = *static_cast<const formula::Adam<T>*>(constants);
  Loop3(
      x, n, [c](T & p, T g, T & m, T & v, T & w) __attribute__((always_inline)) {
        formula::AmsgradStep(c, p, g, m, v, w);
      });
}

template <typename T>
void SaiLoop(const void* constants, const Lanes<T>& x, int64_t n) {
  const auto c = *static_cast<const formula::Sai<T>*>(constants);
  Loop1(
      x, n, [c](T & p, T g, T & m) __attribute__((always_inline)) { formula::SaiStep(c, p, g, m); });
}
template <typename T, bool kPower>
void AdaHessianLoop(const void* constants, const Lanes<T>& x, int64_t n) {
  const auto c = *static_cast<const formula::AdaHessian<T>*>(constants);
  T* __restrict p = x.p;
  const T* __restrict g = x.g;
  T* __restrict m = x.s[0];
  T* __restrict s = x.s[1];
  const T* __restrict d = x.x;
  for (int64_t i = 0; i < n; ++i) formula::AdaHessianStep<kPower>(c, p[i], g[i], m[i], s[i], d[i]);
}
template <typename T>
void LambMomentsLoop(const void* constants, const Lanes<T>& x, int64_t n) {
  const auto c = *static_cast<const formula::Lamb<T>*>(constants);
  Loop3(
      x, n, [c](const T& p, T g, T& m, T& v, T& u) __attribute__((always_inline)) {
        m = c.first(m, g);
        v = c.second(v, g * g);
        u = formula::LambDirection(c, p, m, v);
      });
}
template <typename T>
void LambApplyLoop(const void* constants, const Lanes<T>& x, int64_t n) {
  const auto c = *static_cast<const formula::Lamb<T>*>(constants);
  T* __restrict p = x.p;
  const T* __restrict m = x.s[0];
  const T* __restrict v = x.s[1];
  for (int64_t i = 0; i < n; ++i) p[i] -= c.step * formula::LambDirection(c, p[i], m[i], v[i]);
}
template <typename T>
void NormalisedRowLoop(const void* constants, const Lanes<T>& x, int64_t n) {
  const auto c = *static_cast<const formula::Normalised<T>*>(constants);
  Loop0(
      x, n, [c](T & p, T g) __attribute__((always_inline)) { formula::NormalisedStep(c, p, g, c.rms); });
}
template <typename T>
void NormalisedColumnsLoop(const void* constants, const Lanes<T>& x, int64_t n) {
  const auto c = *static_cast<const formula::Normalised<T>*>(constants);
  T* __restrict p = x.p;
  const T* __restrict g = x.g;
  const T* __restrict rms = x.x;
  for (int64_t i = 0; i < n; ++i) formula::NormalisedStep(c, p[i], g[i], rms[i]);
}
template <typename T>
void NormalisedMomentumLoop(const void* constants, const Lanes<T>& x, int64_t n) {
  const auto c = *static_cast<const formula::Normalised<T>*>(constants);
  T* __restrict p = x.p;
  const T* __restrict m = x.s[0];
  for (int64_t i = 0; i < n; ++i) formula::NormalisedStep(c, p[i], m[i], c.rms);
}
template <typename T>
void AverageLoop(const void* constants, const Lanes<T>& x, int64_t n) {
  const auto average = *static_cast<const formula::Ema<T>*>(constants);
  const T* __restrict g = x.g;
  T* __restrict s = x.s[0];
  for (int64_t i = 0; i < n; ++i) s[i] = average(s[i], g[i]);
}

// Sums of f(x) in double: element i goes to lane i % 16, lanes are added pairwise at the end. The order never depends
// on the instruction set.
template <typename T, typename F>
inline double LaneSum(const T* x, int64_t n, F f) {
  constexpr int kLanes = 16;
  double lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lane[l] += f(static_cast<double>(x[i + l]));
  }
  for (int l = 0; i < n; ++i, ++l) lane[l] += f(static_cast<double>(x[i]));
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0];
}
template <typename T>
double SumLoop(const T* x, int64_t n) {
  return LaneSum(
      x, n, [](double v) __attribute__((always_inline)) { return v; });
}
template <typename T>
double SumSquaresLoop(const T* x, int64_t n) {
  return LaneSum(
      x, n, [](double v) __attribute__((always_inline)) { return v * v; });
}
template <typename T>
double SumSquareDeviationsLoop(const T* x, int64_t n, double mean) {
  return LaneSum(
      x, n, [mean](double v) __attribute__((always_inline)) { return (v - mean) * (v - mean); });
}

// kRows rows at once: a square is computed once for both sums, a column sum is fetched once for all rows.
template <int kRows, typename T>
inline void AddSquaresOfRows(const T* __restrict x, int64_t stride, double* __restrict sums, double* __restrict row_sums,
                             int64_t n) {
  constexpr int kLanes = 16;
  double lane[kRows][kLanes] = {};
  auto add = [&](int64_t i, int l) __attribute__((always_inline)) {
    double sum = sums[i];
    for (int r = 0; r < kRows; ++r) {
      const double v = static_cast<double>(x[r * stride + i]);
      lane[r][l] += v * v;
      sum += v * v;
    }
    sums[i] = sum;
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) add(i + l, l);
  }
  for (int l = 0; i < n; ++i, ++l) add(i, l);
  for (int r = 0; r < kRows; ++r) {
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int l = 0; l < half; ++l) lane[r][l] += lane[r][l + half];
    }
    row_sums[r] += lane[r][0];
  }
}
template <typename T>
void AddSquaresRowsLoop(const T* x, int64_t stride, int64_t rows, double* sums, double* row_sums, int64_t n) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) AddSquaresOfRows<4>(x + r * stride, stride, sums, row_sums + r, n);
  for (; r < rows; ++r) AddSquaresOfRows<1>(x + r * stride, stride, sums, row_sums + r, n);
}

template <typename T>
double SumSquaresScaledLoop(T a, const T* __restrict x, const T* __restrict f, int64_t n) {
  constexpr int kLanes = 16;
  double lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      const double u = static_cast<double>(a * x[i + l] * f[i + l]);
      lane[l] += u * u;
    }
  }
  for (int l = 0; i < n; ++i, ++l) {
    const double u = static_cast<double>(a * x[i] * f[i]);
    lane[l] += u * u;
  }
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  }
  return lane[0];
}

template <typename T>
void AddScaledByLoop(T keep, T* __restrict y, T b, T a, const T* __restrict x, const T* __restrict f, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = keep * y[i] + b * (a * x[i] * f[i]);
}

template <typename T>
void ScaleByLoop(T a, const T* __restrict x, const T* __restrict f, T* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = a * x[i] * f[i];
}
template <typename T>
void ScaleAndAddLoop(T a, T* __restrict y, T b, const T* __restrict x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = a * y[i] + b * x[i];
}

// The largest magnitude pattern of a block tells whether any exponent in it is all ones.
template <typename Bits>
inline int64_t FirstNotFinite(const void* data, int64_t n, Bits magnitude_mask, Bits infinity) {
  constexpr int64_t kBlock = 4096;
  const auto* __restrict x = static_cast<const Bits*>(data);
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = begin + kBlock < n ? begin + kBlock : n;
    Bits largest = 0;
    for (int64_t i = begin; i < end; ++i) {
      const Bits magnitude = x[i] & magnitude_mask;
      largest = magnitude > largest ? magnitude : largest;
    }
    if (largest < infinity) continue;
    for (int64_t i = begin; i < end; ++i) {
      if ((x[i] & magnitude_mask) >= infinity) return i;
    }
  }
  return -1;
}
int64_t FirstNotFiniteLoop(DType dtype, const void* x, int64_t n) {
  // Signed integers: magnitudes have the top bit clear, and signed maxima exist in every vector instruction set.
  switch (dtype) {
    case DType::kF32:
      return FirstNotFinite<int32_t>(x, n, 0x7fffffff, 0x7f800000);
    case DType::kF64:
      return FirstNotFinite<int64_t>(x, n, 0x7fffffffffffffff, 0x7ff0000000000000);
    case DType::kF16:
      return FirstNotFinite<int16_t>(x, n, 0x7fff, 0x7c00);
    case DType::kBF16:
      return FirstNotFinite<int16_t>(x, n, 0x7fff, 0x7f80);
    default:
      return -1;
  }
}

void WidenLoop(DType from, const void* data, float* __restrict y, int64_t n) {
  const auto* __restrict x = static_cast<const uint16_t*>(data);
  if (from == DType::kBF16) {
    for (int64_t i = 0; i < n; ++i) y[i] = half::FromBf16(x[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) y[i] = half::FromF16(x[i]);
  }
}
void NarrowLoop(DType to, const float* __restrict x, void* data, int64_t n) {
  auto* __restrict y = static_cast<uint16_t*>(data);
  if (to == DType::kBF16) {
    for (int64_t i = 0; i < n; ++i) y[i] = half::ToBf16(x[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) y[i] = half::ToF16(x[i]);
  }
}

// Largest magnitude by the order of the bit patterns; NaN counts as larger than infinity.
float MaxAbsLoop(const float* __restrict x, int64_t n) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t magnitude = __builtin_bit_cast(int32_t, x[i]) & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  return __builtin_bit_cast(float, largest);
}

// The 8-bit code: what is left of whole vectors goes through the element functions, which give the same bits.
#include "optim/rules/dynamic_vectors.h"

template <bool kSigned>
inline void Decode8(const DynamicDecades& t, const uint8_t* codes, float scale, float* y, int64_t n) {
  for (int64_t i = DecodeVectors<kSigned>(t, codes, scale, y, n); i < n; ++i)
    y[i] = scale * DynamicValue(t, kSigned, codes[i]);
}
void Decode8Loop(bool is_signed, const uint8_t* codes, float scale, float* y, int64_t n) {
  if (is_signed) return Decode8<true>(kDynamicSigned, codes, scale, y, n);
  Decode8<false>(kDynamicUnsigned, codes, scale, y, n);
}
template <bool kSigned>
inline void Encode8(const DynamicDecades& t, const float* x, float inverse, uint8_t* codes, int64_t n) {
  for (int64_t i = EncodeVectors<kSigned>(t, x, inverse, codes, n); i < n; ++i)
    codes[i] = DynamicNearest(t, kSigned, x[i] * inverse);
}
void Encode8Loop(bool is_signed, const float* x, float inverse, uint8_t* codes, int64_t n) {
  if (is_signed) return Encode8<true>(kDynamicSigned, x, inverse, codes, n);
  Encode8<false>(kDynamicUnsigned, x, inverse, codes, n);
}

void NarrowStochasticLoop(const float* __restrict x, const uint32_t* __restrict words, uint16_t* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = half::ToBf16Stochastic(x[i], words[i]);
}

template <typename T>
constexpr TypedKernels<T> MakeTyped() {
  TypedKernels<T> k = {};
  k.step[kSgdPlain] = &SgdPlainLoop<T>;
  k.step[kSgdMomentum] = &SgdMomentumLoop<T, false>;
  k.step[kSgdNesterov] = &SgdMomentumLoop<T, true>;
  k.step[kAdam] = &AdamLoop<T>;
  k.step[kAmsgrad] = &AmsgradLoop<T>;
  k.step[kSai] = &SaiLoop<T>;
  k.step[kAdaHessian] = &AdaHessianLoop<T, false>;
  k.step[kAdaHessianPower] = &AdaHessianLoop<T, true>;
  k.step[kLambMoments] = &LambMomentsLoop<T>;
  k.step[kLambApply] = &LambApplyLoop<T>;
  k.step[kNormalisedRow] = &NormalisedRowLoop<T>;
  k.step[kNormalisedColumns] = &NormalisedColumnsLoop<T>;
  k.step[kNormalisedMomentum] = &NormalisedMomentumLoop<T>;
  k.step[kAverage] = &AverageLoop<T>;
  k.sum = &SumLoop<T>;
  k.sum_squares = &SumSquaresLoop<T>;
  k.sum_square_deviations = &SumSquareDeviationsLoop<T>;
  k.add_squares_rows = &AddSquaresRowsLoop<T>;
  k.sum_squares_scaled = &SumSquaresScaledLoop<T>;
  k.add_scaled_by = &AddScaledByLoop<T>;
  k.scale_by = &ScaleByLoop<T>;
  k.scale_and_add = &ScaleAndAddLoop<T>;
  return k;
}

}  // namespace

extern const KernelTable OPTOD_KERNEL_TABLE;
const KernelTable OPTOD_KERNEL_TABLE = {OPTOD_KERNEL_NAME,   MakeTyped<float>(), MakeTyped<double>(),
                                        &FirstNotFiniteLoop, &WidenLoop,         &NarrowLoop,
                                        &NarrowStochasticLoop, &Decode8Loop,        &Encode8Loop,       &MaxAbsLoop};

}  // namespace optod::optim

// Included by kernels_scalar.cc, kernels_avx2.cc and kernels_avx512.cc: the same loops for each instruction set.
// Internal linkage throughout, and nothing from <cmath>'s inline functions, so that no wide code leaks into a narrow
// object.
#include "optim/order/kernels.h"

namespace optod::order::kernels {
namespace {

/// A step's numbers in the width of the loop.
template <typename T>
struct Numbers {
  explicit Numbers(const Step& s)
      : nesterov(s.nesterov),
        momentum(static_cast<T>(s.momentum)),
        beta1(static_cast<T>(s.beta1)),
        rest1(static_cast<T>(1.0 - s.beta1)),
        beta2(static_cast<T>(s.beta2)),
        rest2(static_cast<T>(1.0 - s.beta2)),
        eps(static_cast<T>(s.eps)),
        inverse_correction1(static_cast<T>(s.inverse_correction1)),
        inverse_correction2(static_cast<T>(s.inverse_correction2)),
        coupled_decay(static_cast<T>(s.coupled_decay)),
        decoupled_decay(static_cast<T>(s.decoupled_decay)),
        lr(static_cast<T>(s.lr)) {}
  const bool nesterov;
  const T momentum, beta1, rest1, beta2, rest2, eps, inverse_correction1, inverse_correction2;
  const T coupled_decay, decoupled_decay, lr;
};

inline __attribute__((always_inline)) float Root(float x) { return __builtin_sqrtf(x); }
inline __attribute__((always_inline)) double Root(double x) { return __builtin_sqrt(x); }

/// Gamma of one element from its gradient; m and v advanced.
template <Rule kRule, typename T>
inline __attribute__((always_inline)) T Direct(const Numbers<T>& s, T g, T& m, T& v) {
  if constexpr (kRule == Rule::kSgd) {
    m = s.momentum * m + g;
    return s.nesterov ? g + s.momentum * m : m;
  }
  m = s.beta1 * m + s.rest1 * g;
  v = s.beta2 * v + s.rest2 * g * g;
  return m * s.inverse_correction1 / (Root(v * s.inverse_correction2) + s.eps);
}

/// dGamma/dg with the moments before this position held; m and v are those after it. The second part of Adam's has the
/// limit 0 where v is 0 (every gradient so far was 0).
template <Rule kRule, typename T>
inline __attribute__((always_inline)) T Slope(const Numbers<T>& s, T g, T m, T v) {
  if constexpr (kRule == Rule::kSgd) return s.nesterov ? T{1} + s.momentum : T{1};
  const T root = Root(v * s.inverse_correction2), denominator = root + s.eps;
  const T safe = root > T{0} ? root : T{1}, live = root > T{0} ? T{1} : T{0};
  return s.rest1 * s.inverse_correction1 / denominator -
         live * (m * s.inverse_correction1) * s.rest2 * g * s.inverse_correction2 / (safe * denominator * denominator);
}

enum class From { kNothing, kDiagonal, kSecond, kProduct };

template <typename T, Rule kRule, bool kHeld, From kFrom>
void AdvanceLoop(const Step& step, const Piece<T>& p, size_t n) {
  const Numbers<T> s(step);
  const T* __restrict g_in = p.g;
  const T* __restrict h_in = p.h;
  const T* __restrict q_in = p.q;
  const T* __restrict product = p.product;
  const T* __restrict theta = p.theta;
  const T* __restrict direction = p.direction;
  const T* __restrict m_reference = p.m_reference;
  const T* __restrict v_reference = p.v_reference;
  T* __restrict m_out = p.m;
  T* __restrict v_out = p.v;
  T* __restrict d_out = p.d;
  const T cap = static_cast<T>(p.cap);
  for (size_t i = 0; i < n; ++i) {
    const T d = d_out[i];
    T correction = s.coupled_decay * d;
    if constexpr (kFrom == From::kDiagonal) correction += h_in[i] * d;
    if constexpr (kFrom == From::kSecond) {
      T slope = h_in[i] + T{0.5} * q_in[i] * d;
      slope = slope > cap ? cap : slope;
      slope = slope < -cap ? -cap : slope;
      correction += slope * d;
    }
    if constexpr (kFrom == From::kProduct) correction += product[i];
    const T g = g_in[i] + s.coupled_decay * theta[i];
    T gamma;
    if constexpr (kHeld) {
      T m = m_reference[i], v = kRule == Rule::kAdam ? v_reference[i] : T{0};
      gamma = Direct<kRule>(s, g, m, v);
      gamma += Slope<kRule>(s, g, m, v) * correction;
    } else {
      T m = m_out[i], v = kRule == Rule::kAdam ? v_out[i] : T{0};
      gamma = Direct<kRule>(s, g + correction, m, v);
      m_out[i] = m;
      if constexpr (kRule == Rule::kAdam) v_out[i] = v;
    }
    d_out[i] = d - s.lr * ((gamma - direction[i]) + s.decoupled_decay * d);
  }
}

template <typename T, Rule kRule, bool kHeld>
void AdvanceBy(const Step& s, const Piece<T>& p, size_t n) {
  if (p.product != nullptr) return AdvanceLoop<T, kRule, kHeld, From::kProduct>(s, p, n);
  if (p.q != nullptr) return AdvanceLoop<T, kRule, kHeld, From::kSecond>(s, p, n);
  if (p.h != nullptr) return AdvanceLoop<T, kRule, kHeld, From::kDiagonal>(s, p, n);
  AdvanceLoop<T, kRule, kHeld, From::kNothing>(s, p, n);
}

template <typename T>
void Advance(const Step& s, const Piece<T>& p, size_t n) {
  const bool held = p.m_reference != nullptr;
  if (s.rule == Rule::kSgd)
    return held ? AdvanceBy<T, Rule::kSgd, true>(s, p, n) : AdvanceBy<T, Rule::kSgd, false>(s, p, n);
  return held ? AdvanceBy<T, Rule::kAdam, true>(s, p, n) : AdvanceBy<T, Rule::kAdam, false>(s, p, n);
}

template <typename T, Rule kRule>
void DirectLoop(const Step& step, const T* __restrict g, const T* __restrict theta, T* __restrict m_out,
                T* __restrict v_out, T* __restrict direction, size_t n) {
  const Numbers<T> s(step);
  for (size_t i = 0; i < n; ++i) {
    T m = m_out[i], v = kRule == Rule::kAdam ? v_out[i] : T{0};
    direction[i] = Direct<kRule>(s, g[i] + s.coupled_decay * theta[i], m, v);
    m_out[i] = m;
    if constexpr (kRule == Rule::kAdam) v_out[i] = v;
  }
}

template <typename T>
void DirectAll(const Step& s, const T* g, const T* theta, T* m, T* v, T* direction, size_t n) {
  if (s.rule == Rule::kSgd) return DirectLoop<T, Rule::kSgd>(s, g, theta, m, v, direction, n);
  DirectLoop<T, Rule::kAdam>(s, g, theta, m, v, direction, n);
}

constexpr size_t kLanes = 16;

template <typename T>
double Dot(const T* __restrict a, const T* __restrict b, size_t n) {
  T lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) lanes[j] += a[i + j] * b[i + j];
  }
  for (size_t j = 0; i + j < n; ++j) lanes[j] += a[i + j] * b[i + j];
  double sum = 0.0;
  for (size_t j = 0; j < kLanes; ++j) sum += static_cast<double>(lanes[j]);
  return sum;
}

template <typename T>
void Combine(const T* const* y, const T* c, size_t count, T* __restrict out, size_t n) {
  size_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {  // sums stay in registers over k
    T sums[2 * kLanes] = {};
    for (size_t k = 0; k < count; ++k) {
      const T* __restrict from = y[k] + i;
      for (size_t j = 0; j < 2 * kLanes; ++j) sums[j] += c[k] * from[j];
    }
    for (size_t j = 0; j < 2 * kLanes; ++j) out[i + j] = sums[j];
  }
  for (; i < n; ++i) {
    T sum = 0;
    for (size_t k = 0; k < count; ++k) sum += c[k] * y[k][i];
    out[i] = sum;
  }
}

}  // namespace

extern const Table OPTOD_ORDER_TABLE;
const Table OPTOD_ORDER_TABLE = {OPTOD_ORDER_NAME,  &Advance<float>,    &Advance<double>,
                                 &DirectAll<float>, &DirectAll<double>, &Dot<float>,
                                 &Dot<double>,      &Combine<float>,    &Combine<double>};

}  // namespace optod::order::kernels

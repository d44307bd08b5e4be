// Included by kernels_scalar.cc, kernels_avx2.cc and kernels_avx512.cc: the same loops for each instruction set.
// Internal linkage throughout, and nothing from <cmath>'s inline functions, so that no wide code leaks into a narrow
// object.
#include "optim/order/kernels.h"

namespace optod::order::kernels {
namespace {

/// Gamma of one element from its gradient; m and v advanced.
template <Rule kRule>
inline __attribute__((always_inline)) double Direct(const Step& s, double g, double& m, double& v) {
  if constexpr (kRule == Rule::kSgd) {
    m = s.momentum * m + g;
    return s.nesterov ? g + s.momentum * m : m;
  }
  m = s.beta1 * m + (1.0 - s.beta1) * g;
  v = s.beta2 * v + (1.0 - s.beta2) * g * g;
  return m * s.inverse_correction1 / (__builtin_sqrt(v * s.inverse_correction2) + s.eps);
}

/// dGamma/dg with the moments before this position held; m and v are those after it. The second part of Adam's has the
/// limit 0 where v is 0 (every gradient so far was 0).
template <Rule kRule>
inline __attribute__((always_inline)) double Slope(const Step& s, double g, double m, double v) {
  if constexpr (kRule == Rule::kSgd) return s.nesterov ? 1.0 + s.momentum : 1.0;
  const double root = __builtin_sqrt(v * s.inverse_correction2), denominator = root + s.eps;
  const double safe = root > 0.0 ? root : 1.0, live = root > 0.0 ? 1.0 : 0.0;
  return (1.0 - s.beta1) * s.inverse_correction1 / denominator - live * (m * s.inverse_correction1) * (1.0 - s.beta2) *
                                                                     g * s.inverse_correction2 /
                                                                     (safe * denominator * denominator);
}

enum class From { kNothing, kDiagonal, kSecond, kProduct };

template <typename T, Rule kRule, bool kHeld, From kFrom>
void AdvanceLoop(const Step& s, const Piece<T>& p, size_t n) {
  const T* __restrict g_in = p.g;
  const T* __restrict h_in = p.h;
  const T* __restrict q_in = p.q;
  const double* __restrict product = p.product;
  const double* __restrict theta = p.theta;
  const double* __restrict direction = p.direction;
  const double* __restrict m_reference = p.m_reference;
  const double* __restrict v_reference = p.v_reference;
  double* __restrict m_out = p.m;
  double* __restrict v_out = p.v;
  double* __restrict d_out = p.d;
  const double cap = p.cap;
  for (size_t i = 0; i < n; ++i) {
    const double d = d_out[i];
    double correction = s.coupled_decay * d;
    if constexpr (kFrom == From::kDiagonal) correction += static_cast<double>(h_in[i]) * d;
    if constexpr (kFrom == From::kSecond) {
      double slope = static_cast<double>(h_in[i]) + 0.5 * static_cast<double>(q_in[i]) * d;
      slope = slope > cap ? cap : slope;
      slope = slope < -cap ? -cap : slope;
      correction += slope * d;
    }
    if constexpr (kFrom == From::kProduct) correction += product[i];
    const double g = static_cast<double>(g_in[i]) + s.coupled_decay * theta[i];
    double gamma;
    if constexpr (kHeld) {
      double m = m_reference[i], v = kRule == Rule::kAdam ? v_reference[i] : 0.0;
      gamma = Direct<kRule>(s, g, m, v);
      gamma += Slope<kRule>(s, g, m, v) * correction;
    } else {
      double m = m_out[i], v = kRule == Rule::kAdam ? v_out[i] : 0.0;
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
void DirectLoop(const Step& s, const T* __restrict g, const double* __restrict theta, double* __restrict m_out,
                double* __restrict v_out, double* __restrict direction, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    double m = m_out[i], v = kRule == Rule::kAdam ? v_out[i] : 0.0;
    direction[i] = Direct<kRule>(s, static_cast<double>(g[i]) + s.coupled_decay * theta[i], m, v);
    m_out[i] = m;
    if constexpr (kRule == Rule::kAdam) v_out[i] = v;
  }
}

template <typename T>
void DirectAll(const Step& s, const T* g, const double* theta, double* m, double* v, double* direction, size_t n) {
  if (s.rule == Rule::kSgd) return DirectLoop<T, Rule::kSgd>(s, g, theta, m, v, direction, n);
  DirectLoop<T, Rule::kAdam>(s, g, theta, m, v, direction, n);
}

}  // namespace

extern const Table OPTOD_ORDER_TABLE;
const Table OPTOD_ORDER_TABLE = {OPTOD_ORDER_NAME, &Advance<float>, &Advance<double>, &DirectAll<float>,
                                 &DirectAll<double>};

}  // namespace optod::order::kernels

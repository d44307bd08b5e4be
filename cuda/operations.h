#pragma once
/// The update formulas (optim/rules/formulas.h) as operations on one element, for host and device: what a fused kernel
/// does with each element of each tensor. `s`: state, `x`: further input of the rule. Their order is that of
/// optim/rules/kernels.h, which the CPU launchers use.

#include "optim/rules/formulas.h"

#if !defined(OPTOD_HD)
#if defined(__CUDACC__)
#define OPTOD_HD __host__ __device__ __forceinline__
#else
#define OPTOD_HD inline
#endif
#endif

namespace optod::cuda {

namespace formula = optim::formula;

// kStates: state tensors read and written. kWrites: how many of them (the first ones) change. kGradient, kInput: whether
// g and x are read. kMoves: whether p changes.
template <int kStates_, bool kGradient_, bool kInput_, bool kMoves_>
struct Traits {
  static constexpr int kStates = kStates_;
  static constexpr bool kGradient = kGradient_, kInput = kInput_, kMoves = kMoves_;
};

template <typename T>
struct SgdPlain : Traits<0, true, false, true> {
  using Constants = formula::Sgd<T>;
  OPTOD_HD static void Apply(const Constants& c, T& p, T g, T*, T) { formula::SgdPlain(c, p, g); }
};
template <typename T, bool kNesterov>
struct SgdMomentum : Traits<1, true, false, true> {
  using Constants = formula::Sgd<T>;
  OPTOD_HD static void Apply(const Constants& c, T& p, T g, T* s, T) { formula::SgdMomentum<kNesterov>(c, p, g, s[0]); }
};
template <typename T>
struct Adam : Traits<2, true, false, true> {
  using Constants = formula::Adam<T>;
  OPTOD_HD static void Apply(const Constants& c, T& p, T g, T* s, T) { formula::AdamStep(c, p, g, s[0], s[1]); }
};
template <typename T>
struct Amsgrad : Traits<3, true, false, true> {
  using Constants = formula::Adam<T>;
  OPTOD_HD static void Apply(const Constants& c, T& p, T g, T* s, T) { formula::AmsgradStep(c, p, g, s[0], s[1], s[2]); }
};
template <typename T>
struct Sai : Traits<1, true, false, true> {
  using Constants = formula::Sai<T>;
  OPTOD_HD static void Apply(const Constants& c, T& p, T g, T* s, T) { formula::SaiStep(c, p, g, s[0]); }
};
template <typename T, bool kPower>
struct AdaHessian : Traits<2, true, true, true> {
  using Constants = formula::AdaHessian<T>;
  OPTOD_HD static void Apply(const Constants& c, T& p, T g, T* s, T x) {
    formula::AdaHessianStep<kPower>(c, p, g, s[0], s[1], x);
  }
};
/// Moments and direction; the direction goes to s[2].
template <typename T>
struct LambMoments : Traits<3, true, false, false> {
  using Constants = formula::Lamb<T>;
  OPTOD_HD static void Apply(const Constants& c, T& p, T g, T* s, T) {
    s[0] = c.first(s[0], g);
    s[1] = c.second(s[1], g * g);
    s[2] = formula::LambDirection(c, p, s[0], s[1]);
  }
};
template <typename T>
struct LambApply : Traits<2, false, false, true> {
  using Constants = formula::Lamb<T>;
  OPTOD_HD static void Apply(const Constants& c, T& p, T, T* s, T) {
    p -= c.step * formula::LambDirection(c, p, s[0], s[1]);
  }
};
/// One root mean square for the whole tensor, in the constants.
template <typename T>
struct NormalisedRow : Traits<0, true, false, true> {
  using Constants = formula::Normalised<T>;
  OPTOD_HD static void Apply(const Constants& c, T& p, T g, T*, T) { formula::NormalisedStep(c, p, g, c.rms); }
};
template <typename T>
struct Average : Traits<1, true, false, false> {
  using Constants = formula::Ema<T>;
  OPTOD_HD static void Apply(const Constants& c, T&, T g, T* s, T) { s[0] = c(s[0], g); }
};

}  // namespace optod::cuda

#pragma once
/// The loops of a training step and of its estimate over a piece of the parameters, one table an instruction set. All
/// tables give the same bits (no fused multiply-add), and an estimate whose deviation is 0 computes the reference's
/// direction by the same operations, so that the identity order adds exactly nothing. Serial; thread-safe.
///
/// An estimate computes in T, the width of the stored terms: with float the division and the square root of Adam, which
/// dominate, take a quarter of the time, and a deviation is known to 1e-7 of itself, far below what any curvature
/// leaves open. (A float32 gradient above 1e19 squares to infinity there and counts as one that moves nothing.)
/// Training computes in double.

#include <cstddef>

#include "optim/order/options.h"

namespace optod::order::kernels {

/// What one position is made of.
struct Step {
  Rule rule = Rule::kAdam;
  bool nesterov = false;
  double momentum = 0.0, beta1 = 0.0, beta2 = 0.0, eps = 0.0;
  double inverse_correction1 = 1.0, inverse_correction2 = 1.0;  // 1 / (1 - beta^(t+1))
  double coupled_decay = 0.0, decoupled_decay = 0.0;
  double lr = 0.0;
};
Step MakeStep(const Optimizer& optimizer, double lr, int position);

/// n elements of each; T is float or double.
template <typename T>
struct Piece {
  const T* g = nullptr;            // gradient of the batch at theta_t
  const T* h = nullptr;            // diagonal curvature, or null
  const T* q = nullptr;            // its slope along the diagonal (second order), or null; needs h
  const T* product = nullptr;      // H d in place of h, or null
  const T* theta = nullptr;        // theta_t; read when the step decays
  const T* direction = nullptr;    // the reference's Gamma at this position
  const T* m_reference = nullptr;  // moments of the reference before this position: held, when not null
  const T* v_reference = nullptr;
  T* m = nullptr;  // the estimated run's moments, advanced when the former are null
  T* v = nullptr;
  T* d = nullptr;    // gamma - theta, advanced
  double cap = 0.0;  // |h + q d / 2| is clipped to it
};

struct Table {
  const char* name;
  /// d_{t+1} = d_t - lr (Gamma(g + H d) - Gamma_reference + decay d_t)
  void (*advance_float)(const Step&, const Piece<float>&, size_t n);
  void (*advance_double)(const Step&, const Piece<double>&, size_t n);
  /// direction = Gamma(g), m and v advanced: the reference run's own step (double), or the estimate's view of it.
  void (*direct_float)(const Step&, const float* g, const float* theta, float* m, float* v, float* direction, size_t n);
  void (*direct_double)(const Step&, const double* g, const double* theta, double* m, double* v, double* direction,
                        size_t n);
  /// sum of a[i] b[i], in 16 lanes of T that are added up in double
  double (*dot_float)(const float* a, const float* b, size_t n);
  double (*dot_double)(const double* a, const double* b, size_t n);
  /// out[i] = sum over k < count of c[k] y[k][i], in the order of k
  void (*combine_float)(const float* const* y, const float* c, size_t count, float* out, size_t n);
  void (*combine_double)(const double* const* y, const double* c, size_t count, double* out, size_t n);
};

/// The widest this CPU has.
const Table& Best();
/// "scalar", "avx2", "avx512"; null when this CPU or this build lacks it. For tests and benchmarks.
const Table* Find(const char* name);

}  // namespace optod::order::kernels

#pragma once
/// The first half of a step: evaluates the loss at perturbed points and returns projected gradients. Owns nothing but a
/// scratch copy (Residue::kNone). SPSA / MeZO: Malladi et al., 2023, Alg. 1. T is float or double. Calls on one object
/// must not overlap.

#include <functional>
#include <span>
#include <vector>

#include "optim/zo/direction.h"
#include "optim/zo/hyper.h"

namespace optod::zo {

/// The objective at a point of the layout's size; the same batch for all points of a step. May return NaN.
template <class T>
using LossFn = std::function<double(std::span<const T> theta)>;

struct Estimate {
  std::vector<double> loss_plus, loss_minus, g;  ///< one a query
};

/// A call perturbs only `tensors`. Residue::kNone leaves theta's bytes as they were; kMezo leaves the rounding of +1,
/// -2, +1 (or +1, -1). One-sided with Residue::kNone evaluates L(theta) once for all queries; kMezo once a query, as
/// MeZO's code does.
template <class T>
class Estimator {
 public:
  Estimator(ZoLayout layout, ZoHyper hyper) : layout_(std::move(layout)), hyper_(hyper) {}

  Estimate Run(std::span<T> theta, const DirectionSource<T>& z, const LossFn<T>& loss, std::span<const size_t> tensors);

 private:
  // to = from + scale * eps * z on `tensors`; equal or disjoint vectors.
  void Perturb(std::span<const T> from, std::span<T> to, const DirectionSource<T>& z, int query, double scale,
               std::span<const size_t> tensors) const;
  double LossAt(std::span<const T> theta, const DirectionSource<T>& z, int query, double scale, const LossFn<T>& loss,
                std::span<const size_t> tensors);

  ZoLayout layout_;
  ZoHyper hyper_;
  std::vector<T> scratch_;  // theta with `tensors` perturbed
};

}  // namespace optod::zo

#pragma once
/// The step procedures of the zeroth-order family, as ZO-Bench (Zhang et al., 2024) runs them, without its defects:
/// candidates are computed explicitly, no gradient buffer, independent directions per block. One object is one run: it
/// owns the optimizer state, the caller owns theta. Nothing random happens inside: directions come from the
/// DirectionSource. T is float or double. Calls on one object must not overlap.
///
///   Step             2q losses (two-sided), q+1 (one-sided): zo-sgd, zo-sgd-mmt, zo-sgd-sign, zo-adam, sparse (through
///   MaskedDirection) StepConservative 2q + 3 losses                          : zo-sgd-cons StepForwardGrad  q
///   Jacobian-vector products             : forward-grad (Baydin et al., 2022) StepBlockwise    2q losses a block :
///   block-wise ZO, coordinate or joint StepHybrid       2q losses and one gradient             : ZO on some tensors,
///   first order on the others StepDataParallel 2q losses a worker                     : one seed, different batches,
///   the mean of the scalars
///
/// A step whose losses or projected gradients are NaN or infinite is skipped: StepResult::skipped, state and theta
/// unchanged (Residue::kMezo leaves the rounding of its passes; block-wise coordinate keeps the blocks updated before).

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "optim/zo/estimator.h"
#include "optim/zo/projected_gradient.h"
#include "optim/zo/update.h"

namespace optod::zo {

struct StepResult {
  double loss = 0;  ///< the reported one: L+ of the first query; loss_descent (cons), L(theta) (forward-grad), mean L+
                    ///< (data parallel)
  std::vector<double> loss_plus, loss_minus,
      projected_grad;          ///< one a query; block-major then query for blocks and workers
  std::vector<double> mean_g;  ///< data parallel: the applied scalars, one a query
  std::vector<double> jvp;     ///< forward-grad: one a query
  double loss_stay = 0, loss_descent = 0, loss_ascent = 0;  ///< cons
  std::optional<Candidate> chosen;                          ///< cons
  bool skipped = false;
  std::string reason;  ///< why skipped
};

/// Loss and its directional derivative <grad L(theta), v>, by forward-mode differentiation or any exact means.
struct Jvp {
  double loss = 0, value = 0;
};
template <class T>
using JvpFn = std::function<Jvp(std::span<const T> theta, std::span<const T> v)>;
/// Writes the exact gradient at theta (layout's size); only the first-order tensors' parts are read.
template <class T>
using GradientFn = std::function<void(std::span<const T> theta, std::span<T> grad)>;

template <class T>
class ZoOptimizer {
 public:
  /// `hyper` must pass CheckZoHyper.
  ZoOptimizer(const ZoLayout& layout, const ZoHyper& hyper) : update_(layout, hyper), estimator_(layout, hyper) {}

  StepResult Step(std::span<T> theta, const DirectionSource<T>& z, const LossFn<T>& loss);
  StepResult StepConservative(std::span<T> theta, const DirectionSource<T>& z, const LossFn<T>& loss);
  StepResult StepForwardGrad(std::span<T> theta, const DirectionSource<T>& z, const JvpFn<T>& jvp);
  /// `blocks`: disjoint groups of tensor numbers, in the order of evaluation.
  StepResult StepBlockwise(std::span<T> theta, const DirectionSource<T>& z, const LossFn<T>& loss,
                           std::span<const std::vector<size_t>> blocks, BlockSchedule schedule);
  /// `zo_tensors`: perturbed and updated by g z; all others by their gradient; both taken at the theta before the step.
  StepResult StepHybrid(std::span<T> theta, const DirectionSource<T>& z, const LossFn<T>& loss,
                        const GradientFn<T>& gradient, std::span<const size_t> zo_tensors);
  /// `losses`: one a worker (its batch).
  StepResult StepDataParallel(std::span<T> theta, const DirectionSource<T>& z, std::span<const LossFn<T>> losses);
  /// Step, StepConservative by hyper.rule.
  StepResult StepByRule(std::span<T> theta, const DirectionSource<T>& z, const LossFn<T>& loss);

  ZoUpdate<T>& update() { return update_; }
  const ZoUpdate<T>& update() const { return update_; }

 private:
  // Appends the estimate to the result; false, with `skipped` set, when it is not usable.
  bool Record(const Estimate& estimate, StepResult* result) const;
  double LossOfCandidate(std::span<const T> theta, const DirectionSource<T>& z, std::span<const double> g,
                         double factor, const LossFn<T>& loss);

  ZoUpdate<T> update_;
  Estimator<T> estimator_;
  std::vector<T> scratch_;
};

}  // namespace optod::zo

#pragma once
/// What both ways of estimating share (internal to estimator.cc): the plan of a call, the reference's steps, the
/// decoded terms. T is the width that estimates compute in: float where it holds every stored number, else double.

#include <memory>
#include <set>
#include <vector>

#include "base/status.h"
#include "optim/order/cell_cache.h"
#include "optim/order/estimator.h"
#include "optim/order/kernels.h"

namespace optod::order {

struct Plan {
  bool product = false;  // H d of whole vectors: hvp, span, or probe runs
  bool held = false;     // the reference's moments
  int records = 1;       // read for the estimated run
  int left_out = -1;     // a probe run that is not used
};

inline absl::StatusOr<Plan> MakePlan(const Recorded& r, const EstimateOptions& options) {
  const Curvature curvature = r.options->curvature;
  const int stored = curvature == Curvature::kNone ? 0 : r.options->second_order ? 2 : 1;
  if (options.expansion < -1 || options.expansion > 2) {
    return InvalidArgument("expansion: ", options.expansion, "; must be 0, 1, 2 or -1 (the most that is stored)");
  }
  const int expansion = options.expansion < 0 ? stored : options.expansion;
  if (expansion > stored) {
    return FailedPrecondition("expansion: ", expansion, " was asked; curvature ", NameOf(curvature),
                              r.options->second_order ? " with" : " without", " second_order gives at most ", stored);
  }
  Plan plan;
  const bool whole = curvature == Curvature::kHvp || curvature == Curvature::kSpan;
  plan.product = expansion > 0 && (whole || r.probes != nullptr);
  plan.held = options.moments == Moments::kReference;
  plan.records = whole || curvature == Curvature::kMultisecant ? 1 : 1 + expansion;
  if (plan.product && curvature == Curvature::kHvp && r.model == nullptr) {
    return FailedPrecondition("curvature: hvp takes products of the model, which is not there");
  }
  return plan;
}

template <typename T>
void Advance(const kernels::Step& step, const kernels::Piece<T>& piece, size_t n) {
  if constexpr (std::is_same_v<T, float>) {
    kernels::Best().advance_float(step, piece, n);
  } else {
    kernels::Best().advance_double(step, piece, n);
  }
}
template <typename T>
void Direct(const kernels::Step& step, const T* g, const T* theta, T* m, T* v, T* direction, size_t n) {
  if constexpr (std::is_same_v<T, float>) {
    kernels::Best().direct_float(step, g, theta, m, v, direction, n);
  } else {
    kernels::Best().direct_double(step, g, theta, m, v, direction, n);
  }
}

/// The base of both.
template <typename T>
class EngineBase {
 public:
  EngineBase(const Recorded& recorded, CellCache<T>& cache) : r_(recorded), cache_(cache) {
    for (int t = 0; t < positions(); ++t) steps_.push_back(kernels::MakeStep(r_.options->optimizer, (*r_.lr)[t], t));
    decays_ = r_.options->optimizer.weight_decay > 0.0 && !r_.options->optimizer.decoupled;
  }

 protected:
  int positions() const { return r_.trajectory->positions(); }
  int batches() const { return r_.terms->layout().batches; }
  size_t n() const { return r_.trajectory->n(); }

  /// For each position the batches whose terms are needed; the first record of the reference's own batch always is.
  std::vector<std::set<int>> Needed(std::span<const Order> orders) const {
    std::vector<std::set<int>> needed(positions());
    for (const Order& order : orders) {
      for (int t = 0; t < positions(); ++t) needed[t].insert(order[t]);
    }
    return needed;
  }

  absl::Status CheckFilled(const std::vector<std::set<int>>& needed) const {
    for (int t = 0; t < positions(); ++t) {
      for (const int l : needed[t]) RETURN_IF_ERROR(CheckFilled(t, l));
      RETURN_IF_ERROR(CheckFilled(t, (*r_.reference_order)[t]));
    }
    return absl::OkStatus();
  }
  absl::Status CheckFilled(int t, int l) const {
    if (r_.terms->Has(t, l)) return absl::OkStatus();
    return FailedPrecondition("terms[", t, "][", l, "]: missing; ", r_.terms->filled(), " of ",
                              r_.terms->layout().segments(), " files are filled: precompute first");
  }

  /// Numbers as the world outside sees them; valid until the next call of this thread.
  static std::span<const double> Wide(const std::vector<T>& values) {
    if constexpr (std::is_same_v<T, double>) {
      return values;
    } else {
      thread_local std::vector<double> wide;
      wide.assign(values.begin(), values.end());
      return wide;
    }
  }

  const Recorded r_;
  CellCache<T>& cache_;
  std::vector<kernels::Step> steps_;
  bool decays_ = false;
};

}  // namespace optod::order

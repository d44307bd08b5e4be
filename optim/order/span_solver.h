#pragma once
/// Least squares of a deviation over the directions theta_s - theta_t of a recorded run: c minimises |d - sum_s c_s
/// (theta_s - theta_t)|^2 + ridge * mean_s |theta_s - theta_t|^2 * |c|^2, s = 0 .. P-1, s != t. Thread-safe.

#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "optim/order/reference_run.h"
#include "optim/order/small_solve.h"

namespace optod::order {

class SpanSolver {
 public:
  SpanSolver(const Trajectory& trajectory, double ridge);

  /// c [P], c[t] = 0; `coverage` (unless null): 1 - |residual|^2 / |d|^2. d: [n].
  std::vector<double> Solve(int t, std::span<const double> d, double* coverage = nullptr) const;

 private:
  struct Factor {
    std::vector<double> gram;  // [P, P] of theta_s - theta_t
    std::unique_ptr<RidgeFactor> ridge;
  };
  const Factor& FactorOf(int t) const;

  const Trajectory& trajectory_;
  const double ridge_;
  std::vector<double> gram0_;  // [P, P] of theta_s - theta_0
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Factor>> factors_;
};

}  // namespace optod::order

#pragma once
/// Least squares in few unknowns: the Cholesky factor of a Gram matrix, and vectors solved with it. Row-major,
/// `size` x `size`. Pure functions.

#include <algorithm>
#include <cmath>
#include <vector>

namespace optod::order {

/// In place: the lower Cholesky factor of a symmetric positive definite matrix.
inline void Cholesky(std::vector<double>& a, int size) {
  for (int j = 0; j < size; ++j) {
    for (int k = 0; k < j; ++k) a[j * size + j] -= a[j * size + k] * a[j * size + k];
    const double root = std::sqrt(std::max(a[j * size + j], 1e-300));
    a[j * size + j] = root;
    for (int i = j + 1; i < size; ++i) {
      for (int k = 0; k < j; ++k) a[i * size + j] -= a[i * size + k] * a[j * size + k];
      a[i * size + j] /= root;
    }
  }
}

/// x <- A^-1 x, of A's lower Cholesky factor.
inline void SolveFactored(const std::vector<double>& a, int size, std::vector<double>& x) {
  for (int i = 0; i < size; ++i) {
    for (int k = 0; k < i; ++k) x[i] -= a[i * size + k] * x[k];
    x[i] /= a[i * size + i];
  }
  for (int i = size - 1; i >= 0; --i) {
    for (int k = i + 1; k < size; ++k) x[i] -= a[k * size + i] * x[k];
    x[i] /= a[i * size + i];
  }
}

/// c that minimises |d - S c|^2 + ridge * (mean square of S's columns) * |c|^2, from the Gram matrix S'S and S'd.
/// Column `left_out` (when >= 0) has c = 0, as if it were not there. Columns that are all 0 get 0.
class RidgeFactor {
 public:
  RidgeFactor(const std::vector<double>& gram, int size, double ridge, int left_out = -1)
      : size_(size), left_out_(left_out), factor_(gram) {
    double trace = 0.0;
    for (int s = 0; s < size; ++s) trace += s == left_out ? 0.0 : gram[s * size + s];
    const double added = std::max(ridge * trace / std::max(size - (left_out >= 0 ? 1 : 0), 1), 1e-290);
    for (int s = 0; s < size; ++s) {
      if (left_out >= 0) factor_[s * size + left_out] = factor_[left_out * size + s] = 0.0;
      factor_[s * size + s] += added;
    }
    if (left_out >= 0) factor_[left_out * size + left_out] = 1.0;
    Cholesky(factor_, size);
  }

  /// right: S'd. Returns c.
  std::vector<double> Solve(std::vector<double> right) const {
    SolveFactored(factor_, size_, right);
    if (left_out_ >= 0) right[left_out_] = 0.0;
    return right;
  }

 private:
  int size_, left_out_;
  std::vector<double> factor_;
};

}  // namespace optod::order

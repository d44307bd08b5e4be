#pragma once
/// Mean logistic loss of one batch, without bias: L(theta) = mean over rows of log(1 + exp(x theta)) - y x theta. The
/// problem of the recorded sample-order runs; small enough to differentiate by hand.

#include <cmath>
#include <vector>

namespace optod {

struct LogisticBatch {
  std::vector<double> x;  // [rows, n] row-major
  std::vector<double> y;  // [rows], 0 or 1

  double Probability(const std::vector<double>& theta, size_t row) const {
    double score = 0.0;
    for (size_t i = 0; i < theta.size(); ++i) score += x[row * theta.size() + i] * theta[i];
    return 1.0 / (1.0 + std::exp(-score));
  }

  /// [n]: mean of (p - y) x.
  std::vector<double> Gradient(const std::vector<double>& theta) const {
    std::vector<double> gradient(theta.size(), 0.0);
    for (size_t row = 0; row < y.size(); ++row) {
      const double weight = (Probability(theta, row) - y[row]) / static_cast<double>(y.size());
      for (size_t i = 0; i < theta.size(); ++i) gradient[i] += weight * x[row * theta.size() + i];
    }
    return gradient;
  }

  /// [n, n] row-major: mean of p (1 - p) x x'.
  std::vector<double> Hessian(const std::vector<double>& theta) const {
    const size_t n = theta.size();
    std::vector<double> hessian(n * n, 0.0);
    for (size_t row = 0; row < y.size(); ++row) {
      const double p = Probability(theta, row), weight = p * (1.0 - p) / static_cast<double>(y.size());
      for (size_t i = 0; i < n; ++i) {
        for (size_t j = 0; j < n; ++j) hessian[i * n + j] += weight * x[row * n + i] * x[row * n + j];
      }
    }
    return hessian;
  }
};

/// The diagonal [n] of a matrix [n, n].
inline std::vector<double> Diagonal(const std::vector<double>& matrix, size_t n) {
  std::vector<double> diagonal(n);
  for (size_t i = 0; i < n; ++i) diagonal[i] = matrix[i * n + i];
  return diagonal;
}

}  // namespace optod

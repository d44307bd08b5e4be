#include "optim/order/model.h"

#include <cmath>
#include <vector>

#include "base/status.h"

namespace optod::order {
namespace {

double RootMeanSquare(std::span<const double> x) {
  double sum = 0.0;
  for (const double value : x) sum += value * value;
  return x.empty() ? 0.0 : std::sqrt(sum / static_cast<double>(x.size()));
}

}  // namespace

absl::Status Model::HessianVector(DataRef data, std::span<const double> theta, std::span<const double> v,
                                  std::span<double> out) const {
  const double scale = RootMeanSquare(v);
  std::fill(out.begin(), out.end(), 0.0);
  if (scale == 0.0) return absl::OkStatus();
  const double root = precision() == Precision::kFloat32 ? 5e-3 : 6e-6;
  const double step = root * (1.0 + RootMeanSquare(theta)) / scale;
  std::vector<double> moved(theta.size()), gradient(theta.size());
  for (const double sign : {1.0, -1.0}) {
    for (size_t i = 0; i < theta.size(); ++i) moved[i] = theta[i] + sign * step * v[i];
    ASSIGN_OR_RETURN([[maybe_unused]] const double loss, Gradient(data, moved, gradient));
    for (size_t i = 0; i < theta.size(); ++i) out[i] += sign * gradient[i] / (2.0 * step);
  }
  return absl::OkStatus();
}

}  // namespace optod::order

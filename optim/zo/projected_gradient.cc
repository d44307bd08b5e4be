#include "optim/zo/projected_gradient.h"

#include <cmath>
#include <limits>

#include "base/status.h"

namespace optod::zo {
namespace {

// Marks the result unusable when values[i] is not finite; keeps the first reason.
template <class T>
void RequireFinite(const char* field, std::span<const T> values, ProjectedGradients* result) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isfinite(values[i]) || !result->usable) continue;
    result->usable = false;
    result->reason = Cat(field, "[", i, "] is ", values[i]);
  }
}

}  // namespace

double ProjectedGradient(double loss_plus, double loss_minus, double eps, Sides sides) {
  return (loss_plus - loss_minus) / (sides == Sides::kTwo ? 2.0 * eps : eps);
}

absl::StatusOr<ProjectedGradients> ProjectLosses(const ZoHyper& hyper, std::span<const double> loss_plus,
                                                 std::span<const double> loss_minus) {
  const size_t q = static_cast<size_t>(hyper.queries);
  if (loss_plus.size() != q) {
    return InvalidArgument("loss_plus: ", loss_plus.size(), " values; must be ", q, ", one a query");
  }
  const bool shared = hyper.sides == Sides::kOne && loss_minus.size() == 1;
  if (loss_minus.size() != q && !shared) {
    return InvalidArgument("loss_minus: ", loss_minus.size(), " values; must be ", q, ", one a query",
                           hyper.sides == Sides::kOne ? ", or one for all" : "");
  }
  ProjectedGradients result;
  for (size_t i = 0; i < q; ++i) {
    const double g = ProjectedGradient(loss_plus[i], loss_minus[shared ? 0 : i], hyper.eps, hyper.sides);
    result.g.push_back(g);
    if (hyper.sign == Sign::kElement) continue;
    const double direction = hyper.sign == Sign::kScalar ? static_cast<double>((g > 0) - (g < 0)) : g;
    result.coefficients.push_back(static_cast<float>(hyper.lr * direction / static_cast<double>(q)));
  }
  RequireFinite("loss_plus", loss_plus, &result);
  RequireFinite("loss_minus", loss_minus, &result);
  RequireFinite("projected_gradient", std::span<const double>(result.g), &result);
  RequireFinite("coefficient", std::span<const float>(result.coefficients), &result);
  return result;
}

absl::StatusOr<std::vector<double>> MeanOverWorkers(std::span<const std::vector<double>> g_of_workers) {
  if (g_of_workers.empty()) return InvalidArgument("workers: none; must be at least one");
  std::vector<double> mean(g_of_workers[0].size(), 0.0);
  for (size_t w = 0; w < g_of_workers.size(); ++w) {
    if (g_of_workers[w].size() != mean.size()) {
      return InvalidArgument("workers[", w, "]: ", g_of_workers[w].size(), " values; must be ", mean.size(),
                             " as for worker 0");
    }
    for (size_t i = 0; i < mean.size(); ++i) mean[i] += g_of_workers[w][i];
  }
  for (double& g : mean) g /= static_cast<double>(g_of_workers.size());
  return mean;
}

Candidate ChooseCandidate(double loss_stay, double loss_descent, double loss_ascent) {
  constexpr double kWorst = std::numeric_limits<double>::infinity();
  const double stay = std::isfinite(loss_stay) ? loss_stay : kWorst;
  const double descent = std::isfinite(loss_descent) ? loss_descent : kWorst;
  const double ascent = std::isfinite(loss_ascent) ? loss_ascent : kWorst;
  if (descent == kWorst && ascent == kWorst) return Candidate::kStay;
  if (descent > stay) return stay < ascent ? Candidate::kStay : Candidate::kAscent;
  return descent < ascent ? Candidate::kDescent : Candidate::kAscent;
}

const char* CandidateName(Candidate candidate) {
  switch (candidate) {
    case Candidate::kStay:
      return "stay";
    case Candidate::kDescent:
      return "descent";
    case Candidate::kAscent:
      return "ascent";
  }
  return "";
}

}  // namespace optod::zo

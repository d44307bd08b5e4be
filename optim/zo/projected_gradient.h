#pragma once
/// From the losses of one step to the scalars that travel: projected gradients g_i and, for plain SGD, the coefficient
/// of each direction. These few numbers and the seed are the whole update: theta -= sum_i coefficient_i * z_i (MeZO,
/// Malladi et al. 2023, Alg. 1 and section 2.1). Pure functions, thread-safe.

#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/zo/hyper.h"

namespace optod::zo {

struct ProjectedGradients {
  std::vector<double> g;            ///< one a query: (L+ - L-) / (2 eps), or (L+ - L(theta)) / eps
  std::vector<float> coefficients;  ///< one a query: fl32(lr * g / q), or fl32(lr * sign(g) / q) for Sign::kScalar;
                                    ///< empty for Sign::kElement
  bool usable =
      true;  ///< false: a loss, a g or a coefficient is NaN or infinite; the step must be skipped (and logged)
  std::string reason;  ///< why not usable: `loss_minus[2] is nan`
};

/// One projected gradient in double.
double ProjectedGradient(double loss_plus, double loss_minus, double eps, Sides sides);

/// All of one step. loss_plus has hyper.queries entries; loss_minus as many, or a single one (L(theta)) when one-sided.
/// INVALID_ARGUMENT naming the field when a count differs. NaN and Inf are no error: see `usable`.
absl::StatusOr<ProjectedGradients> ProjectLosses(const ZoHyper& hyper, std::span<const double> loss_plus,
                                                 std::span<const double> loss_minus);

/// Data parallel: g_i averaged over workers; worker w's losses of all queries are row w. Every worker has the same
/// number of queries. INVALID_ARGUMENT for no worker or ragged rows.
absl::StatusOr<std::vector<double>> MeanOverWorkers(std::span<const std::vector<double>> g_of_workers);

/// zo-sgd-cons: which of theta, theta - lr ghat, theta + lr ghat is kept.
enum class Candidate { kStay, kDescent, kAscent };
/// ZO-Bench's rule: if descent made it worse, stay when that beats ascent, else ascent; otherwise descent when it beats
/// ascent, else ascent (ties go to ascent). A candidate whose loss is not finite counts as infinitely bad; when all
/// are, stay.
Candidate ChooseCandidate(double loss_stay, double loss_descent, double loss_ascent);
/// "stay", "descent", "ascent".
const char* CandidateName(Candidate candidate);

}  // namespace optod::zo

#include "optim/order/matrix.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/status.h"
#include "optim/order/orders.h"

namespace optod::order {
namespace {

double Pearson(std::span<const double> a, std::span<const double> b) {
  const double n = static_cast<double>(a.size());
  const double mean_a = std::accumulate(a.begin(), a.end(), 0.0) / n,
               mean_b = std::accumulate(b.begin(), b.end(), 0.0) / n;
  double ab = 0.0, aa = 0.0, bb = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    ab += (a[i] - mean_a) * (b[i] - mean_b);
    aa += (a[i] - mean_a) * (a[i] - mean_a);
    bb += (b[i] - mean_b) * (b[i] - mean_b);
  }
  return aa > 0.0 && bb > 0.0 ? ab / std::sqrt(aa * bb) : 0.0;
}

std::vector<double> Ranks(std::span<const double> x) {
  std::vector<size_t> by_value(x.size());
  std::iota(by_value.begin(), by_value.end(), 0);
  std::sort(by_value.begin(), by_value.end(), [&](size_t a, size_t b) { return x[a] < x[b]; });
  std::vector<double> ranks(x.size());
  for (size_t i = 0; i < x.size();) {
    size_t j = i;
    while (j < x.size() && x[by_value[j]] == x[by_value[i]]) ++j;
    for (size_t k = i; k < j; ++k) ranks[by_value[k]] = 0.5 * static_cast<double>(i + j - 1);
    i = j;
  }
  return ranks;
}

/// The T^2 orders of a matrix and what is measured for each.
struct Cells {
  std::vector<Order> orders;
  std::vector<Metric> metrics;
};

absl::StatusOr<Cells> MakeCells(const Study& study, const MatrixOptions& options, const Order& order) {
  const Order base = order.empty() ? study.base_order() : order;
  RETURN_IF_ERROR(Expand(base, study.batches(), 1).status());
  Cells cells;
  for (int i = 0; i < study.batches(); ++i) {
    Metric metric = options.metric;
    if (options.memorisation) metric.data = {Batch(i)};
    for (int j = 0; j < study.batches(); ++j) {
      cells.orders.push_back(Moved(base, i, j));
      cells.metrics.push_back(metric);
    }
  }
  return cells;
}

}  // namespace

absl::StatusOr<Agreement> Compare(std::span<const double> a, std::span<const double> b) {
  if (a.size() != b.size()) return InvalidArgument("compare: ", a.size(), " numbers beside ", b.size());
  Agreement agreement;
  if (a.empty()) return agreement;
  agreement.pearson = Pearson(a, b);
  agreement.spearman = Pearson(Ranks(a), Ranks(b));
  for (size_t i = 0; i < a.size(); ++i) {
    agreement.l1 += std::abs(a[i] - b[i]) / static_cast<double>(a.size());
    agreement.mse += (a[i] - b[i]) * (a[i] - b[i]) / static_cast<double>(a.size());
  }
  return agreement;
}

absl::StatusOr<Matrix> EstimateMatrix(Study& study, const MatrixOptions& options, const Order& order,
                                      const Control& control) {
  const int all = study.batches() * study.batches();
  if (options.spot_checks < 0 || options.spot_checks > all) {
    return InvalidArgument("spot_checks: ", options.spot_checks, "; must be in 0..", all);
  }
  ASSIGN_OR_RETURN(const Cells cells, MakeCells(study, options, order));
  Matrix matrix;
  matrix.batches = study.batches();
  ASSIGN_OR_RETURN(matrix.values, study.LossesOfEach(cells.orders, cells.metrics, options.estimate, control));
  if (options.spot_checks == 0) return matrix;
  Order drawn = CounterRandom(options.seed, 0x6d617472 /* "matr" */).Permutation(all);
  drawn.resize(options.spot_checks);
  std::vector<Order> orders;
  std::vector<Metric> metrics;
  for (const int cell : drawn) orders.push_back(cells.orders[cell]), metrics.push_back(cells.metrics[cell]);
  ASSIGN_OR_RETURN(const std::vector<double> retrained, study.RetrainedLosses(orders, metrics, {{}, control.stop}));
  std::vector<double> estimated;
  for (size_t i = 0; i < drawn.size(); ++i) {
    estimated.push_back(matrix.values[drawn[i]]);
    matrix.spots.push_back({drawn[i] / study.batches(), drawn[i] % study.batches(), estimated[i], retrained[i]});
  }
  ASSIGN_OR_RETURN(matrix.confidence, Compare(estimated, retrained));
  return matrix;
}

absl::StatusOr<std::vector<double>> RetrainMatrix(const Study& study, const MatrixOptions& options, const Order& order,
                                                  const Control& control) {
  ASSIGN_OR_RETURN(const Cells cells, MakeCells(study, options, order));
  return study.RetrainedLosses(cells.orders, cells.metrics, control);
}

absl::StatusOr<std::vector<double>> InfluenceOfMoving(Study& study, int batch, const Metric& metric,
                                                      const EstimateOptions& options, const Order& order) {
  if (batch < 0 || batch >= study.batches()) {
    return InvalidArgument("batch: ", batch, " is not there; there are ", study.batches());
  }
  const Order base = order.empty() ? study.base_order() : order;
  RETURN_IF_ERROR(Expand(base, study.batches(), 1).status());
  std::vector<Order> orders;
  for (int j = 0; j < study.batches(); ++j) orders.push_back(Moved(base, batch, j));
  orders.push_back(base);
  ASSIGN_OR_RETURN(std::vector<double> losses, study.Losses(orders, metric, LossMode::kForward, options));
  const double at_base = losses.back();
  losses.pop_back();
  for (double& loss : losses) loss -= at_base;
  return losses;
}

}  // namespace optod::order

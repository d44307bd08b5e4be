#pragma once
/// Memorisation and generalisation: what is measured at the end of a run in which batch i stands at position j and the
/// others keep their relative order. T^2 estimates; none of them trains.

#include <vector>

#include "absl/status/statusor.h"
#include "optim/order/study.h"

namespace optod::order {

/// How close two sets of numbers are. pearson and spearman are 0 when one set is constant.
struct Agreement {
  double pearson = 0.0, spearman = 0.0;
  double l1 = 0.0;   // mean |a - b|
  double mse = 0.0;  // mean (a - b)^2
};
/// Equal sizes, else INVALID_ARGUMENT. Ties share their mean rank.
absl::StatusOr<Agreement> Compare(std::span<const double> a, std::span<const double> b);

struct MatrixOptions {
  bool memorisation = true;  // measured on batch i itself; false: on `metric`
  Metric metric = {};             // for memorisation only its `perplexity` counts
  EstimateOptions estimate = {};
  int spot_checks = 0;  // cells trained for real, drawn from seed without replacement; 0 .. T^2
  uint64_t seed = 0;
};

struct SpotCheck {
  int batch = 0, position = 0;
  double estimated = 0.0, retrained = 0.0;
};

struct Matrix {
  int batches = 0;
  std::vector<double> values;  // [T, T] row-major: row batch i, column position j; by estimate
  std::vector<SpotCheck> spots;
  Agreement confidence;  // of the spot checks; zeros when there are none
};

/// `order`: the base order whose batches are moved, T numbers; empty: the reference's first epoch.
absl::StatusOr<Matrix> EstimateMatrix(Study& study, const MatrixOptions& options, const Order& order = {},
                                      const Control& control = {});
/// The same cells by T^2 trainings: [T, T]. Progress in trainings.
absl::StatusOr<std::vector<double>> RetrainMatrix(const Study& study, const MatrixOptions& options,
                                                  const Order& order = {}, const Control& control = {});

/// [T]: the metric when `batch` stands at position j, less the metric of the base order, by estimate.
absl::StatusOr<std::vector<double>> InfluenceOfMoving(Study& study, int batch, const Metric& metric,
                                                      const EstimateOptions& options = {}, const Order& order = {});

}  // namespace optod::order

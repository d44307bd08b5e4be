#pragma once
/// Two small problems with exact derivatives, for tests, studies and the first steps of a user: logistic regression and
/// a tanh network with one hidden layer. Data is synthetic, from the Philox stream of optim/zo (same bytes on every
/// machine), or given. All float64 unless `precision` says otherwise; any number of threads.

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/order/model.h"

namespace optod::order {

/// Rows of one batch. x: [rows, features] row-major; label[row] in 0 .. classes - 1.
struct LabelledRows {
  std::vector<double> x;
  std::vector<int> label;
};

struct LabelledData {
  size_t features = 0;
  int classes = 2;
  std::vector<LabelledRows> batches;      // >= 1
  std::vector<LabelledRows> evaluations;  // held out
};

/// features N(0, 1) plus drift * (a direction of the batch); label = argmax of a linear teacher plus noise N(0, 1).
/// `drift` makes batches differ, so that their order matters; the held-out rows have the mean of all batches' drifts
/// drawn anew for each row. Batch l has rows + l % 3 rows (so that length() differs) when `ragged`.
struct SyntheticOptions {
  size_t features = 20;
  int classes = 2;
  int batches = 8;
  int rows = 16;  // a batch
  int evaluation_rows = 256;
  double drift = 0.0;
  bool ragged = false;
  uint64_t seed = 0;
};
/// INVALID_ARGUMENT for a size that is not positive.
absl::StatusOr<LabelledData> MakeSynthetic(const SyntheticOptions& options);

struct BuiltinOptions {
  Precision precision = Precision::kFloat64;
  double initial_scale = 0.1;  // theta_0 ~ N(0, 1) * this; >= 0
  uint64_t seed = 0;           // of theta_0
};

/// Mean of log(1 + exp(s)) - y s, s = x theta, no bias; n = features. classes must be 2.
/// INVALID_ARGUMENT for ragged rows, labels out of range, no batches.
absl::StatusOr<std::shared_ptr<const Model>> MakeLogistic(LabelledData data, const BuiltinOptions& options = {});
/// The same with a start of the caller's: theta0 [features].
absl::StatusOr<std::shared_ptr<const Model>> MakeLogistic(LabelledData data, std::vector<double> theta0,
                                                          Precision precision = Precision::kFloat64);

/// softmax(W2 tanh(W1 x + b1) + b2), mean cross entropy. Layout: W1 [hidden, features], b1 [hidden], W2 [classes,
/// hidden], b2 [classes].
absl::StatusOr<std::shared_ptr<const Model>> MakeTanhMlp(LabelledData data, int hidden,
                                                         const BuiltinOptions& options = {});

}  // namespace optod::order

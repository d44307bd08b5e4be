#pragma once
/// The job file of a study of the sample order, parsed and checked. Plain data, no LibTorch: the server refuses a bad
/// job with it before anything is queued, the worker runs from it, and the process that answers questions opens the
/// same study with it.
///
///   kind: sample_order
///   model: /models/tiny-llama              # as in fine-tuning, with `task` and `scheme`
///   task: {name: text, train: a.txt, dev: b.txt, max_tokens: 64}
///   batches: 16                            # T: the first T * batch training examples, in the file's order
///   batch: 8                               # examples a batch
///   study: {optimizer: adam, lr: 0.002, storage: fp16}                       # StudyOptions (optim/order/options.h)
///   evaluations: 1                         # held-out sets: consecutive parts of the dev set
///   metric: {perplexity: true}
///   estimate: {random_orders: 100}         # parts that the job does itself once the terms are there
///   search: {generations: 10, population: 16}
///   matrix: {spot_checks: 8}
///   retrain_checks: 20                     # random orders trained for real, to compare; estimates that are no better
///                                          # than the reference run's value get a `warning` in the result
///
/// Which `study.curvature`:
///
///   multisecant   the default; ours, not the paper's: `probe_runs` (16, or as many as batches) further trainings show
///                 what gradients do along deviations. Costs those trainings and, an order, 2 probe_runs P n operations
///   hvp           exact products at estimate time: the closest, and each estimate costs more than a training
///   diag, secant  the paper's diagonals (Hutchinson; finite differences), span: least squares over the reference run.
///                 With probe runs (the default) they answer for what those do not span, as far as `trust` in the
///                 result says; `probe_runs: 0` is the paper's plain definition: right for nearly diagonal problems,
///                 but on a language model no better than `none` (diag) or far worse (secant, span)
///   none          gradients only, the zeroth order: the cheapest
///
/// With probe runs, estimated values are calibrated by them (Calibration in optim/order/study.h), unless `estimate:
/// {calibrate: false}`; the checks report both, and what the mean of the probe runs alone is off by.
///
/// Or a built-in problem of doubles: `model: {builtin: logistic, features: 20, rows: 16}`, data generated
/// (builtin_models.h) or from a table of numbers: `model: {builtin: mlp, hidden: 32, rows: 64, table: digits.csv}`.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/order/builtin_models.h"
#include "optim/order/matrix.h"
#include "optim/order/search.h"
#include "optim/order/study.h"
#include "optim/train/spec.h"

namespace optod::order {

/// `model:` as a mapping. Batches have `rows` rows each; the held-out sets share `evaluation_rows`.
struct BuiltinSpec {
  std::string name = "logistic";  ///< logistic (classes must be 2), mlp
  int hidden = 16;                ///< mlp
  SyntheticOptions data;          ///< features, classes, rows, evaluation_rows, drift, ragged; seed is `data_seed`
  BuiltinOptions start;           ///< precision (float32, float64), initial_scale, seed
  std::string table;              ///< absolute path of a comma-separated file, label last, instead of generated data
  double divide_by = 1.0;         ///< features of the table are divided by it; > 0
};

/// `estimate:`
struct EstimatePart {
  int random_orders = 0;  ///< 0 .. 1000000, drawn from seed
  uint64_t seed = 0;
  LossMode loss = LossMode::kForward;
};

struct SampleOrderSpec {
  std::optional<BuiltinSpec> builtin;
  std::string model;         ///< folder or .gguf file, when there is no builtin
  train::TaskSpec task;      ///< ... of it
  train::SchemeSpec scheme;  ///< what trains
  uint64_t seed = 0;         ///< of an adapter's start
  int batches = 0;           ///< T, 1 .. 100000
  int batch = 8;             ///< examples; language models
  int evaluations = 1;       ///< 1 .. 1000
  int threads = 0;           ///< 0 = all CPUs
  StudyOptions study;
  bool perplexity = false;     ///< metric.perplexity: exp of the loss
  EstimateOptions estimation;  ///< estimate.expansion, estimate.moments, estimate.calibrate: of all parts
  EstimatePart estimate;
  std::optional<SearchOptions> search;
  std::optional<MatrixOptions> matrix;
  int retrain_checks = 0;  ///< 0 .. 100000
};

/// INVALID_ARGUMENT with the field: `study.lr: -1 is negative; must be >= 0`, `batches: missing`, `model.builtin: "cnn"
/// is not one of logistic, mlp`, `job: unknown field "bathces"`.
absl::StatusOr<SampleOrderSpec> ParseSampleOrderSpec(const std::string& json_text);

/// Positions of the reference run, and units of the whole job: steps of it, terms, steps of the probe runs, and what
/// the parts take (estimates, generations, cells, trainings).
int64_t Positions(const SampleOrderSpec& spec);
int64_t TotalUnits(const SampleOrderSpec& spec);

/// Every file or folder of the spec that the worker opens.
std::vector<std::string> PathsOf(const SampleOrderSpec& spec);

/// The metric that the spec asks for, on held-out set 0.
Metric MetricOf(const SampleOrderSpec& spec);

}  // namespace optod::order

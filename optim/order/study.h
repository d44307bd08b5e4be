#pragma once
/// A study of the sample order, from the reference run to answers about other orders:
///
///   Create ── Record ──► reference.bin ── Precompute ──► terms-*.bin ──► Estimate, Losses, Path; search.h, matrix.h
///            P steps                     P T gradients (+ P T probes H v)      no gradient taken (hvp apart)
///                                        K probe runs of P steps ──► runs/terms-*.bin
///
/// Everything lies in one directory and is opened again with Open; both long steps can be stopped (a fill goes on where
/// it was). Source: FUT, arXiv 2505.22042; what is read out of it and why is in the headers of fill.h and estimator.h.
/// Thread-safe once recorded: estimates may overlap each other and a running Precompute (orders whose terms are there).

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/fs.h"
#include "optim/order/estimator.h"
#include "optim/order/model.h"
#include "optim/order/options.h"
#include "optim/order/parallel.h"
#include "optim/order/probe_runs.h"
#include "optim/order/reference_run.h"
#include "optim/order/term_store.h"

namespace optod::order {

/// What Precompute will take, before it starts.
struct Cost {
  int64_t terms_bytes = 0;      // of the term files, those of the probe runs among them
  int64_t reference_bytes = 0;  // of the reference run's parameters, on disk and in memory
  int64_t gradients =
      0;  // of terms and probe runs, at least; a file boundary repeats one or two with secant and second order
  int64_t hessian_products = 0;
  int64_t decoded_bytes = 0;  // all terms in memory at once; above memory_budget they stream from disk
  double seconds = 0.0;       // of Precompute on the threads given, from one timed term; 0: not measured
};

/// What is measured at the end of a run: the mean loss over `data`, or its exponential.
struct Metric {
  std::vector<DataRef> data = {Evaluation(0)};
  bool perplexity = false;
};

/// kForward: the model's loss at the estimated parameters (one forward pass an order). kLinear: L(theta_P) + <grad
/// L(theta_P), gamma_P - theta_P>, without the model once the gradient is known: for many orders that stay close.
enum class LossMode { kForward, kLinear };

/// Values by estimate, corrected by what the probe runs show. A deviation that is not known exactly costs loss, as any
/// uncorrelated step of its length would, so values by estimate lie off in one direction, more the further an order
/// goes: value - reference value ~ slope (estimated - reference value) + shift r, r = |gamma_P - theta_P|^2 over its
/// mean over the probe runs. Least squares over the probe runs, each estimated as if it had not been made; slope is
/// kept in [0, 1] (0: estimates say nothing, and orders get about the mean of the probe runs). The identity order
/// (r = 0) keeps the reference's value. Not in the FUT paper.
struct Calibration {
  double slope = 1.0, shift = 0.0;
  double square = 0.0;     // mean |gamma_P - theta_P|^2 of the estimated probe runs
  double reference = 0.0;  // the metric at theta_P
  double mean = 0.0;       // of the metric over the trained probe runs: the guess that needs no estimate
  int runs = 0;            // 0: none, or fewer than 4; then nothing is corrected
};

class Study {
 public:
  /// Makes the directory and writes the options. ALREADY_EXISTS when a study is there; INVALID_ARGUMENT for options
  /// that do not fit the model (an order that is no permutation, lr of another length); RESOURCE_EXHAUSTED:
  /// "disk_budget: ...".
  static absl::StatusOr<std::unique_ptr<Study>> Create(Fs& fs, std::string directory, const StudyOptions& options,
                                                       std::shared_ptr<const Model> model);
  /// Opens one. `model` may be null: then only what needs no model works (Estimate, Path). `expected`: resources
  /// (threads, budgets) are taken from it, everything else must be what was recorded. NOT_FOUND, FAILED_PRECONDITION
  /// ("optimizer: sgd was asked, adam is recorded"), DATA_LOSS.
  static absl::StatusOr<std::unique_ptr<Study>> Open(Fs& fs, std::string directory, std::shared_ptr<const Model> model,
                                                     const StudyOptions* expected = nullptr);

  const StudyOptions& options() const { return options_; }
  const Model* model() const { return model_.get(); }
  size_t parameters() const { return n_; }
  int batches() const { return batches_; }
  int positions() const { return static_cast<int>(lr_.size()); }
  const std::vector<double>& lr() const { return lr_; }
  const Order& reference_order() const { return reference_order_; }  // expanded
  /// The order of the first epoch: what the searches and the matrix move batches of.
  Order base_order() const { return Order(reference_order_.begin(), reference_order_.begin() + batches_); }
  bool recorded() const { return trajectory_ != nullptr; }
  bool complete() const {
    const auto full = [](const auto& store) { return store->filled() == store->layout().segments(); };
    return terms_ != nullptr && full(terms_) && (probes_ == nullptr || full(probes_));
  }
  const Trajectory& trajectory() const { return *trajectory_; }  // needs recorded()
  const TermStore& terms() const { return *terms_; }             // needs recorded()
  const TermStore* probes() const { return probes_.get(); }      // of the probe runs; null: none
  int64_t PositionsOfProbes() const { return static_cast<int64_t>(probe_orders_.size()) * (positions() + 1); }
  double curvature_cap() const;

  /// The reference run. Again: nothing. Progress in steps.
  absl::Status Record(const Control& control = {});
  /// `measure`: times one term at theta_0, for Cost::seconds.
  absl::StatusOr<Cost> PredictCost(bool measure = false) const;
  /// Records when that was not done, then fills what is missing. Progress in terms and positions of probe runs.
  absl::Status Precompute(const Control& control = {});

  /// Final parameters of each order: [orders][n].
  absl::StatusOr<std::vector<std::vector<double>>> Estimate(std::span<const Order> orders,
                                                            const EstimateOptions& options = {},
                                                            const Control& control = {});
  /// Parameters before every position and after the last: [P + 1][n]. The identity gives the reference to the bit.
  absl::StatusOr<std::vector<std::vector<double>>> Path(const Order& order, const EstimateOptions& options = {});
  /// The metric of each order by estimate: calibrated (options.calibrate, kForward, 4 or more probe runs), else as the
  /// model says at the estimated parameters. Progress in orders.
  absl::StatusOr<std::vector<double>> Losses(std::span<const Order> orders, const Metric& metric,
                                             LossMode mode = LossMode::kForward, const EstimateOptions& options = {},
                                             const Control& control = {});
  /// The same with a metric an order (metrics.size() == orders.size()), by forward passes, never calibrated.
  absl::StatusOr<std::vector<double>> LossesOfEach(std::span<const Order> orders, std::span<const Metric> metrics,
                                                   const EstimateOptions& options = {}, const Control& control = {});

  /// Really trains: what estimates are measured against.
  absl::StatusOr<TrainingRun> Retrain(const Order& order, const Control& control = {}) const;
  absl::StatusOr<std::vector<double>> RetrainedLosses(std::span<const Order> orders, std::span<const Metric> metrics,
                                                      const Control& control = {}) const;
  /// The metric at the given parameters.
  absl::StatusOr<double> Measure(const Metric& metric, std::span<const double> theta) const;

  absl::StatusOr<double> SpanCoverage(const Order& order, const EstimateOptions& options = {});
  /// How far the curvature is followed where the probe runs say nothing (estimator.h). FAILED_PRECONDITION without
  /// both.
  absl::StatusOr<double> Trust();
  /// Of one metric; made once: an estimate and two evaluations a probe run.
  absl::StatusOr<Calibration> Calibrate(const Metric& metric, const EstimateOptions& options = {},
                                        const Control& control = {});

 private:
  Study(Fs& fs, std::string directory) : fs_(fs), directory_(std::move(directory)) {}
  absl::Status Shape(const StudyOptions& options);
  std::string Describe() const;
  TermLayout Layout() const;
  absl::Status OpenTerms(Trajectory trajectory);
  absl::Status OpenStores(const TermLayout& layout);
  absl::StatusOr<std::vector<Order>> ExpandAll(std::span<const Order> orders) const;
  absl::Status NeedModel(const char* what) const;
  absl::Status NeedRecorded() const;
  absl::Status CheckMetric(const Metric& metric) const;
  absl::StatusOr<std::vector<double>> ForwardLosses(std::span<const Order> orders, std::span<const Metric> metrics,
                                                    const Calibration& calibration, const EstimateOptions& options,
                                                    const Control& control);
  absl::StatusOr<Calibration> MakeCalibration(const Metric& metric, const EstimateOptions& options,
                                              const Control& control);
  absl::StatusOr<std::vector<double>> LinearLosses(std::span<const Order> orders, const Metric& metric,
                                                   const EstimateOptions& options, const Control& control);

  Fs& fs_;
  const std::string directory_;
  StudyOptions options_;
  std::shared_ptr<const Model> model_;
  std::string fingerprint_;
  size_t n_ = 0;
  int batches_ = 0;
  Precision precision_ = Precision::kFloat64;
  std::vector<double> lr_;
  Order reference_order_;
  std::unique_ptr<Trajectory> trajectory_;
  std::unique_ptr<TermStore> terms_, probes_;
  std::vector<Order> probe_orders_;
  std::unique_ptr<Estimator> estimator_;
  std::mutex calibration_mutex_;
  std::map<std::string, Calibration> calibrations_;
};

}  // namespace optod::order

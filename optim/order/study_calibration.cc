// What values by estimate are off by, learnt from the probe runs.
#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "optim/order/study.h"

namespace optod::order {
namespace {

constexpr int kFewest = 4;       // probe runs; two numbers are fitted to them
constexpr double kRidge = 1e-3;  // relative to the mean square of a column

/// y ~ slope x + shift r, slope in [0, 1].
void Fit(std::span<const double> x, std::span<const double> r, std::span<const double> y, Calibration* out) {
  double xx = 0.0, xr = 0.0, rr = 0.0, xy = 0.0, ry = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    xx += x[i] * x[i], xr += x[i] * r[i], rr += r[i] * r[i], xy += x[i] * y[i], ry += r[i] * y[i];
  }
  const double a = xx * (1.0 + kRidge), b = rr * (1.0 + kRidge), determinant = a * b - xr * xr;
  out->slope = determinant > 0.0 ? std::clamp((xy * b - ry * xr) / determinant, 0.0, 1.0) : 1.0;
  out->shift = b > 0.0 ? (ry - out->slope * xr) / b : 0.0;
}

std::string KeyOf(const Metric& metric, const EstimateOptions& options) {
  std::string key = Cat(metric.perplexity, " ", options.expansion, " ", NameOf(options.moments));
  for (const DataRef& data : metric.data) key += Cat(" ", data.part == DataRef::Part::kBatch ? "b" : "e", data.index);
  return key;
}

}  // namespace

absl::StatusOr<Calibration> Study::Calibrate(const Metric& metric, const EstimateOptions& options,
                                             const Control& control) {
  RETURN_IF_ERROR(NeedRecorded());
  RETURN_IF_ERROR(CheckMetric(metric));
  if (static_cast<int>(probe_orders_.size()) < kFewest) return Calibration{};
  const std::lock_guard lock(calibration_mutex_);
  const std::string key = KeyOf(metric, options);
  if (const auto found = calibrations_.find(key); found != calibrations_.end()) return found->second;
  ASSIGN_OR_RETURN(const Calibration made, MakeCalibration(metric, options, control));
  return calibrations_[key] = made;
}

absl::StatusOr<Calibration> Study::MakeCalibration(const Metric& metric, const EstimateOptions& options,
                                                   const Control& control) {
  const size_t runs = probe_orders_.size();
  const std::vector<double> end = trajectory_->Row(positions());
  Calibration made;
  ASSIGN_OR_RETURN(made.reference, Measure(metric, end));
  std::vector<double> estimated(runs), trained(runs), square(runs);
  RETURN_IF_ERROR(ParallelFor(
      std::min(ThreadCount(options_.threads), model_->concurrency()), static_cast<int64_t>(runs),
      [&](int64_t k) -> absl::Status {
        std::vector<double> parameters = end, deviation(n_);
        ASSIGN_OR_RETURN(const std::vector<double> guessed, estimator_->OfProbe(static_cast<int>(k), options));
        RETURN_IF_ERROR(probes_->Read(kDeviation, positions(), static_cast<int>(k), 0, deviation));
        for (size_t i = 0; i < n_; ++i) parameters[i] += deviation[i];
        ASSIGN_OR_RETURN(trained[k], Measure(metric, parameters));
        for (size_t i = 0; i < n_; ++i) {
          parameters[i] = end[i] + guessed[i];
          square[k] += guessed[i] * guessed[i];
        }
        ASSIGN_OR_RETURN(estimated[k], Measure(metric, parameters));
        return absl::OkStatus();
      },
      control.stop));
  for (size_t k = 0; k < runs; ++k) {
    made.mean += trained[k] / static_cast<double>(runs);
    made.square += square[k] / static_cast<double>(runs);
  }
  if (!(made.square > 0.0) || !std::isfinite(made.square)) return made;  // every run was the reference's
  for (size_t k = 0; k < runs; ++k) {
    estimated[k] -= made.reference, trained[k] -= made.reference, square[k] /= made.square;
    if (!std::isfinite(estimated[k]) || !std::isfinite(trained[k])) return made;  // runs stays 0: nothing is corrected
  }
  Fit(estimated, square, trained, &made);
  made.runs = static_cast<int>(runs);
  return made;
}

}  // namespace optod::order

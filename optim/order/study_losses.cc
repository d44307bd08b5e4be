// What is measured at the end of runs: by estimate, and by training.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>

#include "base/status.h"
#include "optim/order/study.h"

namespace optod::order {
namespace {

using Clock = std::chrono::steady_clock;
double SecondsSince(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

double Square(std::span<const double> a, std::span<const double> b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

double Calibrated(const Calibration& c, double value, double square) {
  return c.reference + c.slope * (value - c.reference) + c.shift * (square / c.square);
}

}  // namespace

absl::Status Study::CheckMetric(const Metric& metric) const {
  RETURN_IF_ERROR(NeedModel("a loss"));
  if (metric.data.empty()) return InvalidArgument("metric: names no data");
  for (const DataRef& data : metric.data) {
    const bool batch = data.part == DataRef::Part::kBatch;
    const int count = batch ? batches_ : model_->evaluations();
    if (data.index >= 0 && data.index < count) continue;
    return InvalidArgument("metric: ", batch ? "batch " : "evaluation set ", data.index, " is not there; there are ",
                           count);
  }
  return absl::OkStatus();
}

absl::StatusOr<double> Study::Measure(const Metric& metric, std::span<const double> theta) const {
  RETURN_IF_ERROR(CheckMetric(metric));
  if (theta.size() != n_) return InvalidArgument("theta: ", theta.size(), " numbers; must be ", n_);
  double sum = 0.0;
  for (const DataRef& data : metric.data) {
    ASSIGN_OR_RETURN(const double loss, model_->Loss(data, theta));
    sum += loss;
  }
  const double mean = sum / static_cast<double>(metric.data.size());
  return metric.perplexity ? std::exp(mean) : mean;
}

absl::StatusOr<std::vector<double>> Study::LossesOfEach(std::span<const Order> orders, std::span<const Metric> metrics,
                                                        const EstimateOptions& options, const Control& control) {
  return ForwardLosses(orders, metrics, {}, options, control);
}

absl::StatusOr<std::vector<double>> Study::ForwardLosses(std::span<const Order> orders, std::span<const Metric> metrics,
                                                         const Calibration& calibration, const EstimateOptions& options,
                                                         const Control& control) {
  RETURN_IF_ERROR(NeedRecorded());
  if (metrics.size() != orders.size()) return InvalidArgument("metrics: ", metrics.size(), "; must be ", orders.size());
  for (const Metric& metric : metrics) RETURN_IF_ERROR(CheckMetric(metric));
  const auto begin = Clock::now();
  std::vector<double> losses(orders.size());
  const std::vector<double> end = trajectory_->Row(positions());
  const size_t bytes = n_ * sizeof(double);
  const size_t chunk = std::clamp<size_t>(static_cast<size_t>(options_.memory_budget) / 4 / bytes, 1, 4096);
  for (size_t first = 0; first < orders.size(); first += chunk) {
    const size_t count = std::min(chunk, orders.size() - first);
    ASSIGN_OR_RETURN(const auto parameters, Estimate(orders.subspan(first, count), options, {{}, control.stop}));
    RETURN_IF_ERROR(ParallelFor(
        std::min(ThreadCount(options_.threads), model_->concurrency()), static_cast<int64_t>(count),
        [&](int64_t i) -> absl::Status {
          ASSIGN_OR_RETURN(const double value, Measure(metrics[first + i], parameters[i]));
          losses[first + i] =
              calibration.runs == 0 ? value : Calibrated(calibration, value, Square(parameters[i], end));
          return absl::OkStatus();
        },
        control.stop));
    if (control.progress) {
      control.progress(static_cast<int64_t>(first + count), static_cast<int64_t>(orders.size()), SecondsSince(begin));
    }
  }
  return losses;
}

absl::StatusOr<std::vector<double>> Study::Losses(std::span<const Order> orders, const Metric& metric, LossMode mode,
                                                  const EstimateOptions& options, const Control& control) {
  if (mode == LossMode::kLinear) return LinearLosses(orders, metric, options, control);
  RETURN_IF_ERROR(NeedRecorded());
  RETURN_IF_ERROR(CheckMetric(metric));
  RETURN_IF_ERROR(ExpandAll(orders).status());  // before what takes long
  Calibration calibration;
  if (options.calibrate) {
    ASSIGN_OR_RETURN(calibration, Calibrate(metric, options, {{}, control.stop}));
  }
  return ForwardLosses(orders, std::vector<Metric>(orders.size(), metric), calibration, options, control);
}

absl::StatusOr<std::vector<double>> Study::LinearLosses(std::span<const Order> orders, const Metric& metric,
                                                        const EstimateOptions& options, const Control& control) {
  RETURN_IF_ERROR(NeedRecorded());
  RETURN_IF_ERROR(CheckMetric(metric));
  ASSIGN_OR_RETURN(const std::vector<Order> expanded, ExpandAll(orders));
  const std::vector<double> theta = trajectory_->Row(positions());
  std::vector<double> gradient(n_, 0.0), one(n_);
  double loss = 0.0;
  const double share = 1.0 / static_cast<double>(metric.data.size());
  for (const DataRef& data : metric.data) {
    ASSIGN_OR_RETURN(const double value, model_->Gradient(data, theta, one));
    loss += share * value;
    for (size_t i = 0; i < n_; ++i) gradient[i] += share * one[i];
  }
  // Partial sums by place, added in order afterwards: the result does not depend on the threads.
  std::vector<std::map<size_t, double>> parts(orders.size());
  std::mutex mutex;
  RETURN_IF_ERROR(estimator_->Deviations(
      expanded, options,
      [&](size_t order, size_t begin, std::span<const double> d) {
        double sum = 0.0;
        for (size_t i = 0; i < d.size(); ++i) sum += gradient[begin + i] * d[i];
        const std::lock_guard lock(mutex);
        parts[order][begin] = sum;
      },
      control));
  std::vector<double> losses;
  for (const auto& places : parts) {
    double sum = loss;
    for (const auto& [begin, part] : places) sum += part;
    losses.push_back(metric.perplexity ? std::exp(sum) : sum);
  }
  return losses;
}

absl::StatusOr<std::vector<double>> Study::RetrainedLosses(std::span<const Order> orders,
                                                           std::span<const Metric> metrics,
                                                           const Control& control) const {
  if (metrics.size() != orders.size()) return InvalidArgument("metrics: ", metrics.size(), "; must be ", orders.size());
  for (const Metric& metric : metrics) RETURN_IF_ERROR(CheckMetric(metric));
  const auto begin = Clock::now();
  std::vector<double> losses(orders.size());
  std::mutex mutex;
  int64_t done = 0;
  RETURN_IF_ERROR(ParallelFor(
      std::min(ThreadCount(options_.threads), model_ == nullptr ? 1 : model_->concurrency()),
      static_cast<int64_t>(orders.size()),
      [&](int64_t i) -> absl::Status {
        ASSIGN_OR_RETURN(const TrainingRun run, Retrain(orders[i], {{}, control.stop}));
        ASSIGN_OR_RETURN(losses[i], Measure(metrics[i], run.parameters));
        const std::lock_guard lock(mutex);
        ++done;
        if (control.progress) control.progress(done, static_cast<int64_t>(orders.size()), SecondsSince(begin));
        return absl::OkStatus();
      },
      control.stop));
  return losses;
}

}  // namespace optod::order

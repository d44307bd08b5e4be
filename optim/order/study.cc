#include "optim/order/study.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <sstream>

#include "base/crc32c.h"
#include "base/sha256.h"
#include "base/status.h"
#include "optim/order/fill.h"
#include "optim/order/orders.h"

namespace optod::order {
namespace {

constexpr const char* kHead = "optod-order-study 1\n";
constexpr int64_t kMostTerms = 100'000'000;
constexpr double kMostNumbers = 1e17;  // their bytes are counted in 63 bits

using Clock = std::chrono::steady_clock;
double SecondsSince(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

/// The lines of a study's file by key: options, and what the model was (keys with @).
absl::StatusOr<std::map<std::string, std::string>> ParseFile(const std::string& text) {
  const size_t mark = text.rfind("@checksum=");
  const std::string checksum = mark == std::string::npos ? "" : text.substr(mark + 10);
  if (!text.starts_with(kHead) || mark == std::string::npos || checksum != Cat(Crc32c(text.substr(0, mark)), "\n")) {
    return DataLoss("study.txt: the checksum does not match; the file is damaged");
  }
  std::map<std::string, std::string> values;
  std::istringstream in(text.substr(std::strlen(kHead), mark - std::strlen(kHead)));
  for (std::string line; std::getline(in, line);) {
    const size_t equals = line.find('=');
    if (equals == std::string::npos) return DataLoss("study.txt: a line has no '='");
    values[line.substr(0, equals)] = line.substr(equals + 1);
  }
  return values;
}

/// Options that may differ when a study is opened again.
bool IsResource(const std::string& key) {
  return key == "threads" || key == "memory_budget" || key == "disk_budget" || key == "segment_bytes";
}

std::map<std::string, std::string> Lines(const StudyOptions& options) {
  std::map<std::string, std::string> values;
  std::istringstream in(ToText(options));
  for (std::string line; std::getline(in, line);)
    values[line.substr(0, line.find('='))] = line.substr(line.find('=') + 1);
  return values;
}

absl::Status SameStudy(const StudyOptions& asked, const StudyOptions& recorded) {
  const auto want = Lines(asked), have = Lines(recorded);
  const auto check = [&](const std::string& key) -> absl::Status {
    if (want.at(key) == have.at(key)) return absl::OkStatus();
    return FailedPrecondition(key, ": ", want.at(key), " was asked, ", have.at(key),
                              " is recorded; another optimizer, schedule or store needs a study of its own");
  };
  RETURN_IF_ERROR(check("optimizer"));
  for (const auto& [key, value] : want) {
    if (!IsResource(key)) RETURN_IF_ERROR(check(key));
  }
  return absl::OkStatus();
}

}  // namespace

double Study::curvature_cap() const {
  if (options_.curvature_cap > 0.0) return options_.curvature_cap;
  const double top = *std::max_element(lr_.begin(), lr_.end());
  return top > 0.0 ? 1.0 / top : 1.0;
}

absl::Status Study::Shape(const StudyOptions& options) {
  RETURN_IF_ERROR(CheckStudyOptions(options));
  options_ = options;
  if (n_ == 0) return InvalidArgument("model: 0 parameters; must be >= 1");
  if (batches_ < 1) return InvalidArgument("model: ", batches_, " batches; must be >= 1");
  if (static_cast<int64_t>(batches_) * options.epochs > 100000) {
    return InvalidArgument("epochs: ", options.epochs, " of ", batches_, " batches are more than 100000 positions");
  }
  const int64_t terms = static_cast<int64_t>(batches_) * batches_ * options.epochs;
  if (terms > kMostTerms) {
    return InvalidArgument("batches: ", batches_, " at ", int64_t{batches_} * options.epochs,
                           " positions are more than ", kMostTerms, " terms");
  }
  if (static_cast<double>(terms) * static_cast<double>(n_) > kMostNumbers) {
    return InvalidArgument("model: ", n_, " parameters in ", terms, " terms are more than ", kMostNumbers, " numbers");
  }
  const Order first = options.reference_order.empty() ? Identity(batches_) : options.reference_order;
  ASSIGN_OR_RETURN(reference_order_, Expand(first, batches_, options.epochs, "reference_order"));
  ASSIGN_OR_RETURN(lr_, LearningRates(options, static_cast<int>(reference_order_.size())));
  return absl::OkStatus();
}

TermLayout Study::Layout() const {
  TermLayout layout;
  layout.n = n_;
  layout.positions = positions();
  layout.batches = batches_;
  layout.records = RecordsOf(options_);
  layout.codec = {options_.storage, precision_, options_.sketch_ratio, options_.sketch_shrink, options_.seed};
  layout.segment_bytes = options_.segment_bytes;
  return layout;
}

std::string Study::Describe() const {
  std::string text = Cat(kHead, ToText(options_), "@batches=", batches_, "\n@fingerprint=", fingerprint_,
                         "\n@parameters=", n_, "\n@precision=", precision_ == Precision::kFloat32 ? 32 : 64, "\n");
  return Cat(text, "@checksum=", Crc32c(text), "\n");
}

absl::StatusOr<std::unique_ptr<Study>> Study::Create(Fs& fs, std::string directory, const StudyOptions& options,
                                                     std::shared_ptr<const Model> model) {
  if (model == nullptr) return InvalidArgument("model: missing");
  std::unique_ptr<Study> study(new Study(fs, std::move(directory)));
  study->fingerprint_ = model->fingerprint();
  if (study->fingerprint_.find('\n') != std::string::npos)
    return InvalidArgument("model: its fingerprint has a line end");
  study->n_ = model->size();
  study->batches_ = model->batches();
  study->precision_ = model->precision();
  study->model_ = std::move(model);
  RETURN_IF_ERROR(study->Shape(options));
  ASSIGN_OR_RETURN(const Cost cost, study->PredictCost());
  if (const int64_t bytes = cost.terms_bytes + cost.reference_bytes;
      options.disk_budget > 0 && bytes > options.disk_budget) {
    return ResourceExhausted("disk_budget: ", options.disk_budget, " bytes; this study takes ", bytes, " (",
                             study->positions(), " positions x ", study->batches_, " batches x ", study->n_,
                             " parameters); a smaller storage (fp16, sketch) or fewer batches would fit");
  }
  const std::string file = study->directory_ + "/study.txt";
  if (fs.Exists(file)) return AlreadyExists("study: there is one in this directory already; open it");
  RETURN_IF_ERROR(fs.CreateDirectories(study->directory_));
  RETURN_IF_ERROR(fs.WriteFileAtomic(file, BytesOf(study->Describe())));
  return study;
}

absl::StatusOr<std::unique_ptr<Study>> Study::Open(Fs& fs, std::string directory, std::shared_ptr<const Model> model,
                                                   const StudyOptions* expected) {
  std::unique_ptr<Study> study(new Study(fs, std::move(directory)));
  const std::string file = study->directory_ + "/study.txt";
  if (!fs.Exists(file)) return NotFound("study: there is none in this directory");
  ASSIGN_OR_RETURN(const std::string text, fs.ReadFile(file));
  ASSIGN_OR_RETURN(auto values, ParseFile(text));
  study->fingerprint_ = values["@fingerprint"];
  study->n_ = std::strtoull(values["@parameters"].c_str(), nullptr, 10);
  study->batches_ = std::atoi(values["@batches"].c_str());
  study->precision_ = values["@precision"] == "32" ? Precision::kFloat32 : Precision::kFloat64;
  std::erase_if(values, [](const auto& line) { return line.first.starts_with('@'); });
  ASSIGN_OR_RETURN(StudyOptions options, ParseStudyOptions(values));
  if (model != nullptr && (model->fingerprint() != study->fingerprint_ || model->size() != study->n_ ||
                           model->batches() != study->batches_ || model->precision() != study->precision_)) {
    return FailedPrecondition("model: ", model->fingerprint(), " was given, ", study->fingerprint_, " is recorded");
  }
  if (expected != nullptr) {
    RETURN_IF_ERROR(CheckStudyOptions(*expected));
    RETURN_IF_ERROR(SameStudy(*expected, options));
    options.threads = expected->threads;
    options.memory_budget = expected->memory_budget;
    options.disk_budget = expected->disk_budget;
  }
  study->model_ = std::move(model);
  RETURN_IF_ERROR(study->Shape(options));
  const std::string reference = study->directory_ + "/reference.bin";
  if (!fs.Exists(reference)) return study;
  ASSIGN_OR_RETURN(Trajectory trajectory,
                   Trajectory::Load(fs, reference, study->n_, study->positions(), study->precision_));
  RETURN_IF_ERROR(study->OpenTerms(std::move(trajectory)));
  return study;
}

/// The identity of the terms is that of the options (less the resources), the model and the reference run.
absl::Status Study::OpenTerms(Trajectory trajectory) {
  trajectory_ = std::make_unique<Trajectory>(std::move(trajectory));
  std::string text = Cat(fingerprint_, "\n", trajectory_->Checksum(), "\n");
  for (const auto& [key, value] : Lines(options_)) {
    if (!IsResource(key)) text += Cat(key, "=", value, "\n");
  }
  TermLayout layout = Layout();
  Sha256 sha;
  sha.Update(text);
  const Sha256Digest digest = sha.Finish();
  std::memcpy(&layout.identity, digest.data(), sizeof layout.identity);
  auto terms = TermStore::Open(fs_, directory_, layout);
  if (!terms.ok()) {
    trajectory_ = nullptr;
    return terms.status();
  }
  terms_ = *std::move(terms);
  estimator_ = std::make_unique<Estimator>(
      Recorded{&options_, &lr_, &reference_order_, trajectory_.get(), terms_.get(), model_.get(), curvature_cap()});
  return absl::OkStatus();
}

absl::Status Study::NeedModel(const char* what) const {
  return model_ != nullptr ? absl::OkStatus() : FailedPrecondition("model: missing; ", what, " needs it");
}
absl::Status Study::NeedRecorded() const {
  return recorded() ? absl::OkStatus() : FailedPrecondition("study: the reference run is not recorded yet");
}

absl::Status Study::Record(const Control& control) {
  if (recorded()) return absl::OkStatus();
  RETURN_IF_ERROR(NeedModel("the reference run"));
  Trajectory trajectory(n_, positions(), precision_);
  ASSIGN_OR_RETURN([[maybe_unused]] const TrainingRun run,
                   Train(*model_, options_.optimizer, lr_, reference_order_, control, &trajectory));
  RETURN_IF_ERROR(trajectory.Save(fs_, directory_ + "/reference.bin"));
  return OpenTerms(std::move(trajectory));
}

absl::StatusOr<Cost> Study::PredictCost(bool measure) const {
  const TermLayout layout = Layout();
  Cost cost;
  const int64_t terms = static_cast<int64_t>(positions()) * batches_;
  const int64_t width = precision_ == Precision::kFloat32 ? 4 : 8;
  cost.terms_bytes = layout.TotalBytes();
  cost.reference_bytes = (positions() + 1) * static_cast<int64_t>(n_) * width;
  cost.gradients = terms;
  if (options_.curvature == Curvature::kDiag) cost.hessian_products = terms * options_.probes;
  const int64_t decoded = layout.codec.lossless() && width == 8 ? 8 : 4;
  cost.decoded_bytes = terms * layout.records * static_cast<int64_t>(n_) * decoded;
  if (!measure) return cost;
  RETURN_IF_ERROR(NeedModel("a timed term"));
  std::vector<double> theta(n_), out(n_), direction(n_, 1.0);
  RETURN_IF_ERROR(model_->Initial(theta));
  const auto begin = Clock::now();
  ASSIGN_OR_RETURN([[maybe_unused]] const double loss, model_->Gradient(Batch(0), theta, out));
  double seconds = SecondsSince(begin) * static_cast<double>(cost.gradients);
  if (cost.hessian_products > 0) {
    const auto products = Clock::now();
    RETURN_IF_ERROR(model_->HessianVector(Batch(0), theta, direction, out));
    seconds += SecondsSince(products) * static_cast<double>(cost.hessian_products);
  }
  cost.seconds = seconds / std::min(ThreadCount(options_.threads), model_->concurrency());
  return cost;
}

absl::Status Study::Precompute(const Control& control) {
  RETURN_IF_ERROR(NeedModel("filling the terms"));
  RETURN_IF_ERROR(Record({{}, control.stop}));
  return FillTerms(*model_, *trajectory_, options_, curvature_cap(), *terms_, control);
}

absl::StatusOr<std::vector<Order>> Study::ExpandAll(std::span<const Order> orders) const {
  std::vector<Order> expanded;
  expanded.reserve(orders.size());
  for (size_t i = 0; i < orders.size(); ++i) {
    const std::string name = orders.size() == 1 ? "order" : Cat("orders[", i, "]");
    ASSIGN_OR_RETURN(expanded.emplace_back(), Expand(orders[i], batches_, options_.epochs, name.c_str()));
  }
  return expanded;
}

absl::StatusOr<std::vector<std::vector<double>>> Study::Estimate(std::span<const Order> orders,
                                                                 const EstimateOptions& options,
                                                                 const Control& control) {
  RETURN_IF_ERROR(NeedRecorded());
  ASSIGN_OR_RETURN(const std::vector<Order> expanded, ExpandAll(orders));
  std::vector<std::vector<double>> parameters(orders.size(), trajectory_->Row(positions()));
  RETURN_IF_ERROR(estimator_->Deviations(
      expanded, options,
      [&](size_t order, size_t begin, std::span<const double> d) {
        for (size_t i = 0; i < d.size(); ++i) {
          if (d[i] != 0.0) parameters[order][begin + i] += d[i];  // adding 0 would turn -0 into +0
        }
      },
      control));
  return parameters;
}

absl::StatusOr<std::vector<std::vector<double>>> Study::Path(const Order& order, const EstimateOptions& options) {
  RETURN_IF_ERROR(NeedRecorded());
  ASSIGN_OR_RETURN(const Order expanded, Expand(order, batches_, options_.epochs));
  return estimator_->Path(expanded, options);
}

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
  RETURN_IF_ERROR(NeedRecorded());
  if (metrics.size() != orders.size()) return InvalidArgument("metrics: ", metrics.size(), "; must be ", orders.size());
  for (const Metric& metric : metrics) RETURN_IF_ERROR(CheckMetric(metric));
  const auto begin = Clock::now();
  std::vector<double> losses(orders.size());
  const size_t bytes = n_ * sizeof(double);
  const size_t chunk = std::clamp<size_t>(static_cast<size_t>(options_.memory_budget) / 4 / bytes, 1, 4096);
  for (size_t first = 0; first < orders.size(); first += chunk) {
    const size_t count = std::min(chunk, orders.size() - first);
    ASSIGN_OR_RETURN(const auto parameters, Estimate(orders.subspan(first, count), options, {{}, control.stop}));
    RETURN_IF_ERROR(ParallelFor(
        std::min(ThreadCount(options_.threads), model_->concurrency()), static_cast<int64_t>(count),
        [&](int64_t i) -> absl::Status {
          ASSIGN_OR_RETURN(losses[first + i], Measure(metrics[first + i], parameters[i]));
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
  const std::vector<Metric> metrics(orders.size(), metric);
  return LossesOfEach(orders, metrics, options, control);
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

absl::StatusOr<TrainingRun> Study::Retrain(const Order& order, const Control& control) const {
  RETURN_IF_ERROR(NeedModel("training"));
  ASSIGN_OR_RETURN(const Order expanded, Expand(order, batches_, options_.epochs));
  return Train(*model_, options_.optimizer, lr_, expanded, control);
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

absl::StatusOr<double> Study::SpanCoverage(const Order& order, const EstimateOptions& options) {
  RETURN_IF_ERROR(NeedRecorded());
  ASSIGN_OR_RETURN(const Order expanded, Expand(order, batches_, options_.epochs));
  return estimator_->SpanCoverage(expanded, options);
}

}  // namespace optod::order

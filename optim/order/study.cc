#include "optim/order/study.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/sha256.h"
#include "base/status.h"
#include "optim/order/fill.h"
#include "optim/order/orders.h"
#include "optim/order/study_file.h"

namespace optod::order {
namespace {

constexpr int64_t kMostTerms = 100'000'000, kMostProbeSteps = 10'000'000;
constexpr double kMostNumbers = 1e17;  // their bytes are counted in 63 bits

using Clock = std::chrono::steady_clock;
double SecondsSince(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

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
  if (const int64_t steps = int64_t{ProbeRuns(options, batches_)} * positions(); steps > kMostProbeSteps) {
    return InvalidArgument("probe_runs: ", ProbeRuns(options, batches_), " of ", positions(),
                           " positions are more than ", kMostProbeSteps, " steps");
  }
  probe_orders_ = ProbeOrders(ProbeRuns(options, batches_), batches_, options.epochs, options.seed);
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

std::string Study::Describe() const { return ToText(StudyFile{options_, fingerprint_, n_, batches_, precision_}); }

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
  ASSIGN_OR_RETURN(const StudyFile recorded, ParseStudyFile(text));
  StudyOptions options = recorded.options;
  study->fingerprint_ = recorded.fingerprint;
  study->n_ = recorded.parameters;
  study->batches_ = recorded.batches;
  study->precision_ = recorded.precision;
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
  TermLayout layout = Layout();
  Sha256 sha;
  sha.Update(Cat(fingerprint_, "\n", trajectory_->Checksum(), "\n", TermsDependOn(options_)));
  const Sha256Digest digest = sha.Finish();
  std::memcpy(&layout.identity, digest.data(), sizeof layout.identity);
  const absl::Status opened = OpenStores(layout);
  if (!opened.ok()) {
    trajectory_ = nullptr;
    return opened;
  }
  estimator_ = std::make_unique<Estimator>(Recorded{&options_, &lr_, &reference_order_, trajectory_.get(), terms_.get(),
                                                    model_.get(), curvature_cap(), probes_.get(), &probe_orders_});
  return absl::OkStatus();
}

absl::Status Study::OpenStores(const TermLayout& layout) {
  ASSIGN_OR_RETURN(terms_, TermStore::Open(fs_, directory_, layout));
  if (probe_orders_.empty()) return absl::OkStatus();
  const std::string runs = directory_ + "/runs";
  RETURN_IF_ERROR(fs_.CreateDirectories(runs));
  ASSIGN_OR_RETURN(probes_, TermStore::Open(fs_, runs, ProbeLayout(layout, static_cast<int>(probe_orders_.size()))));
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
  if (const auto runs = static_cast<int64_t>(probe_orders_.size()); runs > 0) {
    cost.terms_bytes += ProbeLayout(layout, static_cast<int>(runs)).TotalBytes();
    cost.gradients += runs * positions() * (layout.codec.lossless() ? 1 : 2);
  }
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
  const int64_t terms = int64_t{positions()} * batches_, all = terms + PositionsOfProbes();
  const auto begin = Clock::now();
  const auto part = [&](int64_t before) {
    Control told{{}, control.stop};
    if (control.progress)
      told.progress = [&, before](int64_t done, int64_t, double) {
        control.progress(before + done, all, SecondsSince(begin));
      };
    return told;
  };
  RETURN_IF_ERROR(FillTerms(*model_, *trajectory_, options_, curvature_cap(), *terms_, part(0)));
  if (probes_ == nullptr) return absl::OkStatus();
  return FillProbeRuns(*model_, *trajectory_, options_, lr_, probe_orders_, *terms_, *probes_, part(terms));
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

absl::StatusOr<TrainingRun> Study::Retrain(const Order& order, const Control& control) const {
  RETURN_IF_ERROR(NeedModel("training"));
  ASSIGN_OR_RETURN(const Order expanded, Expand(order, batches_, options_.epochs));
  return Train(*model_, options_.optimizer, lr_, expanded, control);
}

absl::StatusOr<double> Study::SpanCoverage(const Order& order, const EstimateOptions& options) {
  RETURN_IF_ERROR(NeedRecorded());
  ASSIGN_OR_RETURN(const Order expanded, Expand(order, batches_, options_.epochs));
  return estimator_->SpanCoverage(expanded, options);
}

absl::StatusOr<double> Study::Trust() {
  RETURN_IF_ERROR(NeedRecorded());
  const bool asks = options_.curvature == Curvature::kDiag || options_.curvature == Curvature::kSecant ||
                    options_.curvature == Curvature::kSpan;
  if (probes_ == nullptr || !asks)
    return FailedPrecondition("trust: needs probe_runs and curvature diag, secant or span, not ",
                              NameOf(options_.curvature));
  return estimator_->Trust();
}

}  // namespace optod::order

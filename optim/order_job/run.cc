#include "optim/order_job/run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "optim/order/orders.h"
#include "optim/order_job/files.h"
#include "optim/order_job/stop_watch.h"

namespace optod::order {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kBetweenReports{200};
constexpr size_t kMostInline = 4096;  // numbers of an array that the result itself carries

double SecondsSince(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

/// Of all threads of this process: what work costs, however busy the machine is.
double CpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0.0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}
double Distance(std::span<const double> a, std::span<const double> b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum);
}
std::string Megabytes(int64_t bytes) { return Cat(static_cast<double>(bytes / 10000) / 100.0, " MB"); }

class Run {
 public:
  Run(Fs& fs, std::string folder, const SampleOrderSpec& spec, std::unique_ptr<Study> study, const RunHooks& hooks)
      : fs_(fs), folder_(std::move(folder)), spec_(spec), study_(std::move(study)), hooks_(hooks), watch_(hooks.stop) {}

  absl::StatusOr<std::string> Go() {
    RETURN_IF_ERROR(fs_.CreateDirectories(folder_ + "/parts"));
    RETURN_IF_ERROR(fs_.CreateDirectories(folder_ + "/result"));
    RETURN_IF_ERROR(Announce());
    RETURN_IF_ERROR(Record());
    RETURN_IF_ERROR(Fill());
    RETURN_IF_ERROR(Going());
    RETURN_IF_ERROR(Estimate());
    RETURN_IF_ERROR(Going());
    RETURN_IF_ERROR(Search());
    RETURN_IF_ERROR(Going());
    RETURN_IF_ERROR(MatrixCells());
    RETURN_IF_ERROR(Going());
    RETURN_IF_ERROR(Checks());
    return result_.dump();
  }

 private:
  Control Quietly() const { return {{}, watch_.token()}; }
  absl::Status Going() const {
    return watch_.token().stop_requested() ? absl::CancelledError("stopped on request") : absl::OkStatus();
  }

  /// What it will take, before it starts.
  absl::Status Announce() {
    ASSIGN_OR_RETURN(const Cost cost, study_->PredictCost(/*measure=*/!study_->complete()));
    result_ = {{"parameters", study_->parameters()}, {"batches", study_->batches()},
               {"positions", study_->positions()},   {"probe_runs", ProbeRuns(spec_.study, study_->batches())},
               {"terms_bytes", cost.terms_bytes},    {"reference_bytes", cost.reference_bytes},
               {"gradients", cost.gradients},        {"hessian_products", cost.hessian_products},
               {"predicted_seconds", cost.seconds}};
    hooks_.log(Cat("sample order: ", study_->parameters(), " parameters, ", study_->batches(), " batches, ",
                   study_->positions(), " positions, curvature ", NameOf(spec_.study.curvature), ", storage ",
                   NameOf(spec_.study.storage)));
    hooks_.log(Cat("takes ", Megabytes(cost.terms_bytes), " of terms, ", Megabytes(cost.reference_bytes),
                   " of the reference run, ", cost.gradients, " gradients and ", cost.hessian_products,
                   " Hessian products: about ", std::ceil(cost.seconds * 10) / 10, " s"));
    Report(0, {{"predicted_seconds", cost.seconds}, {"predicted_bytes", static_cast<double>(cost.terms_bytes)}}, true);
    return absl::OkStatus();
  }

  absl::Status Record() {
    const bool there = study_->recorded();
    const auto begin = Clock::now();
    Control control = Quietly();
    control.progress = [this](int64_t done, int64_t, double) {
      Report(done, {{"reference_steps", static_cast<double>(done)}}, false);
    };
    RETURN_IF_ERROR(study_->Record(control));
    result_["record_seconds"] = there ? 0.0 : SecondsSince(begin);
    base_ = study_->positions();
    hooks_.checkpoint(base_);
    if (study_->model()->evaluations() > 0) {
      ASSIGN_OR_RETURN(reference_, study_->Measure(MetricOf(spec_), study_->trajectory().Row(study_->positions())));
      result_["reference"] = reference_;
      Report(base_, {{"reference", reference_}}, true);
    }
    return absl::OkStatus();
  }

  absl::Status Fill() {
    const auto begin = Clock::now();
    Control control = Quietly();
    control.progress = [this](int64_t done, int64_t total, double seconds) {
      if (first_terms_ < 0) first_terms_ = done;
      const auto made = static_cast<double>(std::max<int64_t>(done - first_terms_, 1));
      const double left = seconds / made * static_cast<double>(total - done);
      hooks_.checkpoint(base_ + done);
      Report(base_ + done, {{"terms", static_cast<double>(done)}, {"seconds_left", left}}, done == total);
    };
    RETURN_IF_ERROR(study_->Precompute(control));
    result_["precompute_seconds"] = SecondsSince(begin);
    base_ += int64_t{study_->positions()} * study_->batches() + study_->PositionsOfProbes();
    ASSIGN_OR_RETURN(const std::vector<double> errors, study_->terms().DecodeErrors());
    result_["decode_errors"] = errors;
    hooks_.log(Cat("terms are there after ", SecondsSince(begin), " s"));
    return Trust();
  }

  /// How much of its own answer a diagonal or the span may give, as the probe runs show.
  absl::Status Trust() {
    const absl::StatusOr<double> trust = study_->Trust();
    if (absl::IsFailedPrecondition(trust.status())) return absl::OkStatus();  // nothing to trust
    RETURN_IF_ERROR(trust.status());
    result_["trust"] = *trust;
    hooks_.log(Cat("curvature ", NameOf(spec_.study.curvature), ": trust ", *trust, " beside the probe runs",
                   *trust < 0.05 ? "; they alone would do: curvature multisecant is as close and cheaper" : ""));
    return absl::OkStatus();
  }

  // ---- parts

  std::string PartPath(const char* name) const { return Cat(folder_, "/parts/", name, ".json"); }
  /// What an earlier run left of a part; null: nothing.
  Json Earlier(const char* name) const {
    return Json::parse(fs_.ReadFile(PartPath(name)).value_or("null"), nullptr, false);
  }
  absl::Status Keep(const char* name, const Json& part) {
    return fs_.WriteFileAtomic(PartPath(name), BytesOf(part.dump()));
  }
  /// A finished part of an earlier run becomes the result's.
  bool Reuse(const char* name, int64_t units) {
    const Json part = Earlier(name);
    if (!part.is_object() || !part.value("done", false)) return false;
    result_[name] = part;
    base_ += units;
    return true;
  }
  absl::Status Finish(const char* name, Json part, int64_t units) {
    part["done"] = true;
    RETURN_IF_ERROR(Keep(name, part));
    result_[name] = std::move(part);
    base_ += units;
    hooks_.checkpoint(base_);
    Report(base_, {}, true);
    return absl::OkStatus();
  }
  absl::Status Save(const char* name, std::span<const double> values, const std::vector<int64_t>& shape, Json* part) {
    (*part)["files"].push_back(Cat("result/", name, ".npy"));
    if (values.size() <= kMostInline) (*part)[name] = std::vector<double>(values.begin(), values.end());
    return WriteNpy(fs_, Cat(folder_, "/result/", name, ".npy"), values, shape);
  }

  std::vector<Order> RandomOrders(int count) const {
    CounterRandom random(spec_.estimate.seed, 77);
    std::vector<Order> orders;
    for (int i = 0; i < count; ++i) orders.push_back(random.Permutation(study_->batches()));
    return orders;
  }
  absl::Status SaveOrders(std::span<const Order> orders) {
    std::vector<int> flat;
    for (const Order& order : orders) flat.insert(flat.end(), order.begin(), order.end());
    return WriteNpy(fs_, folder_ + "/result/orders.npy", flat,
                    {static_cast<int64_t>(orders.size()), study_->batches()});
  }

  absl::Status Estimate() {
    const int count = spec_.estimate.random_orders;
    if (count == 0 || Reuse("estimate", count)) return absl::OkStatus();
    const std::vector<Order> orders = RandomOrders(count);
    RETURN_IF_ERROR(SaveOrders(std::span(orders).first(static_cast<size_t>(count))));
    // The first reads the terms from the disk; then what one order costs, then all of them together.
    ASSIGN_OR_RETURN(const double first, TimeOne(orders[0]));
    std::vector<double> single, single_cpu;
    for (int i = 0; i < 9; ++i) {
      const double cpu = CpuSeconds();
      ASSIGN_OR_RETURN(single.emplace_back(), TimeOne(orders[0]));
      single_cpu.push_back(CpuSeconds() - cpu);
    }
    const auto begin = Clock::now();
    const double begin_cpu = CpuSeconds();
    Control control = Quietly();
    control.progress = [this](int64_t done, int64_t, double) {
      if (spec_.estimate.loss == LossMode::kForward)
        Report(base_ + done, {{"orders", static_cast<double>(done)}}, false);
    };
    ASSIGN_OR_RETURN(const std::vector<double> values,
                     study_->Losses(orders, MetricOf(spec_), spec_.estimate.loss, spec_.estimation, control));
    Json part = {{"orders", count},
                 {"seconds", SecondsSince(begin)},
                 {"cpu_seconds", CpuSeconds() - begin_cpu},
                 {"first_seconds", first},
                 {"single_seconds", Median(single)},
                 {"single_cpu_seconds", Median(single_cpu)},
                 {"best", *std::min_element(values.begin(), values.end())},
                 {"median", Median(values)},
                 {"worst", *std::max_element(values.begin(), values.end())}};
    part["best_order"] = orders[std::min_element(values.begin(), values.end()) - values.begin()];
    RETURN_IF_ERROR(Save("estimates", values, {count}, &part));
    return Finish("estimate", std::move(part), count);
  }
  absl::StatusOr<double> TimeOne(const Order& order) {
    const auto begin = Clock::now();
    RETURN_IF_ERROR(study_->Estimate(std::span(&order, 1), spec_.estimation, Quietly()).status());
    return SecondsSince(begin);
  }

  absl::Status Search() {
    if (!spec_.search || Reuse("search", spec_.search->generations)) return absl::OkStatus();
    SearchOptions options = *spec_.search;
    options.state_file = folder_ + "/parts/search.state";
    Control control = Quietly();
    control.progress = [this](int64_t done, int64_t, double) {
      hooks_.checkpoint(base_ + done);
      Report(base_ + done, {{"generation", static_cast<double>(done)}}, false);
    };
    const auto begin = Clock::now();
    ASSIGN_OR_RETURN(const SearchResult found, SearchOrder(*study_, fs_, options, control));
    Json part = {{"order", found.order}, {"estimated", found.estimated},     {"best", found.best},
                 {"mean", found.mean},   {"evaluations", found.evaluations}, {"seconds", SecondsSince(begin)}};
    if (found.retrained) part["retrained"] = *found.retrained;
    RETURN_IF_ERROR(Baselines(&part));
    return Finish("search", std::move(part), options.generations);
  }
  /// Curricula by rule, trained for real, beside the found order.
  absl::Status Baselines(Json* part) {
    if (!spec_.search->retrain_best) return absl::OkStatus();
    for (const auto& [name, kind] :
         {std::pair{"short_to_long", Curriculum::kShortToLong}, std::pair{"easy_to_hard", Curriculum::kEasyToHard},
          std::pair{"hard_to_easy", Curriculum::kHardToEasy}}) {
      const absl::StatusOr<Order> order = CurriculumOrder(*study_, kind);
      if (!order.ok()) continue;  // batches of one length have no short-to-long
      ASSIGN_OR_RETURN(const TrainingRun run, study_->Retrain(*order, Quietly()));
      ASSIGN_OR_RETURN((*part)[name], study_->Measure(MetricOf(spec_), run.parameters));
    }
    return absl::OkStatus();
  }

  absl::Status MatrixCells() {
    const int64_t side = study_->batches();
    if (!spec_.matrix || Reuse("matrix", side * side)) return absl::OkStatus();
    const auto begin = Clock::now();
    ASSIGN_OR_RETURN(const Matrix matrix, EstimateMatrix(*study_, *spec_.matrix, {}, Quietly()));
    Json part = {{"memorisation", spec_.matrix->memorisation}, {"seconds", SecondsSince(begin)}};
    part["spots"] = Json::array();
    for (const SpotCheck& spot : matrix.spots)
      part["spots"].push_back({spot.batch, spot.position, spot.estimated, spot.retrained});
    part["pearson"] = matrix.confidence.pearson;
    part["spearman"] = matrix.confidence.spearman;
    part["l1"] = matrix.confidence.l1;
    part["mse"] = matrix.confidence.mse;
    RETURN_IF_ERROR(Save("matrix", matrix.values, {side, side}, &part));
    return Finish("matrix", std::move(part), side * side);
  }

  // ---- against real trainings

  absl::Status Checks() {
    const int count = spec_.retrain_checks;
    if (count == 0 || Reuse("retrain_checks", count)) return absl::OkStatus();
    const std::vector<Order> orders = RandomOrders(count);
    Json part = Earlier("retrain_checks");
    if (!part.is_object() || !part.contains("uncalibrated"))
      part = {{"retrained", Json::array()},
              {"estimated", Json::array()},
              {"uncalibrated", Json::array()},
              {"zeroth", Json::array()},
              {"error", Json::array()},
              {"error_zeroth", Json::array()},
              {"error_guess", Json::array()},
              {"training_seconds", Json::array()},
              {"training_cpu_seconds", Json::array()}};
    for (int i = static_cast<int>(part["retrained"].size()); i < count; ++i) {
      RETURN_IF_ERROR(Going());
      RETURN_IF_ERROR(Check(orders[static_cast<size_t>(i)], &part));
      RETURN_IF_ERROR(Keep("retrain_checks", part));
      hooks_.checkpoint(base_ + i + 1);
      Report(base_ + i + 1, {{"trainings", static_cast<double>(i + 1)}}, false);
    }
    RETURN_IF_ERROR(Judge(&part));
    return Finish("retrain_checks", std::move(part), count);
  }

  absl::Status Check(const Order& order, Json* part) {
    const auto begin = Clock::now();
    const double cpu = CpuSeconds();
    ASSIGN_OR_RETURN(const TrainingRun run, study_->Retrain(order, Quietly()));
    (*part)["training_seconds"].push_back(SecondsSince(begin));
    (*part)["training_cpu_seconds"].push_back(CpuSeconds() - cpu);
    const Metric metric = MetricOf(spec_);
    const std::vector<double> guess = study_->trajectory().Row(study_->positions());
    EstimateOptions zeroth = spec_.estimation;
    zeroth.expansion = 0;
    const auto add = [&](const char* value, const char* error, const std::vector<double>& parameters) -> absl::Status {
      ASSIGN_OR_RETURN(const double measured, study_->Measure(metric, parameters));
      (*part)[value].push_back(measured);
      if (error != nullptr) (*part)[error].push_back(Distance(parameters, run.parameters));
      return absl::OkStatus();
    };
    ASSIGN_OR_RETURN(const auto estimated, study_->Estimate(std::span(&order, 1), spec_.estimation, Quietly()));
    ASSIGN_OR_RETURN(const auto without, study_->Estimate(std::span(&order, 1), zeroth, Quietly()));
    RETURN_IF_ERROR(add("uncalibrated", "error", estimated[0]));
    ASSIGN_OR_RETURN(const std::vector<double> values,
                     study_->Losses(std::span(&order, 1), metric, LossMode::kForward, spec_.estimation, Quietly()));
    (*part)["estimated"].push_back(values[0]);
    RETURN_IF_ERROR(add("zeroth", "error_zeroth", without[0]));
    (*part)["error_guess"].push_back(Distance(guess, run.parameters));
    return add("retrained", nullptr, run.parameters);
  }

  /// Medians and correlations of all checks.
  absl::Status Judge(Json* part) {
    const auto numbers = [&](const char* name) { return (*part)[name].get<std::vector<double>>(); };
    const std::vector<double> estimated = numbers("estimated"), retrained = numbers("retrained");
    const std::vector<double> uncalibrated = numbers("uncalibrated");
    ASSIGN_OR_RETURN(const Calibration calibration, study_->Calibrate(MetricOf(spec_), spec_.estimation, Quietly()));
    std::vector<double> gap, raw, guess, mean;
    for (size_t i = 0; i < estimated.size(); ++i) {
      gap.push_back(std::abs(estimated[i] - retrained[i]));
      raw.push_back(std::abs(uncalibrated[i] - retrained[i]));
      mean.push_back(std::abs(calibration.mean - retrained[i]));
      guess.push_back(std::abs(reference_ - retrained[i]));
    }
    ASSIGN_OR_RETURN(const Agreement agreement, Compare(estimated, retrained));
    const double zeroth = Median(numbers("error_zeroth")), still = Median(numbers("error_guess"));
    (*part)["orders"] = estimated.size();
    (*part)["error_over_zeroth"] = zeroth > 0.0 ? Median(numbers("error")) / zeroth : 0.0;
    (*part)["error_over_guess"] = still > 0.0 ? Median(numbers("error")) / still : 0.0;
    (*part)["absdiff"] = Median(gap);
    (*part)["absdiff_uncalibrated"] = Median(raw);
    (*part)["absdiff_guess"] = Median(guess);
    if (calibration.runs > 0) {
      (*part)["absdiff_mean_of_probe_runs"] = Median(mean);
      (*part)["calibration"] = {{"slope", calibration.slope}, {"shift", calibration.shift}};
    }
    (*part)["pearson"] = agreement.pearson;
    (*part)["spearman"] = agreement.spearman;
    (*part)["seconds_per_training"] = Median(numbers("training_seconds"));
    (*part)["cpu_seconds_per_training"] = Median(numbers("training_cpu_seconds"));
    RETURN_IF_ERROR(Save("retrained", retrained, {static_cast<int64_t>(retrained.size())}, part));
    return Warn(part);
  }

  /// A user must not take an estimate that knows less than the reference run does.
  absl::Status Warn(Json* part) {
    const double gap = (*part)["absdiff"], guess = (*part)["absdiff_guess"];
    if (gap < guess || guess == 0.0) return WarnOfSlope(part);
    const bool stored = spec_.study.curvature != Curvature::kHvp;
    const std::string text =
        Cat("estimates are off by ", gap, " in the median of ", (*part)["orders"].get<size_t>(),
            " trainings; taking the reference run's value is off by ", guess, ": these estimates say nothing. ",
            stored && ProbeRuns(spec_.study, study_->batches()) < study_->batches()
                ? "study: {curvature: multisecant} with as many probe_runs as batches, or hvp, is closer; "
                : "",
            "so is a smaller lr, a lossless storage, or more examples a batch");
    (*part)["warning"] = text;
    hooks_.log(Cat("warning: ", text));
    return absl::OkStatus();
  }

  /// Close in the median, yet no better than one value for all orders.
  absl::Status WarnOfSlope(Json* part) {
    constexpr double kTells = 0.2;
    if (!part->contains("calibration")) return absl::OkStatus();
    const double slope = (*part)["calibration"]["slope"];
    if (slope >= kTells) return absl::OkStatus();
    const std::string text =
        Cat("the probe runs show that estimates follow trainings with a slope of ", slope,
            ": values are close to the mean of the probe runs, and the differences between orders that they show are "
            "mostly noise; a smaller lr, fewer positions, or more examples a batch would be estimated better");
    (*part)["warning"] = text;
    hooks_.log(Cat("warning: ", text));
    return absl::OkStatus();
  }

  void Report(int64_t units, const std::map<std::string, double>& metrics, bool always) {
    watch_.Ask();
    const auto now = Clock::now();
    if (!always && now - reported_ < kBetweenReports) return;
    reported_ = now;
    hooks_.progress(units, metrics);
  }

  Fs& fs_;
  const std::string folder_;
  const SampleOrderSpec& spec_;
  std::unique_ptr<Study> study_;
  const RunHooks& hooks_;
  StopWatch watch_;
  Json result_;
  double reference_ = 0.0;
  int64_t base_ = 0, first_terms_ = -1;
  Clock::time_point reported_{};
};

}  // namespace

absl::StatusOr<std::unique_ptr<Study>> OpenOrCreate(Fs& fs, const std::string& folder, const SampleOrderSpec& spec,
                                                    std::shared_ptr<const Model> model) {
  const std::string directory = folder + "/study";
  if (fs.Exists(directory + "/study.txt")) return Study::Open(fs, directory, std::move(model), &spec.study);
  return Study::Create(fs, directory, spec.study, std::move(model));
}

absl::StatusOr<std::string> RunSampleOrder(Fs& fs, const std::string& folder, const std::string& spec_json,
                                           const SampleOrderSpec& spec, std::shared_ptr<const Model> model,
                                           const RunHooks& hooks) {
  RETURN_IF_ERROR(fs.CreateDirectories(folder));
  ASSIGN_OR_RETURN(std::unique_ptr<Study> study, OpenOrCreate(fs, folder, spec, std::move(model)));
  RETURN_IF_ERROR(fs.WriteFileAtomic(folder + "/spec.json", BytesOf(spec_json)));
  return Run(fs, folder, spec, std::move(study), hooks).Go();
}

}  // namespace optod::order

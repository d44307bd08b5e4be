// order_bench [--json] [--quick]: what estimates of the sample order are worth and cost, beside retraining.
//   accuracy    logistic regression (20 features, batches of 16, Adam 0.05), T = 8 and 16, 50 random orders: parameter
//   error against
//               the zeroth order, rank correlation and |loss - retrained| against the guess "as the reference order"
//   storage     the same problem at 2,000 features (T = 16): fp16, bf16, sketches of ratio 2, 8, 32; decode error,
//   bytes time        tanh network (64-HIDDEN-10, batches of 64): one estimate beside one training, 10,000 orders,
//   precompute growth      the same over T and over n uses        curriculum search and memorisation matrix on the
//   small network, retrained for real
// Medians over repetitions where times are given. Every number but the times repeats bit for bit.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "optim/order/builtin_models.h"
#include "optim/order/matrix.h"
#include "optim/order/orders.h"
#include "optim/order/search.h"
#include "optim/order/study.h"

namespace {

using namespace optod;
using namespace optod::order;

// ---- output: one row a measurement, aligned text or a JSON array

class Table {
 public:
  explicit Table(bool json) : json_(json) {
    if (json_) std::printf("[");
  }
  ~Table() {
    if (json_) std::printf("\n]\n");
  }
  using Field = std::pair<const char*, std::string>;
  void Row(const char* table, const std::vector<Field>& fields) {
    if (json_) {
      std::printf("%s\n  {\"table\": \"%s\"", first_ ? "" : ",", table);
      for (const auto& [key, value] : fields)
        std::printf(IsNumber(value) ? ", \"%s\": %s" : ", \"%s\": \"%s\"", key, value.c_str());
      std::printf("}");
    } else {
      std::printf("%-10s", table);
      for (const auto& [key, value] : fields) std::printf("  %s %s", key, value.c_str());
      std::printf("\n");
    }
    first_ = false;
    std::fflush(stdout);
  }

 private:
  static bool IsNumber(const std::string& text) {
    char* end = nullptr;
    std::strtod(text.c_str(), &end);
    return !text.empty() && *end == '\0' && std::isdigit(static_cast<unsigned char>(text.back()));
  }
  const bool json_;
  bool first_ = true;
};

std::string Digits(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.4g", value);
  return buffer;
}

// ---- what every part uses

template <typename T>
T Need(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::fprintf(stderr, "order_bench: %s\n", value.status().ToString().c_str());
  std::exit(1);
}
void Need(const absl::Status& status) { Need(status.ok() ? absl::StatusOr<int>(0) : absl::StatusOr<int>(status)); }

class Directory {
 public:
  Directory() {
    std::string name = (std::filesystem::temp_directory_path() / "order-bench-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) Need(absl::InternalError("no temporary directory"));
    path_ = name;
  }
  ~Directory() { std::filesystem::remove_all(path_); }
  std::string Next() { return path_ + "/" + std::to_string(next_++); }

 private:
  std::string path_;
  int next_ = 0;
};

double Seconds(const std::function<void()>& body) {
  const auto begin = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}
double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}
double MedianSeconds(int repetitions, const std::function<void()>& body) {
  std::vector<double> times;
  for (int i = 0; i < repetitions; ++i) times.push_back(Seconds(body));
  return Median(times);
}

std::vector<Order> RandomOrders(int count, int batches, uint64_t seed) {
  CounterRandom random(seed, 77);
  std::vector<Order> orders;
  for (int i = 0; i < count; ++i) orders.push_back(random.Permutation(batches));
  return orders;
}
double Distance(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum);
}

std::unique_ptr<Study> Fill(Directory& directory, const std::string& options, std::shared_ptr<const Model> model) {
  auto study = Need(Study::Create(PosixFs(), directory.Next(), Need(ParseStudyOptions(options)), std::move(model)));
  Need(study->Precompute());
  return study;
}

/// Retrained once for a problem, compared with by every variant.
struct Truth {
  std::vector<Order> orders;
  std::vector<std::vector<double>> parameters;
  std::vector<double> losses;
  double reference_loss = 0.0;
};
Truth Retrain(const Study& study, int count) {
  Truth truth{RandomOrders(count, study.batches(), 2), {}, {}, 0.0};
  for (const Order& order : truth.orders) {
    truth.parameters.push_back(Need(study.Retrain(order)).parameters);
    truth.losses.push_back(Need(study.Measure({}, truth.parameters.back())));
  }
  truth.reference_loss = Need(study.Measure({}, study.trajectory().Row(study.positions())));
  return truth;
}

std::vector<Table::Field> Score(Study& study, const Truth& truth, const EstimateOptions& options) {
  std::vector<double> error, error0, gap, guess;
  const auto estimate = Need(study.Estimate(truth.orders, options)),
             zeroth = Need(study.Estimate(truth.orders, {.expansion = 0}));
  const auto losses = Need(study.Losses(truth.orders, {}, LossMode::kForward, options));
  for (size_t i = 0; i < truth.orders.size(); ++i) {
    error.push_back(Distance(estimate[i], truth.parameters[i]));
    error0.push_back(Distance(zeroth[i], truth.parameters[i]));
    gap.push_back(std::abs(std::exp(losses[i]) - std::exp(truth.losses[i])));
    guess.push_back(std::abs(std::exp(truth.reference_loss) - std::exp(truth.losses[i])));
  }
  return {{"error/zeroth", Digits(Median(error) / Median(error0))},
          {"spearman", Digits(Need(Compare(losses, truth.losses)).spearman)},
          {"absdiff_ppl", Digits(Median(gap))},
          {"absdiff_guess", Digits(Median(guess))}};
}

// ---- the parts

void Accuracy(Table& table, Directory& directory) {
  for (const int batches : {8, 16}) {
    const auto model =
        Need(MakeLogistic(Need(MakeSynthetic({.batches = batches, .seed = 1})), BuiltinOptions{.seed = 1}));
    for (const char* optimizer : {"adam\nlr=0.05", "sgd\nlr=0.3"}) {
      const std::string base = std::string("optimizer=") + optimizer;
      const Truth truth = Retrain(*Fill(directory, base + "\ncurvature=none", model), 50);
      for (const char* curvature :
           {"none", "hvp", "multisecant", "diag\nprobes=16", "diag\nprobes=16\nsecond_order=true", "secant",
            "secant\nsecond_order=true", "span"}) {
        const auto study = Fill(directory, base + "\ncurvature=" + curvature, model);
        for (const Moments moments : {Moments::kReplay, Moments::kReference}) {
          std::string name = curvature;
          std::replace(name.begin(), name.end(), '\n', ' ');
          std::vector<Table::Field> row = {
              {"T", std::to_string(batches)},
              {"optimizer", std::string(optimizer).substr(0, std::string(optimizer).find('\n'))},
              {"curvature", name},
              {"moments", NameOf(moments)}};
          for (auto& field : Score(*study, truth, {.moments = moments})) row.push_back(field);
          if (std::string(curvature) == "span")
            row.push_back({"coverage", Digits(Need(study->SpanCoverage(truth.orders[0])))});
          table.Row("accuracy", row);
        }
      }
    }
  }
}

void StorageRatios(Table& table, Directory& directory) {
  const auto model =
      Need(MakeLogistic(Need(MakeSynthetic({.features = 2000, .batches = 16, .drift = 0.3, .seed = 1})),
                        BuiltinOptions{.precision = Precision::kFloat32, .initial_scale = 0.01, .seed = 1}));
  const std::string base = "optimizer=sgd\nlr=0.02\ncurvature=diag\nprobes=4\nprobe_runs=0\n";
  const Truth truth = Retrain(*Fill(directory, base, model), 20);
  for (const char* storage : {"exact", "fp16", "bf16", "sketch-sign", "sketch-hadamard"}) {
    const bool sketch = std::string(storage).starts_with("sketch");
    for (const int ratio : sketch ? std::vector<int>{2, 8, 32} : std::vector<int>{1}) {
      for (const bool shrink : sketch ? std::vector<bool>{false, true} : std::vector<bool>{false}) {
        const auto study = Fill(directory,
                                base + "storage=" + storage + "\nsketch_ratio=" + std::to_string(ratio) +
                                    "\nsketch_shrink=" + (shrink ? "true" : "false"),
                                model);
        std::vector<Table::Field> row = {{"storage", storage},
                                         {"ratio", std::to_string(ratio)},
                                         {"decode", shrink ? "shrunk" : "unbiased"},
                                         {"bytes", std::to_string(Need(study->PredictCost()).terms_bytes)},
                                         {"decode_error", Digits(Need(study->terms().DecodeErrors())[0])}};
        for (auto& field : Score(*study, truth, {})) {
          if (std::string(field.first) != "error/zeroth") row.push_back(field);
        }
        std::vector<double> error, moved;  // against not moving at all: the reference's parameters
        const auto estimate = Need(study->Estimate(truth.orders));
        const auto reference = study->trajectory().Row(study->positions());
        for (size_t i = 0; i < truth.orders.size(); ++i) {
          error.push_back(Distance(estimate[i], truth.parameters[i]));
          moved.push_back(Distance(reference, truth.parameters[i]));
        }
        row.push_back({"error/guess", Digits(Median(error) / Median(moved))});
        table.Row("storage", row);
      }
    }
  }
}

std::shared_ptr<const Model> Network(int batches, int hidden) {
  auto data = Need(MakeSynthetic(
      {.features = 64, .classes = 10, .batches = batches, .rows = 64, .evaluation_rows = 64, .drift = 0.3, .seed = 1}));
  return Need(MakeTanhMlp(std::move(data), hidden, {.precision = Precision::kFloat32, .seed = 1}));
}

/// Everything on one thread, so that the ratio is of work.
void Time(Table& table, Directory& directory, const char* name, int batches, int hidden, const char* curvature,
          int many) {
  const auto model = Network(batches, hidden);
  auto study = Need(Study::Create(
      PosixFs(), directory.Next(),
      Need(ParseStudyOptions(
          std::string("optimizer=adam\nlr=0.003\nthreads=1\nprobes=1\nsegment_bytes=67108864\ncurvature=") + curvature +
          (std::strcmp(curvature, "multisecant") == 0 ? "" : "\nprobe_runs=0"))),
      model));
  Need(study->Record());
  const double precompute = Seconds([&] { Need(study->Precompute()); });
  const auto orders = RandomOrders(std::max(many, 20), batches, 3);
  const double first = Seconds([&] { Need(study->Estimate(std::span(orders).first(1))); });  // terms come from disk
  const double training = MedianSeconds(5, [&] { Need(study->Retrain(orders[0])); });
  const double single = MedianSeconds(9, [&] { Need(study->Estimate(std::span(orders).first(1))); });
  const double loss = MedianSeconds(5, [&] { Need(study->Losses(std::span(orders).first(1), {})); });
  std::vector<Table::Field> row = {
      {"T", std::to_string(batches)},
      {"n", std::to_string(study->parameters())},
      {"curvature", curvature},
      {"precompute_s", Digits(precompute)},
      {"train_ms", Digits(1e3 * training)},
      {"estimate_ms", Digits(1e3 * single)},
      {"first_ms", Digits(1e3 * first)},
      {"with_loss_ms", Digits(1e3 * loss)},
      {"train/estimate", Digits(training / single)},
      {"terms_MB", Digits(static_cast<double>(Need(study->PredictCost()).terms_bytes) / 1e6)},
      {"trainings_worth", Digits(precompute / training)}};
  if (many > 0) {
    const double all = Seconds([&] { Need(study->Losses(std::span(orders).first(many), {}, LossMode::kLinear)); });
    row.push_back({"orders", std::to_string(many)});
    row.push_back({"orders_s", Digits(all)});
    row.push_back({"ms/order", Digits(1e3 * all / many)});
    row.push_back({"train/batched", Digits(training * many / all)});
  }
  table.Row(name, row);
}

void Uses(Table& table, Directory& directory) {
  const int batches = 8;
  const auto model = Need(MakeTanhMlp(Need(MakeSynthetic({.features = 6,
                                                          .classes = 3,
                                                          .batches = batches,
                                                          .rows = 12,
                                                          .evaluation_rows = 128,
                                                          .drift = 0.7,
                                                          .ragged = true,
                                                          .seed = 3})),
                                      8, {.initial_scale = 0.3, .seed = 3}));
  for (const char* curvature : {"hvp", "diag\nprobes=16", "span"}) {
    const auto study = Fill(directory, std::string("optimizer=adam\nlr=0.03\ncurvature=") + curvature, model);
    std::string name = curvature;
    name = name.substr(0, name.find('\n'));
    const auto orders = RandomOrders(20, batches, 9);
    const Metric perplexity{.perplexity = true};
    const auto random = Need(study->RetrainedLosses(orders, std::vector<Metric>(orders.size(), perplexity)));
    std::vector<Table::Field> row = {{"curvature", name},
                                     {"random_median", Digits(Median(random))},
                                     {"random_best", Digits(*std::min_element(random.begin(), random.end()))}};
    for (const auto& [label, method] :
         {std::pair{"genetic", SearchMethod::kGenetic}, std::pair{"local", SearchMethod::kLocal}}) {
      const auto found = Need(SearchOrder(
          *study, PosixFs(), {.method = method, .population = 16, .generations = 10, .seed = 1, .metric = perplexity}));
      row.push_back({label, Digits(*found.retrained)});
    }
    for (const auto& [label, kind] :
         {std::pair{"short_to_long", Curriculum::kShortToLong}, std::pair{"easy_to_hard", Curriculum::kEasyToHard},
          std::pair{"hard_to_easy", Curriculum::kHardToEasy}}) {
      row.push_back({label, Digits(Need(study->Measure(
                                perplexity, Need(study->Retrain(Need(CurriculumOrder(*study, kind)))).parameters)))});
    }
    table.Row("curriculum", row);
    for (const bool memorisation : {true, false}) {
      const MatrixOptions options{.memorisation = memorisation, .metric = perplexity};
      const auto agreement =
          Need(Compare(Need(EstimateMatrix(*study, options)).values, Need(RetrainMatrix(*study, options))));
      table.Row("matrix", {{"curvature", name},
                           {"what", memorisation ? "memorisation" : "generalisation"},
                           {"T", std::to_string(batches)},
                           {"pearson", Digits(agreement.pearson)},
                           {"l1", Digits(agreement.l1)},
                           {"mse", Digits(agreement.mse)}});
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  bool json = false, quick = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--json") == 0)
      json = true;
    else if (std::strcmp(argv[i], "--quick") == 0)
      quick = true;
    else
      return std::fprintf(stderr, "usage: order_bench [--json] [--quick]\n"), 2;
  }
  Table table(json);
  Directory directory;
  Accuracy(table, directory);
  StorageRatios(table, directory);
  Uses(table, directory);
  for (const char* curvature : {"none", "diag", "secant", "multisecant", "span", "hvp"}) {
    const bool batched = std::strcmp(curvature, "span") != 0 && std::strcmp(curvature, "hvp") != 0;
    Time(table, directory, "time", 16, 128, curvature, batched ? (quick ? 500 : 10000) : 0);
  }
  for (const int batches : {4, 8, 16, 32}) Time(table, directory, "growth_T", batches, 64, "diag", 100);
  for (const int hidden : {16, 32, 64, 128, 256}) Time(table, directory, "growth_n", 16, hidden, "diag", 100);
  return 0;
}

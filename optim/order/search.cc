#include "optim/order/search.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <numeric>
#include <sstream>

#include "base/crc32c.h"
#include "base/status.h"
#include "optim/order/orders.h"

namespace optod::order {
namespace {

struct Individual {
  Order order;
  double loss = 0.0;
};

/// Where a search stands between two generations: all that it needs to go on.
struct State {
  int generation = 0;
  bool finished = false;
  std::vector<Individual> population;  // sorted, best first
  SearchResult result;
};

absl::Status Check(const SearchOptions& o, int batches) {
  if (o.population < 2) return InvalidArgument("population: ", o.population, "; must be >= 2");
  if (o.generations < 1) return InvalidArgument("generations: ", o.generations, "; must be >= 1");
  if (o.tournament < 1 || o.tournament > o.population) {
    return InvalidArgument("tournament: ", o.tournament, "; must be in 1..", o.population);
  }
  if (!(o.crossover >= 0.0 && o.crossover <= 1.0))
    return InvalidArgument("crossover: ", o.crossover, "; must be in [0, 1]");
  if (!(o.mutation >= 0.0 && o.mutation <= 1.0))
    return InvalidArgument("mutation: ", o.mutation, "; must be in [0, 1]");
  if (o.elitism < 0 || o.elitism >= o.population) {
    return InvalidArgument("elitism: ", o.elitism, "; must be in 0..", o.population - 1);
  }
  for (size_t i = 0; i < o.start.size(); ++i) {
    if (auto status = Expand(o.start[i], batches, 1, Cat("start[", i, "]").c_str()).status(); !status.ok())
      return status;
  }
  return absl::OkStatus();
}

/// Order crossover: a slice of one parent stays in place, the rest follows in the other's order from behind the slice.
Order Cross(const Order& a, const Order& b, CounterRandom& random) {
  const int size = static_cast<int>(a.size());
  int first = random.Below(size), last = random.Below(size);
  if (first > last) std::swap(first, last);
  std::vector<bool> taken(size, false);
  Order child(size, -1);
  for (int i = first; i <= last; ++i) taken[child[i] = a[i]] = true;
  int at = (last + 1) % size;
  for (int k = 0; k < size; ++k) {
    const int batch = b[(last + 1 + k) % size];
    if (taken[batch]) continue;
    child[at] = batch;
    at = (at + 1) % size;
  }
  return child;
}

class Search {
 public:
  Search(Study& study, Fs& fs, const SearchOptions& options, const Control& control)
      : study_(study), fs_(fs), o_(options), control_(control) {}

  absl::StatusOr<SearchResult> Run() {
    RETURN_IF_ERROR(Check(o_, study_.batches()));
    ASSIGN_OR_RETURN(const bool resumed, Load());
    if (!resumed) RETURN_IF_ERROR(Begin());
    const auto begin = std::chrono::steady_clock::now();
    while (!state_.finished) {
      if (control_.stop.stop_requested()) return absl::CancelledError("stopped on request");
      RETURN_IF_ERROR(o_.method == SearchMethod::kGenetic ? Generation() : Round());
      if (state_.generation >= o_.generations) state_.finished = true;
      RETURN_IF_ERROR(Save());
      if (control_.progress) {
        control_.progress(state_.generation, o_.generations,
                          std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
      }
    }
    SearchResult result = state_.result;
    result.order = state_.population[0].order;
    result.estimated = state_.population[0].loss;
    if (!o_.retrain_best) return result;
    ASSIGN_OR_RETURN(const auto run, study_.Retrain(result.order, {{}, control_.stop}));
    ASSIGN_OR_RETURN(result.retrained, study_.Measure(o_.metric, run.parameters));
    return result;
  }

 private:
  absl::Status Evaluate(std::span<Individual> individuals) {
    std::vector<Order> orders;
    for (const Individual& individual : individuals) orders.push_back(individual.order);
    ASSIGN_OR_RETURN(const auto losses, study_.Losses(orders, o_.metric, o_.mode, o_.estimate, {{}, control_.stop}));
    for (size_t i = 0; i < losses.size(); ++i) individuals[i].loss = losses[i];
    state_.result.evaluations += static_cast<int64_t>(losses.size());
    return absl::OkStatus();
  }

  /// Stable, NaN last: a diverged estimate never wins.
  void Sort() {
    std::stable_sort(state_.population.begin(), state_.population.end(), [](const Individual& a, const Individual& b) {
      return a.loss < b.loss || (a.loss == a.loss && b.loss != b.loss);
    });
  }
  void Note() {
    double sum = 0.0;
    for (const Individual& individual : state_.population) sum += individual.loss;
    state_.result.best.push_back(state_.population[0].loss);
    state_.result.mean.push_back(sum / static_cast<double>(state_.population.size()));
  }

  absl::Status Begin() {
    CounterRandom random(o_.seed, 0);
    for (const Order& order : o_.start) {
      if (static_cast<int>(state_.population.size()) < o_.population) state_.population.push_back({order});
    }
    while (static_cast<int>(state_.population.size()) < o_.population) {
      state_.population.push_back({random.Permutation(study_.batches())});
    }
    RETURN_IF_ERROR(Evaluate(state_.population));
    Sort();
    if (o_.method == SearchMethod::kLocal) state_.population.resize(1);
    Note();
    return Save();
  }

  absl::Status Generation() {
    CounterRandom random(o_.seed, static_cast<uint32_t>(++state_.generation));
    std::vector<Individual> next(state_.population.begin(), state_.population.begin() + o_.elitism);
    while (static_cast<int>(next.size()) < o_.population) next.push_back({Child(random)});
    RETURN_IF_ERROR(Evaluate(std::span(next).subspan(o_.elitism)));
    state_.population = std::move(next);
    Sort();
    Note();
    return absl::OkStatus();
  }

  Order Child(CounterRandom& random) {
    const Order& first = Tournament(random);
    const Order& second = Tournament(random);
    Order child = random.Uniform() < o_.crossover ? Cross(first, second, random) : first;
    if (random.Uniform() < o_.mutation) {
      const int a = random.Below(study_.batches()), b = random.Below(study_.batches());
      std::swap(child[a], child[b]);
    }
    return child;
  }

  const Order& Tournament(CounterRandom& random) {
    int best = o_.population;
    for (int i = 0; i < o_.tournament; ++i)
      best = std::min(best, random.Below(o_.population));  // sorted: lower is better
    return state_.population[best].order;
  }

  /// The best swap of two batches, when one is better.
  absl::Status Round() {
    constexpr size_t kMostSwaps = 256;
    CounterRandom random(o_.seed, static_cast<uint32_t>(++state_.generation));
    std::vector<std::pair<int, int>> swaps;
    for (int a = 0; a < study_.batches(); ++a) {
      for (int b = a + 1; b < study_.batches(); ++b) swaps.emplace_back(a, b);
    }
    for (size_t i = 0; i < std::min(kMostSwaps, swaps.size()) && swaps.size() > kMostSwaps; ++i) {
      std::swap(swaps[i], swaps[i + random.Below(static_cast<int>(swaps.size() - i))]);
    }
    swaps.resize(std::min(kMostSwaps, swaps.size()));
    std::vector<Individual> near;
    for (const auto& [a, b] : swaps) {
      near.push_back({state_.population[0].order});
      std::swap(near.back().order[a], near.back().order[b]);
    }
    RETURN_IF_ERROR(Evaluate(near));
    near.push_back(state_.population[0]);
    const double before = state_.population[0].loss;
    state_.population = std::move(near);
    Sort();
    state_.population.resize(1);
    Note();
    state_.finished = !(state_.population[0].loss < before);
    return absl::OkStatus();
  }

  // ---- the state file: text, a line an item, numbers in 17 digits, a CRC-32C at the end

  static std::string Number(double value) {
    char buffer[40];
    return {buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr};
  }

  /// What must agree for a state to be gone on from.
  std::string Identity() const {
    std::string text = Cat("optod-order-search 1 method=", static_cast<int>(o_.method), " batches=", study_.batches(),
                           " population=", o_.population, " tournament=", o_.tournament, " crossover=", o_.crossover,
                           " mutation=", o_.mutation, " elitism=", o_.elitism, " seed=", o_.seed,
                           " mode=", static_cast<int>(o_.mode), " moments=", NameOf(o_.estimate.moments),
                           " expansion=", o_.estimate.expansion, " perplexity=", o_.metric.perplexity,
                           " reference=", study_.recorded() ? study_.trajectory().Checksum() : 0, " data=");
    for (const DataRef& data : o_.metric.data) text += Cat(static_cast<int>(data.part), ":", data.index, ",");
    return text;
  }

  absl::Status Save() const {
    if (o_.state_file.empty()) return absl::OkStatus();
    std::string text = Cat(Identity(), "\n", state_.generation, " ", state_.finished, " ", state_.result.evaluations,
                           " ", state_.population.size(), " ", state_.result.best.size(), "\n");
    for (const Individual& individual : state_.population) {
      text += Number(individual.loss);
      for (const int batch : individual.order) text += Cat(" ", batch);
      text += "\n";
    }
    for (size_t i = 0; i < state_.result.best.size(); ++i) {
      text += Cat(Number(state_.result.best[i]), " ", Number(state_.result.mean[i]), "\n");
    }
    text += Cat("checksum ", Crc32c(text), "\n");
    return fs_.WriteFileAtomic(o_.state_file, BytesOf(text));
  }

  static double ReadDouble(std::istringstream& in) {
    std::string word;
    in >> word;
    double value = 0.0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (error != std::errc() || end != word.data() + word.size()) in.setstate(std::ios::failbit);
    return value;
  }

  absl::StatusOr<bool> Load() {
    if (o_.state_file.empty() || !fs_.Exists(o_.state_file)) return false;
    ASSIGN_OR_RETURN(const std::string text, fs_.ReadFile(o_.state_file));
    const size_t mark = text.rfind("checksum ");
    if (mark == std::string::npos || text.substr(mark) != Cat("checksum ", Crc32c(text.substr(0, mark)), "\n")) {
      return DataLoss("state_file: the checksum does not match; remove it to search anew");
    }
    std::istringstream in(text);
    std::string identity;
    std::getline(in, identity);
    if (identity != Identity())
      return InvalidArgument("state_file: it is of another search; remove it or name another");
    size_t individuals = 0, generations = 0;
    in >> state_.generation >> state_.finished >> state_.result.evaluations >> individuals >> generations;
    for (size_t i = 0; in && i < individuals; ++i) {
      Individual& individual = state_.population.emplace_back();
      individual.loss = ReadDouble(in);
      individual.order.resize(study_.batches());
      for (int& batch : individual.order) in >> batch;
    }
    for (size_t i = 0; in && i < generations; ++i) {
      state_.result.best.push_back(ReadDouble(in));
      state_.result.mean.push_back(ReadDouble(in));
    }
    if (!in || state_.population.empty()) return DataLoss("state_file: it cannot be read");
    state_.finished = state_.generation >= o_.generations || (o_.method == SearchMethod::kLocal && state_.finished);
    return true;
  }

  Study& study_;
  Fs& fs_;
  const SearchOptions& o_;
  const Control& control_;
  State state_;
};

}  // namespace

absl::StatusOr<SearchResult> SearchOrder(Study& study, Fs& fs, const SearchOptions& options, const Control& control) {
  return Search(study, fs, options, control).Run();
}

absl::StatusOr<Order> CurriculumOrder(const Study& study, Curriculum curriculum) {
  if (curriculum == Curriculum::kReference) return study.base_order();
  if (study.model() == nullptr) return FailedPrecondition("model: missing; this order needs it");
  if (curriculum != Curriculum::kShortToLong && !study.recorded()) {
    return FailedPrecondition("study: the reference run is not recorded yet");
  }
  std::vector<double> key(study.batches());
  for (int l = 0; l < study.batches(); ++l) {
    if (curriculum == Curriculum::kShortToLong) {
      key[l] = study.model()->length(l);
      continue;
    }
    ASSIGN_OR_RETURN(key[l], study.model()->Loss(Batch(l), study.trajectory().Row(study.positions())));
    if (curriculum == Curriculum::kHardToEasy) key[l] = -key[l];
  }
  Order order = study.base_order();
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return key[a] < key[b]; });
  return order;
}

}  // namespace optod::order

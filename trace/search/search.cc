#include "trace/search/search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "base/status.h"

namespace optod::trace {
namespace {

constexpr uint32_t kMostFruitless = 3;

// SplitMix64 (Steele et al., 2014) by counters.
uint64_t Draw(uint64_t seed, uint64_t a, uint64_t b) {
  uint64_t z = seed * 0xD1342543DE82EF95ull + a * 0x9E3779B97F4A7C15ull + (b + 1) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

}  // namespace

absl::Status CheckSearchOptions(const SearchOptions& o) {
  if (o.tasks == 0 || o.tasks > 1'000'000) return InvalidArgument("tasks: ", o.tasks, " is outside [1, 1000000]");
  if (o.validation_tasks > 1'000'000)
    return InvalidArgument("validation_tasks: ", o.validation_tasks, " is above 1000000");
  if (o.batch == 0 || o.batch > o.tasks)
    return InvalidArgument("batch: ", o.batch, " is outside [1, tasks = ", o.tasks, "]");
  if (o.candidates == 0 || o.candidates > 64)
    return InvalidArgument("candidates: ", o.candidates, " is outside [1, 64]");
  if (o.proposals == 0 || o.proposals > 64) return InvalidArgument("proposals: ", o.proposals, " is outside [1, 64]");
  if (o.memory < o.candidates || o.memory > 10'000)
    return InvalidArgument("memory: ", o.memory, " is outside [candidates = ", o.candidates, ", 10000]");
  if (o.max_steps == 0 || o.max_steps > 100'000)
    return InvalidArgument("max_steps: ", o.max_steps, " is outside [1, 100000]");
  if (!std::isfinite(o.exploration) || o.exploration < 0)
    return InvalidArgument("exploration: must be finite and >= 0");
  if (!std::isfinite(o.min_score) || !std::isfinite(o.max_score) || o.min_score >= o.max_score)
    return InvalidArgument("min_score: must be finite and below max_score");
  if (o.target && !std::isfinite(*o.target)) return InvalidArgument("target: must be finite");
  return absl::OkStatus();
}

std::optional<double> SearchCandidate::Mean() const {
  if (scores.empty()) return std::nullopt;
  double sum = 0;
  for (const auto& [task, score] : scores) sum += score;
  return sum / static_cast<double>(scores.size());
}

Search::Search(SearchOptions options, int64_t start_version) : options_(options) {
  candidates_.push_back({.version = start_version});
  const bool compare_first = options_.validation_tasks > 0 || options_.algorithm == SearchAlgorithm::kBeam ||
                             options_.algorithm == SearchAlgorithm::kPriority ||
                             options_.algorithm == SearchAlgorithm::kPareto;
  if (compare_first) Want(0, CompareTasks());
  Advance();
}

// ---- what is asked for

std::vector<uint32_t> Search::BatchOf(uint32_t step) const {
  std::vector<uint32_t> out;
  // One permutation an epoch, cut into batches; a batch may end in the next epoch. A task stands in a batch once.
  std::set<uint32_t> in;
  for (uint64_t at = uint64_t{step} * options_.batch; out.size() < options_.batch; ++at) {
    const uint64_t epoch = at / options_.tasks;
    std::vector<uint32_t> order(options_.tasks);
    std::iota(order.begin(), order.end(), 0);
    for (size_t i = order.size(); i-- > 1;) std::swap(order[i], order[Draw(options_.seed, epoch, i) % (i + 1)]);
    for (uint64_t k = at % options_.tasks; k < options_.tasks && out.size() < options_.batch; ++k, ++at) {
      if (in.insert(order[k]).second) out.push_back(order[k]);
    }
    --at;
  }
  return out;
}

std::vector<uint32_t> Search::CompareTasks() const {
  std::vector<uint32_t> out;
  if (options_.validation_tasks > 0) {
    out.resize(options_.validation_tasks);
    std::iota(out.begin(), out.end(), options_.tasks);
  } else if (options_.algorithm == SearchAlgorithm::kMinibatch || options_.algorithm == SearchAlgorithm::kUcb) {
    out = batch_;
  } else {
    out.resize(options_.tasks);
    std::iota(out.begin(), out.end(), 0);
  }
  return out;
}

void Search::Want(size_t candidate, const std::vector<uint32_t>& tasks) {
  for (uint32_t task : tasks) {
    if (!candidates_[candidate].scores.contains(task) && open_.emplace(candidate, task).second)
      wanted_.push_back({candidate, task});
  }
}

std::vector<Search::Evaluation> Search::Evaluations() const {
  std::vector<Evaluation> out;
  if (state_ != State::kEvaluating) return out;
  for (const Evaluation& e : wanted_) {
    if (!candidates_[e.candidate].scores.contains(e.task)) out.push_back(e);
  }
  return out;
}

std::vector<Search::Proposal> Search::Proposals() const {
  std::vector<Proposal> out;
  if (state_ != State::kProposing) return out;
  for (uint32_t slot = 0; slot < selected_.size(); ++slot) {
    if (!slot_done_[slot]) out.push_back({slot, selected_[slot], batch_, options_.proposals});
  }
  return out;
}

// ---- events

bool Search::Evaluated(size_t candidate, uint32_t task, double score) {
  if (state_ == State::kDone || open_.erase({candidate, task}) == 0) return false;
  candidates_[candidate].scores[task] = score;
  ++evaluations_;
  if (state_ == State::kEvaluating && AllTold()) Advance();
  if (state_ != State::kDone && options_.max_evaluations > 0 && evaluations_ >= options_.max_evaluations) {
    UpdateBest();
    Stop("max_evaluations");
  }
  return true;
}

bool Search::Proposed(uint32_t slot, const std::vector<int64_t>& versions) {
  if (state_ != State::kProposing || slot >= selected_.size() || slot_done_[slot]) return false;
  slot_done_[slot] = true;
  for (int64_t version : versions) {
    children_.push_back(candidates_.size());
    candidates_.push_back({.version = version, .parent = selected_[slot], .step = step_ + 1});
  }
  if (std::all_of(slot_done_.begin(), slot_done_.end(), [](bool done) { return done; })) Advance();
  return true;
}

void Search::Stop(const std::string& reason) {
  if (state_ == State::kDone) return;
  state_ = State::kDone;
  reason_ = reason;
}

// ---- the loop

// Called when everything wanted in a phase is there; goes on until something is wanted.
void Search::Advance() {
  while (state_ != State::kDone) {
    state_ = State::kEvaluating;
    if (!AllTold()) return;
    wanted_.clear();
    switch (phase_) {
      case Phase::kStart:
        UpdateBest();
        BeginStep();
        break;
      case Phase::kBatch:
        UpdateBest();
        phase_ = Phase::kPropose;
        slot_done_.assign(selected_.size(), false);
        children_.clear();
        state_ = State::kProposing;
        return;
      case Phase::kPropose:
        if (std::find(slot_done_.begin(), slot_done_.end(), false) != slot_done_.end()) {
          state_ = State::kProposing;
          return;
        }
        phase_ = Phase::kCheck;
        if (options_.algorithm == SearchAlgorithm::kPareto || options_.ensure_improvement) {
          for (size_t child : children_) Want(child, batch_);
        }
        break;
      case Phase::kCheck:
        Accept();
        phase_ = Phase::kCompare;
        // A minibatch line without a check goes on as it is: its next batch evaluates it.
        if (options_.algorithm != SearchAlgorithm::kMinibatch || options_.validation_tasks > 0) {
          for (size_t child : children_) Want(child, CompareTasks());
        }
        break;
      case Phase::kCompare:
        EndStep();
        break;
    }
  }
}

void Search::BeginStep() {
  if (options_.target && best_ && best_score()) {
    const double reached = *best_score();
    if (options_.maximize ? reached >= *options_.target : reached <= *options_.target) return Stop("target");
  }
  if (step_ >= options_.max_steps) return Stop("max_steps");
  if (fruitless_ >= kMostFruitless) return Stop(Cat("no proposal was usable in ", kMostFruitless, " steps"));
  batch_ = BatchOf(step_);
  Select();
  if (selected_.empty()) return Stop("no candidate is left");
  phase_ = Phase::kBatch;
  for (size_t candidate : selected_) Want(candidate, batch_);
}

// Children that did not beat their parent on the batch are dropped where that is asked for.
void Search::Accept() {
  if (options_.algorithm != SearchAlgorithm::kPareto && !options_.ensure_improvement) return;
  std::erase_if(children_, [&](size_t child) {
    const auto mine = MeanOver(child, batch_), parents = MeanOver(*candidates_[child].parent, batch_);
    const bool better = mine && parents && (options_.maximize ? *mine > *parents : *mine < *parents);
    if (!better) candidates_[child].alive = false;
    return !better;
  });
}

void Search::EndStep() {
  fruitless_ =
      std::any_of(candidates_.begin(), candidates_.end(), [&](const SearchCandidate& c) { return c.step == step_ + 1; })
          ? 0
          : fruitless_ + 1;
  ++step_;
  if (options_.algorithm == SearchAlgorithm::kMinibatch && !children_.empty()) {
    // Of several proposals the best on what they were compared on; without any comparison the first.
    size_t next = children_.front();
    for (size_t child : children_) {
      const auto a = candidates_[child].Mean(), b = candidates_[next].Mean();
      if (a && (!b || (options_.maximize ? *a > *b : *a < *b))) next = child;
    }
    for (SearchCandidate& c : candidates_) c.alive = false;
    candidates_[next].alive = true;
    current_ = next;
  }
  Prune();
  UpdateBest();
  BeginStep();
}

// ---- choosing

std::vector<size_t> Search::Alive() const {
  std::vector<size_t> out;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    if (candidates_[i].alive) out.push_back(i);
  }
  return out;
}

std::optional<double> Search::MeanOver(size_t candidate, const std::vector<uint32_t>& tasks) const {
  double sum = 0;
  for (uint32_t task : tasks) {
    auto it = candidates_[candidate].scores.find(task);
    if (it == candidates_[candidate].scores.end()) return std::nullopt;
    sum += it->second;
  }
  return tasks.empty() ? std::nullopt : std::optional<double>(sum / static_cast<double>(tasks.size()));
}

// Larger is better, whatever the direction of scores.
double Search::PriorityOf(size_t candidate, SearchPriority by) const {
  const SearchCandidate& c = candidates_[candidate];
  const auto mean = c.Mean();
  if (!mean)
    return by == SearchPriority::kUpper ? std::numeric_limits<double>::infinity()
                                        : -std::numeric_limits<double>::infinity();
  const double m = options_.maximize ? *mean : -*mean;
  if (by == SearchPriority::kMean) return m;
  const double low = options_.maximize ? options_.min_score : -options_.max_score,
               high = options_.maximize ? options_.max_score : -options_.min_score;
  const double width =
      options_.exploration *
      std::sqrt(std::log(static_cast<double>(evaluations_) + 1) / static_cast<double>(c.scores.size())) * (high - low);
  return by == SearchPriority::kUpper ? std::min(m + width, std::max(high, m)) : std::max(m - width, std::min(low, m));
}

void Search::Select() {
  selected_.clear();
  if (options_.algorithm == SearchAlgorithm::kMinibatch) {
    selected_ = {current_};
    return;
  }
  if (options_.algorithm == SearchAlgorithm::kPareto) return DrawFromFront();
  const SearchPriority by = options_.algorithm == SearchAlgorithm::kUcb    ? SearchPriority::kUpper
                            : options_.algorithm == SearchAlgorithm::kBeam ? SearchPriority::kMean
                                                                           : options_.priority;
  selected_ = Alive();
  // Of equals the one with fewer evaluations (unclipped bounds would say so), then the earlier.
  std::stable_sort(selected_.begin(), selected_.end(), [&](size_t a, size_t b) {
    const double pa = PriorityOf(a, by), pb = PriorityOf(b, by);
    if (pa != pb) return pa > pb;
    return by == SearchPriority::kUpper && candidates_[a].scores.size() < candidates_[b].scores.size();
  });
  const size_t most = options_.algorithm == SearchAlgorithm::kUcb ? 1 : options_.candidates;
  if (selected_.size() > most) selected_.resize(most);
}

// GEPA: fronts by task; a version is dominated when on each of its fronts another one that stays stands too; the rest
// is drawn by number of fronts.
void Search::DrawFromFront() {
  const std::vector<uint32_t> tasks = CompareTasks();
  std::vector<size_t> pool = Alive();
  std::erase_if(pool, [&](size_t c) { return !MeanOver(c, tasks); });
  std::map<size_t, std::vector<size_t>> fronts_of;  // candidate -> its fronts
  std::vector<std::set<size_t>> fronts(tasks.size());
  for (size_t f = 0; f < tasks.size(); ++f) {
    std::optional<double> best;
    for (size_t c : pool) {
      const double s = candidates_[c].scores.at(tasks[f]) * (options_.maximize ? 1 : -1);
      if (!best || s > *best) best = s, fronts[f].clear();
      if (s == *best) fronts[f].insert(c);
    }
    for (size_t c : fronts[f]) fronts_of[c].push_back(f);
  }
  std::stable_sort(pool.begin(), pool.end(), [&](size_t a, size_t b) {
    return PriorityOf(a, SearchPriority::kMean) < PriorityOf(b, SearchPriority::kMean);
  });
  for (size_t c : pool) {
    auto mine = fronts_of.find(c);
    if (mine == fronts_of.end()) continue;
    const bool dominated =
        std::all_of(mine->second.begin(), mine->second.end(), [&](size_t f) { return fronts[f].size() > 1; });
    if (!dominated) continue;
    for (size_t f : mine->second) fronts[f].erase(c);
    fronts_of.erase(mine);
  }
  for (uint32_t i = 0; i < options_.candidates && !fronts_of.empty(); ++i) {
    uint64_t total = 0;
    for (const auto& [c, mine] : fronts_of) total += mine.size();
    uint64_t ticket = Draw(options_.seed ^ 0x5bf03635, step_, i) % total;
    for (auto it = fronts_of.begin(); it != fronts_of.end(); ++it) {
      if (ticket < it->second.size()) {
        selected_.push_back(it->first);
        fronts_of.erase(it);
        break;
      }
      ticket -= it->second.size();
    }
  }
}

void Search::Prune() {
  const size_t most = options_.algorithm == SearchAlgorithm::kBeam ? options_.candidates : options_.memory;
  std::vector<size_t> alive = Alive();
  if (alive.size() <= most) return;
  std::stable_sort(alive.begin(), alive.end(), [&](size_t a, size_t b) {
    return PriorityOf(a, SearchPriority::kMean) > PriorityOf(b, SearchPriority::kMean);
  });
  for (size_t i = most; i < alive.size(); ++i) candidates_[alive[i]].alive = false;
}

void Search::UpdateBest() {
  const bool line = options_.algorithm == SearchAlgorithm::kMinibatch && options_.ensure_improvement;
  if (line) {
    best_ = current_;
    return;
  }
  const bool by_batch = options_.validation_tasks == 0 && (options_.algorithm == SearchAlgorithm::kMinibatch ||
                                                           options_.algorithm == SearchAlgorithm::kUcb);
  std::optional<double> best;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    auto mean = by_batch ? candidates_[i].Mean() : MeanOver(i, CompareTasks());
    if (!mean) continue;
    if (!options_.maximize) *mean = -*mean;
    if (!best || *mean > *best) best = mean, best_ = i;
  }
}

std::optional<double> Search::best_score() const {
  if (!best_) return std::nullopt;
  const bool by_batch = options_.validation_tasks == 0 && (options_.algorithm == SearchAlgorithm::kMinibatch ||
                                                           options_.algorithm == SearchAlgorithm::kUcb);
  return by_batch ? candidates_[*best_].Mean() : MeanOver(*best_, CompareTasks());
}

}  // namespace optod::trace

#pragma once
/// Search over versions as a state machine: it says which version to evaluate on which task and which version the model
/// should improve, and is told what came of it. The same events in the same order give the same state, so a search is
/// rebuilt from its journal; it knows no model, clock or store.
///
///   step:  select ──► evaluate the selected on a batch ──► propose ──► [check children on the batch] ──► compare ──►
///   keep the best
///
/// Algorithms: minibatch with optional improvement check, beam, UCB, priority and a Pareto front over tasks (Agrawal et
/// al., "GEPA", 2025), after the trainer layer of OpenTrace 0.2. One evaluation of a version on a task counts once. Not
/// thread-safe.

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace optod::trace {

enum class SearchAlgorithm { kMinibatch, kBeam, kUcb, kPriority, kPareto };
enum class SearchPriority { kMean, kUpper, kLower };

struct SearchOptions {
  SearchAlgorithm algorithm = SearchAlgorithm::kMinibatch;
  uint32_t tasks = 1;             ///< training tasks 0 .. tasks-1
  uint32_t validation_tasks = 0;  ///< tasks .. tasks+validation_tasks-1: versions are compared on them; 0: on the
                                  ///< step's batch (minibatch, UCB) or on all training tasks (beam, priority, Pareto)
  uint32_t batch = 1;       ///< training tasks a step; <= tasks
  uint32_t candidates = 1;  ///< versions expanded a step (beam width)
  uint32_t proposals = 1;   ///< by each
  uint32_t memory = 100;    ///< versions kept for later steps
  bool ensure_improvement = false;
  SearchPriority priority = SearchPriority::kMean;
  double exploration = 1;
  double min_score = 0,
         max_score = 1;  ///< for the confidence: mean +- c sqrt(ln(t + 1) / n) (max - min), clipped to the range
  bool maximize = true;
  uint64_t seed = 0;
  uint32_t max_steps = 10;
  uint64_t max_evaluations = 0;  ///< 0: no limit
  std::optional<double> target{};  ///< of the mean over the tasks that compare
};

/// INVALID_ARGUMENT naming the field.
absl::Status CheckSearchOptions(const SearchOptions& options);

struct SearchCandidate {
  int64_t version = 0;
  std::optional<size_t> parent{};  ///< index of a candidate
  uint32_t step = 0;
  bool alive = true;
  std::map<uint32_t, double> scores{};  ///< by task

  std::optional<double> Mean() const;
};

class Search {
 public:
  enum class State { kEvaluating, kProposing, kDone };
  struct Evaluation {
    size_t candidate;
    uint32_t task;
    bool operator==(const Evaluation&) const = default;
  };
  struct Proposal {
    uint32_t slot;  ///< of this step, 0, 1, ...
    size_t candidate;
    std::vector<uint32_t> batch;  ///< its evaluations to learn from
    uint32_t count;               ///< proposals wanted
  };

  /// `options` must pass CheckSearchOptions.
  Search(SearchOptions options, int64_t start_version);

  State state() const { return state_; }
  const std::string& reason() const { return reason_; }  ///< why it is done
  uint32_t step() const { return step_; }                ///< finished steps
  uint64_t evaluations() const { return evaluations_; }
  const std::vector<SearchCandidate>& candidates() const { return candidates_; }
  const SearchOptions& options() const { return options_; }
  std::optional<size_t> best() const { return best_; }
  /// Of the best: its mean over the tasks that compare, or over all its evaluations.
  std::optional<double> best_score() const;

  /// Evaluations wanted now and not told yet, in order.
  std::vector<Evaluation> Evaluations() const;
  /// Proposals wanted now and not made yet.
  std::vector<Proposal> Proposals() const;

  // ---- events
  /// False: not wanted (told before, or the search is done). `score` finite.
  bool Evaluated(size_t candidate, uint32_t task, double score);
  /// The versions that a slot's proposals made; empty: none was usable. False: no such slot is open.
  bool Proposed(uint32_t slot, const std::vector<int64_t>& versions);
  void Stop(const std::string& reason);

 private:
  enum class Phase { kStart, kBatch, kPropose, kCheck, kCompare };
  void Advance();
  void BeginStep();
  void EndStep();
  void Accept();
  void Select();
  void DrawFromFront();
  void Prune();
  void UpdateBest();
  void Want(size_t candidate, const std::vector<uint32_t>& tasks);
  bool AllTold() const { return open_.empty(); }
  std::vector<uint32_t> BatchOf(uint32_t step) const;
  std::vector<uint32_t> CompareTasks() const;
  std::optional<double> MeanOver(size_t candidate, const std::vector<uint32_t>& tasks) const;
  double PriorityOf(size_t candidate, SearchPriority by) const;
  std::vector<size_t> Alive() const;

  SearchOptions options_;  // scores inside are negated when smaller is better
  State state_ = State::kEvaluating;
  Phase phase_ = Phase::kStart;
  std::string reason_;
  uint32_t step_ = 0;
  uint32_t fruitless_ = 0;  // steps in a row without a new version
  uint64_t evaluations_ = 0;
  std::vector<SearchCandidate> candidates_;
  std::vector<size_t> selected_;  // of this step
  std::vector<uint32_t> batch_;
  std::vector<Evaluation> wanted_;              // of this phase, in order
  std::set<std::pair<size_t, uint32_t>> open_;  // those not told yet
  std::vector<bool> slot_done_;
  std::vector<size_t> children_;  // made in this step
  std::optional<size_t> best_;
  size_t current_ = 0;  // minibatch
};

}  // namespace optod::trace

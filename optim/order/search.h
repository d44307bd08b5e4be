#pragma once
/// Curriculum: which order of the batches ends lowest by estimate. A genetic search over permutations (the paper's
/// use), and a local search by swaps as the simple baseline. Both draw by counter from their seed: the same seed gives
/// the same result on every machine, stopped and resumed or not.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/order/study.h"

namespace optod::order {

enum class SearchMethod { kGenetic, kLocal };

struct SearchOptions {
  SearchMethod method = SearchMethod::kGenetic;
  int population = 32;     // >= 2; local: random orders the start is chosen from
  int generations = 50;    // >= 1; local: rounds, each the best of up to 256 swaps
  int tournament = 3;      // 1 .. population
  double crossover = 0.8;  // order crossover (Davis, 1985), else the first parent is copied; [0, 1]
  double mutation = 0.2;   // one swap of two batches; [0, 1]
  int elitism = 2;         // best individuals kept; 0 .. population - 1
  uint64_t seed = 0;
  std::vector<Order> start = {};  // individuals of the first generation, T numbers each; the rest is random
  Metric metric = {};             // minimised
  LossMode mode = LossMode::kForward;
  EstimateOptions estimate = {};
  bool retrain_best = true;  // one real training of the winner
  std::string state_file = {};    // written after every generation and gone on from when there; empty: none
};

struct SearchResult {
  Order order;  // [T], used in every epoch
  double estimated = 0.0;
  std::optional<double> retrained;
  std::vector<double> best, mean;  // by generation (round)
  int64_t evaluations = 0;         // estimates taken
};

/// Progress in generations. INVALID_ARGUMENT for values out of range and for a state file of another search; CANCELLED
/// leaves the state file.
absl::StatusOr<SearchResult> SearchOrder(Study& study, Fs& fs, const SearchOptions& options,
                                         const Control& control = {});

/// Baselines a found order is compared with. By loss: that of each batch at the end of the reference run.
enum class Curriculum { kReference, kShortToLong, kEasyToHard, kHardToEasy };
absl::StatusOr<Order> CurriculumOrder(const Study& study, Curriculum curriculum);

}  // namespace optod::order

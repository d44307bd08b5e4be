#pragma once
/// A fine-tuning run from its spec to its result: steps, evaluation, checkpoints, resuming. Free of LibTorch types.
///
///   folder/attempt-N/replay.log      zeroth order: every step (replay_log.h)
///   folder/attempt-N/state.safetensors  first order: trainable values and optimizer state of the last checkpoint
///   folder/attempt-N/evaluations.json   scores so far, and the best step
///   folder/attempt-N/best.safetensors   first order: trainable values of the best step
///   folder/attempt-N/result/            what was trained, with save_model; weights with their tokenizer, or an adapter
///
/// An attempt writes only into its own folder and begins where the newest older attempt ended: a stale worker that
/// wakes up late harms nobody. A resumed run gives the same losses and the same bits as one that was never interrupted,
/// and so does a replay of its log; the number of threads must be the same for the losses, not for the replay.

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/train/exchange.h"
#include "optim/train/spec.h"

namespace optod::train {

/// Where a run's memory is; the fields are those of JobMemory in job.proto, in bytes.
struct TrainMemory {
  struct Tensor {
    std::string name;
    int64_t parameters = 0, state = 0, transient = 0;
  };
  std::vector<Tensor> tensors;  ///< empty in a tiered run, whose plan says it (tier::PlanText)
  int64_t parameters = 0, frozen = 0, state = 0, gradients = 0, transient = 0;
  int64_t before = 0, peak = 0;
};

struct TrainHooks {
  /// Step finished (1-based), with figures: loss, lr, seconds_per_step, accuracy/dev, loss/dev, ...
  std::function<void(int64_t step, const std::map<std::string, double>& metrics)> progress = [](int64_t, const auto&) {
  };
  /// After the first step, and whenever the peak has grown since.
  std::function<void(const TrainMemory& memory)> memory = [](const auto&) {};
  std::function<void(const std::string& line)> log = [](const std::string&) {};
  /// What is done up to `step` survives the end of this process.
  std::function<void(int64_t step)> checkpoint = [](int64_t) {};
  /// Parallel runs: the way to the other workers. Every rank has a folder of its own; rank 0 alone evaluates, tells
  /// progress and writes the result.
  ScalarExchange* exchange = nullptr;
  /// The last step whose loss was heard of before this attempt: those after it that are in the log are told again, lest
  /// the end of an attempt (or of its listener) leave a gap.
  int64_t told_step = std::numeric_limits<int64_t>::max();
  std::function<bool()> stop = [] { return false; };  ///< asked between blocks; true ends the run with CANCELLED
};

struct TrainResult {
  int64_t steps = 0, best_step = 0;
  int64_t skipped = 0;                                     ///< steps whose losses were NaN or infinite
  double first_score = 0, best_score = 0, last_score = 0;  ///< dev accuracy, or minus the dev loss for texts
  double test_score = 0;                                   ///< of the best version; 0 without a test set
  double seconds_per_step = 0;                             ///< of this attempt, without evaluations
  int64_t peak_rss_bytes = 0;
  TrainMemory memory;
  std::map<std::string, double> tier;  ///< of a tiered run: what TieredModel::Figures says at the end of the steps
  std::string saved;              ///< below `folder`: attempt-N/result; "" without save_model
  std::string parameters_sha256;  ///< of the trainable values after the last step
};

/// `attempt` >= 1. Errors are the job's reason: what LoadModel, LoadTokenizer, LoadTask and Engine::Create say,
/// RESOURCE_EXHAUSTED (memory, disk), CANCELLED.
absl::StatusOr<TrainResult> RunTraining(const TrainSpec& spec, const std::string& folder, int attempt,
                                        const TrainHooks& hooks);

/// Where rank `rank` of a parallel run keeps its attempts: `folder` itself, or `folder`/rank-1, ...
std::string RankFolder(const std::string& folder, int rank);

/// The result as one JSON object.
std::string ResultJson(const TrainResult& result);

}  // namespace optod::train

#pragma once
/// Fine-tuning with the parameters over memory tiers: the model's files, the pipeline (optim/tier/pipeline.h) and the
/// forward pass put together. The whole model is never in memory: not at loading, not while training, not when it is
/// hashed or saved. Losses and parameters are those of the resident learner, bit for bit. Free of LibTorch types. One
/// thread of control.

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "optim/nn/model_config.h"
#include "optim/tier/pipeline.h"
#include "optim/train/spec.h"
#include "optim/train/task.h"

namespace optod::train {

/// spec.tier as optim/tier takes it.
absl::StatusOr<tier::TierRequest> TierRequestOf(const TierSpec& spec);

/// The plan of a job without running it: reads the model's description. `tokens` > 0: measures the disk, the passes and
/// a matrix product of that many tokens for about a second, and predicts times. RESOURCE_EXHAUSTED with the smallest
/// budget that works.
absl::StatusOr<tier::Plan> PlanOf(const TrainSpec& spec, int64_t tokens);

class TieredModel {
 public:
  /// `name`: of the block file in spec.tier.disk, the same for every attempt of one job. `history`: finished steps; with
  /// none a block file of that name is made anew. `stop` is asked between units; true ends a sweep with CANCELLED. `rank`:
  /// of a parallel run that shares queries, the one that this worker evaluates.
  static absl::StatusOr<std::unique_ptr<TieredModel>> Open(const TrainSpec& spec, const std::string& name,
                                                           std::function<bool()> stop, int rank = 0);
  virtual ~TieredModel() = default;

  virtual const nn::ModelConfig& config() const = 0;
  virtual int64_t parameters() const = 0;  ///< with adapters
  virtual int64_t trainable() const = 0;   ///< of them
  virtual const tier::Plan& plan() const = 0;
  /// What the replay log of a run with these tensors begins with.
  virtual std::string LayoutText() const = 0;

  /// Where Wanda's mask is kept, as MakeLearner's folders; before Start.
  virtual absl::Status SetMaskFolders(const std::string& own, const std::string& before) = 0;
  /// Puts the initial values and the history in place; before the first step. Masks that were drawn from values are drawn
  /// again on the way, from the initial values on. FAILED_PRECONDITION: Wanda's mask is missing.
  virtual absl::Status Start(tier::History history) = 0;
  /// Scalars of a step, as a log has them.
  virtual size_t scalars() const = 0;
  /// What the next step finds on `batch`; nothing is applied. `whole`: all workers' parts of it, for a mask.
  virtual absl::StatusOr<tier::StepLosses> Measure(double lr, std::span<const Example* const> batch,
                                                   std::span<const Example* const> whole, bool classify) = 0;
  /// Ends the step with its own record, or with what several workers agree on.
  virtual void Finish(tier::StepRecord record) = 0;
  /// Log-probabilities of all picks, in the order of Judge, after the finished steps.
  virtual absl::StatusOr<std::vector<double>> Score(std::span<const Example* const> examples) = 0;
  virtual absl::Status Flush() = 0;
  /// Of the trained values in the order of the tensors: what a resident run of the same steps has.
  virtual absl::StatusOr<std::string> Sha256() = 0;
  /// A Hugging Face folder; of adapters a PEFT folder.
  virtual absl::Status Save(const std::string& folder) = 0;
  /// Since the start: tier/read_bytes, tier/written_bytes; tier/compute_seconds, tier/waited_seconds (computing stood
  /// still for a unit), tier/overlap (the former over both); tier/compute_busy, tier/disk_busy (shares of the time; the
  /// larger one limits); tier/plan_bytes.
  virtual std::map<std::string, double> Figures() const = 0;
  /// Removes the block file; the object is of no more use.
  virtual void Discard() = 0;
};

}  // namespace optod::train

#pragma once
/// One step of training, and what survives it. Three kinds: zeroth order, whose replay log is the checkpoint; first
/// order and the hybrid of both, whose checkpoint is a file of values and optimizer state.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "optim/rules/rule_memory.h"
#include "optim/train/answering.h"
#include "optim/train/engine.h"
#include "optim/train/exchange.h"
#include "optim/train/spec.h"

namespace optod::train {

struct StepOutcome {
  double loss = 0;
  bool skipped = false;
  std::string reason;
};

class Learner {
 public:
  virtual ~Learner() = default;
  /// Steps already in the parameters (after resuming).
  virtual int64_t done() const = 0;
  /// Step number `step` (0-based) on `batch` with learning rate `lr`. CANCELLED leaves no trace.
  virtual absl::StatusOr<StepOutcome> Step(int64_t step, std::span<const Example* const> batch, double lr) = 0;
  /// Makes everything up to now durable.
  virtual absl::Status Checkpoint() = 0;
  /// Remembers the values of now as the best.
  virtual absl::Status KeepBest() = 0;
  /// Brings the parameters to what they were after `step` steps, the best one kept. `reload` puts the initial values.
  virtual absl::Status GoTo(int64_t step, const std::function<absl::Status()>& reload) = 0;

  /// The reported loss of a step that is done (0-based), where there is a log of it.
  virtual std::optional<double> LossOf(int64_t step) const { return (void)step, std::nullopt; }

  struct Memory {
    optim::RuleMemory optimizer;  ///< tensors: as Engine::trainable
    size_t gradients = 0;         ///< bytes held for them
  };
  virtual Memory memory() const { return {}; }
};

/// Bytes of a zeroth-order optimizer's moments, tensor by tensor.
optim::RuleMemory MemoryOfMoments(const zo::ZoLayout& layout, const zo::ZoState<float>& state);

/// `own`: folder of this attempt; `before`: of the attempt to go on from, or "". `engine` and `exchange` (the
/// way to the other workers of a parallel run; null: there are none) are borrowed, as is `answering` (of a task whose
/// answers are generated; null: of any other). INVALID_ARGUMENT: what does not fit
/// the model (`hybrid.blocks: 40 is over the model's 30 layers`).
absl::StatusOr<std::unique_ptr<Learner>> MakeLearner(const TrainSpec& spec, Engine& engine, bool classify,
                                                     const std::string& own, const std::string& before,
                                                     ScalarExchange* exchange = nullptr,
                                                     const Answering* answering = nullptr);

/// Declared hyperparameters as optim/zo takes them.
absl::StatusOr<zo::ZoHyper> ZoHyperOf(const TrainSpec& spec);

}  // namespace optod::train

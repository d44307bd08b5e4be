#pragma once
/// Evaluates a model on examples: log-probabilities of their picks at given parameters, at two perturbed points in one
/// sweep over the blocks, or with gradients. Free of LibTorch types. One thread of control; all CPUs inside.
///
/// ScorePair is the sweep of ZO2 (Wang et al., 2025) with one memory tier: block after block, W + eps z and W - eps z
/// are formed in two scratch buffers of the block's size and both activations are carried through. The parameters are
/// read, never changed; beside them there are two blocks, not a second model. Embedding rows are perturbed as they are
/// gathered, the vocabulary matrix piece by piece. Blocks before the first trainable one are computed once.

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/nn/checkpoint.h"
#include "optim/train/spec.h"
#include "optim/train/task.h"
#include "optim/zo/direction.h"

namespace optod::train {

struct ScoredPair {
  std::vector<double> plus, minus;  ///< one a pick
};

class Engine {
 public:
  /// `model` is borrowed: full and head train its weights in place, lora and prefix leave them alone. `seed` draws the
  /// adapters' start. INVALID_ARGUMENT: `scheme.rank: 64 is over the smallest projection's 32`.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(nn::ModelFiles* model, const SchemeSpec& scheme, uint64_t seed);
  virtual ~Engine() = default;

  /// The trainable tensors, in order; their number in it is their tensor number in the random stream.
  virtual const zo::ZoLayout& layout() const = 0;
  /// Their values, layout().size() floats: the ones that training changes.
  virtual std::span<float> theta() = 0;
  virtual const std::vector<tier::BlockTensor>& trainable() const = 0;

  /// Log-probabilities of all picks, in the order of Judge, with `theta` in place of the trainable values.
  virtual absl::StatusOr<std::vector<double>> Score(std::span<const float> theta,
                                                    std::span<const Example* const> examples) = 0;
  /// The same at theta() + scale z and theta() - scale z, z = Gaussian(direction, tensor number, element). Not for
  /// adapters (FAILED_PRECONDITION): theirs are small enough for Score.
  virtual absl::StatusOr<ScoredPair> ScorePair(const zo::Direction& direction, float scale,
                                               std::span<const Example* const> examples) = 0;
  virtual bool pairs() const = 0;  ///< ScorePair may be called
  /// Judge's objective at theta() and its gradient, grad.size() = layout().size(); zero where nothing flows.
  virtual absl::StatusOr<Objective> Gradient(std::span<const Example* const> examples, bool classify,
                                             std::span<float> grad) = 0;

  /// Asked between blocks; true ends the evaluation with CANCELLED.
  std::function<bool()> stop;

  /// Writes what was trained: a Hugging Face folder (full, head), or an adapter in PEFT's layout (lora, prefix).
  virtual absl::Status Save(const std::string& folder) = 0;
};

}  // namespace optod::train

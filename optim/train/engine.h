#pragma once
/// Evaluates a model on examples: log-probabilities of their picks at given parameters, at two perturbed points in one
/// sweep over the blocks, their slopes along a direction, or the gradient of the objective and what some rules ask for
/// beside it. Free of LibTorch types. One thread of control; all CPUs inside.
///
///   Score        one point                                1 forward pass
///   Continue     one point, greedy text                   1 forward pass over the prompts, 1 for every further token
///   ScorePair    theta + scale z and theta - scale z      2 forward passes; with a Walk, only from the first block
///   that moves Slope        d/dt of log-probabilities along z        forward mode: about 3 forward passes, no graph,
///   no copy of z Gradient     reverse mode, from a block on            forward + backward, all activations
///     hessian    z * H z of the same loss (Hutchinson)    + a backward pass over the backward pass
///     statistics layer inputs and output gradients        + one copy of them
///
/// ScorePair is the sweep of ZO2 (Wang et al., 2025) with one memory tier: tensor after tensor, W + eps z and W - eps z
/// are formed in two scratch buffers of the largest tensor's size as they are needed, and both activations are carried
/// side by side. Beside the parameters there are two tensors, not a second model. Embedding rows are perturbed as they
/// are gathered, the vocabulary matrix piece by piece. An update given to Defer is applied to each tensor in the same
/// pass, just before it is perturbed.

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/nn/checkpoint.h"
#include "optim/rules/tensor.h"
#include "optim/train/perturb.h"
#include "optim/train/spec.h"
#include "optim/train/task.h"
#include "optim/zo/hyper.h"

namespace optod::train {

struct ScoredPair {
  std::vector<double> plus, minus;  ///< one a pick
};
struct ScoredSlope {
  std::vector<double> log_probs, slopes;  ///< one a pick; slopes[i] = d log_probs[i] (theta + t z) / dt at t = 0
};

struct Continuation {
  std::vector<int64_t> ids;
  bool finite = true;  ///< false: the logits after `ids` were NaN or infinite, and it ended there
};

/// The examples of a step, and hidden states at theta() up to a block: what does not move is computed once.
class Walk {
 public:
  virtual ~Walk() = default;
};

/// What a gradient is asked for.
struct GradientRequest {
  enum class Statistics {
    kNone,
    kMeans,  ///< act/L [in]: mean row; pgrad/L [out]: mean of rows * (row); every entry clipped to +-clipping first
    kRows    ///< act/L [rows, in], pgrad/L [rows, out]
  };
  size_t first_block = 0;  ///< gradients of tensors in earlier blocks are 0, and nothing flows there
  bool hessian = false;    ///< fill hessian_z
  zo::Direction signs;     ///< z of hessian_z: +1 or -1 by the lowest bit of the stream's word
  Statistics statistics = Statistics::kNone;
  double clipping = 0;  ///< 0 = none
};
struct GradientResult {
  Objective objective;
  std::vector<float> hessian_z;  ///< z * Hz, the layout's size; empty when not asked
  /// Of every linear layer L whose `L.weight` trains: "act/L", "pgrad/L", float32. Layers that store [in, out] (GPT-2)
  /// are described as they compute.
  std::map<std::string, optim::OwnedTensor> statistics;
};

class Engine {
 public:
  /// `model` is borrowed: full and head train its weights in place, the adapters leave them alone. `seed` draws the
  /// adapters' start. INVALID_ARGUMENT: `scheme.rank: 64 is over the smallest projection's 32`.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(nn::ModelFiles* model, const SchemeSpec& scheme, uint64_t seed);
  virtual ~Engine() = default;

  /// The trainable tensors, in order; their number in it is their tensor number in the random stream.
  virtual const zo::ZoLayout& layout() const = 0;
  /// Their values, layout().size() floats: the ones that training changes. Applies what Defer was given.
  virtual std::span<float> theta() = 0;
  virtual const std::vector<tier::BlockTensor>& trainable() const = 0;
  /// The block that uses trainable tensor i first: 0 = embeddings, 1 .. blocks() - 2 layers, blocks() - 1 = the head.
  virtual size_t block_of(size_t tensor) const = 0;
  virtual size_t blocks() const = 0;
  /// Whether trainable tensor i is the weight of a linear layer (not a table, not the vocabulary matrix).
  virtual bool is_linear(size_t tensor) const = 0;
  /// Whether such weights are stored [in, out].
  virtual bool stores_in_out() const = 0;

  /// Log-probabilities of all picks, in the order of Judge, with `theta` in place of the trainable values.
  virtual absl::StatusOr<std::vector<double>> Score(std::span<const float> theta,
                                                    std::span<const Example* const> examples) = 0;

  /// The likeliest tokens after every prompt, one by one, with `theta` in place of the trainable values: at most
  /// max_tokens each, fewer where ended(ids so far) says so (that token is kept), after the model's end token (not kept)
  /// or at its last position. UNIMPLEMENTED for models that do not continue texts.
  virtual absl::StatusOr<std::vector<Continuation>> Continue(
      std::span<const float> theta, const std::vector<std::vector<int64_t>>& prompts, int64_t max_tokens,
      const std::function<bool(const std::vector<int64_t>&)>& ended) = 0;

  /// `examples` are borrowed until the walk ends.
  virtual absl::StatusOr<std::unique_ptr<Walk>> StartWalk(std::span<const Example* const> examples) = 0;
  /// Log-probabilities at the two points. Perturbations of one walk must begin at the same block or a later one than
  /// those before them (FAILED_PRECONDITION); parameters of blocks before it must be as they were when it went there.
  virtual absl::StatusOr<ScoredPair> ScorePair(const Perturbation& perturbation, Walk& walk) = 0;
  absl::StatusOr<ScoredPair> ScorePair(const Perturbation& perturbation, std::span<const Example* const> examples);

  /// theta <- theta after `update`, now or when its tensors are next at hand; at most one waits.
  virtual void Defer(PendingUpdate update) = 0;

  virtual absl::StatusOr<ScoredSlope> Slope(const Perturbation& perturbation,
                                            std::span<const Example* const> examples) = 0;

  /// Judge's objective at theta() and its gradient, grad.size() = layout().size(); zero where nothing flows.
  virtual absl::StatusOr<GradientResult> Gradient(std::span<const Example* const> examples, bool classify,
                                                  const GradientRequest& request, std::span<float> grad) = 0;

  /// The L2 norm of every input feature of the linear layers that train, over the tokens of `examples`: by tensor
  /// number (Wanda, Sun et al., 2024).
  virtual absl::StatusOr<std::map<size_t, std::vector<double>>> InputNorms(
      std::span<const Example* const> examples) = 0;

  /// Asked between blocks; true ends the evaluation with CANCELLED.
  std::function<bool()> stop;

  /// Writes what was trained: a Hugging Face folder (full, head), or an adapter in PEFT's layout.
  virtual absl::Status Save(const std::string& folder) = 0;
};

}  // namespace optod::train

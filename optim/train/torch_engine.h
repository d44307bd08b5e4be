#pragma once
/// The engine on LibTorch. Private to engine*.cc, which hold one ability each: engine.cc (making, one point, saving),
/// engine_answers.cc (greedy text), engine_pairs.cc (two points), engine_slopes.cc (forward mode), engine_gradients.cc (reverse mode, statistics).

#include <functional>
#include <optional>

#include "optim/nn/guard.h"
#include "optim/nn/model.h"
#include "optim/nn/views.h"
#include "optim/train/engine.h"
#include "optim/train/layer_extra.h"
#include "optim/train/observed_ops.h"
#include "optim/train/packed.h"
#include "optim/train/tiered_rows.h"
#include "optim/train/vocabulary.h"

namespace optod::train {

struct Stopped {};  // thrown between blocks, caught at the surface

class TorchWalk final : public Walk {
 public:
  TorchWalk(const nn::ModelConfig& config, Packed examples, int64_t shift)
      : packed(std::move(examples)), config_(config), shift_(shift), once(Repeated(1)) {}
  const nn::Batch& twice() {
    if (!twice_) twice_ = Repeated(2);
    return *twice_;
  }

  const Packed packed;

 private:
  nn::Batch Repeated(int lanes) const { return nn::Batch(config_, packed.ids, packed.lengths, 0, shift_, lanes); }
  const nn::ModelConfig& config_;
  const int64_t shift_;

 public:
  const nn::Batch once;
  size_t at = 0;  ///< x is the hidden state that block `at` takes; 0 = nothing computed yet
  at::Tensor x;

 private:
  std::optional<nn::Batch> twice_;
};

class TorchEngine final : public Engine {
 public:
  TorchEngine(nn::ModelFiles* model, const SchemeSpec& scheme);
  absl::Status Init(uint64_t seed);

  const zo::ZoLayout& layout() const override { return layout_; }
  std::span<float> theta() override { return Flush(), theta_; }
  const std::vector<tier::BlockTensor>& trainable() const override { return trainable_; }
  size_t block_of(size_t tensor) const override { return block_of_[tensor]; }
  size_t blocks() const override { return base_.size(); }
  bool is_linear(size_t tensor) const override;
  bool stores_in_out() const override { return files_.config.fused_qkv() && adapters_.empty(); }

  absl::StatusOr<std::vector<double>> Score(std::span<const float> theta,
                                            std::span<const Example* const> examples) override;
  absl::StatusOr<std::vector<Continuation>> Continue(
      std::span<const float> theta, const std::vector<std::vector<int64_t>>& prompts, int64_t max_tokens,
      const std::function<bool(const std::vector<int64_t>&)>& ended) override;
  absl::StatusOr<std::unique_ptr<Walk>> StartWalk(std::span<const Example* const> examples) override;
  absl::StatusOr<ScoredPair> ScorePair(const Perturbation& perturbation, Walk& walk) override;
  void Defer(PendingUpdate update) override;
  absl::StatusOr<ScoredSlope> Slope(const Perturbation& perturbation,
                                    std::span<const Example* const> examples) override;
  absl::StatusOr<GradientResult> Gradient(std::span<const Example* const> examples, bool classify,
                                          const GradientRequest& request, std::span<float> grad) override;
  absl::StatusOr<std::map<size_t, std::vector<double>>> InputNorms(std::span<const Example* const> examples) override;
  absl::Status Save(const std::string& folder) override;

  // ---- for the operations of one block (engine_*.cc)

  const nn::ModelConfig& config() const { return files_.config; }
  const nn::Weights& base(size_t block) const { return base_[block]; }
  /// Number of the trainable tensor in a slot of a block; -1 = frozen, or no such slot.
  int TrainableAt(size_t block, int slot) const {
    return slot < 0 ? -1 : slots_[files_.weights.first_uid(block) + static_cast<size_t>(slot)];
  }
  Piece PieceOf(int tensor, int64_t first, int64_t count);
  Piece Whole(int tensor) { return PieceOf(tensor, 0, static_cast<int64_t>(layout_.tensor(Number(tensor)).size)); }
  static size_t Number(int tensor) { return static_cast<size_t>(tensor); }
  /// Makes room for so many floats of both copies; ends the life of what FormBoth gave before.
  void Reserve(size_t floats);
  /// A tensor's two copies, formed from float `at` of the reserved room on, with what waits applied to it first.
  struct Both {
    at::Tensor plus, minus;
  };
  Both FormBoth(int tensor, size_t at, const Perturbation& p);
  /// z of a tensor.
  at::Tensor FormDirection(int tensor, const Perturbation& p);

 private:
  class GreedyText;  // engine_answers.cc
  template <typename Work>
  auto Run(Work work) -> absl::StatusOr<decltype(work())> {
    try {
      return nn::Guarded(std::move(work));
    } catch (const Stopped&) {
      return absl::CancelledError("stopped");
    }
  }
  void Breathe() const {
    if (stop && stop()) throw Stopped();
  }
  bool Scheme(const char* name) const { return scheme_.name == name; }
  absl::Status InitWeights();
  absl::Status InitAdapters(uint64_t seed);
  absl::Status InitPrefix(uint64_t seed);
  void InitPrompt(uint64_t seed);

  // engine.cc: one point
  int64_t VirtualTokens() const { return Scheme("prompt") ? scheme_.tokens : 0; }
  int64_t Shift() const { return Scheme("prefix") && ready_ ? scheme_.tokens : 0; }
  std::vector<nn::Weights> BlocksAt(std::span<const float> theta) const;
  nn::Weights AdapterViews(std::span<const float> theta) const;
  std::vector<nn::LayerExtra> Extras(const nn::Weights& adapters) const;
  /// Rows of the token table, virtual tokens (`prompt` [tokens, hidden]) put where they belong.
  at::Tensor TokenRows(const at::Tensor& table, const Packed& packed, const at::Tensor& prompt) const;
  at::Tensor EmbedPlain(const nn::Weights& embed, const Packed& packed, const nn::Batch& batch,
                        const at::Tensor& prompt) const;
  at::Tensor Matrix(const std::vector<nn::Weights>& blocks) const;
  at::Tensor Bias(const std::vector<nn::Weights>& blocks) const;
  size_t VocabularyUid() const;

  // engine_pairs.cc
  void Flush();
  bool Waits(int tensor) const { return pending_ && !applied_[Number(tensor)]; }
  const PendingUpdate* Take(int tensor);
  size_t FirstBlock(const Perturbation& p) const;
  void Advance(TorchWalk& walk, size_t to);
  void FormAdapters(const Perturbation& p);
  at::Tensor EmbedBoth(const Perturbation& p, TorchWalk& walk);
  bool GatherBoth(int slot, const at::Tensor& ids, const Perturbation& p, at::Tensor* both);
  ScoredPair Sweep(const Perturbation& p, TorchWalk& walk);
  ScoredPair SweepVocabulary(const Perturbation& p, const Packed& packed, const at::Tensor& both);

  // engine_slopes.cc
  ScoredSlope ForwardMode(const Perturbation& p, const Packed& packed);
  at::Tensor EmbedDual(const Perturbation& p, const Packed& packed, const nn::Batch& batch, uint64_t level,
                       const at::Tensor& prompt);
  void SlopeVocabulary(const Perturbation& p, const at::Tensor& hidden, const at::Tensor& tangent,
                       Vocabulary& vocabulary);

  // engine_gradients.cc
  ObservedOps Observed(size_t block, const nn::Weights& w, const nn::LayerExtra* extra, const LayerObserver& seen) const;
  at::Tensor PicksOf(std::span<const Example* const> examples, const std::vector<nn::Weights>& blocks,
                     const nn::Weights& adapters, size_t first_block, const LayerObserver& seen);
  GradientResult Backward(std::span<const Example* const> examples, bool classify, const GradientRequest& request,
                          std::span<float> grad);

  nn::ModelFiles& files_;
  const SchemeSpec scheme_;
  nn::Model model_;
  std::vector<nn::Weights> base_;
  std::vector<int> slots_;  // trainable number of each uid; -1 = frozen
  std::vector<size_t> block_of_;
  std::vector<tier::BlockTensor> trainable_;
  zo::ZoLayout layout_;
  std::span<float> theta_;
  std::vector<float> adapters_;
  bool ready_ = false;
  std::optional<PendingUpdate> pending_;
  std::vector<bool> applied_;                          // of pending_, by tensor
  std::vector<float> scratch_plus_, scratch_minus_;    // of one weight and its bias
  std::vector<float> adapters_plus_, adapters_minus_;  // all adapters
};

/// Whether tensor number `tensor` (-1 = none) moves.
bool Moves(const Perturbation& p, int tensor);

}  // namespace optod::train

#pragma once
/// A language model's forward pass, unit by unit, for the tiered pipeline (optim/tier/pipeline.h): what Engine::ScorePair
/// does with all parameters at hand, operation for operation, with one unit at hand. Private: LibTorch types.
///
///   rows of a tied table, gathered  ┐
///   embed: rows of the tables       ├─> x per copy ─> layers.0 ... ─> head: rows that are asked ─> pieces of the vocabulary
///                                   ┘

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "optim/nn/model.h"
#include "optim/tier/compute.h"
#include "optim/train/duals.h"
#include "optim/train/observed_ops.h"
#include "optim/train/tiered_units.h"
#include "optim/train/vocabulary.h"

namespace optod::train {

class TieredCompute final : public tier::BlockCompute {
 public:
  /// Everything is borrowed. `pairs`: copies 2k and 2k + 1 of a step go through a unit that is not trained in one
  /// product, as the resident engine's two lanes do (two-sided estimates). `stop`: asked before every unit; true ends the
  /// sweep with CANCELLED.
  /// `device`: where the weights are that Forward is given, and where everything is computed; `enqueues`: by operations
  /// on tensors alone, as a GPU needs it.
  TieredCompute(const nn::ModelConfig& config, const TieredUnits& streamed, const SchemeSpec& scheme, bool pairs,
                const std::function<bool()>& stop, const at::Device& device = at::kCPU, bool enqueues = false);

  /// What the next sweep computes. `classify`: as Judge's; `objective`: as ValueOf's.
  void SetExamples(std::span<const Example* const> examples, bool classify, const std::string& objective);
  /// From now on sweeps of one copy write the norms of the inputs of linear layers whose weight is trained there, by the
  /// weight's number in the random stream (what Engine::InputNorms gives); nullptr: no more. Borrowed.
  void ObserveInputs(std::map<size_t, std::vector<double>>* norms) { norms_ = norms; }
  /// Log-probabilities of the picks of copy `copy`, in the order of Judge, after a sweep.
  std::vector<double> LogProbabilities(int copy) const;

  absl::Status Begin(int copies) override;
  std::vector<tier::Slice> Wanted() override;
  absl::Status Gathered(int copy, std::span<const float> values) override;
  absl::Status Forward(size_t unit, int copy, std::span<const float> weights) override;
  /// Layers and the vocabulary: a tensor, or some rows, of both copies while they are in the cache, as the resident engine does.
  bool FormsParts(size_t unit) const override {
    return pairs_ && !enqueues_ && (roles_[unit].kind == Kind::kLayer || roles_[unit].kind == Kind::kVocabulary);
  }
  absl::Status FormedPair(size_t unit, int copy, const tier::FormPart& form) override;
  absl::Status Shared(size_t unit, int copies, std::span<const float> weights) override;
  absl::Status Branch() override;
  absl::Status Pair(size_t unit, std::span<const float> plus, std::span<const float> minus,
                    std::span<const uint8_t> moved) override;
  absl::Status GatheredTangent(int copy, std::span<const float> values, std::span<const float> z) override;
  absl::Status Tangent(size_t unit, int copy, std::span<const float> weights, std::span<const float> z) override;
  absl::StatusOr<tier::LossSlopes> Slopes() override;
  absl::StatusOr<std::vector<double>> Losses() override;

 private:
  enum class Kind { kAdapters, kTable, kEmbed, kLayer, kHead, kVocabulary };
  struct Role {
    Kind kind = Kind::kLayer;
    size_t block = 0;
    int slot = -1;          ///< of a table in its block
    int64_t first_row = 0;  ///< of a piece
  };
  struct Copy {
    at::Tensor tokens, positions, types;  ///< rows of the tables
    at::Tensor tokens_z, positions_z, types_z;  ///< forward-grad: tangents of rows, until all have come
    nn::Weights embed;                    ///< the embed block's other tensors, by slot
    nn::Weights adapters;
    at::Tensor x;                         ///< [tokens, hidden]; after the head the rows that are asked
    at::Tensor bias, bias_z;              ///< of the vocabulary, or undefined; forward-grad: and its tangent
    std::optional<Vocabulary> vocabulary;
  };
  Role RoleOf(const tier::Unit& unit) const;
  nn::Weights ViewsOf(size_t unit, std::span<const float> weights) const;
  void Table(const Role& role, const tier::Unit& unit, Copy& copy, std::span<const float> weights) const;
  void One(size_t unit, Copy& copy, std::span<const float> weights) const;
  /// The unit of a layer or head with an eye on its inputs.
  ObservedOps Observed(size_t unit, const nn::Weights& w, const nn::LayerExtra* extra) const;
  void FinishEmbedding(Copy& copy) const;
  void Layer(size_t unit, Copy& copy, const nn::Weights& layer) const;
  void Head(size_t unit, Copy& copy, const nn::Weights& head) const;
  /// Where `z` is given, the dual of a view and its direction's.
  nn::Weights DualsOf(size_t unit, std::span<const float> weights, std::span<const float> z, bool owned) const;
  void OneTangent(size_t unit, Copy& copy, std::span<const float> weights, std::span<const float> z);
  void TableTangent(const Role& role, const tier::Unit& unit, Copy& copy, std::span<const float> weights, std::span<const float> z);
  void PieceTangent(const Role& role, const tier::Unit& unit, Copy& copy, std::span<const float> weights, std::span<const float> z);
  /// Rows of tables and virtual tokens -> x, as the resident engine's forward mode has it.
  void FinishEmbeddingTangent(Copy& copy);
  void FormedLayer(size_t unit, Copy& plus, Copy& minus, const tier::FormPart& form);
  void FormedPieces(size_t unit, Copy& plus, Copy& minus, const tier::FormPart& form) const;
  /// A layer or head with copies 0 and 1, which share what is not moved, as the resident engine's two lanes.
  void PairUnit(size_t unit, std::span<const float> plus, std::span<const float> minus, std::span<const uint8_t> moved);
  void SharedLayer(size_t unit, size_t copies, std::span<const float> weights);
  void SharedHead(size_t unit, std::span<const float> weights);
  /// x of the first `copies` copies, pairs of them behind one another, becomes what `apply` makes of it; it is told the
  /// first copy and the lanes.
  void ByLanes(size_t copies, const std::function<at::Tensor(const at::Tensor& x, size_t first, size_t lanes)>& apply);
  const nn::Batch& BatchOf(size_t lanes);
  at::Tensor View(std::span<const float> values, const std::vector<int64_t>& shape) const;
  /// The rows that are asked.
  at::Tensor Asked(const at::Tensor& x) const;
  /// Of a unit before the first trained one: its copies are one still.
  size_t Distinct() const { return scheme_.name == "head" && !Tied() ? 1 : copies_.size(); }
  void Piece(const Role& role, const tier::Unit& unit, Copy& copy, std::span<const float> weights) const;
  bool Tied() const { return model_.head_slots().lm_head < 0; }

  nn::Model model_;
  const TieredUnits& streamed_;
  const std::vector<tier::BlockSpec>& blocks_;
  const std::vector<tier::Unit>& units_;
  const SchemeSpec scheme_;
  const bool pairs_;
  const std::function<bool()>& stop_;
  const at::Device device_;
  const bool enqueues_;
  std::vector<std::pair<size_t, int>> place_;  // of a tensor: block, slot
  std::vector<Role> roles_;                    // of a unit
  std::vector<const Example*> examples_;
  bool classify_ = false;
  std::string objective_ = "loss";
  std::map<size_t, std::vector<double>>* norms_ = nullptr;
  bool branched_ = false;  // only copies 0 and 1 come to the end
  std::unique_ptr<Packed> packed_;
  std::unique_ptr<nn::Batch> batch_, twice_;  // one lane, two
  std::unique_ptr<DualLevel> level_;  // of a sweep with tangents; outlives its copies
  at::Tensor ids_, positions_;                // of one lane, here
  std::vector<Copy> copies_;
};

}  // namespace optod::train

#pragma once
/// A language model's forward pass, unit by unit, for the tiered pipeline (optim/tier/pipeline.h): what Engine::ScorePair
/// does with all parameters at hand, operation for operation, with one unit at hand. Private: LibTorch types.
///
///   rows of a tied table, gathered  ┐
///   embed: rows of the tables       ├─> x per copy ─> layers.0 ... ─> head: rows that are asked ─> pieces of the vocabulary
///                                   ┘

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "optim/nn/model.h"
#include "optim/tier/compute.h"
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
  /// Log-probabilities of the picks of copy `copy`, in the order of Judge, after a sweep.
  std::vector<double> LogProbabilities(int copy) const;

  absl::Status Begin(int copies) override;
  std::vector<tier::Slice> Wanted() override;
  absl::Status Gathered(int copy, std::span<const float> values) override;
  absl::Status Forward(size_t unit, int copy, std::span<const float> weights) override;
  absl::Status Shared(size_t unit, int copies, std::span<const float> weights) override;
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
    nn::Weights embed;                    ///< the embed block's other tensors, by slot
    nn::Weights adapters;
    at::Tensor x;                         ///< [tokens, hidden]; after the head the rows that are asked
    at::Tensor bias;                      ///< of the vocabulary, or undefined
    std::optional<Vocabulary> vocabulary;
  };
  Role RoleOf(const tier::Unit& unit) const;
  nn::Weights ViewsOf(size_t unit, std::span<const float> weights) const;
  void Table(const Role& role, const tier::Unit& unit, Copy& copy, std::span<const float> weights) const;
  void One(size_t unit, Copy& copy, std::span<const float> weights) const;
  void FinishEmbedding(Copy& copy) const;
  void Layer(Copy& copy, const nn::Weights& layer) const;
  void Head(Copy& copy, const nn::Weights& head) const;
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
  std::unique_ptr<Packed> packed_;
  std::unique_ptr<nn::Batch> batch_, twice_;  // one lane, two
  at::Tensor ids_, positions_;                // of one lane, here
  std::vector<Copy> copies_;
};

}  // namespace optod::train

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
#include <vector>

#include "optim/nn/model.h"
#include "optim/tier/compute.h"
#include "optim/tier/unit.h"
#include "optim/train/vocabulary.h"

namespace optod::train {

/// The units of a model in the order of its forward pass: tables in pieces of about 4096 rows (whole pieces of the
/// resident engine's sweep, vocabulary.h), each layer whole, a tied vocabulary last.
std::vector<tier::Unit> UnitsOf(const nn::ModelConfig& config, const std::vector<tier::BlockSpec>& blocks);

class TieredCompute final : public tier::BlockCompute {
 public:
  /// Everything is borrowed. `stop`: asked before every unit; true ends the sweep with CANCELLED.
  TieredCompute(const nn::ModelConfig& config, const std::vector<tier::BlockSpec>& blocks,
                const std::vector<tier::Unit>& units, const std::function<bool()>& stop);

  /// What the next sweep computes. `classify`: as Judge's.
  void SetExamples(std::span<const Example* const> examples, bool classify);
  /// Log-probabilities of the picks of copy `copy`, in the order of Judge, after a sweep.
  std::vector<double> LogProbabilities(int copy) const;

  absl::Status Begin(int copies) override;
  std::vector<tier::Slice> Wanted() override;
  absl::Status Gathered(int copy, std::span<const float> values) override;
  absl::Status Forward(size_t unit, int copy, std::span<const float> weights) override;
  absl::StatusOr<std::vector<double>> Losses() override;

 private:
  enum class Kind { kTable, kEmbed, kLayer, kHead, kVocabulary };
  struct Role {
    Kind kind = Kind::kLayer;
    size_t block = 0;
    int slot = -1;          ///< of a table in its block
    int64_t first_row = 0;  ///< of a piece
  };
  struct Copy {
    at::Tensor tokens, positions, types;  ///< rows of the tables
    nn::Weights embed;                    ///< the embed block's other tensors, by slot
    at::Tensor x;                         ///< [tokens, hidden]; after the head the rows that are asked
    at::Tensor bias;                      ///< of the vocabulary, or undefined
    std::optional<Vocabulary> vocabulary;
  };
  Role RoleOf(const tier::Unit& unit) const;
  nn::Weights ViewsOf(size_t unit, std::span<const float> weights) const;
  void Table(const Role& role, const tier::Unit& unit, Copy& copy, std::span<const float> weights) const;
  void FinishEmbedding(Copy& copy) const;
  void Layer(Copy& copy, const nn::Weights& layer) const;
  void Head(Copy& copy, const nn::Weights& head) const;
  void Piece(const Role& role, const tier::Unit& unit, Copy& copy, std::span<const float> weights) const;
  bool Tied() const { return model_.head_slots().lm_head < 0; }

  nn::Model model_;
  const std::vector<tier::BlockSpec>& blocks_;
  const std::vector<tier::Unit>& units_;
  const std::function<bool()>& stop_;
  std::vector<std::pair<size_t, int>> place_;  // of a tensor: block, slot
  std::vector<Role> roles_;                    // of a unit
  std::vector<const Example*> examples_;
  bool classify_ = false;
  std::unique_ptr<Packed> packed_;
  std::unique_ptr<nn::Batch> batch_;
  std::vector<Copy> copies_;
};

}  // namespace optod::train

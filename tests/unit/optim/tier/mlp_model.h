#pragma once
/// A small model to stream: token embedding, residual blocks x += W2 relu(W1 x + b), a gain, and a vocabulary matrix that
/// is the embedding or its own. Plain loops; the loss is the mean cross-entropy of the next tokens. The resident
/// reference runs the same loops over the whole vector, so losses can be compared bit for bit.

#include <cstdint>
#include <span>
#include <vector>

#include "optim/tier/compute.h"
#include "optim/tier/unit.h"
#include "optim/zo/hyper.h"

namespace optod::tier {

struct MlpShape {
  int64_t vocab = 40, hidden = 12, inner = 20, layers = 5;
  bool tied = true;
  size_t piece_rows = 16;
};

class MlpModel {
 public:
  explicit MlpModel(const MlpShape& shape);
  const MlpShape& shape() const { return shape_; }
  const std::vector<BlockSpec>& blocks() const { return blocks_; }
  /// In the order of visits: a tied table comes last, an untied embedding first.
  const std::vector<Unit>& units() const { return units_; }
  zo::ZoLayout layout() const;
  /// The vector a run starts from: 0.2 z, gains near 1.
  std::vector<float> Start() const;
  /// theta of one unit out of the whole vector.
  void CopyUnit(size_t unit, std::span<const float> theta, std::span<float> out) const;
  /// Whether `slot` holds the unit's part of `theta`, bit for bit.
  bool SameBytes(size_t unit, std::span<const float> slot, std::span<const float> theta) const;

 private:
  MlpShape shape_;
  std::vector<BlockSpec> blocks_;
  std::vector<Unit> units_;
};

class MlpCompute final : public BlockCompute {
 public:
  /// `batch`: chooses the tokens. `tokens`: how many.
  MlpCompute(const MlpModel& model, uint32_t batch, size_t tokens = 6);
  absl::Status Begin(int copies) override;
  std::vector<Slice> Wanted() override;
  absl::Status Gathered(int copy, std::span<const float> values) override;
  absl::Status Forward(size_t unit, int copy, std::span<const float> weights) override;
  absl::Status Branch() override { return copies_[0] = copies_[1] = copies_[2], absl::OkStatus(); }
  absl::StatusOr<std::vector<double>> Losses() override;

  /// The loss at a whole vector.
  double LossAt(std::span<const float> theta);
  const std::vector<int64_t>& ids() const { return ids_; }
  const std::vector<int64_t>& targets() const { return targets_; }
  /// What every loss is multiplied by: NaN for a step to skip.
  double factor = 1;

 private:
  struct Copy {
    std::vector<float> x;                    // [tokens, hidden]
    std::vector<double> best, sum, asked;    // of the vocabulary so far
  };
  void Embed(Copy& copy, const UnitPart& part, std::span<const float> rows);
  void Layer(Copy& copy, std::span<const float> w);
  void Vocabulary(Copy& copy, const UnitPart& part, std::span<const float> rows);
  void SetRow(Copy& copy, size_t token, std::span<const float> row);

  const MlpModel& model_;
  std::vector<int64_t> ids_, targets_;
  std::vector<Copy> copies_;
};

}  // namespace optod::tier

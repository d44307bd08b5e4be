#pragma once
/// What is computed with the units' values: a forward pass that carries several copies of the activations. The pipeline
/// moves, updates and perturbs; a BlockCompute is the model. Calls come from one thread, unit after unit in list order.
///
///   Begin(copies) -> Wanted -> Gathered a copy -> Forward(unit 0, each copy) ... Forward(last unit, each copy) -> Losses
///                                                 Shared(unit) instead, for a unit that is not trained
///
/// Copy 2k is at theta + eps z_k, copy 2k + 1 at theta - eps z_k (one-sided: at theta); with one copy, at theta.
/// zo-sgd-cons: one more, the last, at theta; then a second sweep, whose copies are its candidates, down and up.

#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace optod::tier {

/// A run of whole rows of one tensor, inside one unit.
struct Slice {
  uint32_t uid = 0;
  uint64_t first = 0;
  size_t count = 0;
};

/// Forms both copies of `count` elements of a part of the unit at hand, from element `first` of the part on, at float `at` of
/// the room of a unit: they are used while they are in the cache. What was formed there before is gone.
using FormPart = std::function<std::pair<std::span<const float>, std::span<const float>>(size_t part, size_t first, size_t count, size_t at)>;

/// Block-wise steps: three copies and a sweep a group. Copy 2 walks at theta up to the unit where the group begins and waits
/// there for the next sweep, which begins with that unit; Branch makes copies 0 and 1 of it, and from there on every unit
/// comes to both at once.
///
///   Begin(3)   a group: Wanted -> Gathered(2 | 0, 1) -> Forward(.., 2) ... -> Branch -> Pair(unit) ... Pair(last unit) -> Losses

/// forward-grad: one copy a query, at theta, with tangents: derivatives along z_k beside every value. Begin -> Wanted ->
/// GatheredTangent a copy -> Tangent(unit, each copy) ... -> Slopes.
struct LossSlopes {
  std::vector<double> losses, slopes;  ///< one a copy; slopes: of the loss along z
};

class BlockCompute {
 public:
  virtual ~BlockCompute() = default;
  virtual absl::Status Begin(int copies) = 0;
  /// What is needed before its unit comes: the rows of a tied table that the batch's tokens have.
  virtual std::vector<Slice> Wanted() { return {}; }
  /// The slices, one behind the other, as copy `copy` sees them.
  virtual absl::Status Gathered(int copy, std::span<const float> values) {
    (void)copy, (void)values;
    return absl::OkStatus();
  }
  /// `weights`: the unit's parts, one behind the other, as copy `copy` sees them; for this call only. With an accelerator
  /// they are in its memory, and what reads them is enqueued on its compute stream.
  virtual absl::Status Forward(size_t unit, int copy, std::span<const float> weights) = 0;
  /// Whether FormedPair may come in place of two calls of Forward for this unit.
  virtual bool FormsParts(size_t unit) const {
    (void)unit;
    return false;
  }
  /// Copies `copy` and `copy` + 1, their weights formed as they are asked for: each element once.
  virtual absl::Status FormedPair(size_t unit, int copy, const FormPart& form) {
    (void)unit, (void)copy, (void)form;
    return absl::UnimplementedError("tier: this model forms no parts");
  }
  /// A unit that no copy differs in: all copies at once.
  virtual absl::Status Shared(size_t unit, int copies, std::span<const float> weights) {
    for (int copy = 0; copy < copies; ++copy) {
      if (absl::Status status = Forward(unit, copy, weights); !status.ok()) return status;
    }
    return absl::OkStatus();
  }
  /// Copies 0 and 1 are now where copy 2 is; what they were is forgotten.
  virtual absl::Status Branch() { return absl::UnimplementedError("blockwise: this model does not branch"); }
  /// Copies 0 and 1. Where `moved[part]` is 0, the part is the same in both.
  virtual absl::Status Pair(size_t unit, std::span<const float> plus, std::span<const float> minus,
                            std::span<const uint8_t> moved) {
    (void)moved;
    absl::Status status = Forward(unit, 0, plus);
    return status.ok() ? Forward(unit, 1, minus) : status;
  }
  /// As Gathered and Forward; `z`: the values' direction, empty where nothing is trained.
  virtual absl::Status GatheredTangent(int copy, std::span<const float> values, std::span<const float> z) {
    (void)copy, (void)values, (void)z;
    return absl::OkStatus();
  }
  virtual absl::Status Tangent(size_t unit, int copy, std::span<const float> weights, std::span<const float> z) {
    (void)unit, (void)copy, (void)weights, (void)z;
    return absl::UnimplementedError("forward-grad: this model carries no tangents");
  }
  virtual absl::StatusOr<LossSlopes> Slopes() { return absl::UnimplementedError("forward-grad: this model carries no tangents"); }
  /// One a copy (block-wise: of copies 0 and 1). NaN and infinities are the caller's matter.
  virtual absl::StatusOr<std::vector<double>> Losses() = 0;
};

}  // namespace optod::tier

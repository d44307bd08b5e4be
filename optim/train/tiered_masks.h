#pragma once
/// Masks of sparse zeroth order when the parameters stream: the bits of sparse.h's Masks, without all values at hand. No
/// LibTorch.
///
///   random, layer    a function of seed and step: nothing is held, any unit can make its part of any step's mask
///   random, global   a ratio a tensor, from the values at the step that draws: 4 sweeps a draw
///   magnitude        a bit a parameter, from the values likewise: 4 sweeps a draw
///   wanda            a bit a parameter, once: a forward pass that sums the layers' inputs, then a sweep
///
/// A draw from values ends with every unit caught up, so that only the newest mask is ever asked for; a run that resumes
/// begins at its initial values and draws them all again, as a resident one does. Quantiles are exact and need 2048
/// counters a tensor: the digits of the float are fixed from the highest on, one sweep each.

#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "optim/tier/unit_pass.h"
#include "optim/train/sparse.h"

namespace optod::train {

/// The rank-th smallest |w| of many values that come several times, in any order.
class RankSearch {
 public:
  /// The element that std::nth_element would put at min(size - 1, ratio * size).
  RankSearch(uint64_t size, double ratio);
  void Count(float w);
  /// After all values have come once: true when the value is known.
  bool Narrow();
  float value() const;

 private:
  uint64_t rank_ = 0;
  uint32_t prefix_ = 0;
  int low_ = 31;  // bits that are not fixed yet
  int width_ = 11;
  std::vector<uint64_t> counts_;
};

class TieredMasks final : public tier::MaskSource {
 public:
  TieredMasks(const SparseSpec& spec, uint64_t seed, zo::ZoLayout layout);

  bool on() const { return spec_.ratio > 0; }
  /// Drawn from the parameters again and again.
  bool FromValues() const { return on() && (spec_.source == "magnitude" || (spec_.source == "random" && spec_.group == "global")); }
  bool fixed() const { return on() && spec_.source == "wanda"; }
  bool HasFixed() const { return has_fixed_; }
  void SetFixed(zo::BitMask mask) { bits_ = std::move(mask), has_fixed_ = true; }
  /// A draw must come before step `step` is measured.
  bool Due(uint32_t step) const { return FromValues() && step % static_cast<uint64_t>(spec_.resample) == 0; }
  /// Bytes that a run with so many trained parameters holds for it.
  static uint64_t Bytes(const SparseSpec& spec, uint64_t parameters);

  /// Elements of a trained tensor (its number in the layout), as they come by.
  struct Part {
    uint32_t tensor = 0;
    uint64_t first = 0;
    std::span<const float> values;
  };
  using Parts = std::function<void(std::span<const Part> unit)>;
  using Sweep = std::function<absl::Status(const Parts& parts)>;
  /// The mask of steps `step` .. step + resample - 1. `sweep` shows all trained parameters before step `step`; `last`
  /// does too, and leaves none of them in need of an older mask.
  absl::Status Draw(uint32_t step, const Sweep& sweep, const Sweep& last);
  /// Wanda's, from the norms of its layers' inputs by tensor number. Errors of WandaMask.
  absl::Status DrawFixed(const std::map<size_t, std::vector<double>>& norms, const std::vector<tier::BlockTensor>& tensors,
                         bool in_out, const Sweep& sweep);
  const zo::BitMask& bits() const { return bits_; }

  void Zero(uint32_t tensor, uint64_t first, uint32_t step, std::span<float> z) const override;

 private:
  /// tau of every tensor, or one of all.
  absl::StatusOr<std::vector<float>> Quantiles(bool global, int64_t draw, const Sweep& sweep) const;
  void CountSample(int64_t draw, std::span<const Part> unit, RankSearch* search) const;
  absl::Status DrawRatios(int64_t draw, const Sweep& sweep, const Sweep& last);
  absl::Status DrawMagnitudes(int64_t draw, const Sweep& sweep, const Sweep& last);

  const SparseSpec spec_;
  const uint64_t seed_;
  const zo::ZoLayout layout_;
  zo::BitMask bits_;
  bool has_fixed_ = false;
  std::vector<double> ratios_;  // of random masks, one a tensor
};

}  // namespace optod::train

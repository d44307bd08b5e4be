#pragma once
/// Masks of sparse zeroth order (zo/mask.h): a function of the seed, the step and, for magnitudes, of the parameters at
/// the step that drew it, so that a replay meets the same ones; Wanda's, which depends on activations, is a file. One
/// bit a parameter is all that is kept. No LibTorch.

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/tier/block_list.h"
#include "optim/train/spec.h"
#include "optim/zo/hyper.h"
#include "optim/zo/mask.h"

namespace optod::train {

class Masks {
 public:
  Masks(const SparseSpec& spec, uint64_t seed, const zo::ZoLayout& layout)
      : spec_(spec), seed_(seed), layout_(layout) {}
  bool on() const { return spec_.ratio > 0; }
  bool fixed() const { return on() && spec_.source == "wanda"; }
  using Theta = std::function<std::span<const float>()>;
  /// The mask that step `step` (0-based) uses; null when nothing is masked. Steps are asked for in order; `theta` gives
  /// the parameters before the step and is called when a mask is drawn from them. FAILED_PRECONDITION: Wanda's has not
  /// been set.
  absl::StatusOr<std::shared_ptr<const zo::BitMask>> At(int64_t step, const Theta& theta);
  /// Begins again, at the first step.
  void Restart() { drawn_ = -1; }
  void SetFixed(zo::BitMask mask) { mask_ = std::make_shared<const zo::BitMask>(std::move(mask)); }

 private:
  absl::StatusOr<zo::BitMask> Random(int64_t draw, const Theta& theta) const;
  absl::StatusOr<zo::BitMask> Magnitude(std::span<const float> theta) const;

  const SparseSpec spec_;
  const uint64_t seed_;
  const zo::ZoLayout layout_;
  std::shared_ptr<const zo::BitMask> mask_;
  int64_t drawn_ = -1;
};

/// The stream that the `draw`-th mask of a run is drawn with.
zo::Direction MaskDirection(uint64_t seed, int64_t draw);
inline zo::MaskLaw MaskLawOf(const SparseSpec& spec) {
  return spec.law == "normal" ? zo::MaskLaw::kNormal : zo::MaskLaw::kUniform;
}

/// Wanda (Sun et al., 2024): in every output row of a linear layer the `ratio` of entries with the smallest |w| |x|,
/// |x| from `norms` (by tensor number); tensors without norms are not masked. `in_out`: rows are the second dimension.
/// INVALID_ARGUMENT: no tensor has norms.
absl::StatusOr<zo::BitMask> WandaMask(const zo::ZoLayout& layout, const std::vector<tier::BlockTensor>& tensors,
                                      std::span<const float> theta, const std::map<size_t, std::vector<double>>& norms,
                                      double ratio, bool in_out);

/// The same of one tensor: 1 = masked. `norm`: of its inputs. INTERNAL: of another size.
absl::StatusOr<std::vector<uint8_t>> WandaBytes(const tier::BlockTensor& tensor, std::span<const float> w,
                                                const std::vector<double>& norm, double ratio, bool in_out);

/// A mask as a file: size u64, words, crc32c, little-endian. DATA_LOSS: damaged, or of another size.
absl::Status WriteMask(const std::string& path, const zo::BitMask& mask);
absl::StatusOr<zo::BitMask> ReadMask(const std::string& path, size_t size);
/// Where an attempt in `own` keeps the mask that serves the whole run.
std::string MaskFile(const std::string& own);
/// That mask, of this attempt or of the one in `before` (taken over then); none when neither has one.
absl::StatusOr<std::optional<zo::BitMask>> FindMask(const std::string& own, const std::string& before, size_t size);

}  // namespace optod::train

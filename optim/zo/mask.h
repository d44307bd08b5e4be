#pragma once
/// Masks of sparse zeroth-order estimation (ZO-Bench, section "sparsity"): 1 = the element neither is perturbed nor
/// moves. Masks are a pure function of their own direction, so that they are never stored or sent; resample them by
/// giving a new step number. Thread-safe.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/zo/hyper.h"
#include "optim/zo/stream.h"

namespace optod::zo {

/// One bit an element of the flat parameter vector; 1 = masked.
class BitMask {
 public:
  BitMask() = default;
  /// Nothing masked.
  explicit BitMask(size_t size) : size_(size), words_((size + 63) / 64, 0) {}
  size_t size() const { return size_; }
  bool operator[](size_t i) const { return (words_[i / 64] >> (i % 64) & 1) != 0; }
  /// Elements first .. first + mask.size() - 1: masked where `mask` is not 0. Concurrent calls must be 64 elements
  /// apart.
  void Set(size_t first, std::span<const uint8_t> mask);
  /// z[i] = 0 where element first + i is masked.
  template <class T>
  void Zero(size_t first, std::span<T> z) const {
    for (size_t i = 0; i < z.size(); ++i) {
      if ((*this)[first + i]) z[i] = T{0};
    }
  }
  size_t Count() const;                                          ///< masked elements
  const std::vector<uint64_t>& words() const { return words_; }  ///< bit i % 64 of word i / 64; unused bits are 0

 private:
  size_t size_ = 0;
  std::vector<uint64_t> words_;
};

/// mask[i] for element first + i of `tensor`. ratio in [0, 1]: INVALID_ARGUMENT otherwise.
absl::Status FillMask(const Direction& direction, uint32_t tensor, uint64_t first, double ratio, MaskLaw law,
                      std::span<uint8_t> mask);

/// Weights that the `global` scheme looks at, at most.
inline constexpr size_t kMaxMaskSamples = 10'000'000;

/// Per-tensor ratios of the `global` scheme: tau = the `ratio` quantile of |w| over all weights (of at most 1e7 of
/// them, drawn with `direction`); tensor n gets the fraction of its |w| that is <= tau. theta has the layout's size,
/// which must be > 0.
absl::StatusOr<std::vector<double>> GlobalMaskRatios(const ZoLayout& layout, std::span<const float> theta, double ratio,
                                                     const Direction& direction);

}  // namespace optod::zo

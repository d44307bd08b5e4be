#pragma once
/// Masks of sparse zeroth-order estimation (ZO-Bench, section "sparsity"): 1 = the element neither is perturbed nor
/// moves. Masks are a pure function of their own direction, so that they are never stored or sent; resample them by
/// giving a new step number. Thread-safe.

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/zo/hyper.h"
#include "optim/zo/stream.h"

namespace optod::zo {

/// mask[i] for element first + i of `tensor`. ratio in [0, 1]: INVALID_ARGUMENT otherwise.
absl::Status FillMask(const Direction& direction, uint32_t tensor, uint64_t first, double ratio, MaskLaw law,
                      std::span<uint8_t> mask);

/// Per-tensor ratios of the `global` scheme: tau = the `ratio` quantile of |w| over all weights (of at most 1e7 of
/// them, drawn with `direction`); tensor n gets the fraction of its |w| that is <= tau. theta has the layout's size,
/// which must be > 0.
absl::StatusOr<std::vector<double>> GlobalMaskRatios(const ZoLayout& layout, std::span<const float> theta, double ratio,
                                                     const Direction& direction);

}  // namespace optod::zo

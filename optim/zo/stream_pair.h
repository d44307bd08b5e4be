#pragma once
/// Both perturbed copies from one generation of z.

#include "optim/zo/stream.h"

namespace optod::zo {

/// plus[i] = fl(theta[i] + fl(scale * z[i])), minus[i] = fl(theta[i] - fl(scale * z[i])): the bytes of two calls of
/// AddScaledNormalTo, on the calling thread. Spans of equal size, disjoint.
void AddScaledNormalPair(const Direction& direction, uint32_t tensor, uint64_t first, float scale,
                         std::span<const float> theta, std::span<float> plus, std::span<float> minus);

}  // namespace optod::zo

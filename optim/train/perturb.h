#pragma once
/// Both perturbed copies of a piece of parameters in one pass: z is generated once and never stored whole.

#include <cstdint>
#include <span>

#include "optim/zo/stream.h"

namespace optod::train {

/// plus[i] = fl(theta[i] + fl(scale z[i])), minus[i] = fl(theta[i] - fl(scale z[i])), z[i] of element first + i: the
/// bits of two calls of zo::AddScaledNormalTo. On all threads of the pool.
void PerturbBoth(const zo::Direction& direction, uint32_t tensor, uint64_t first, float scale,
                 std::span<const float> theta, std::span<float> plus, std::span<float> minus);
/// The same on the calling thread.
void PerturbBothHere(const zo::Direction& direction, uint32_t tensor, uint64_t first, float scale,
                     std::span<const float> theta, std::span<float> plus, std::span<float> minus);

}  // namespace optod::train

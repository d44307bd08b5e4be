#pragma once
/// Internal to optim/zo, its tests and its benchmark: the slicing code of stream.cc with the kernel and the number of
/// threads chosen by the caller.

#include <span>

#include "optim/zo/stream.h"
#include "optim/zo/stream_kernels.h"

namespace optod::zo::kernels {

/// FillNormal on one kernel and at most `threads` threads.
void FillSlice(const Kernels& kernel, int threads, const Direction& direction, uint32_t tensor, uint64_t first,
               std::span<float> z);
/// AddScaledNormalTo on one kernel and at most `threads` threads.
void AddSlice(const Kernels& kernel, int threads, const Direction& direction, uint32_t tensor, uint64_t first,
              float scale, std::span<const float> in, std::span<float> out);

/// AddScaledNormalPair on one kernel.
void PairSlice(const Kernels& kernel, const Direction& direction, uint32_t tensor, uint64_t first, float scale,
               std::span<const float> in, std::span<float> plus, std::span<float> minus);

/// out[i] = fl(in[i] + fl(scale * z[i])) for i < n; lives with the code that is compiled without contraction.
void AddScaled(float scale, const float* z, const float* in, float* out, size_t n);
/// The same, and minus[i] = fl(in[i] - fl(scale * z[i])).
void AddScaledPair(float scale, const float* z, const float* in, float* plus, float* minus, size_t n);

}  // namespace optod::zo::kernels

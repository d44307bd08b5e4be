#pragma once
// Four elements at a time between memory and registers, whatever the dtype. Layout: thread i of a block holds elements
// 4i .. 4i+3 of the block's stretch, so that a warp's loads are contiguous.
#include <cstdint>

#include "cuda/philox.h"
#include "cuda/step.h"
#include "optim/rules/half.h"

namespace optod::cuda {

template <typename T>
struct alignas(16) Four {
  T v[4];
};

// 4 values of T at element i; `count` < 4 at the end of a tensor, `aligned`: the base is a multiple of four elements.
template <typename T>
__device__ __forceinline__ Four<T> LoadNative(const void* base, int64_t i, int count, bool aligned) {
  Four<T> out = {};
  const T* at = static_cast<const T*>(base) + i;
  if (aligned && count == 4) {
#pragma unroll
    for (size_t half = 0; half < sizeof(Four<T>) / 16; ++half)
      reinterpret_cast<float4*>(out.v)[half] = reinterpret_cast<const float4*>(at)[half];
    return out;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (k < count) out.v[k] = at[k];
  }
  return out;
}
template <typename T>
__device__ __forceinline__ void StoreNative(void* base, int64_t i, int count, bool aligned, const Four<T>& x) {
  T* at = static_cast<T*>(base) + i;
  if (aligned && count == 4) {
#pragma unroll
    for (size_t half = 0; half < sizeof(Four<T>) / 16; ++half)
      reinterpret_cast<float4*>(at)[half] = reinterpret_cast<const float4*>(x.v)[half];
    return;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (k < count) at[k] = x.v[k];
  }
}

__device__ __forceinline__ void LoadBits(const void* base, int64_t i, int count, bool aligned, uint16_t bits[4]) {
  const uint16_t* at = static_cast<const uint16_t*>(base) + i;
  if (aligned && count == 4) {
    const ushort4 x = *reinterpret_cast<const ushort4*>(at);
    bits[0] = x.x, bits[1] = x.y, bits[2] = x.z, bits[3] = x.w;
    return;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) bits[k] = k < count ? at[k] : uint16_t{0};
}
__device__ __forceinline__ void StoreBits(void* base, int64_t i, int count, bool aligned, const uint16_t bits[4]) {
  uint16_t* at = static_cast<uint16_t*>(base) + i;
  if (aligned && count == 4) {
    *reinterpret_cast<ushort4*>(at) = make_ushort4(bits[0], bits[1], bits[2], bits[3]);
    return;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (k < count) at[k] = bits[k];
  }
}

// Parameters and gradients as T: float from float32, bfloat16, float16; double from float64. `dtype` is the same for a
// whole tensor, so the branch does not diverge.
template <typename T>
__device__ __forceinline__ Four<T> Load(DType dtype, const void* base, int64_t i, int count, bool aligned) {
  if constexpr (sizeof(T) == 4) {
    if (dtype != DType::kF32) {
      uint16_t bits[4];
      LoadBits(base, i, count, aligned, bits);
      Four<float> out;
#pragma unroll
      for (int k = 0; k < 4; ++k)
        out.v[k] = dtype == DType::kBF16 ? optim::half::FromBf16(bits[k]) : optim::half::FromF16(bits[k]);
      return out;
    }
  }
  return LoadNative<T>(base, i, count, aligned);
}

// `words`: for stochastic rounding to bfloat16; null = to nearest.
template <typename T>
__device__ __forceinline__ void Store(DType dtype, void* base, int64_t i, int count, bool aligned, const Four<T>& x,
                                      const uint32_t* words) {
  if constexpr (sizeof(T) == 4) {
    if (dtype != DType::kF32) {
      uint16_t bits[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        bits[k] = dtype == DType::kF16 ? optim::half::ToF16(x.v[k])
                  : words != nullptr   ? optim::half::ToBf16Stochastic(x.v[k], words[k])
                                       : optim::half::ToBf16(x.v[k]);
      }
      StoreBits(base, i, count, aligned, bits);
      return;
    }
  }
  StoreNative<T>(base, i, count, aligned, x);
}

}  // namespace optod::cuda

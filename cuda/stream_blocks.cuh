#pragma once
// Kernels over runs of one tensor, a thread a block of the random stream: four elements whose number is a multiple of
// four. Grid-stride loops, 256 threads a block.
#include "cuda/vectors.cuh"

namespace optod::cuda {

inline constexpr int kBlockThreads = 256;
inline constexpr int64_t kMostBlocks = 1 << 16;

inline unsigned GridFor(int64_t blocks_of_four) {
  const int64_t blocks = (blocks_of_four + kBlockThreads - 1) / kBlockThreads;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks < kMostBlocks ? blocks : kMostBlocks);
}
inline int64_t BlocksOf(uint64_t first, int64_t n) {
  return static_cast<int64_t>((first + static_cast<uint64_t>(n) + 3) / 4 - first / 4);
}

// body(position of the block's first element relative to `first`, block number): positions outside [0, n) are the
// caller's to skip.
template <typename Body>
__device__ __forceinline__ void ForEachBlock(uint64_t first, int64_t n, Body body) {
  const uint64_t begin = first / 4, end = (first + static_cast<uint64_t>(n) + 3) / 4;
  const uint64_t stride = static_cast<uint64_t>(gridDim.x) * blockDim.x;
  for (uint64_t block = begin + static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; block < end; block += stride)
    body(static_cast<int64_t>(4 * block) - static_cast<int64_t>(first), block);
}

// theta of four elements; the first and last block of a span that does not begin or end on one go element by element.
__device__ __forceinline__ Four<float> LoadFour(DType dtype, const void* base, int64_t at, int64_t n, bool whole) {
  if (whole) return Load<float>(dtype, base, at, 4, true);
  Four<float> out = {};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (at + k >= 0 && at + k < n) out.v[k] = Load<float>(dtype, base, at + k, 1, false).v[0];
  }
  return out;
}
__device__ __forceinline__ void StoreFour(DType dtype, void* base, int64_t at, int64_t n, bool whole, const Four<float>& x) {
  if (whole) return Store<float>(dtype, base, at, 4, true, x, nullptr);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (at + k >= 0 && at + k < n) Store<float>(dtype, base, at + k, 1, false, Four<float>{{x.v[k]}}, nullptr);
  }
}

// Whether four elements from a block border on may go as one vector: the position of the first border is `first` % 4
// elements off.
inline bool VectorsFit(uint64_t first, DType dtype, const void* pointer) {
  const size_t element = dtype == DType::kF32 ? 4 : 2;
  return (reinterpret_cast<uintptr_t>(pointer) / element + 4 - first % 4) % 4 == 0 &&
         reinterpret_cast<uintptr_t>(pointer) % element == 0;
}

}  // namespace optod::cuda

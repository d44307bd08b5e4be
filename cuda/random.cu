// Kernels of the stream: one thread a Philox block of four elements. Grid-stride loops, 256 threads a block.
#include "cuda/random.h"
#include "cuda/vectors.cuh"

namespace optod::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 16;

unsigned GridFor(int64_t blocks_of_four) {
  const int64_t blocks = (blocks_of_four + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks < kMostBlocks ? blocks : kMostBlocks);
}
int64_t BlocksOf(uint64_t first, int64_t n) {
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

__global__ void FillNormalKernel(StreamId id, uint64_t first, float* z, int64_t n) {
  ForEachBlock(first, n, [&](int64_t at, uint64_t block) {
    float x[4];
    NormalBlock(id, block, x);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (at + k >= 0 && at + k < n) z[at + k] = x[k];
    }
  });
}

__global__ void FillBitsKernel(StreamId id, uint64_t first, uint32_t* bits, int64_t n) {
  ForEachBlock(first, n, [&](int64_t at, uint64_t block) {
    const PhiloxBlock x = StreamBlock(id, block);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (at + k >= 0 && at + k < n) bits[at + k] = x.word[k];
    }
  });
}

struct Terms {
  UpdateTerm term[kMostTerms];
  int count;
};

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

__global__ void AddScaledKernel(StreamId id, uint64_t first, float scale, DType dtype, const void* in, void* out, int64_t n,
                                bool aligned) {
  ForEachBlock(first, n, [&](int64_t at, uint64_t block) {
    const bool whole = aligned && at >= 0 && at + 4 <= n;
    float z[4];
    NormalBlock(id, block, z);
    Four<float> x = LoadFour(dtype, in, at, n, whole);
#pragma unroll
    for (int k = 0; k < 4; ++k) x.v[k] = x.v[k] + scale * z[k];
    StoreFour(dtype, out, at, n, whole, x);
  });
}

__global__ void ApplyUpdateKernel(StreamId id, Terms terms, float rate, DType dtype, void* theta, int64_t n, bool aligned) {
  ForEachBlock(0, n, [&](int64_t at, uint64_t block) {
    const bool whole = aligned && at + 4 <= n;
    Four<float> x = LoadFour(dtype, theta, at, n, whole);
    if (rate != 0) {
#pragma unroll
      for (int k = 0; k < 4; ++k) x.v[k] = x.v[k] - rate * x.v[k];
    }
    for (int t = 0; t < terms.count; ++t) {
      float z[4];
      NormalBlock({id.seed, terms.term[t].step, terms.term[t].query, id.tensor}, block, z);
#pragma unroll
      for (int k = 0; k < 4; ++k) x.v[k] = x.v[k] + -terms.term[t].coefficient * z[k];
    }
    StoreFour(dtype, theta, at, n, whole, x);
  });
}

// Whether four elements from a block border on may go as one vector: the position of the first border is `first` % 4
// elements off.
bool VectorsFit(uint64_t first, DType dtype, const void* pointer) {
  const size_t element = dtype == DType::kF32 ? 4 : 2;
  return (reinterpret_cast<uintptr_t>(pointer) / element + 4 - first % 4) % 4 == 0 &&
         reinterpret_cast<uintptr_t>(pointer) % element == 0;
}

}  // namespace

Error FillNormal(const StreamId& id, uint64_t first, float* z, int64_t n, cudaStream_t stream) {
  if (n <= 0) return {};
  FillNormalKernel<<<GridFor(BlocksOf(first, n)), kThreads, 0, stream>>>(id, first, z, n);
  return LaunchError("FillNormalKernel");
}

Error FillBits(const StreamId& id, uint64_t first, uint32_t* bits, int64_t n, cudaStream_t stream) {
  if (n <= 0) return {};
  FillBitsKernel<<<GridFor(BlocksOf(first, n)), kThreads, 0, stream>>>(id, first, bits, n);
  return LaunchError("FillBitsKernel");
}

Error AddScaledNormal(const StreamId& id, uint64_t first, float scale, DType dtype, const void* in, void* out, int64_t n,
                      cudaStream_t stream) {
  if (dtype == DType::kF64) return {"AddScaledNormal: float64 is not offered"};
  if (n <= 0) return {};
  const bool aligned = VectorsFit(first, dtype, in) && VectorsFit(first, dtype, out);
  AddScaledKernel<<<GridFor(BlocksOf(first, n)), kThreads, 0, stream>>>(id, first, scale, dtype, in, out, n, aligned);
  return LaunchError("AddScaledKernel");
}

Error ApplyUpdate(const StreamId& id, std::span<const UpdateTerm> terms, float decay_rate, DType dtype, void* theta,
                  int64_t n, cudaStream_t stream) {
  if (dtype == DType::kF64) return {"ApplyUpdate: float64 is not offered"};
  if (terms.size() > kMostTerms) return {"ApplyUpdate: more than 64 terms in one launch"};
  if (n <= 0) return {};
  Terms table = {};
  table.count = static_cast<int>(terms.size());
  for (size_t t = 0; t < terms.size(); ++t) table.term[t] = terms[t];
  ApplyUpdateKernel<<<GridFor(BlocksOf(0, n)), kThreads, 0, stream>>>(id, table, decay_rate, dtype, theta, n,
                                                                     VectorsFit(0, dtype, theta));
  return LaunchError("ApplyUpdateKernel");
}

}  // namespace optod::cuda

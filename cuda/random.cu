// Kernels of the stream: one thread a Philox block of four elements.
#include "cuda/random.h"
#include "cuda/stream_blocks.cuh"

namespace optod::cuda {
namespace {

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

}  // namespace

Error FillNormal(const StreamId& id, uint64_t first, float* z, int64_t n, cudaStream_t stream) {
  if (n <= 0) return {};
  FillNormalKernel<<<GridFor(BlocksOf(first, n)), kBlockThreads, 0, stream>>>(id, first, z, n);
  return LaunchError("FillNormalKernel");
}

Error FillBits(const StreamId& id, uint64_t first, uint32_t* bits, int64_t n, cudaStream_t stream) {
  if (n <= 0) return {};
  FillBitsKernel<<<GridFor(BlocksOf(first, n)), kBlockThreads, 0, stream>>>(id, first, bits, n);
  return LaunchError("FillBitsKernel");
}

Error AddScaledNormal(const StreamId& id, uint64_t first, float scale, DType dtype, const void* in, void* out, int64_t n,
                      cudaStream_t stream) {
  if (dtype == DType::kF64) return {"AddScaledNormal: float64 is not offered"};
  if (n <= 0) return {};
  const bool aligned = VectorsFit(first, dtype, in) && VectorsFit(first, dtype, out);
  AddScaledKernel<<<GridFor(BlocksOf(first, n)), kBlockThreads, 0, stream>>>(id, first, scale, dtype, in, out, n, aligned);
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
  ApplyUpdateKernel<<<GridFor(BlocksOf(0, n)), kBlockThreads, 0, stream>>>(id, table, decay_rate, dtype, theta, n,
                                                                     VectorsFit(0, dtype, theta));
  return LaunchError("ApplyUpdateKernel");
}

}  // namespace optod::cuda

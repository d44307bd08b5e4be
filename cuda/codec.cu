// 16-bit codes: a thread a block of the stream. fp8: a warp a row, first for its largest value, then for its codes.
#include "cuda/codec.h"

#include "cuda/stream_blocks.cuh"

namespace optod::cuda {
namespace {

namespace element = tier::element;
using tier::Codec;

constexpr int kWarp = 32, kRowsABlock = kBlockThreads / kWarp;

__device__ __forceinline__ StreamId IdOf(const CodecRounding& r) { return {r.seed, r.step, tier::kCodecQuery, r.uid}; }

__device__ __forceinline__ void PutBits(std::byte* to, uint16_t bits) {
  to[0] = static_cast<std::byte>(bits & 0xffu);  // rows of a unit begin anywhere
  to[1] = static_cast<std::byte>(bits >> 8);
}

__global__ void Encode16Kernel(bool bf16, const float* values, int64_t n, CodecRounding r, std::byte* coded, bool aligned) {
  ForEachBlock(r.first, n, [&](int64_t at, uint64_t block) {
    const PhiloxBlock words = StreamBlock(IdOf(r), block);
    const bool whole = aligned && at >= 0 && at + 4 <= n;
    const Four<float> x = LoadFour(DType::kF32, values, at, n, whole);
    uint16_t bits[4];
#pragma unroll
    for (int k = 0; k < 4; ++k)
      bits[k] = bf16 ? optim::half::ToBf16Stochastic(x.v[k], words.word[k]) : element::ToF16Stochastic(x.v[k], words.word[k]);
    if (whole) return StoreBits(coded, at, 4, true, bits);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (at + k >= 0 && at + k < n) PutBits(coded + 2 * (at + k), bits[k]);
    }
  });
}

__global__ void Decode16Kernel(bool bf16, const std::byte* coded, int64_t n, float* values, bool aligned) {
  ForEachBlock(0, n, [&](int64_t at, uint64_t) {
    const bool whole = aligned && at + 4 <= n;
    uint16_t bits[4] = {};
    if (whole) LoadBits(coded, at, 4, true, bits);
    for (int k = 0; k < 4 && !whole; ++k) {
      const std::byte* from = coded + 2 * (at + k);
      if (at + k < n) bits[k] = static_cast<uint16_t>(static_cast<uint32_t>(from[0]) | static_cast<uint32_t>(from[1]) << 8);
    }
    Four<float> x;
#pragma unroll
    for (int k = 0; k < 4; ++k) x.v[k] = bf16 ? optim::half::FromBf16(bits[k]) : optim::half::FromF16(bits[k]);
    StoreFour(DType::kF32, values, at, n, whole, x);
  });
}

__device__ __forceinline__ float WarpLargest(const float* row, int64_t columns, int lane) {
  float top = 0;
  for (int64_t i = lane; i < columns; i += kWarp) top = fmaxf(top, fabsf(row[i]));  // passes NaN over, as std::max here
  for (int step = kWarp / 2; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
  return top;
}

__global__ void EncodeFp8Kernel(const float* values, int64_t rows, int64_t columns, CodecRounding r, std::byte* coded) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kRowsABlock + threadIdx.x / kWarp; at < rows;
       at += static_cast<int64_t>(gridDim.x) * kRowsABlock) {
    const float* row = values + at * columns;
    std::byte* out = coded + at * (columns + 4);
    const float scale = element::RowScale(WarpLargest(row, columns, lane));
    const uint32_t bits = optim::half::FloatToBits(scale);
    if (lane < 4) out[lane] = static_cast<std::byte>(bits >> (8 * lane) & 0xffu);
    const uint64_t first = r.first + static_cast<uint64_t>(at * columns), end = first + static_cast<uint64_t>(columns);
    for (uint64_t block = first / 4 + lane; 4 * block < end; block += kWarp) {
      const PhiloxBlock words = StreamBlock(IdOf(r), block);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int64_t i = static_cast<int64_t>(4 * block + k) - static_cast<int64_t>(first);
        if (i >= 0 && i < columns) out[4 + i] = static_cast<std::byte>(element::ToFp8Stochastic(row[i] / scale, words.word[k]));
      }
    }
  }
}

__global__ void DecodeFp8Kernel(const std::byte* coded, int64_t rows, int64_t columns, float* values) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kRowsABlock + threadIdx.x / kWarp; at < rows;
       at += static_cast<int64_t>(gridDim.x) * kRowsABlock) {
    const std::byte* in = coded + at * (columns + 4);
    uint32_t bits = 0;
    for (int k = 0; k < 4; ++k) bits |= static_cast<uint32_t>(in[k]) << (8 * k);
    const float scale = optim::half::BitsToFloat(bits);
    for (int64_t i = lane; i < columns; i += kWarp)
      values[at * columns + i] = element::FromFp8(static_cast<uint8_t>(in[4 + i])) * scale;
  }
}

unsigned RowGrid(int64_t rows) {
  const int64_t blocks = (rows + kRowsABlock - 1) / kRowsABlock;
  return static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
}

}  // namespace

Error Encode(Codec codec, const float* values, int64_t n, int64_t columns, const CodecRounding& rounding, std::byte* coded,
             cudaStream_t stream) {
  if (n <= 0) return {};
  if (codec == Codec::kNone)
    return FromCuda(cudaMemcpyAsync(coded, values, static_cast<size_t>(n) * sizeof(float), cudaMemcpyDeviceToDevice, stream),
                    "copy of a part");
  if (codec == Codec::kFp8) {
    EncodeFp8Kernel<<<RowGrid(n / columns), kBlockThreads, 0, stream>>>(values, n / columns, columns, rounding, coded);
    return LaunchError("EncodeFp8Kernel");
  }
  const bool aligned = VectorsFit(rounding.first, DType::kF32, values) && VectorsFit(rounding.first, DType::kBF16, coded);
  Encode16Kernel<<<GridFor(BlocksOf(rounding.first, n)), kBlockThreads, 0, stream>>>(codec == Codec::kBf16, values, n, rounding,
                                                                                    coded, aligned);
  return LaunchError("Encode16Kernel");
}

Error Decode(Codec codec, const std::byte* coded, int64_t n, int64_t columns, float* values, cudaStream_t stream) {
  if (n <= 0) return {};
  if (codec == Codec::kNone)
    return FromCuda(cudaMemcpyAsync(values, coded, static_cast<size_t>(n) * sizeof(float), cudaMemcpyDeviceToDevice, stream),
                    "copy of a part");
  if (codec == Codec::kFp8) {
    DecodeFp8Kernel<<<RowGrid(n / columns), kBlockThreads, 0, stream>>>(coded, n / columns, columns, values);
    return LaunchError("DecodeFp8Kernel");
  }
  const bool aligned = VectorsFit(0, DType::kF32, values) && VectorsFit(0, DType::kBF16, coded);
  Decode16Kernel<<<GridFor(BlocksOf(0, n)), kBlockThreads, 0, stream>>>(codec == Codec::kBf16, coded, n, values, aligned);
  return LaunchError("Decode16Kernel");
}

}  // namespace optod::cuda

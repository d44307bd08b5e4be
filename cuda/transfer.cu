// Cast: four elements a thread, grid-stride.
#include <cstring>

#include "cuda/transfer.h"
#include "cuda/vectors.cuh"

namespace optod::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void CastKernel(DType from_dtype, const void* from, DType to_dtype, void* to, int64_t n, bool aligned) {
  const int64_t stride = 4 * static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = 4 * (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x); i < n; i += stride) {
    const int count = n - i < 4 ? static_cast<int>(n - i) : 4;
    Store<float>(to_dtype, to, i, count, aligned, Load<float>(from_dtype, from, i, count, aligned), nullptr);
  }
}

bool OnFour(const void* pointer, DType dtype) {
  return reinterpret_cast<uintptr_t>(pointer) % (dtype == DType::kF32 ? 16 : 8) == 0;
}

}  // namespace

Error Cast(DType from_dtype, const void* from, DType to_dtype, void* to, int64_t n, cudaStream_t stream) {
  if (from_dtype == DType::kF64 || to_dtype == DType::kF64) return {"Cast: float64 is not offered"};
  if (n <= 0) return {};
  const int64_t blocks = (n + 4 * kThreads - 1) / (4 * kThreads);
  CastKernel<<<static_cast<unsigned>(blocks < 65536 ? blocks : 65536), kThreads, 0, stream>>>(
      from_dtype, from, to_dtype, to, n, OnFour(from, from_dtype) && OnFour(to, to_dtype));
  return LaunchError("CastKernel");
}

Error Pipeline::Make(size_t piece_bytes, std::unique_ptr<Pipeline>* out) {
  if (piece_bytes == 0) return {"Pipeline.Make: piece_bytes must be > 0"};
  std::unique_ptr<Pipeline> made(new Pipeline());
  made->piece_ = piece_bytes;
  for (int k = 0; k < kSlots; ++k) {
    OPTOD_CUDA_RETURN(FromCuda(cudaMallocHost(&made->slot_[k], piece_bytes), "cudaMallocHost of a piece"));
    OPTOD_CUDA_RETURN(FromCuda(cudaEventCreateWithFlags(&made->done_[k], cudaEventDisableTiming), "cudaEventCreate"));
  }
  *out = std::move(made);
  return {};
}

Pipeline::~Pipeline() {
  for (int k = 0; k < kSlots; ++k) {
    if (done_[k] != nullptr) {
      cudaEventSynchronize(done_[k]);
      cudaEventDestroy(done_[k]);
    }
    cudaFreeHost(slot_[k]);
  }
}

Error Pipeline::ToDevice(const void* host, void* device, size_t bytes, cudaStream_t stream) {
  int k = 0;
  for (size_t at = 0; at < bytes; at += piece_, k = (k + 1) % kSlots) {
    const size_t n = bytes - at < piece_ ? bytes - at : piece_;
    OPTOD_CUDA_RETURN(FromCuda(cudaEventSynchronize(done_[k]), "wait for a piece"));
    std::memcpy(slot_[k], static_cast<const std::byte*>(host) + at, n);
    OPTOD_CUDA_RETURN(FromCuda(
        cudaMemcpyAsync(static_cast<std::byte*>(device) + at, slot_[k], n, cudaMemcpyHostToDevice, stream), "copy to device"));
    OPTOD_CUDA_RETURN(FromCuda(cudaEventRecord(done_[k], stream), "cudaEventRecord"));
  }
  return {};
}

Error Pipeline::ToHost(const void* device, void* host, size_t bytes, cudaStream_t stream) {
  const size_t pieces = (bytes + piece_ - 1) / piece_;
  const auto length = [&](size_t piece) { return piece + 1 < pieces ? piece_ : bytes - piece * piece_; };
  for (int k = 0; k < kSlots; ++k) OPTOD_CUDA_RETURN(FromCuda(cudaEventSynchronize(done_[k]), "wait for a piece"));
  // Piece i is under way while piece i - 1 is copied out of its slot.
  for (size_t piece = 0; piece <= pieces; ++piece) {
    if (piece < pieces) {
      const int k = static_cast<int>(piece % kSlots);
      OPTOD_CUDA_RETURN(FromCuda(cudaMemcpyAsync(slot_[k], static_cast<const std::byte*>(device) + piece * piece_,
                                                 length(piece), cudaMemcpyDeviceToHost, stream),
                                 "copy to host"));
      OPTOD_CUDA_RETURN(FromCuda(cudaEventRecord(done_[k], stream), "cudaEventRecord"));
    }
    if (piece == 0) continue;
    const int k = static_cast<int>((piece - 1) % kSlots);
    OPTOD_CUDA_RETURN(FromCuda(cudaEventSynchronize(done_[k]), "wait for a piece"));
    std::memcpy(static_cast<std::byte*>(host) + (piece - 1) * piece_, slot_[k], length(piece - 1));
  }
  return {};
}

}  // namespace optod::cuda

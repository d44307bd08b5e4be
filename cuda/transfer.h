#pragma once
/// Between dtypes and between host and device: cast kernels, and a pinned two-slot pipeline that overlaps the host's copy
/// of one piece with the transfer of the piece before.

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>

#include "cuda/error.h"
#include "cuda/step.h"

namespace optod::cuda {

/// to[i] = from[i] in the other dtype (float32, float16, bfloat16; to nearest even). Disjoint device memory.
Error Cast(DType from_dtype, const void* from, DType to_dtype, void* to, int64_t n, cudaStream_t stream);

/// Copies between pageable host memory and the device at the speed of pinned memory. Calls return when the host's side may
/// be used again; the device's side is ordered on the stream given.
class Pipeline {
 public:
  /// `piece_bytes`: of one slot; 4 MiB is a good size.
  static Error Make(size_t piece_bytes, std::unique_ptr<Pipeline>* out);
  ~Pipeline();
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  Error ToDevice(const void* host, void* device, size_t bytes, cudaStream_t stream);
  /// Waits for the stream up to the last piece.
  Error ToHost(const void* device, void* host, size_t bytes, cudaStream_t stream);

 private:
  Pipeline() = default;
  static constexpr int kSlots = 2;
  size_t piece_ = 0;
  std::byte* slot_[kSlots] = {};
  cudaEvent_t done_[kSlots] = {};
};

}  // namespace optod::cuda

#pragma once
/// The random stream on the device, and zeroth-order updates on it: the bytes of optim/zo/stream.h and
/// optim/zo/replay.h. All calls launch on `stream` and return; spans are device memory of float32 or bfloat16/float16
/// parameters where it says so.

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "cuda/error.h"
#include "cuda/philox.h"
#include "cuda/step.h"

namespace optod::cuda {

/// z[i] = Gaussian of element first + i.
Error FillNormal(const StreamId& id, uint64_t first, float* z, int64_t n, cudaStream_t stream);
/// bits[i] = the raw word of element first + i.
Error FillBits(const StreamId& id, uint64_t first, uint32_t* bits, int64_t n, cudaStream_t stream);
/// out[i] = in[i] + scale * z[i], each operation rounded to float32, then to the dtype (nearest). in and out equal or
/// disjoint.
Error AddScaledNormal(const StreamId& id, uint64_t first, float scale, DType dtype, const void* in, void* out, int64_t n,
                      cudaStream_t stream);

/// One term of an update: a direction's step and query, and its coefficient.
struct UpdateTerm {
  uint32_t step, query;
  float coefficient;
};
inline constexpr int kMostTerms = 64;  ///< of one launch; longer updates are several (decay_rate in the first)

/// A plain zeroth-order update in one pass: theta -= decay_rate * theta (when not 0), then theta -= coefficient * z term
/// by term. float32 theta: the bytes of zo::ApplyUpdate. `id`: seed and tensor; its step and query are not used. Errors:
/// more than kMostTerms terms.
Error ApplyUpdate(const StreamId& id, std::span<const UpdateTerm> terms, float decay_rate, DType dtype, void* theta,
                  int64_t n, cudaStream_t stream);

}  // namespace optod::cuda

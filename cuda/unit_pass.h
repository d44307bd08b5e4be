#pragma once
/// ZO2's work on a unit in device memory in one pass (Wang et al., 2025): the deferred updates of the steps that the unit
/// is behind, then both perturbed copies, theta read and written once. The bytes of optim/tier/unit_pass.h.

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "cuda/error.h"
#include "cuda/pass_elements.h"

namespace optod::cuda {

/// A run of one tensor's elements in device memory, float32. m, v: null where the optimizer has none. plus, minus: null
/// where they are not formed; disjoint from the others.
struct PassValues {
  uint64_t seed = 0;
  uint32_t tensor = 0;  ///< number in the random stream
  uint64_t first = 0;   ///< element of the tensor that theta[0] is
  int64_t n = 0;
  float *theta = nullptr, *m = nullptr, *v = nullptr, *plus = nullptr, *minus = nullptr;
};

inline constexpr size_t kMostPassOps = 64;  ///< of one launch; longer programs are several, cut behind a kRule

/// Launches on `stream` and returns. Error: more than kMostPassOps kGradient and kRule operations in one update.
Error UnitPass(const PassValues& values, std::span<const PassOp> ops, const PassRule& rule, const PassCopies& copies,
               cudaStream_t stream);

}  // namespace optod::cuda

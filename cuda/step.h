#pragma once
/// One optimizer step over all tensors of a layout in one kernel launch.
///
///   tensors (pointers, sizes) + constants a tensor ──► table on the device ──► one block a chunk of 16,384 elements,
///   four elements a thread at a time: p, g, state in; formula; p, state out
///
/// Parameters and gradients are float32, bfloat16, float16 (state and arithmetic float32) or float64 (all float64). The
/// results are bit for bit those of the CPU (optim/rules), but for AdaHessian with a Hessian power other than 1. No
/// allocation after Make: a step copies its table through pinned memory and launches. One StepPlan belongs to one stream
/// of calls.

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cuda/error.h"

namespace optod::cuda {

/// Numbers equal optim::DType.
enum class DType : uint8_t { kF32 = 1, kF64 = 2, kF16 = 3, kBF16 = 4 };

enum class Operation : int {
  kSgdPlain,
  kSgdMomentum,
  kSgdNesterov,
  kAdam,
  kAmsgrad,
  kSai,
  kAdaHessian,
  kAdaHessianPower,
  kLambMoments,
  kLambApply,
  kNormalisedRow,
  kAverage,
};

/// One tensor in device memory. Operands that the operation does not use may be null. No two may overlap. Any alignment
/// that fits the element works; 16 bytes are fastest.
struct TensorOperands {
  void* p = nullptr;
  const void* g = nullptr;  ///< nullptr where the operation reads one: the tensor is left alone
  void* s[3] = {};          ///< float32; float64 for float64 parameters
  const void* x = nullptr;  ///< as s
  DType p_dtype = DType::kF32, g_dtype = DType::kF32;
  /// Stochastic rounding of bfloat16 parameters with words of stream (seed, step, query 2^32-1, tensor): the same as on
  /// the CPU.
  bool stochastic = false;
  uint32_t step = 0, tensor = 0;
  uint64_t seed = 0;
};

class StepPlan {
 public:
  /// `sizes`: elements of each tensor, in order.
  static Error Make(std::span<const int64_t> sizes, std::unique_ptr<StepPlan>* out);
  ~StepPlan();
  StepPlan(const StepPlan&) = delete;
  StepPlan& operator=(const StepPlan&) = delete;

  /// Launches on `stream` and returns. `constants`: one struct of formulas.h a tensor, one after another, of the type that
  /// the operation takes (float, or double when the parameters are float64; all tensors alike). Errors: a count differs,
  /// dtypes are mixed between float64 and others, or a CUDA error.
  Error Run(Operation operation, std::span<const TensorOperands> tensors, std::span<const std::byte> constants,
            cudaStream_t stream);

 private:
  StepPlan() = default;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace optod::cuda

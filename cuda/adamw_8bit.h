#pragma once
/// AdamW with block-wise 8-bit moments (Dettmers et al. 2022) in one pass: decode, step, encode, without the moments ever
/// being in memory as floats. State as in optim/rules/adamw_8bit.cc: codes m (signed), v (unsigned) of the parameter's
/// size, m_max, v_max one float32 a block of `block` consecutive elements (256 to 4096, a power of two). Bits as on the
/// CPU.

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/error.h"
#include "cuda/step.h"
#include "optim/rules/formulas.h"

namespace optod::cuda {

struct CodedMoments {
  uint8_t *m = nullptr, *v = nullptr;
  float *m_max = nullptr, *v_max = nullptr;
};

/// One tensor of n elements; p float32, bfloat16 or float16, g its dtype or float32. tensor.s and tensor.x are not used.
Error StepAdamW8bit(const TensorOperands& tensor, const CodedMoments& moments, int64_t n, int block,
                    const optim::formula::Adam<float>& constants, cudaStream_t stream);

}  // namespace optod::cuda

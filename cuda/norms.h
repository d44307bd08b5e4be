#pragma once
/// Reductions that rules with norms need, and SCALE's fused row step. Sums are taken in double in a fixed order, so that a
/// step repeats bit for bit on one card; the CPU's order is another, so results agree to rounding.

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/error.h"
#include "cuda/step.h"
#include "optim/rules/formulas.h"

namespace optod::cuda {

/// sums[k] = sum over tensor k of x^2, x of dtype; one launch a tensor pair of passes. `partial`: device scratch of
/// kPartials doubles.
inline constexpr int kPartials = 1024;
Error SumSquares(DType dtype, const void* x, int64_t n, double* partial, double* sum, cudaStream_t stream);

/// SCALE on a matrix [rows, cols], one root mean square a row (Glentis et al. 2025): p := p decay - lr x / max(RMS, 1e-8).
/// x is the gradient, or with `momentum` (float32 [rows, cols]) its moving average, which is updated first.
/// `constants.rms` is not read.
Error StepNormalisedRows(const TensorOperands& tensor, float* momentum, int64_t rows, int64_t cols,
                         const optim::formula::Normalised<float>& constants, cudaStream_t stream);

/// Column sums of squares of x [rows, cols]: sums[c] (double). Deterministic: one thread a column and segment of rows,
/// segments added in order. `partial`: kColumnSegments * cols doubles.
inline constexpr int kColumnSegments = 64;
Error ColumnSumSquares(DType dtype, const void* x, int64_t rows, int64_t cols, double* partial, double* sums,
                       cudaStream_t stream);

}  // namespace optod::cuda

#pragma once
/// The dense operations of matrix rules over cuBLAS and cuSOLVER: what optim/rules/blas.h is on the CPU, on matrices in
/// device memory. All matrices are row-major and packed (leading dimension = columns). float32 in full precision (TF32
/// off). Results agree with the CPU's to the rounding of another order of sums, not in bits. One Matrices object belongs
/// to one stream; calls launch there and return unless they say otherwise. Workspaces grow on first use and are kept.

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>

#include "cuda/error.h"

namespace optod::cuda {

class Matrices {
 public:
  static Error Make(cudaStream_t stream, std::unique_ptr<Matrices>* out);
  ~Matrices();
  Matrices(const Matrices&) = delete;
  Matrices& operator=(const Matrices&) = delete;

  /// c [m, n] = alpha op(a) op(b) + beta c; op(a) is [m, k], op(b) is [k, n]; transposed operands are stored the other way
  /// round.
  Error Gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
             const float* b, float beta, float* c);
  /// Muon's orthogonalisation (Jordan et al. 2024): five Newton-Schulz steps of u [rows, cols] / (||u||_F + 1e-7) with
  /// coefficients 3.4445, -4.7750, 2.0315 into out [rows, cols]; singular values end in about [0.7, 1.2].
  Error NewtonSchulz(int64_t rows, int64_t cols, const float* u, float* out);
  /// MKOR's `release` update of an inverse factor (Mozaffari et al. 2023): k [d, d] <- K - w w' / (1 + v'w) with
  /// K = 0.95 k + 0.05 I and w = K v. Rank 1: O(d^2).
  Error MkorRelease(int64_t d, const float* v, float* k);
  /// a [n, n] symmetric positive definite becomes its inverse (both triangles). Waits for the stream to learn whether it
  /// was: `*positive` false = not positive definite, a is lost.
  Error InvertPositive(int64_t n, float* a, bool* positive);
  /// Symmetric eigenproblem: a [n, n] becomes the eigenvectors, one a row of the row-major matrix; w [n] the eigenvalues,
  /// rising. Waits for the stream.
  Error Eigh(int64_t n, float* a, float* w, bool* converged);
  /// ||x||_F^2 into *sum (device memory, one float).
  Error SumSquares(int64_t n, const float* x, float* sum);

 private:
  Matrices() = default;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace optod::cuda

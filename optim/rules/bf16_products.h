#pragma once
/// Products of matrices of bfloat16 numbers added in float32, by the processor's bf16 dot products (AVX512_BF16): twice
/// the rate of float32 products. Operands come as float32 whose values are bfloat16 (rounded before); they are packed
/// into scratch memory that the caller keeps. The order of every sum is fixed: threads change no bit. Entries below the
/// smallest normal number count as zero. Where the processor has no such instruction, callers use blas.h, whose sums
/// are those of the same exact products in another order.

#include <cstddef>
#include <cstdint>

namespace optod::optim::bf16 {

/// Whether this processor has the instruction.
bool ProductsHere();

/// Bytes of scratch for operands [m, k] and [k, n].
size_t ScratchBytes(int64_t m, int64_t n, int64_t k);

/// As blas::Gemm with beta 0: c [m, n] = alpha op(a) op(b).
void Gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
          const float* b, float* c, void* scratch);
/// As blas::Gram: c [n, n] = alpha op(a) op(a)', both triangles, for half the operations.
void Gram(bool transpose, int64_t n, int64_t k, float alpha, const float* a, float* c, void* scratch);

}  // namespace optod::optim::bf16

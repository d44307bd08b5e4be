#pragma once
/// The few dense operations that matrix rules need, over OpenBLAS and LAPACK, for float and double. All matrices are
/// row-major and packed (leading dimension = columns). Thread-safe.

#include <cstdint>

namespace optod::optim::blas {

/// c [m, n] = alpha op(a) op(b) + beta c; op(a) is [m, k], op(b) is [k, n]; transposed operands are stored the other
/// way round.
template <typename T>
void Gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a, const T* b, T beta,
          T* c);
/// c [n, n] = alpha op(a) op(a)', both triangles, for half the operations of Gemm; op(a) is [n, k], a transposed operand
/// is stored the other way round.
template <typename T>
void Gram(bool transpose, int64_t n, int64_t k, T alpha, const T* a, T* c);
/// y = a x for symmetric a [n, n].
template <typename T>
void Symv(int64_t n, const T* a, const T* x, T* y);
/// a += alpha x x' for a [n, n] (both triangles).
template <typename T>
void Rank1(int64_t n, T alpha, const T* x, T* a);
/// Sum of squares in double; the largest absolute entry.
template <typename T>
double SumSquares(int64_t n, const T* x);
template <typename T>
double MaxAbs(int64_t n, const T* x);
template <typename T>
double Dot(int64_t n, const T* x, const T* y);

/// Singular value decomposition of a [m, n] with k = min(m, n): u [m, k], s [k] falling, vt [k, n]. `a` is overwritten.
/// False when LAPACK does not converge.
template <typename T>
bool Svd(int64_t m, int64_t n, T* a, T* u, T* s, T* vt);
/// Symmetric eigenproblem: a [n, n] becomes the eigenvectors (one a column), w [n] the eigenvalues, rising. False when
/// LAPACK does not converge.
template <typename T>
bool Eigh(int64_t n, T* a, T* w);
/// Copies the lower triangle of a [n, n] to the upper.
template <typename T>
void Mirror(int64_t n, T* a);
/// a [n, n] symmetric positive definite becomes its inverse (both triangles). False when it is not positive definite.
template <typename T>
bool InvertPositive(int64_t n, T* a);

}  // namespace optod::optim::blas

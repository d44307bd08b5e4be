#include "optim/rules/blas.h"

#include <cblas.h>
#include <lapacke.h>

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "optim/rules/kernels.h"

namespace optod::optim::blas {
namespace {

template <typename T>
constexpr bool kSingle = std::is_same_v<T, float>;

}  // namespace

template <typename T>
void Mirror(int64_t n, T* a) {  // tile by tile: columns of a wide matrix share cache sets
  constexpr int64_t kSide = 32;
#pragma omp parallel for schedule(dynamic, 4) if (n >= 512)
  for (int64_t top = 0; top < n; top += kSide) {
    for (int64_t left = top; left < n; left += kSide) {
      for (int64_t i = top; i < std::min(n, top + kSide); ++i) {
        for (int64_t j = std::max(left, i + 1); j < std::min(n, left + kSide); ++j) a[i * n + j] = a[j * n + i];
      }
    }
  }
}

template <typename T>
void Gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, T alpha, const T* a, const T* b, T beta,
          T* c) {
  if (m == 0 || n == 0) return;
  const auto ta = transpose_a ? CblasTrans : CblasNoTrans, tb = transpose_b ? CblasTrans : CblasNoTrans;
  const int lda = static_cast<int>(std::max<int64_t>(1, transpose_a ? m : k)),
            ldb = static_cast<int>(std::max<int64_t>(1, transpose_b ? k : n));
  if constexpr (kSingle<T>) {
    cblas_sgemm(CblasRowMajor, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, n);
  } else {
    cblas_dgemm(CblasRowMajor, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, n);
  }
}

template <typename T>
void Gram(bool transpose, int64_t n, int64_t k, T alpha, const T* a, T* c) {
  if (n == 0) return;
  const auto t = transpose ? CblasTrans : CblasNoTrans;
  const int lda = static_cast<int>(std::max<int64_t>(1, transpose ? n : k));
  if constexpr (kSingle<T>) {
    cblas_ssyrk(CblasRowMajor, CblasLower, t, n, k, alpha, a, lda, 0.0f, c, n);
  } else {
    cblas_dsyrk(CblasRowMajor, CblasLower, t, n, k, alpha, a, lda, 0.0, c, n);
  }
  Mirror(n, c);
}

template <typename T>
void Symv(int64_t n, const T* a, const T* x, T* y) {
  if constexpr (kSingle<T>) {
    cblas_sgemv(CblasRowMajor, CblasNoTrans, n, n, 1.0f, a, n, x, 1, 0.0f, y, 1);
  } else {
    cblas_dgemv(CblasRowMajor, CblasNoTrans, n, n, 1.0, a, n, x, 1, 0.0, y, 1);
  }
}

template <typename T>
void Rank1(int64_t n, T alpha, const T* x, T* a) {
  if constexpr (kSingle<T>) {
    cblas_sger(CblasRowMajor, n, n, alpha, x, 1, x, 1, a, n);
  } else {
    cblas_dger(CblasRowMajor, n, n, alpha, x, 1, x, 1, a, n);
  }
}

template <typename T>
double SumSquares(int64_t n, const T* x) {
  return Kernels().typed<T>().sum_squares(x, n);
}
template <typename T>
double MaxAbs(int64_t n, const T* x) {
  T largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(x[i]));
  return largest;
}
template <typename T>
double Dot(int64_t n, const T* x, const T* y) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(y[i]);
  return sum;
}

template <typename T>
bool Svd(int64_t m, int64_t n, T* a, T* u, T* s, T* vt) {
  const int64_t k = std::min(m, n);
  if constexpr (kSingle<T>) {
    return LAPACKE_sgesdd(LAPACK_ROW_MAJOR, 'S', m, n, a, n, s, u, k, vt, n) == 0;
  } else {
    return LAPACKE_dgesdd(LAPACK_ROW_MAJOR, 'S', m, n, a, n, s, u, k, vt, n) == 0;
  }
}

template <typename T>
bool Eigh(int64_t n, T* a, T* w) {
  if constexpr (kSingle<T>) {
    return LAPACKE_ssyevd(LAPACK_ROW_MAJOR, 'V', 'L', n, a, n, w) == 0;
  } else {
    return LAPACKE_dsyevd(LAPACK_ROW_MAJOR, 'V', 'L', n, a, n, w) == 0;
  }
}

template <typename T>
bool InvertPositive(int64_t n, T* a) {
  int info = 0;
  if constexpr (kSingle<T>) {
    info = LAPACKE_spotrf(LAPACK_ROW_MAJOR, 'L', n, a, n);
    if (info == 0) info = LAPACKE_spotri(LAPACK_ROW_MAJOR, 'L', n, a, n);
  } else {
    info = LAPACKE_dpotrf(LAPACK_ROW_MAJOR, 'L', n, a, n);
    if (info == 0) info = LAPACKE_dpotri(LAPACK_ROW_MAJOR, 'L', n, a, n);
  }
  if (info == 0) Mirror(n, a);
  return info == 0;
}

#define OPTOD_INSTANTIATE(T)                                                                  \
  template void Gemm<T>(bool, bool, int64_t, int64_t, int64_t, T, const T*, const T*, T, T*); \
  template void Gram<T>(bool, int64_t, int64_t, T, const T*, T*);                             \
  template void Mirror<T>(int64_t, T*);                                                       \
  template void Symv<T>(int64_t, const T*, const T*, T*);                                     \
  template void Rank1<T>(int64_t, T, const T*, T*);                                           \
  template double SumSquares<T>(int64_t, const T*);                                           \
  template double MaxAbs<T>(int64_t, const T*);                                               \
  template double Dot<T>(int64_t, const T*, const T*);                                        \
  template bool Svd<T>(int64_t, int64_t, T*, T*, T*, T*);                                     \
  template bool Eigh<T>(int64_t, T*, T*);                                                     \
  template bool InvertPositive<T>(int64_t, T*);
OPTOD_INSTANTIATE(float)
OPTOD_INSTANTIATE(double)
#undef OPTOD_INSTANTIATE

}  // namespace optod::optim::blas

// Pairs of numbers along k are the unit: one 32-bit word holds two, one instruction multiplies 16 pairs by one pair (or
// by 16) and adds both products. A is packed in strips of kRows rows, B in strips of kCols columns, pair by pair:
//
//   A strip: pair 0 of rows 0..11, pair 1 of rows 0..11, ...      B strip: pair 0 of columns 0..31, pair 1 of ...
//
// A tile of 12 by 32 sums stays in 24 registers. Loops: kDepth pairs at a time (a strip of B then fits the first-level
// cache, a block of A the second), blocks of rows over threads, strips of B, strips of A.
#include "optim/rules/bf16_products.h"

#include <algorithm>
#include <cstring>

#include "optim/rules/blas.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace optod::optim::bf16 {
namespace {

constexpr int64_t kRows = 12, kCols = 32;
constexpr int64_t kDepth = 192;                ///< pairs of k at a time
constexpr int64_t kBlockRows = 16 * kRows;     ///< rows of A that a thread takes at a time
constexpr int64_t kParallelFrom = 1 << 21;     ///< products below which threads cost more than they save

int64_t Pairs(int64_t k) { return (k + 1) / 2; }
int64_t Up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

#if defined(__x86_64__)
#define OPTOD_BF16_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

/// Two float32 that are bfloat16 numbers as a pair.
inline uint32_t PairOf(float first, float second) {
  uint32_t a, b;
  std::memcpy(&a, &first, 4);
  std::memcpy(&b, &second, 4);
  return a >> 16 | (b & 0xffff0000u);
}

/// A strip of up to kWidth lines (rows of op(a), columns of op(b)); lines that are not there are zero. `line_step`,
/// `k_step`: elements from one line, one k, to the next in `x`.
template <int64_t kWidth>
void PackStrip(const float* x, int64_t lines, int64_t k, int64_t line_step, int64_t k_step, uint32_t* to) {
  for (int64_t l = lines; l < kWidth; ++l) {
    for (int64_t p = 0; p < Pairs(k); ++p) to[p * kWidth + l] = 0;
  }
  if (line_step == 1) {  // lines lie side by side
    for (int64_t p = 0; p < Pairs(k); ++p) {
      const float *first = x + 2 * p * k_step, *second = first + k_step;
      for (int64_t l = 0; l < lines; ++l) to[p * kWidth + l] = PairOf(first[l], 2 * p + 1 < k ? second[l] : 0.0f);
    }
    return;
  }
  for (int64_t l = 0; l < lines; ++l) {
    const float* line = x + l * line_step;
    for (int64_t p = 0; p < k / 2; ++p) to[p * kWidth + l] = PairOf(line[2 * p * k_step], line[(2 * p + 1) * k_step]);
    if (k % 2 == 1) to[k / 2 * kWidth + l] = PairOf(line[(k - 1) * k_step], 0.0f);
  }
}

template <int64_t kWidth>
void Pack(const float* x, int64_t lines, int64_t k, int64_t line_step, int64_t k_step, bool threads, uint32_t* to) {
#pragma omp parallel for schedule(static) if (threads)
  for (int64_t first = 0; first < lines; first += kWidth)
    PackStrip<kWidth>(x + first * line_step, std::min(kWidth, lines - first), k, line_step, k_step,
                      to + first * Pairs(k));
}

/// c[row][column] (+)= alpha times the products of one strip each, `pairs` pairs; `c` has rows `stride` apart.
OPTOD_BF16_TARGET void Tile(const uint32_t* a, const uint32_t* b, int64_t pairs, float alpha, bool add, float* c,
                            int64_t stride) {
  __m512 sum[kRows][2];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
  for (int64_t p = 0; p < pairs; ++p, a += kRows, b += kCols) {
    const __m512bh left = (__m512bh)_mm512_loadu_si512(b), right = (__m512bh)_mm512_loadu_si512(b + 16);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const __m512bh row = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[r]));
      sum[r][0] = _mm512_dpbf16_ps(sum[r][0], row, left);
      sum[r][1] = _mm512_dpbf16_ps(sum[r][1], row, right);
    }
  }
  const __m512 factor = _mm512_set1_ps(alpha);
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    for (int half = 0; half < 2; ++half) {
      float* to = c + r * stride + 16 * half;
      __m512 value = _mm512_mul_ps(factor, sum[r][half]);
      if (add) value = _mm512_add_ps(value, _mm512_loadu_ps(to));
      _mm512_storeu_ps(to, value);
    }
  }
}

/// A tile at the edge of c goes through one of full size.
void EdgeTile(const uint32_t* a, const uint32_t* b, int64_t pairs, float alpha, bool add, float* c, int64_t stride,
              int64_t rows, int64_t cols) {
  alignas(64) float whole[kRows * kCols];
  Tile(a, b, pairs, alpha, false, whole, kCols);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < cols; ++j) c[r * stride + j] = (add ? c[r * stride + j] : 0.0f) + whole[r * kCols + j];
  }
}

/// Packed operands to c [m, n]; `lower`: tiles wholly above the diagonal are left out.
void Multiply(int64_t m, int64_t n, int64_t k, float alpha, const uint32_t* a, const uint32_t* b, bool lower, float* c) {
  const int64_t pairs = Pairs(k), blocks = Up(m, kBlockRows) / kBlockRows;
  for (int64_t depth = 0; depth < pairs; depth += kDepth) {
    const int64_t now = std::min(kDepth, pairs - depth);
#pragma omp parallel for schedule(dynamic) if (m * n * k > kParallelFrom)
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t begin = block * kBlockRows, end = std::min(m, begin + kBlockRows);
      for (int64_t col = 0; col < n && !(lower && col >= end); col += kCols) {
        const int64_t cols = std::min(kCols, n - col);
        for (int64_t row = begin; row < end; row += kRows) {
          const int64_t rows = std::min(kRows, m - row);
          if (lower && col >= row + rows) continue;
          const uint32_t *strip_a = a + row * pairs + depth * kRows, *strip_b = b + col * pairs + depth * kCols;
          float* to = c + row * n + col;
          if (rows == kRows && cols == kCols) {
            Tile(strip_a, strip_b, now, alpha, depth > 0, to, n);
          } else {
            EdgeTile(strip_a, strip_b, now, alpha, depth > 0, to, n, rows, cols);
          }
        }
      }
    }
  }
}

#endif

}  // namespace

size_t ScratchBytes(int64_t m, int64_t n, int64_t k) {
  return static_cast<size_t>((Up(m, kRows) + Up(n, kCols)) * Pairs(k)) * sizeof(uint32_t);
}

#if defined(__x86_64__)

bool ProductsHere() {
  static const bool here = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                           __builtin_cpu_supports("avx512bf16");
  return here;
}

void Gemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float* a,
          const float* b, float* c, void* scratch) {
  auto* packed_a = static_cast<uint32_t*>(scratch);
  uint32_t* packed_b = packed_a + Up(m, kRows) * Pairs(k);
  const bool threads = m * n * k > kParallelFrom;
  Pack<kRows>(a, m, k, transpose_a ? 1 : k, transpose_a ? m : 1, threads, packed_a);
  Pack<kCols>(b, n, k, transpose_b ? k : 1, transpose_b ? 1 : n, threads, packed_b);
  Multiply(m, n, k, alpha, packed_a, packed_b, false, c);
}

void Gram(bool transpose, int64_t n, int64_t k, float alpha, const float* a, float* c, void* scratch) {
  auto* packed_a = static_cast<uint32_t*>(scratch);
  uint32_t* packed_b = packed_a + Up(n, kRows) * Pairs(k);
  const bool threads = n * n * k > kParallelFrom;
  const int64_t line_step = transpose ? 1 : k, k_step = transpose ? n : 1;
  Pack<kRows>(a, n, k, line_step, k_step, threads, packed_a);
  Pack<kCols>(a, n, k, line_step, k_step, threads, packed_b);
  Multiply(n, n, k, alpha, packed_a, packed_b, true, c);
  blas::Mirror(n, c);
}

#else

bool ProductsHere() { return false; }
void Gemm(bool, bool, int64_t, int64_t, int64_t, float, const float*, const float*, float*, void*) { __builtin_trap(); }
void Gram(bool, int64_t, int64_t, float, const float*, float*, void*) { __builtin_trap(); }

#endif

}  // namespace optod::optim::bf16

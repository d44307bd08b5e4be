#pragma once
/// The CPU launchers of formulas.h: one table of loops per instruction set, chosen at run time. All tables give the
/// same bits: elementwise loops hold no fused multiply-add, reductions add into a fixed number of double lanes in a
/// fixed order. Thread-safe; loops are serial (threads are the caller's: parallel.h).

#include <cstdint>
#include <string_view>
#include <vector>

#include "optim/rules/tensor.h"

namespace optod::optim {

/// Operands of one loop over n elements. Unused ones are null. No two may overlap.
template <typename T>
struct Lanes {
  T* p = nullptr;        ///< parameters, updated
  const T* g = nullptr;  ///< gradients
  T* s[3] = {};          ///< state, updated
  const T* x = nullptr;  ///< further input of the rule
};

/// What each loop reads and writes beside p and g is in its formula; `s[0..2]` and `x` in the order of the formula's
/// arguments.
enum KernelId : int {
  kSgdPlain,
  kSgdMomentum,
  kSgdNesterov,
  kAdam,
  kAmsgrad,
  kSai,
  kAdaHessian,
  kAdaHessianPower,
  kLambMoments,         ///< moments updated in s[0], s[1], the direction written to s[2]; p is read only
  kLambApply,           ///< p moved along the direction of s[0], s[1]
  kNormalisedRow,       ///< one root mean square for all
  kNormalisedColumns,   ///< one for each element, in x
  kNormalisedMomentum,  ///< one for all, of the average s[0]
  kAverage,             ///< s[0] averaged with g; p untouched
  kKernelCount
};

/// `constants`: the formula's constants struct for the same T.
template <typename T>
using Kernel = void (*)(const void* constants, const Lanes<T>& lanes, int64_t n);

template <typename T>
struct TypedKernels {
  Kernel<T> step[kKernelCount];
  double (*sum)(const T* x, int64_t n);
  double (*sum_squares)(const T* x, int64_t n);
  double (*sum_square_deviations)(const T* x, int64_t n, double mean);
  /// Squares of `rows` rows, `stride` elements apart: sums[i] += those of column i, one row after the other; row_sums[r]
  /// += the sum of row r's, as sum_squares takes it.
  void (*add_squares_rows)(const T* x, int64_t stride, int64_t rows, double* sums, double* row_sums, int64_t n);
  /// Sum of (a x[i] f[i])^2, as sum_squares takes it.
  double (*sum_squares_scaled)(T a, const T* x, const T* f, int64_t n);
  /// y[i] = keep y[i] + b (a x[i] f[i])
  void (*add_scaled_by)(T keep, T* y, T b, T a, const T* x, const T* f, int64_t n);
  /// y[i] = a x[i] f[i]
  void (*scale_by)(T a, const T* x, const T* f, T* y, int64_t n);
  /// y[i] = a y[i] + b x[i]
  void (*scale_and_add)(T a, T* y, T b, const T* x, int64_t n);
};

struct KernelTable {
  const char* name;  ///< "scalar", "avx2", "avx512"
  TypedKernels<float> f32;
  TypedKernels<double> f64;
  /// Index of the first NaN or Inf among n elements of a floating dtype; -1 when all are finite.
  int64_t (*first_not_finite)(DType dtype, const void* x, int64_t n);
  /// f16 or bf16 to float32, and back with round to nearest even.
  void (*widen)(DType from, const void* x, float* y, int64_t n);
  void (*narrow)(DType to, const float* x, void* y, int64_t n);
  /// To bf16 with stochastic rounding: the low 16 bits of words[i] decide.
  void (*narrow_stochastic)(const float* x, const uint32_t* words, uint16_t* y, int64_t n);

  /// The 8-bit code of dynamic_code.h: y[i] = scale * value(codes[i]); codes[i] = nearest(x[i] * inverse).
  void (*decode8)(bool is_signed, const uint8_t* codes, float scale, float* y, int64_t n);
  void (*encode8)(bool is_signed, const float* x, float inverse, uint8_t* codes, int64_t n);
  float (*max_abs)(const float* x, int64_t n);

  template <typename T>
  const TypedKernels<T>& typed() const {
    if constexpr (sizeof(T) == 4) {
      return f32;
    } else {
      return f64;
    }
  }
};

/// The table in use: the best this CPU runs, unless SelectKernels chose another.
const KernelTable& Kernels();
/// Names of the tables that this CPU can run, slowest first.
std::vector<std::string_view> KernelPaths();
/// Makes `path` the table in use for the whole process (tests, benchmarks, the golden tool); "" = the best. False when
/// it cannot run here.
bool SelectKernels(std::string_view path);

/// float16 and bfloat16 (16 raw bits) to float32 and back, round to nearest even: what widen and narrow do, one element
/// at a time.
float WidenOne(DType from, uint16_t bits);
uint16_t NarrowOne(DType to, float value);

}  // namespace optod::optim

#pragma once
/// How the numbers of a term are stored: exactly, in 16 bits, or as a linear sketch y = S x with fewer numbers, decoded
/// as S' y. Vectors are cut into pages of kPageElements that are coded alone, so that any piece can be read alone.
///
///   exact             float32 or float64, as the model computes
///   fp16              float16 of x / max|x| after one float32 max|x| a page; bf16: bfloat16
///   sketch-sign       S: every column has min(4, k) entries +-1/sqrt(min(4, k)), one in each of that many stripes of
///                     rows
///   sketch-hadamard   S = sqrt(p/k) R H D: random signs D, orthonormal Hadamard H of p = next power of two, k rows R
///                     drawn without replacement
/// k = ceil(m / ratio) of a page's m numbers. S is a function of (seed, page) alone: sketches of the same page add and
/// subtract, and keep inner products to about sqrt(1/k). E[S' S] = I makes decoding unbiased, with relative error in
/// norm about sqrt(ratio - 1) (hadamard) or sqrt(ratio) (sign): noise above ratio 1. `shrink` scales the decoded
/// vector by the factor with the least mean square error, 1/ratio or 1/(1 + ratio), which bounds the relative error by
/// 1 and biases towards 0. Pure functions, thread-safe.

#include <cstddef>
#include <cstdint>
#include <span>

#include "optim/order/model.h"
#include "optim/order/options.h"

namespace optod::order {

inline constexpr size_t kPageElements = 4096;

struct Codec {
  Storage storage = Storage::kExact;
  Precision precision = Precision::kFloat64;
  int ratio = 1;
  bool shrink = false;
  uint64_t seed = 0;

  /// Bytes of a coded page of `elements` numbers.
  size_t PageBytes(size_t elements) const;
  /// Bytes of a coded vector, without checksums.
  size_t VectorBytes(size_t n) const;

  /// page: the number of the page in its vector. x: up to kPageElements; out: PageBytes(x.size()).
  void Encode(uint64_t page, std::span<const double> x, std::span<std::byte> out) const;
  void Decode(uint64_t page, std::span<const std::byte> in, std::span<double> x) const;

  bool lossless() const { return storage == Storage::kExact; }
};

/// Inner product of two sketched pages (of the same codec and page number) without decoding: estimates <x, y>.
double SketchDot(std::span<const std::byte> a, std::span<const std::byte> b);

}  // namespace optod::order

#include "optim/order/codec.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "optim/rules/half.h"
#include "optim/zo/stream.h"

namespace optod::order {
namespace half = optim::half;
namespace {

constexpr int kSignEntries = 4;  // of a column of the sparse sign sketch

size_t SketchRows(size_t elements, int ratio) { return (elements + ratio - 1) / ratio; }

template <typename T>
void Store(std::byte*& out, T value) {
  std::memcpy(out, &value, sizeof value);
  out += sizeof value;
}
template <typename T>
T Load(const std::byte*& in) {
  T value;
  std::memcpy(&value, in, sizeof value);
  in += sizeof value;
  return value;
}

/// Words of the sketch: Philox with key = seed, counter = (element, page low, page high, "sket" + purpose).
std::array<uint32_t, 4> SketchWords(uint64_t seed, uint64_t page, uint32_t element, uint32_t purpose) {
  return zo::Philox4x32(
      {element, static_cast<uint32_t>(page), static_cast<uint32_t>(page >> 32), 0x736b6574u + purpose},
      {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
}

/// Calls f(element, row, value) for every entry of the sparse sign matrix.
template <typename F>
void ForEachSign(uint64_t seed, uint64_t page, size_t elements, size_t rows, F f) {
  const size_t entries = std::min<size_t>(kSignEntries, rows);
  const double value = 1.0 / std::sqrt(static_cast<double>(entries));
  for (size_t i = 0; i < elements; ++i) {
    const auto words = SketchWords(seed, page, static_cast<uint32_t>(i), 0);
    for (size_t e = 0; e < entries; ++e) {
      const size_t begin = e * rows / entries, end = (e + 1) * rows / entries;
      const size_t row = begin + (static_cast<uint64_t>(words[e] >> 1) * (end - begin) >> 31);
      f(i, row, (words[e] & 1u) ? -value : value);
    }
  }
}

/// In place, orthonormal.
void Hadamard(std::vector<double>& x) {
  for (size_t half = 1; half < x.size(); half *= 2) {
    for (size_t block = 0; block < x.size(); block += 2 * half) {
      for (size_t i = block; i < block + half; ++i) {
        const double a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
    }
  }
  const double scale = 1.0 / std::sqrt(static_cast<double>(x.size()));
  for (double& value : x) value *= scale;
}

void FlipSigns(uint64_t seed, uint64_t page, std::vector<double>& x) {
  for (size_t i = 0; i < x.size(); i += 128) {
    const auto words = SketchWords(seed, page, static_cast<uint32_t>(i / 128), 1);
    for (size_t j = i; j < std::min(i + 128, x.size()); ++j) {
      if ((words[(j - i) / 32] >> ((j - i) % 32)) & 1u) x[j] = -x[j];
    }
  }
}

/// k distinct rows of p, by the first k steps of a Fisher-Yates shuffle.
std::vector<uint32_t> HadamardRows(uint64_t seed, uint64_t page, size_t p, size_t k) {
  std::vector<uint32_t> rows(p);
  for (size_t i = 0; i < p; ++i) rows[i] = static_cast<uint32_t>(i);
  for (size_t i = 0; i < k; ++i) {
    const uint32_t word = SketchWords(seed, page, static_cast<uint32_t>(i / 4), 2)[i % 4];
    std::swap(rows[i], rows[i + (static_cast<uint64_t>(word) * (p - i) >> 32)]);
  }
  rows.resize(k);
  return rows;
}

std::vector<double> Sketch(const Codec& codec, uint64_t page, std::span<const double> x) {
  const size_t k = SketchRows(x.size(), codec.ratio);
  std::vector<double> y(k, 0.0);
  if (codec.storage == Storage::kSketchSign) {
    ForEachSign(codec.seed, page, x.size(), k, [&](size_t i, size_t row, double s) { y[row] += s * x[i]; });
    return y;
  }
  std::vector<double> padded(std::bit_ceil(x.size()), 0.0);
  std::copy(x.begin(), x.end(), padded.begin());
  FlipSigns(codec.seed, page, padded);
  Hadamard(padded);
  const auto rows = HadamardRows(codec.seed, page, padded.size(), k);
  const double scale = std::sqrt(static_cast<double>(padded.size()) / static_cast<double>(k));
  for (size_t j = 0; j < k; ++j) y[j] = scale * padded[rows[j]];
  return y;
}

void Unsketch(const Codec& codec, uint64_t page, std::span<const double> y, std::span<double> x) {
  const size_t k = y.size();
  if (codec.storage == Storage::kSketchSign) {
    std::fill(x.begin(), x.end(), 0.0);
    const double shrink = codec.shrink ? 1.0 / (1.0 + static_cast<double>(x.size()) / static_cast<double>(k)) : 1.0;
    ForEachSign(codec.seed, page, x.size(), k, [&](size_t i, size_t row, double s) { x[i] += shrink * s * y[row]; });
    return;
  }
  std::vector<double> padded(std::bit_ceil(x.size()), 0.0);
  const auto rows = HadamardRows(codec.seed, page, padded.size(), k);
  const double share = static_cast<double>(k) / static_cast<double>(padded.size());
  const double scale = codec.shrink ? std::sqrt(share) : 1.0 / std::sqrt(share);
  for (size_t j = 0; j < k; ++j) padded[rows[j]] = scale * y[j];
  Hadamard(padded);
  FlipSigns(codec.seed, page, padded);
  std::copy(padded.begin(), padded.begin() + static_cast<ptrdiff_t>(x.size()), x.begin());
}

}  // namespace

size_t Codec::PageBytes(size_t elements) const {
  switch (storage) {
    case Storage::kExact:
      return elements * (precision == Precision::kFloat32 ? 4 : 8);
    case Storage::kFp16:
      return 4 + 2 * elements;
    case Storage::kBf16:
      return 2 * elements;
    case Storage::kSketchSign:
    case Storage::kSketchHadamard:
      return 4 * SketchRows(elements, ratio);
  }
  return 0;
}

size_t Codec::VectorBytes(size_t n) const {
  const size_t whole = n / kPageElements, rest = n % kPageElements;
  return whole * PageBytes(kPageElements) + (rest > 0 ? PageBytes(rest) : 0);
}

void Codec::Encode(uint64_t page, std::span<const double> x, std::span<std::byte> out) const {
  std::byte* at = out.data();
  switch (storage) {
    case Storage::kExact:
      for (const double value : x) {
        precision == Precision::kFloat32 ? Store(at, static_cast<float>(value)) : Store(at, value);
      }
      return;
    case Storage::kFp16: {
      float top = 0.0f;
      for (const double value : x) top = std::max(top, static_cast<float>(std::abs(value)));
      Store(at, top);
      for (const double value : x) Store(at, half::ToF16(top > 0.0f ? static_cast<float>(value / top) : 0.0f));
      return;
    }
    case Storage::kBf16:
      for (const double value : x) Store(at, half::ToBf16(static_cast<float>(value)));
      return;
    case Storage::kSketchSign:
    case Storage::kSketchHadamard:
      for (const double value : Sketch(*this, page, x)) Store(at, static_cast<float>(value));
      return;
  }
}

void Codec::Decode(uint64_t page, std::span<const std::byte> in, std::span<double> x) const {
  const std::byte* at = in.data();
  switch (storage) {
    case Storage::kExact:
      for (double& value : x) value = precision == Precision::kFloat32 ? Load<float>(at) : Load<double>(at);
      return;
    case Storage::kFp16: {
      const double top = Load<float>(at);
      for (double& value : x) value = top * static_cast<double>(half::FromF16(Load<uint16_t>(at)));
      return;
    }
    case Storage::kBf16:
      for (double& value : x) value = half::FromBf16(Load<uint16_t>(at));
      return;
    case Storage::kSketchSign:
    case Storage::kSketchHadamard: {
      std::vector<double> y(in.size() / 4);
      for (double& value : y) value = Load<float>(at);
      Unsketch(*this, page, y, x);
      return;
    }
  }
}

double SketchDot(std::span<const std::byte> a, std::span<const std::byte> b) {
  double sum = 0.0;
  const std::byte *x = a.data(), *y = b.data();
  for (size_t i = 0; i + 4 <= std::min(a.size(), b.size()); i += 4) {
    const double left = Load<float>(x);
    sum += left * static_cast<double>(Load<float>(y));
  }
  return sum;
}

}  // namespace optod::order

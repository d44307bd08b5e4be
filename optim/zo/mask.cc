#include "optim/zo/mask.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "base/status.h"

namespace optod::zo {
namespace {

constexpr size_t kPart = 2048;

absl::Status CheckRatio(double ratio) {
  if (ratio >= 0 && ratio <= 1) return absl::OkStatus();
  return InvalidArgument("sparsity: ", ratio, " is out of range; must be in [0, 1]");
}

}  // namespace

void BitMask::Set(size_t first, std::span<const uint8_t> mask) {
  for (size_t i = 0; i < mask.size(); ++i) {
    const size_t at = first + i;
    const uint64_t bit = uint64_t{1} << (at % 64);
    words_[at / 64] = mask[i] != 0 ? words_[at / 64] | bit : words_[at / 64] & ~bit;
  }
}

size_t BitMask::Count() const {
  size_t count = 0;
  for (uint64_t word : words_) count += static_cast<size_t>(std::popcount(word));
  return count;
}

absl::Status FillMask(const Direction& direction, uint32_t tensor, uint64_t first, double ratio, MaskLaw law,
                      std::span<uint8_t> mask) {
  RETURN_IF_ERROR(CheckRatio(ratio));
  const double bound = ratio * 0x1p32;  // a word below it is masked: probability `ratio` to 2^-32
  for (size_t begin = 0; begin < mask.size(); begin += kPart) {
    const size_t n = std::min(kPart, mask.size() - begin);
    if (law == MaskLaw::kUniform) {
      std::array<uint32_t, kPart> words;
      FillBits(direction, tensor, first + begin, {words.data(), n});
      for (size_t i = 0; i < n; ++i) mask[begin + i] = static_cast<double>(words[i]) < bound;
    } else {
      std::array<float, kPart> z;
      FillNormal(direction, tensor, first + begin, {z.data(), n});
      for (size_t i = 0; i < n; ++i) mask[begin + i] = static_cast<double>(z[i]) < ratio;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<double>> GlobalMaskRatios(const ZoLayout& layout, std::span<const float> theta, double ratio,
                                                     const Direction& direction) {
  RETURN_IF_ERROR(CheckRatio(ratio));
  if (theta.size() != layout.size() || theta.empty()) {
    return InvalidArgument("parameters: ", theta.size(), " elements; must be ", layout.size(), " and not empty");
  }
  std::vector<float> sample;
  if (theta.size() <= kMaxMaskSamples) {
    sample.assign(theta.begin(), theta.end());
  } else {
    for (size_t i = 0; i < kMaxMaskSamples; ++i) {
      std::array<uint32_t, 2> words;
      FillBits(direction, 0, 2 * i, words);
      sample.push_back(theta[(uint64_t{words[0]} << 32 | words[1]) % theta.size()]);
    }
  }
  for (float& w : sample) w = std::fabs(w);
  const size_t rank = std::min(sample.size() - 1, static_cast<size_t>(ratio * static_cast<double>(sample.size())));
  std::nth_element(sample.begin(), sample.begin() + rank, sample.end());
  const float tau = sample[rank];
  std::vector<double> ratios;
  for (size_t tensor = 0; tensor < layout.tensors(); ++tensor) {
    const auto part = theta.subspan(layout.offset(tensor), layout.tensor(tensor).size);
    const auto below = std::count_if(part.begin(), part.end(), [tau](float w) { return std::fabs(w) <= tau; });
    ratios.push_back(part.empty() ? 0.0 : static_cast<double>(below) / static_cast<double>(part.size()));
  }
  return ratios;
}

}  // namespace optod::zo

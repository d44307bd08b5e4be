#include "trace/optimizers/text_cluster.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>

namespace optod::trace {
namespace {

constexpr size_t kMostBytes = 8192;

size_t LcsLength(std::string_view a, std::string_view b) {
  const size_t words = (a.size() + 63) / 64;
  std::vector<std::array<uint64_t, 256>> match(words);
  for (auto& word : match) word.fill(0);
  for (size_t i = 0; i < a.size(); ++i) match[i / 64][static_cast<unsigned char>(a[i])] |= uint64_t{1} << (i % 64);
  // V' = (V + (V & M)) | (V & ~M), carried over words; zeros of V count the subsequence.
  std::vector<uint64_t> v(words, ~uint64_t{0});
  for (const char c : b) {
    uint64_t carry = 0;
    for (size_t w = 0; w < words; ++w) {
      const uint64_t m = match[w][static_cast<unsigned char>(c)];
      const uint64_t u = v[w] & m;
      const uint64_t sum = v[w] + u;
      const uint64_t full = sum + carry;
      carry = static_cast<uint64_t>(sum < v[w]) | static_cast<uint64_t>(full < sum);
      v[w] = full | (v[w] & ~m);
    }
  }
  size_t length = 0;
  for (size_t w = 0; w < words; ++w) {
    const size_t bits = std::min<size_t>(64, a.size() - w * 64);
    const uint64_t mask = bits == 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1;
    length += static_cast<size_t>(std::popcount(~v[w] & mask));
  }
  return length;
}

}  // namespace

double TextSimilarity(std::string_view a, std::string_view b) {
  a = a.substr(0, kMostBytes);
  b = b.substr(0, kMostBytes);
  if (a.empty() && b.empty()) return 1;
  if (a == b) return 1;
  return 2.0 * static_cast<double>(LcsLength(a, b)) / static_cast<double>(a.size() + b.size());
}

std::optional<size_t> MajorityText(const std::vector<std::string>& texts, double threshold) {
  if (texts.empty()) return std::nullopt;
  const size_t n = texts.size();
  std::vector<std::vector<double>> distance(n, std::vector<double>(n, 0));
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = i + 1; j < n; ++j) distance[i][j] = distance[j][i] = 1 - TextSimilarity(texts[i], texts[j]);
  }
  std::vector<std::vector<size_t>> clusters;
  for (size_t i = 0; i < n; ++i) clusters.push_back({i});
  const auto between = [&](const std::vector<size_t>& a, const std::vector<size_t>& b) {
    double sum = 0;
    for (size_t i : a) {
      for (size_t j : b) sum += distance[i][j];
    }
    return sum / static_cast<double>(a.size() * b.size());
  };
  while (clusters.size() > 1) {
    size_t first = 0, second = 0;
    double nearest = 2;
    for (size_t i = 0; i < clusters.size(); ++i) {
      for (size_t j = i + 1; j < clusters.size(); ++j) {
        if (const double d = between(clusters[i], clusters[j]); d < nearest) nearest = d, first = i, second = j;
      }
    }
    if (nearest > threshold) break;
    clusters[first].insert(clusters[first].end(), clusters[second].begin(), clusters[second].end());
    clusters.erase(clusters.begin() + static_cast<std::ptrdiff_t>(second));
  }
  const auto largest = std::max_element(clusters.begin(), clusters.end(),
                                        [](const auto& a, const auto& b) { return a.size() < b.size(); });
  std::sort(largest->begin(), largest->end());
  const auto total = [&](size_t i) {
    double sum = 0;
    for (size_t j : *largest) sum += distance[i][j];
    return sum;
  };
  return *std::min_element(largest->begin(), largest->end(), [&](size_t a, size_t b) { return total(a) < total(b); });
}

}  // namespace optod::trace

#pragma once
/// Similarity of texts and a vote among them. Pure functions.

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace optod::trace {

/// 2 * LCS(a, b) / (|a| + |b|) over bytes, in [0, 1]; 1 for two empty texts. Longest common subsequence, bit-parallel
/// (Hyyrö, "Bit-parallel LCS-length computation revisited", 2004): O(|a| |b| / 64). Only the first 8192 bytes of each
/// count.
double TextSimilarity(std::string_view a, std::string_view b);

/// Average-linkage clusters of texts whose distance 1 - similarity is at most `threshold`; the medoid (smallest summed
/// distance, earliest of equals) of the largest cluster (earliest of equals). Empty input: nullopt.
std::optional<size_t> MajorityText(const std::vector<std::string>& texts, double threshold = 0.2);

}  // namespace optod::trace

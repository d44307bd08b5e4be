#pragma once
/// Which past steps a prompt shows. Pure functions.

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "trace/optimizers/prompt.h"

namespace optod::trace {

enum class MemoryBy {
  kRecency,  ///< the newest rounds
  kScore,    ///< the best-scored rounds; rounds without a score come last, newest first
  kBoth      ///< half of each: the best-scored half (rounded up), then the newest of the rest
};

/// `recency`, `score`, `both`.
std::optional<MemoryBy> ParseMemoryBy(std::string_view name);

struct MemoryChoice {
  size_t size = 0;
  MemoryBy by = MemoryBy::kRecency;
  bool maximize = true;  ///< which scores are better
};

/// Positions in `rounds` (oldest first) of the at most `choice.size` rounds to show, ascending. Of equal scores the
/// newer round is better.
std::vector<size_t> ChooseMemory(const std::vector<MemoryRound>& rounds, const MemoryChoice& choice);

/// Those rounds, oldest first.
std::vector<MemoryRound> SelectMemory(const std::vector<MemoryRound>& rounds, const MemoryChoice& choice);

}  // namespace optod::trace

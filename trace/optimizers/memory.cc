#include "trace/optimizers/memory.h"

#include <algorithm>
#include <numeric>

namespace optod::trace {

std::optional<MemoryBy> ParseMemoryBy(std::string_view name) {
  if (name == "recency") return MemoryBy::kRecency;
  if (name == "score") return MemoryBy::kScore;
  if (name == "both") return MemoryBy::kBoth;
  return std::nullopt;
}

std::vector<size_t> ChooseMemory(const std::vector<MemoryRound>& rounds, const MemoryChoice& choice) {
  const size_t size = std::min(choice.size, rounds.size());
  const size_t by_score = choice.by == MemoryBy::kRecency ? 0 : choice.by == MemoryBy::kScore ? size : (size + 1) / 2;
  std::vector<size_t> best(rounds.size());
  std::iota(best.rbegin(), best.rend(), 0);  // newest first, so that a stable sort prefers the newer of equals
  std::stable_sort(best.begin(), best.end(), [&](size_t a, size_t b) {
    if (!rounds[a].score || !rounds[b].score) return rounds[a].score.has_value() && !rounds[b].score;
    return choice.maximize ? *rounds[a].score > *rounds[b].score : *rounds[a].score < *rounds[b].score;
  });
  std::vector<bool> taken(rounds.size(), false);
  std::vector<size_t> out(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(by_score));
  for (size_t i : out) taken[i] = true;
  for (size_t i = rounds.size(); i-- > 0 && out.size() < size;) {
    if (!taken[i]) out.push_back(i);
  }
  std::sort(out.begin(), out.end());
  return out;
}

std::vector<MemoryRound> SelectMemory(const std::vector<MemoryRound>& rounds, const MemoryChoice& choice) {
  std::vector<MemoryRound> out;
  for (size_t i : ChooseMemory(rounds, choice)) out.push_back(rounds[i]);
  return out;
}

}  // namespace optod::trace

#include "optim/train/packed.h"

#include <algorithm>

namespace optod::train {

Packed Pack(std::span<const Example* const> examples, int64_t virtual_tokens) {
  struct Place {
    const Sequence* sequence;
    size_t first_pick;
  };
  std::vector<Place> places;
  size_t picks = 0;
  for (const Example* example : examples) {
    for (const Sequence& sequence : example->sequences) {
      places.push_back({&sequence, picks});
      picks += sequence.picks.size();
    }
  }
  std::stable_sort(places.begin(), places.end(),
                   [](const Place& a, const Place& b) { return a.sequence->ids.size() < b.sequence->ids.size(); });
  Packed packed;
  packed.asks.resize(picks);
  int64_t real = 0;
  for (const Place& place : places) {
    for (int64_t v = 0; v < virtual_tokens; ++v) {
      packed.ids.push_back(0);
      packed.sources.push_back(-1 - v);
    }
    const auto begin = static_cast<int64_t>(packed.ids.size());
    for (size_t i = 0; i < place.sequence->picks.size(); ++i) {
      const Pick& pick = place.sequence->picks[i];
      if (packed.rows.empty() || packed.rows.back() != begin + pick.row) packed.rows.push_back(begin + pick.row);
      packed.asks[place.first_pick + i] = {static_cast<int64_t>(packed.rows.size()) - 1, pick.target};
    }
    packed.ids.insert(packed.ids.end(), place.sequence->ids.begin(), place.sequence->ids.end());
    const auto length = static_cast<int64_t>(place.sequence->ids.size());
    for (int64_t t = 0; virtual_tokens > 0 && t < length; ++t) packed.sources.push_back(real + t);
    real += length;
    packed.lengths.push_back(virtual_tokens + length);
  }
  return packed;
}

}  // namespace optod::train

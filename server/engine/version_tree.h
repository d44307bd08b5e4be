#pragma once
/// The tree of a session's versions in a few bytes. Numbers are gapless and a new version's parent is the head, so
/// parent(n) = n - 1 except where a rollback came between: only those exceptions ("jumps") are kept. A path is a
/// handful of runs of consecutive numbers. Plain data; the caller synchronizes.

#include <cstdint>
#include <iterator>
#include <map>
#include <vector>

namespace optod::engine {

class VersionTree {
 public:
  struct Run {
    int64_t first, last;  ///< both included; parent(n) = n - 1 inside
  };
  /// Notes the parent of a new version; true when it is a jump (and must be remembered).
  bool Add(int64_t number, int64_t parent) {
    if (parent == number - 1) return false;
    jumps_[number] = parent;
    return true;
  }
  int64_t Parent(int64_t number) const {
    auto it = jumps_.find(number);
    return it == jumps_.end() ? number - 1 : it->second;
  }
  /// From `version` down to version 0, newest run first; runs end at versions above `stop`. O(jumps on the way).
  std::vector<Run> Path(int64_t version, int64_t stop = -1) const {
    std::vector<Run> runs;
    while (version > stop) {
      auto it = jumps_.upper_bound(version);
      const bool jump = it != jumps_.begin();
      const int64_t first = jump ? std::prev(it)->first : 0;
      if (first <= stop + 1 && (first != stop + 1 || !jump)) {
        runs.push_back({stop + 1, version});
        break;
      }
      runs.push_back({first, version});
      if (!jump) break;
      version = std::prev(it)->second;
    }
    return runs;
  }
  /// Whether `ancestor` lies on the way from `version` to version 0 (a version is its own ancestor).
  bool IsAncestor(int64_t ancestor, int64_t version) const {
    while (version >= ancestor) {
      auto it = jumps_.upper_bound(version);
      if (it == jumps_.begin()) return ancestor >= 0;
      const auto& [first, parent] = *std::prev(it);
      if (ancestor >= first) return true;
      version = parent;
    }
    return false;
  }
  size_t jumps() const { return jumps_.size(); }

 private:
  std::map<int64_t, int64_t> jumps_;  ///< number -> parent, where parent is not number - 1
};

}  // namespace optod::engine

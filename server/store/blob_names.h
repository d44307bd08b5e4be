#pragma once
/// What the blob stores share: names and the memory of recent puts.

#include <algorithm>
#include <cstdint>
#include <string>
#include <unordered_map>

namespace optod::store {

/// 64 lower-case hex digits; anything else never reaches the file system.
inline bool IsBlobName(const std::string& name) {
  return name.size() == 64 &&
         std::all_of(name.begin(), name.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

/// When blobs were last put. Not thread-safe.
class RecentPuts {
 public:
  void Mark(const std::string& name, int64_t now_ms) { last_ms_[name] = now_ms; }
  /// Forgets those put before `before_ms`.
  void Forget(int64_t before_ms) {
    std::erase_if(last_ms_, [&](const auto& entry) { return entry.second < before_ms; });
  }
  bool Has(const std::string& name) const { return last_ms_.contains(name); }

 private:
  std::unordered_map<std::string, int64_t> last_ms_;
};

}  // namespace optod::store

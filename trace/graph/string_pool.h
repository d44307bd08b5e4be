#pragma once
/// Interns strings: equal text gets the same small number. Views stay valid for the pool's life, also when it is moved.
/// Not thread-safe.

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <string_view>

#include "absl/container/flat_hash_map.h"

namespace optod::trace {

class StringPool {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;

  uint32_t Intern(std::string_view text);
  uint32_t Find(std::string_view text) const;  ///< kNone when not interned
  std::string_view operator[](uint32_t id) const { return strings_[id]; }
  uint32_t size() const { return static_cast<uint32_t>(strings_.size()); }
  uint64_t BytesUsed() const;

 private:
  std::deque<std::string> strings_;  // a deque: elements never move
  absl::flat_hash_map<std::string_view, uint32_t, std::hash<std::string_view>> ids_;
  uint64_t text_bytes_ = 0;
};

}  // namespace optod::trace

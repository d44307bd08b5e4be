#include "trace/graph/string_pool.h"

namespace optod::trace {

uint32_t StringPool::Intern(std::string_view text) {
  auto found = ids_.find(text);
  if (found != ids_.end()) return found->second;
  const uint32_t id = size();
  strings_.emplace_back(text);
  ids_.emplace(strings_.back(), id);
  text_bytes_ += text.size();
  return id;
}

uint32_t StringPool::Find(std::string_view text) const {
  auto found = ids_.find(text);
  return found == ids_.end() ? kNone : found->second;
}

uint64_t StringPool::BytesUsed() const {
  constexpr uint64_t kSlot = sizeof(std::pair<std::string_view, uint32_t>) + 1;
  return text_bytes_ + strings_.size() * sizeof(std::string) + ids_.capacity() * kSlot;
}

}  // namespace optod::trace

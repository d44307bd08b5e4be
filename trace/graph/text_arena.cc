#include "trace/graph/text_arena.h"

#include <algorithm>
#include <cstring>

namespace optod::trace {

std::string_view TextArena::Add(std::string_view text) {
  if (text.empty()) return {};
  if (text.size() > left_) {
    // A text that would fill most of a chunk gets its own, and the current one stays open for small texts.
    const bool own = text.size() > chunk_size_ / 2;
    const size_t size = own ? text.size() : chunk_size_;
    chunks_.push_back(std::make_unique_for_overwrite<char[]>(size));
    bytes_ += size;
    char* chunk = chunks_.back().get();
    if (own) {
      std::memcpy(chunk, text.data(), text.size());
      return {chunk, text.size()};
    }
    next_ = chunk;
    left_ = size;
    chunk_size_ = std::min(chunk_size_ * 2, kLargestChunk);
  }
  std::memcpy(next_, text.data(), text.size());
  const std::string_view stored(next_, text.size());
  next_ += text.size();
  left_ -= text.size();
  return stored;
}

}  // namespace optod::trace

#pragma once
/// Replies by the hash of their requests (the canonical form that cassettes hash, so model, messages, seed, ... all
/// count), the least recently used leave beyond `max_bytes`. In memory only. Thread-safe.

#include <cstdint>
#include <list>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

#include "trace/llm/chat.h"

namespace optod::trace {

class ReplyCache {
 public:
  explicit ReplyCache(size_t max_bytes) : max_bytes_(max_bytes) {}
  /// With `cached` set, usage and attempts 0.
  std::optional<ChatReply> Find(const std::string& hash);
  void Put(const std::string& hash, const ChatReply& reply);
  size_t size() const;

 private:
  struct Entry {
    std::string hash;
    ChatReply reply;
  };
  const size_t max_bytes_;
  mutable std::mutex mutex_;
  std::list<Entry> entries_;  // most recently used first
  std::unordered_map<std::string, std::list<Entry>::iterator> by_hash_;
  size_t bytes_ = 0;
};

}  // namespace optod::trace

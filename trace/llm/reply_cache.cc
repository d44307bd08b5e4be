#include "trace/llm/reply_cache.h"

namespace optod::trace {
namespace {

constexpr size_t kEntryBytes = 256;  // hash, list and map

size_t BytesOf(const ChatReply& reply) { return kEntryBytes + reply.text.size(); }

}  // namespace

std::optional<ChatReply> ReplyCache::Find(const std::string& hash) {
  std::lock_guard lock(mutex_);
  const auto found = by_hash_.find(hash);
  if (found == by_hash_.end()) return std::nullopt;
  entries_.splice(entries_.begin(), entries_, found->second);
  ChatReply reply = found->second->reply;
  reply.cached = true;
  reply.usage = {};
  reply.attempts = 0;
  reply.latency = {};
  return reply;
}

void ReplyCache::Put(const std::string& hash, const ChatReply& reply) {
  std::lock_guard lock(mutex_);
  if (BytesOf(reply) > max_bytes_ || by_hash_.count(hash) > 0) return;
  entries_.push_front({hash, reply});
  by_hash_[hash] = entries_.begin();
  bytes_ += BytesOf(reply);
  while (bytes_ > max_bytes_) {
    bytes_ -= BytesOf(entries_.back().reply);
    by_hash_.erase(entries_.back().hash);
    entries_.pop_back();
  }
}

size_t ReplyCache::size() const {
  std::lock_guard lock(mutex_);
  return entries_.size();
}

}  // namespace optod::trace

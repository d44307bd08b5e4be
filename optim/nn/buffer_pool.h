#pragma once
/// Memory of large buffers that come and go: freed ones are kept for the next of about their size, because fresh pages
/// cost more than the kernels that use them (a fifth of a first-order step). What is mapped never passes the most bytes
/// that were in use at once so far + `keep`. Thread-safe.

#include <cstddef>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

namespace optod::nn {

class BufferPool {
 public:
  /// Buffers of fewer bytes are malloc's.
  static constexpr size_t kLarge = size_t{1} << 16;
  static constexpr size_t kKeep = size_t{256} << 20;

  explicit BufferPool(size_t keep = kKeep) : keep_(keep) {}
  ~BufferPool();
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  /// At least `bytes`, aligned to 64; null when there is none. Large ones have classes of four sizes an octave (at most
  /// a quarter is lost), huge pages advised from 4 MiB on; their content is what it was.
  void* Take(size_t bytes);
  void Give(void* memory);

  /// Bytes of large buffers.
  size_t in_use() const;
  size_t kept() const;

 private:
  static size_t ClassOf(size_t bytes);
  size_t Spare() const;  // what may be kept
  std::vector<std::pair<void*, size_t>> Evicted();

  const size_t keep_;
  mutable std::mutex mutex_;
  std::map<size_t, std::vector<void*>> spare_;
  std::unordered_map<void*, size_t> sizes_;  // of all mapped buffers, in use or spare
  size_t in_use_ = 0, most_ = 0, kept_ = 0;
};

}  // namespace optod::nn

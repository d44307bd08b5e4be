#include "optim/nn/buffer_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <utility>

namespace optod::nn {
namespace {

constexpr uintptr_t kPage = 4096;

void Unmap(const std::vector<std::pair<void*, size_t>>& buffers) {
  for (const auto& [memory, size] : buffers) munmap(memory, size);
}

}  // namespace

BufferPool::~BufferPool() {
  for (const auto& [size, buffers] : spare_) {
    for (void* memory : buffers) munmap(memory, size);
  }
}

size_t BufferPool::ClassOf(size_t bytes) {
  const size_t step = std::bit_floor(bytes) / 4;
  return (bytes + step - 1) / step * step;
}

size_t BufferPool::Spare() const { return most_ - in_use_ + keep_; }

/// Takes the greatest spare buffers out until no more is kept than may be.
std::vector<std::pair<void*, size_t>> BufferPool::Evicted() {
  std::vector<std::pair<void*, size_t>> out;
  while (kept_ > Spare()) {
    const auto last = std::prev(spare_.end());
    if (last->second.empty()) {
      spare_.erase(last);
      continue;
    }
    out.emplace_back(last->second.back(), last->first);
    last->second.pop_back();
    sizes_.erase(out.back().first);
    kept_ -= last->first;
  }
  return out;
}

void* BufferPool::Take(size_t bytes) {
  if (bytes < kLarge) return std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  const size_t size = ClassOf(bytes);
  std::unique_lock lock(mutex_);
  in_use_ += size;
  most_ = std::max(most_, in_use_);
  if (const auto same = spare_.find(size); same != spare_.end() && !same->second.empty()) {
    void* memory = same->second.back();
    same->second.pop_back();
    kept_ -= size;
    return memory;
  }
  const auto evicted = Evicted();  // before there is more
  lock.unlock();
  Unmap(evicted);
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const bool failed = memory == MAP_FAILED;
  if (!failed && size >= (size_t{4} << 20)) madvise(memory, size, MADV_HUGEPAGE);
  lock.lock();
  if (failed) {
    in_use_ -= size;
    return nullptr;
  }
  sizes_[memory] = size;
  return memory;
}

void BufferPool::Give(void* memory) {
  if (reinterpret_cast<uintptr_t>(memory) % kPage != 0) return std::free(memory);  // mapped ones begin a page
  std::unique_lock lock(mutex_);
  const auto it = sizes_.find(memory);
  if (it == sizes_.end()) {
    lock.unlock();
    return std::free(memory);
  }
  in_use_ -= it->second;
  kept_ += it->second;
  spare_[it->second].push_back(memory);
  const auto evicted = Evicted();
  lock.unlock();
  Unmap(evicted);
}

size_t BufferPool::in_use() const {
  std::lock_guard lock(mutex_);
  return in_use_;
}
size_t BufferPool::kept() const {
  std::lock_guard lock(mutex_);
  return kept_;
}

}  // namespace optod::nn

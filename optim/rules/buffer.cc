#include "optim/rules/buffer.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace optod::optim {
namespace {
constexpr size_t kMapped = size_t{4} << 20;
constexpr size_t kAlign = 64, kPage = 4096;

/// The mapping that a staggered block of at most kStaggerBytes behind its start lies in.
void* MappingOf(void* data) {
  return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(data) / kPage * kPage);
}

}  // namespace

size_t NextStagger() {
  constexpr unsigned kPlaces = 16;
  constexpr size_t kStep = 4 * kAlign;  // 16 of them are a page
  static std::atomic<unsigned> next{0};
  return next.fetch_add(1, std::memory_order_relaxed) % kPlaces * kStep;
}

Buffer::Buffer(size_t size) : size_(size) {
  if (size == 0) return;
  if (size >= kMapped) {
    void* mapping = mmap(nullptr, size + kStaggerBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    // Advice: a kernel without huge pages still serves small ones.
    madvise(mapping, size + kStaggerBytes, MADV_HUGEPAGE);
    data_ = static_cast<char*>(mapping) + NextStagger();
    return;
  }
  data_ = std::aligned_alloc(kAlign, (size + kAlign - 1) / kAlign * kAlign);
  if (data_ == nullptr) throw std::bad_alloc();
  std::memset(data_, 0, size);
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (size_ >= kMapped) {
    munmap(MappingOf(data_), size_ + kStaggerBytes);
  } else {
    std::free(data_);
  }
}

}  // namespace optod::optim

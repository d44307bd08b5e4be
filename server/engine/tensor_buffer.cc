#include "server/engine/tensor_buffer.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "optim/rules/buffer.h"

namespace optod::engine {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kMappedFrom = size_t{1} << 20;  // below this malloc is as good

class Pool {
 public:
  /// A block of at least `size` bytes, not more than a quarter larger when it is a used one.
  std::byte* Take(size_t size, size_t* capacity) {
    {
      std::lock_guard lock(mutex_);
      auto it = free_.lower_bound(size);
      if (it != free_.end() && it->first <= size + size / 4 + kHugePage) {
        std::byte* data = it->second;
        *capacity = it->first;
        kept_ -= it->first;
        free_.erase(it);
        return data;
      }
    }
    if (size > SIZE_MAX - 3 * kHugePage) return nullptr;
    // Blocks begin at different places within their first page (optim/rules/buffer.h says why).
    const size_t stagger = optim::NextStagger(), whole = (size + stagger + kHugePage - 1) / kHugePage * kHugePage;
    *capacity = whole - stagger;
    // One huge page more than needed, cut to alignment, so that every page of the block can be a huge one.
    const size_t mapped = whole + kHugePage;
    void* raw = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) return nullptr;
    auto* start = static_cast<std::byte*>(raw);
    const size_t ahead = (kHugePage - reinterpret_cast<uintptr_t>(raw) % kHugePage) % kHugePage;
    if (ahead > 0) munmap(start, ahead);
    if (kHugePage - ahead > 0) munmap(start + ahead + whole, kHugePage - ahead);
    madvise(start + ahead, whole, MADV_HUGEPAGE);
    return start + ahead + stagger;
  }

  void Give(std::byte* data, size_t capacity) {
    {
      std::lock_guard lock(mutex_);
      if (kept_ + capacity <= kPoolKeepsBytes) {
        free_.emplace(capacity, data);
        kept_ += capacity;
        return;
      }
    }
    const size_t stagger = reinterpret_cast<uintptr_t>(data) % kHugePage;
    munmap(data - stagger, capacity + stagger);
  }

  size_t kept() {
    std::lock_guard lock(mutex_);
    return kept_;
  }

 private:
  std::mutex mutex_;
  std::multimap<size_t, std::byte*> free_;
  size_t kept_ = 0;
};

Pool& ThePool() {
  static Pool* pool = new Pool;  // never destroyed: buffers may outlive main
  return *pool;
}

}  // namespace

std::shared_ptr<TensorBuffer> TensorBuffer::Make(size_t size) {
  size_t capacity = 0;
  std::byte* data = nullptr;
  if (size >= kMappedFrom) {
    data = ThePool().Take(size, &capacity);
  } else {
    data = static_cast<std::byte*>(std::aligned_alloc(64, (size + 64) / 64 * 64));
  }
  if (data == nullptr) return nullptr;
  return std::shared_ptr<TensorBuffer>(new TensorBuffer(data, size, capacity));
}

std::shared_ptr<TensorBuffer> TensorBuffer::Copy(const TensorBuffer& other) {
  auto copy = Make(other.size());
  if (copy != nullptr && other.size() > 0) std::memcpy(copy->data(), other.data(), other.size());
  return copy;
}

TensorBuffer::~TensorBuffer() {
  if (capacity_ > 0) {
    ThePool().Give(data_, capacity_);
  } else {
    std::free(data_);
  }
}

size_t PooledBytes() { return ThePool().kept(); }

}  // namespace optod::engine

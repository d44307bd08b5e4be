// Memory and threads of the process that LibTorch runs in.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <omp.h>
#include <sched.h>
#include <sys/mman.h>
#include <torch/version.h>

#include <bit>
#include <cstdlib>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "optim/nn/model.h"

namespace optod::nn {
namespace {

constexpr size_t kLarge = size_t{1} << 20;
constexpr size_t kKeepBytes = size_t{256} << 20;  // freed buffers kept beyond this go back to the kernel

/// Buffers from 1 MiB on: classes of four sizes an octave (at most a quarter is lost), huge pages advised, freed ones
/// kept for the next of their class. Smaller ones come from malloc.
class Pool {
 public:
  void* Take(size_t bytes) {
    if (bytes < kLarge) return std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    const size_t size = ClassOf(bytes);
    {
      std::lock_guard lock(mutex_);
      std::vector<void*>& spare = spare_[size];
      if (!spare.empty()) {  // its size is still in sizes_
        void* memory = spare.back();
        spare.pop_back();
        kept_ -= size;
        return memory;
      }
    }
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    if (size >= (size_t{4} << 20)) madvise(memory, size, MADV_HUGEPAGE);
    std::lock_guard lock(mutex_);
    sizes_[memory] = size;
    return memory;
  }
  void Give(void* memory) {
    if ((reinterpret_cast<uintptr_t>(memory) & 4095) != 0) return std::free(memory);  // mapped ones begin a page
    std::unique_lock lock(mutex_);
    const auto it = sizes_.find(memory);
    if (it == sizes_.end()) {
      lock.unlock();
      return std::free(memory);
    }
    const size_t size = it->second;
    if (kept_ + size <= kKeepBytes) {
      spare_[size].push_back(memory);
      kept_ += size;
      return;
    }
    sizes_.erase(it);
    lock.unlock();
    munmap(memory, size);
  }

 private:
  static size_t ClassOf(size_t bytes) {
    const size_t step = std::bit_floor(bytes) / 4;
    return (bytes + step - 1) / step * step;
  }
  std::mutex mutex_;
  std::map<size_t, std::vector<void*>> spare_;
  std::unordered_map<void*, size_t> sizes_;  // of all mapped buffers, in use or spare
  size_t kept_ = 0;
};

Pool& ThePool() {
  static Pool* const pool = new Pool;
  return *pool;
}

// The context of a buffer is the buffer itself: LibTorch's raw interface asks for that.
void DeleteBuffer(void* memory) { ThePool().Give(memory); }

class PoolAllocator final : public c10::Allocator {
 public:
#if TORCH_VERSION_MAJOR >= 2
  c10::DataPtr allocate(size_t bytes) override { return Make(bytes); }
  c10::DeleterFnPtr raw_deleter() const override { return &DeleteBuffer; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
#else
  c10::DataPtr allocate(size_t bytes) const override { return Make(bytes); }
  c10::DeleterFnPtr raw_deleter() const override { return &DeleteBuffer; }
#endif

 private:
  static c10::DataPtr Make(size_t bytes) {
    if (bytes == 0) return {nullptr, c10::Device(c10::DeviceType::CPU)};
    void* memory = ThePool().Take(bytes);
    if (memory == nullptr) throw std::bad_alloc();
    return {memory, memory, &DeleteBuffer, c10::Device(c10::DeviceType::CPU)};
  }
};

}  // namespace

void UseCachingAllocator() {
  static PoolAllocator* const allocator = [] {
    auto* made = new PoolAllocator;
    c10::SetCPUAllocator(made, 100);
    return made;
  }();
  (void)allocator;
}

int SetThreads(int threads) {
  if (threads <= 0) {
    cpu_set_t set;
    threads = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
  }
  omp_set_num_threads(threads);
  at::set_num_threads(threads);
  return threads;
}

void TouchBlas() {
  const at::Tensor square = at::zeros({512, 512});
  at::linear(square, square);
}

}  // namespace optod::nn

// Memory and threads of the process that LibTorch runs in.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <omp.h>
#include <sched.h>
#include <torch/version.h>

#include <new>

#include "optim/nn/buffer_pool.h"
#include "optim/nn/model.h"

namespace optod::nn {
namespace {

BufferPool& ThePool() {
  static auto* const pool = new BufferPool;
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

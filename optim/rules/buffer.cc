#include "optim/rules/buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>

namespace optod::optim {
namespace {
constexpr size_t kMapped = size_t{4} << 20;
constexpr size_t kAlign = 64;
}  // namespace

Buffer::Buffer(size_t size) : size_(size) {
  if (size == 0) return;
  if (size >= kMapped) {
    data_ = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data_ == MAP_FAILED) throw std::bad_alloc();
    madvise(data_, size, MADV_HUGEPAGE);  // advice: a kernel without huge pages still serves small ones
    return;
  }
  data_ = std::aligned_alloc(kAlign, (size + kAlign - 1) / kAlign * kAlign);
  if (data_ == nullptr) throw std::bad_alloc();
  std::memset(data_, 0, size);
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (size_ >= kMapped) {
    munmap(data_, size_);
  } else {
    std::free(data_);
  }
}

}  // namespace optod::optim

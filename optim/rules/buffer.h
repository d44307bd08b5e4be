#pragma once
/// Zeroed memory for tensors: 64-byte aligned; from 4 MiB on, mapped on its own and advised for huge pages (first touch
/// of small pages costs more than the step that follows). Mapped ones begin at different places within their pages:
/// streams that lie a power of two apart share cache sets and memory banks, which costs an Adam step of 2^25 elements
/// 2.5 times its time. Move-only; not thread-safe beyond that.

#include <cstddef>
#include <utility>

namespace optod::optim {

class Buffer {
 public:
  Buffer() = default;
  /// `size` zero bytes. Throws std::bad_alloc when the machine has none (as operator new does).
  explicit Buffer(size_t size);
  ~Buffer();
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  void* data() const { return data_; }
  size_t size() const { return size_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

/// Bytes behind the start of its pages at which the next of several large blocks begins: a multiple of 64 below
/// kStaggerBytes, another one for each of 16 calls. Thread-safe.
size_t NextStagger();
inline constexpr size_t kStaggerBytes = 8192;

}  // namespace optod::optim

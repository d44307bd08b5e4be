#pragma once
/// Memory for flat parameter and gradient buffers. First touch of fresh pages costs more than the step that follows
/// (some 10 us a 4 KiB page), so blocks are advised for huge pages and go back to a pool when their last user lets go. Large
/// blocks begin at different places within their pages.
/// Thread-safe; a buffer itself is plain memory.

#include <cstddef>
#include <memory>
#include <span>

namespace optod::engine {

/// `size()` bytes at a 64-byte aligned address; contents are undefined until written.
class TensorBuffer {
 public:
  /// nullptr when the machine has no such memory.
  static std::shared_ptr<TensorBuffer> Make(size_t size);
  /// The same bytes in another block; nullptr as Make.
  static std::shared_ptr<TensorBuffer> Copy(const TensorBuffer& other);
  ~TensorBuffer();
  TensorBuffer(const TensorBuffer&) = delete;
  TensorBuffer& operator=(const TensorBuffer&) = delete;

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  TensorBuffer(std::byte* data, size_t size, size_t capacity) : data_(data), size_(size), capacity_(capacity) {}
  std::byte* data_;
  size_t size_, capacity_;
};

/// Whether nobody else holds the buffer, so that its bytes may be changed. use_count() alone would not do: it does not
/// order what others read before they let go; giving up one more reference does (it acquires what they released).
inline bool SoleOwner(const std::shared_ptr<TensorBuffer>& buffer) {
  if (buffer.use_count() != 1) return false;
  std::shared_ptr<TensorBuffer>(buffer).reset();
  return true;
}

/// Bytes that the pool keeps and nobody uses; at most kPoolKeepsBytes.
size_t PooledBytes();
inline constexpr size_t kPoolKeepsBytes = size_t{2} << 30;

}  // namespace optod::engine

#pragma once
/// Append-only storage of texts in large chunks. Views stay valid for the arena's life, also when it is moved. Not
/// thread-safe.

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

namespace optod::trace {

class TextArena {
 public:
  std::string_view Add(std::string_view text);
  uint64_t BytesUsed() const { return bytes_; }  ///< of all chunks, full or not

 private:
  static constexpr size_t kFirstChunk = 4u << 10;
  static constexpr size_t kLargestChunk = 1u << 20;
  std::vector<std::unique_ptr<char[]>> chunks_;
  char* next_ = nullptr;
  size_t left_ = 0;
  size_t chunk_size_ = kFirstChunk;
  uint64_t bytes_ = 0;
};

}  // namespace optod::trace

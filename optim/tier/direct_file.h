#pragma once
/// A file of fixed pieces read and written past the page cache (O_DIRECT), so that a memory budget is real: what is not
/// in a slot is not in memory. An interface, so that tests can make every call fail.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace optod::tier {

/// Offsets, sizes and addresses of direct input and output are multiples of it.
inline constexpr size_t kPage = 4096;
inline constexpr size_t RoundUp(size_t bytes, size_t unit = kPage) { return (bytes + unit - 1) / unit * unit; }

class DirectFile {
 public:
  virtual ~DirectFile() = default;
  /// Exactly out.size() bytes; offset, address and size are multiples of kPage. DATA_LOSS: the file is shorter, or EIO.
  virtual absl::Status Read(uint64_t offset, std::span<std::byte> out) = 0;
  /// RESOURCE_EXHAUSTED: the disk is full.
  virtual absl::Status Write(uint64_t offset, std::span<const std::byte> data) = 0;
  /// Makes the file `bytes` long, the space of it taken now. RESOURCE_EXHAUSTED: there is not so much.
  virtual absl::Status Reserve(uint64_t bytes) = 0;
  virtual absl::Status Sync() = 0;
  virtual absl::StatusOr<uint64_t> Size() = 0;
};

/// Opens or makes `path` and locks it for this process. Calls may overlap; each is shared among `threads` threads in
/// pieces of 1 MiB. File systems without O_DIRECT (tmpfs) are used through the page cache. UNAVAILABLE: another process
/// has it.
absl::StatusOr<std::unique_ptr<DirectFile>> OpenDirectFile(const std::string& path, int threads);

/// Memory for direct input and output: whole pages, zero at first, aligned.
class PageBuffer {
 public:
  PageBuffer() = default;
  /// RESOURCE_EXHAUSTED: no memory.
  static absl::StatusOr<PageBuffer> Create(size_t bytes);
  PageBuffer(PageBuffer&& other) noexcept;
  PageBuffer& operator=(PageBuffer&& other) noexcept;
  ~PageBuffer();
  std::span<std::byte> bytes() const { return {data_, size_}; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace optod::tier

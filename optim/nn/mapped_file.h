#pragma once
/// A whole file, mapped read-only. Moves, does not copy. Pages come in when touched and can be dropped again.

#include <cstddef>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace optod::nn {

class MappedFile {
 public:
  /// NOT_FOUND when absent; INVALID_ARGUMENT when it is not a regular file. An empty file maps to no bytes.
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  /// Tells the kernel that the pages are not needed any more (they are read again when touched).
  void Drop() const;

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace optod::nn

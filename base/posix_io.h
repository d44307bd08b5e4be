#pragma once
/// Whole reads and writes on file descriptors, with interruptions and short counts handled. Used inside base/ by files
/// and processes.

#include <span>
#include <string>

#include "absl/status/status.h"

namespace optod {

/// Owns a descriptor; -1 = none. Not thread-safe.
class UniqueFd {
 public:
  explicit UniqueFd(int fd = -1) : fd_(fd) {}
  ~UniqueFd();
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.Release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept;
  bool ok() const { return fd_ >= 0; }
  int get() const { return fd_; }
  int Release();
  void Reset();
  /// Closes and reports what close said: on network file systems that is where a full disk shows.
  absl::Status Close(const std::string& what);

 private:
  int fd_;
};

/// Errors as ErrnoStatus, beginning with `what`; RESOURCE_EXHAUSTED when the disk is full.
absl::Status WriteAll(int fd, std::span<const std::byte> data, const std::string& what);
/// Appends everything up to the end of the file.
absl::Status ReadAll(int fd, std::string* out, const std::string& what);
/// fsync. A full disk is RESOURCE_EXHAUSTED, any other failure DATA_LOSS: the kernel may already have dropped the
/// pages.
absl::Status SyncFd(int fd, const std::string& what);

}  // namespace optod

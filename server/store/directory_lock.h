#pragma once
/// One holder per data directory: flock(2) on DIR/LOCK, with who holds it written inside for people. The kernel
/// releases it when the process ends, however it ends; the file stays. Not for network file systems without flock.

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace optod::store {

/// Held while the object lives. Thread-compatible.
class DirectoryLock {
 public:
  /// FAILED_PRECONDITION when another process (or this one already) holds it, naming its pid and its listen address
  /// when it has told it.
  static absl::StatusOr<std::unique_ptr<DirectoryLock>> Acquire(const std::string& directory);
  ~DirectoryLock();
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

  /// Writes the address into the file, for the message that a second holder gets.
  absl::Status SetAddress(const std::string& address);

 private:
  explicit DirectoryLock(int fd) : fd_(fd) {}
  absl::Status Write(const std::string& text);
  int fd_;
};

}  // namespace optod::store

#pragma once
/// The file-system calls whose failures matter (ENOSPC, EIO, failed fsync), as a dependency so that tests can make them fail.
/// Paths are absolute or relative to the working directory. Thread-safe.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace optod {

class Fs {
 public:
  virtual ~Fs() = default;
  /// Whole file. NOT_FOUND when absent.
  virtual absl::StatusOr<std::string> ReadFile(const std::string& path) = 0;
  /// Durable and atomic: writes `path`.tmp-<unique>, fsyncs it, renames it over `path`, fsyncs the directory. On any error the
  /// temporary is removed and `path` is as before. RESOURCE_EXHAUSTED when the disk is full, DATA_LOSS when an fsync failed.
  virtual absl::Status WriteFileAtomic(const std::string& path, std::span<const std::byte> data, int mode = 0644) = 0;
  /// mkdir -p; ok when it exists already.
  virtual absl::Status CreateDirectories(const std::string& path, int mode = 0755) = 0;
  virtual absl::Status Remove(const std::string& path) = 0;
  virtual bool Exists(const std::string& path) = 0;
  virtual absl::StatusOr<int64_t> FileSize(const std::string& path) = 0;
  /// Names (not paths) of the entries of a directory, sorted, without "." and "..".
  virtual absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path) = 0;
};

/// POSIX. Lives for ever.
Fs& PosixFs();

}  // namespace optod

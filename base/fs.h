#pragma once
/// The file-system calls whose failures matter (ENOSPC, EIO, failed fsync), as a dependency so that tests can make them
/// fail. Paths are absolute or relative to the working directory. Thread-safe.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace optod {

/// A file that is written piece by piece under a temporary name and appears whole or not at all. One thread at a time.
/// Dropped without Commit: the temporary is removed.
class StagedFile {
 public:
  virtual ~StagedFile() = default;
  /// RESOURCE_EXHAUSTED when the disk is full. After an error only dropping it makes sense.
  virtual absl::Status Append(std::span<const std::byte> data) = 0;
  /// fsyncs, renames over `path` (same file system), fsyncs its directory. DATA_LOSS when an fsync failed: `path` is as
  /// before and the temporary is gone. Once.
  virtual absl::Status Commit(const std::string& path) = 0;
};

class Fs {
 public:
  virtual ~Fs() = default;
  /// Whole file. NOT_FOUND when absent.
  virtual absl::StatusOr<std::string> ReadFile(const std::string& path) = 0;
  /// Exactly `out.size()` bytes from byte `offset`. NOT_FOUND when the file is absent, DATA_LOSS when it is shorter. The
  /// base version reads the whole file: right, and wasteful for a piece of a long one.
  virtual absl::Status ReadRange(const std::string& path, int64_t offset, std::span<std::byte> out);
  /// Durable and atomic: writes `path`.tmp-<unique>, fsyncs it, renames it over `path`, fsyncs the directory. On any
  /// error the temporary is removed and `path` is as before. RESOURCE_EXHAUSTED when the disk is full, DATA_LOSS when
  /// an fsync failed.
  virtual absl::Status WriteFileAtomic(const std::string& path, std::span<const std::byte> data, int mode = 0644) = 0;
  /// Begins a file whose temporary lies in `directory`, which must exist. The base version collects the bytes in memory
  /// and writes them through WriteFileAtomic at Commit: right, and wasteful for long files.
  virtual absl::StatusOr<std::unique_ptr<StagedFile>> Stage(const std::string& directory, int mode = 0644);
  /// Durable, not atomic: adds `data` to the end of `path` (made when absent) and fsyncs. A failed append is cut off
  /// again where that can be done. The base version rewrites the whole file through WriteFileAtomic: right, and slow
  /// for long files.
  virtual absl::Status AppendFile(const std::string& path, std::span<const std::byte> data, int mode = 0644);
  /// Permission bits (07777). NOT_FOUND when absent. UNIMPLEMENTED where a file system keeps none.
  virtual absl::StatusOr<int> FileMode(const std::string& path);
  /// mkdir -p; ok when it exists already.
  virtual absl::Status CreateDirectories(const std::string& path, int mode = 0755) = 0;
  virtual absl::Status Remove(const std::string& path) = 0;
  virtual bool Exists(const std::string& path) = 0;
  virtual absl::StatusOr<int64_t> FileSize(const std::string& path) = 0;
  /// Names (not paths) of the entries of a directory, sorted, without "." and "..".
  virtual absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path) = 0;
};

/// Text as the bytes that WriteFileAtomic and AppendFile take.
inline std::span<const std::byte> BytesOf(std::string_view text) { return std::as_bytes(std::span(text)); }

/// POSIX. Lives for ever.
Fs& PosixFs();

}  // namespace optod

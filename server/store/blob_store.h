#pragma once
/// Content-addressed files: DIR/blobs/ab/abcdef... named by the hex SHA-256 of their bytes. A blob is complete and durable (written, fsynced,
/// renamed, directory fsynced) before Put returns; a row may point to it only after that. Thread-safe.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/fs.h"

namespace optod::store {

/// A blob that arrives piece by piece: hashed and written as it comes. One thread at a time. Dropped without Finish:
/// nothing is left behind.
class BlobWriter {
 public:
  virtual ~BlobWriter() = default;
  /// RESOURCE_EXHAUSTED (disk full). After an error only dropping it makes sense.
  virtual absl::Status Append(std::span<const std::byte> data) = 0;
  /// As Put of everything appended. Once.
  virtual absl::StatusOr<std::string> Finish() = 0;
};

class BlobStore {
 public:
  virtual ~BlobStore() = default;
  /// The store must outlive the writer. The base version collects in memory and puts.
  virtual absl::StatusOr<std::unique_ptr<BlobWriter>> Begin();
  /// Hex SHA-256. Already there: returns at once. RESOURCE_EXHAUSTED (disk full), DATA_LOSS (fsync failed): nothing is left behind.
  virtual absl::StatusOr<std::string> Put(std::span<const std::byte> data) = 0;
  /// INVALID_ARGUMENT when it is no hash, NOT_FOUND; DATA_LOSS when the bytes no longer have their hash.
  virtual absl::StatusOr<std::string> Get(const std::string& sha256) = 0;
  virtual absl::StatusOr<int64_t> Size(const std::string& sha256) = 0;
  virtual bool Has(const std::string& sha256) = 0;
  /// Mark and sweep: removes blobs that are not in `live` and were not put (again) within min_age_ms before now: their rows may be on the way.
  /// What an earlier process put counts as old: rows that it had not committed will not come. Returns how many bytes were freed.
  virtual absl::StatusOr<int64_t> Sweep(const std::vector<std::string>& live, int64_t min_age_ms, int64_t now_unix_ms) = 0;
  virtual int64_t BytesStored() = 0;
};

/// `fs` and `clock` are borrowed. Files under `directory` that are none of ours (left by a crash in Put) go with the next Sweep.
std::unique_ptr<BlobStore> MakeFileBlobStore(Fs& fs, std::string directory, Clock& clock = SystemClock());
std::unique_ptr<BlobStore> MakeMemoryBlobStore(Clock& clock = SystemClock());

}  // namespace optod::store

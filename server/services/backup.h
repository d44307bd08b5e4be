#pragma once
/// A copy of everything: the database through its own backup interface, then every blob that the copied rows point to.
/// Blobs never change, so copying them after the database is consistent. Blocking; one backup at a time a directory.

#include <atomic>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "base/fs.h"
#include "server/store/blob_store.h"
#include "server/store/store.h"

namespace optod::services {

struct BackupOutcome {
  std::string path;   ///< directory: optod.db and blobs/
  int64_t bytes = 0;  ///< database and blobs
  int64_t blobs = 0;
};

/// Writes `directory`/optod.db and `directory`/blobs/ab/abcdef... ALREADY_EXISTS when the directory is there. On an
/// error what was written stays behind without the file COMPLETE, which is written last.
absl::StatusOr<BackupOutcome> BackupInto(const std::string& directory, store::Store& store, store::BlobStore& blobs,
                                         Fs& fs);

}  // namespace optod::services

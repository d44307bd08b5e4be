#pragma once
/// A copy of everything: the database through its own backup interface, every blob that the copied rows point to (blobs
/// never change, so copying them after the database is consistent), and the jobs with their checkpoints. Left out are
/// files that are not the server's: models and data sets that jobs name by path. Blocking; one backup at a time a
/// directory.

#include <atomic>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "base/fs.h"
#include "server/jobs/job_queue.h"
#include "server/store/blob_store.h"
#include "server/store/store.h"

namespace optod::services {

struct BackupOutcome {
  std::string path;   ///< directory: optod.db, blobs/ and jobs/
  int64_t bytes = 0;  ///< of all of it
  int64_t blobs = 0;
  int64_t jobs = 0;
};

/// Writes `directory`/optod.db, `directory`/blobs/ab/abcdef... and `directory`/jobs/USER/ID/... ALREADY_EXISTS when the directory is there. On an
/// error what was written stays behind without the file COMPLETE, which is written last.
absl::StatusOr<BackupOutcome> BackupInto(const std::string& directory, store::Store& store, store::BlobStore& blobs,
                                         jobs::JobQueue& queue, Fs& fs);

}  // namespace optod::services

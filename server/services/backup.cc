#include "server/services/backup.h"

#include <memory>
#include <vector>

#include "base/status.h"
#include "server/store/sqlite_store.h"

namespace optod::services {
namespace {

absl::Status WriteText(Fs& fs, const std::string& path, const std::string& text) {
  return fs.WriteFileAtomic(path, BytesOf(text), 0600);
}

absl::StatusOr<std::vector<std::string>> LiveBlobsOf(const std::string& database) {
  store::SqliteOptions options;
  options.path = database;
  options.reader_count = 1;
  options.measure_ms = 0;
  ASSIGN_OR_RETURN(std::unique_ptr<store::Store> copy, store::OpenSqliteStore(options));
  ASSIGN_OR_RETURN(std::vector<std::string> live, copy->LiveBlobs());
  RETURN_IF_ERROR(copy->Close());
  return live;
}

}  // namespace

absl::StatusOr<BackupOutcome> BackupInto(const std::string& directory, store::Store& store, store::BlobStore& blobs,
                                         jobs::JobQueue& queue, Fs& fs) {
  if (fs.Exists(directory)) return AlreadyExists("backup_id: a backup of this name exists");
  BackupOutcome outcome;
  outcome.path = directory;
  RETURN_IF_ERROR(fs.CreateDirectories(directory + "/blobs", 0700));
  const std::string database = directory + "/optod.db";
  RETURN_IF_ERROR(store.BackupTo(database));
  ASSIGN_OR_RETURN(outcome.bytes, fs.FileSize(database));
  // The copy itself is asked which blobs it needs: the running server may be some commits ahead.
  ASSIGN_OR_RETURN(std::vector<std::string> live, LiveBlobsOf(database));
  for (const std::string& sha256 : live) {
    ASSIGN_OR_RETURN(std::string data, blobs.Get(sha256));
    std::string folder = directory + "/blobs/" + sha256.substr(0, 2);
    RETURN_IF_ERROR(fs.CreateDirectories(folder, 0700));
    RETURN_IF_ERROR(WriteText(fs, folder + "/" + sha256, data));
    outcome.bytes += static_cast<int64_t>(data.size());
    ++outcome.blobs;
  }
  ASSIGN_OR_RETURN(const jobs::CopiedJobs copied, queue.CopyTo(directory + "/jobs"));
  outcome.jobs = copied.jobs;
  outcome.bytes += copied.bytes;
  RETURN_IF_ERROR(WriteText(fs, directory + "/COMPLETE", Cat(outcome.blobs, " blobs, ", outcome.jobs, " jobs\n")));
  return outcome;
}

}  // namespace optod::services

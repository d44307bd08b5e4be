#include "server/services/backup.h"

#include <span>

#include "base/status.h"

namespace optod::services {
namespace {

absl::Status WriteText(Fs& fs, const std::string& path, const std::string& text) {
  return fs.WriteFileAtomic(path, std::as_bytes(std::span(text.data(), text.size())), 0600);
}

}  // namespace

absl::StatusOr<BackupOutcome> BackupInto(const std::string& directory, store::Store& store, store::BlobStore& blobs, Fs& fs) {
  if (fs.Exists(directory)) return AlreadyExists("backup_id: a backup of this name exists");
  BackupOutcome outcome;
  outcome.path = directory;
  RETURN_IF_ERROR(fs.CreateDirectories(directory + "/blobs", 0700));
  // Which blobs the rows point to is asked before the copy and after it: what either names is in the backup.
  ASSIGN_OR_RETURN(std::vector<std::string> live, store.LiveBlobs());
  RETURN_IF_ERROR(store.BackupTo(directory + "/optod.db"));
  ASSIGN_OR_RETURN(outcome.bytes, fs.FileSize(directory + "/optod.db"));
  for (const std::string& sha256 : live) {
    absl::StatusOr<std::string> data = blobs.Get(sha256);
    if (absl::IsNotFound(data.status())) continue;   // its row went away meanwhile
    RETURN_IF_ERROR(data.status());
    std::string folder = directory + "/blobs/" + sha256.substr(0, 2);
    RETURN_IF_ERROR(fs.CreateDirectories(folder, 0700));
    RETURN_IF_ERROR(WriteText(fs, folder + "/" + sha256, *data));
    outcome.bytes += static_cast<int64_t>(data->size());
    ++outcome.blobs;
  }
  RETURN_IF_ERROR(WriteText(fs, directory + "/COMPLETE", Cat(outcome.blobs, " blobs\n")));
  return outcome;
}

}  // namespace optod::services

#pragma once
/// Jobs on disk: one folder a job, `jobs/USER/ID/`, with job.pb (the record, replaced whole and durably before anybody
/// is told), events.pb (appended, not synced), log (the workers' output) and work/ (checkpoints). The queue is the only
/// writer. Thread-safe as far as the file system is.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/fs.h"
#include "optod/v1/job.pb.h"
#include "optod/v1/worker.pb.h"

namespace optod::jobs {

struct CopiedJobs {
  int64_t jobs = 0, bytes = 0;
};

class JobFiles {
 public:
  /// `root` is made when the first job is.
  JobFiles(Fs& fs, std::string root) : fs_(fs), root_(std::move(root)) {}

  std::string Folder(const std::string& user, const std::string& id) const { return root_ + "/" + user + "/" + id; }
  std::string LogPath(const v1::JobRecord& record) const { return Folder(record.user(), record.id()) + "/log"; }
  std::string WorkFolder(const v1::JobRecord& record) const { return Folder(record.user(), record.id()) + "/work"; }

  absl::Status Save(const v1::JobRecord& record);
  /// All jobs. Those whose record cannot be read are named in `broken`.
  absl::StatusOr<std::vector<v1::JobRecord>> LoadAll(std::vector<std::string>* broken);
  /// Best effort: events are figures, the record is the truth.
  void AppendEvent(const v1::JobRecord& record, const v1::JobEvent& event);
  std::vector<v1::JobEvent> LoadEvents(const v1::JobRecord& record);
  /// Copies every job into `folder`/USER/ID, for a backup: record, events, log, checkpoints and result, while workers
  /// go on writing. The record comes first, so the copied files are never older than what it says: a job that was under
  /// way goes on from the copied checkpoint, one that had ended shows its end. Blocking.
  absl::StatusOr<CopiedJobs> CopyTo(const std::string& folder);

 private:
  absl::Status CopyJob(const std::string& from, const std::string& to, CopiedJobs* sum);

  Fs& fs_;
  const std::string root_;
};

}  // namespace optod::jobs

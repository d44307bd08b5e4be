#include "server/jobs/job_files.h"

#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/status.h"

namespace optod::jobs {
namespace {

constexpr size_t kCopyPiece = 1 << 20;

/// A file that may grow, be replaced or vanish meanwhile: one open file gives one version of it. False: it is gone.
absl::StatusOr<bool> CopyFile(Fs& fs, const std::string& from, const std::string& to, int64_t* bytes) {
  std::ifstream in(from, std::ios::binary);
  if (!in) return false;
  ASSIGN_OR_RETURN(const std::unique_ptr<StagedFile> out,
                   fs.Stage(std::filesystem::path(to).parent_path().string(), 0600));
  std::string piece(kCopyPiece, '\0');
  while (in.read(piece.data(), static_cast<std::streamsize>(piece.size())), in.gcount() > 0) {
    RETURN_IF_ERROR(out->Append(BytesOf(std::string_view(piece).substr(0, static_cast<size_t>(in.gcount())))));
    *bytes += in.gcount();
  }
  if (in.bad()) return DataLoss("job file ", from, ": cannot be read");
  RETURN_IF_ERROR(out->Commit(to));
  return true;
}

}  // namespace

absl::Status JobFiles::Save(const v1::JobRecord& record) {
  const std::string folder = Folder(record.user(), record.id());
  RETURN_IF_ERROR(fs_.CreateDirectories(folder, 0700));
  RETURN_IF_ERROR(fs_.CreateDirectories(folder + "/work", 0700));
  return fs_.WriteFileAtomic(folder + "/job.pb", BytesOf(record.SerializeAsString()), 0600);
}

absl::StatusOr<std::vector<v1::JobRecord>> JobFiles::LoadAll(std::vector<std::string>* broken) {
  std::vector<v1::JobRecord> records;
  if (!fs_.Exists(root_)) return records;
  ASSIGN_OR_RETURN(const std::vector<std::string> users, fs_.ListDirectory(root_));
  for (const std::string& user : users) {
    ASSIGN_OR_RETURN(const std::vector<std::string> ids, fs_.ListDirectory(root_ + "/" + user));
    for (const std::string& id : ids) {
      absl::StatusOr<std::string> bytes = fs_.ReadFile(Folder(user, id) + "/job.pb");
      if (absl::IsNotFound(bytes.status())) continue;  // its first record was never finished: nobody was told
      v1::JobRecord record;
      if (!bytes.ok() || !record.ParseFromString(*bytes) || record.user() != user || record.id() != id) {
        broken->push_back(user + "/" + id);
        continue;
      }
      records.push_back(std::move(record));
    }
  }
  return records;
}

void JobFiles::AppendEvent(const v1::JobRecord& record, const v1::JobEvent& event) {
  const std::string text = event.SerializeAsString();
  const auto size = static_cast<uint32_t>(text.size());
  std::ofstream file(Folder(record.user(), record.id()) + "/events.pb", std::ios::binary | std::ios::app);
  file.write(reinterpret_cast<const char*>(&size), sizeof(size))
      .write(text.data(), static_cast<std::streamsize>(text.size()));
}

std::vector<v1::JobEvent> JobFiles::LoadEvents(const v1::JobRecord& record) {
  std::vector<v1::JobEvent> events;
  const std::string bytes = fs_.ReadFile(Folder(record.user(), record.id()) + "/events.pb").value_or("");
  size_t at = 0;
  while (bytes.size() - at >= 4) {
    uint32_t size;
    std::memcpy(&size, bytes.data() + at, 4);
    v1::JobEvent event;
    if (size > bytes.size() - at - 4 || !event.ParseFromArray(bytes.data() + at + 4, static_cast<int>(size))) break;
    at += 4 + size;
    if (event.sequence() == static_cast<int64_t>(events.size()) + 1) events.push_back(std::move(event));
  }
  // A torn end would hide what is appended behind it.
  if (at < bytes.size())
    (void)fs_.WriteFileAtomic(Folder(record.user(), record.id()) + "/events.pb",
                              BytesOf(std::string_view(bytes).substr(0, at)), 0600);
  return events;
}

absl::StatusOr<CopiedJobs> JobFiles::CopyTo(const std::string& folder) {
  CopiedJobs sum;
  if (!fs_.Exists(root_)) return sum;
  ASSIGN_OR_RETURN(const std::vector<std::string> users, fs_.ListDirectory(root_));
  for (const std::string& user : users) {
    ASSIGN_OR_RETURN(const std::vector<std::string> ids, fs_.ListDirectory(root_ + "/" + user));
    for (const std::string& id : ids)
      RETURN_IF_ERROR(CopyJob(Folder(user, id), folder + "/" + user + "/" + id, &sum));
  }
  return sum;
}

absl::Status JobFiles::CopyJob(const std::string& from, const std::string& to, CopiedJobs* sum) {
  RETURN_IF_ERROR(fs_.CreateDirectories(to, 0700));
  ASSIGN_OR_RETURN(const bool known, CopyFile(fs_, from + "/job.pb", to + "/job.pb", &sum->bytes));
  if (!known) return absl::OkStatus();  // its first record was never finished: nobody was told
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator it(from, error), end; it != end && !error; it.increment(error)) {
    const std::string path = it->path().string(), target = to + path.substr(from.size());
    std::error_code gone;
    if (it->is_directory(gone)) {
      RETURN_IF_ERROR(fs_.CreateDirectories(target, 0700));
    } else if (target != to + "/job.pb" && path.find(".tmp-") == std::string::npos) {
      RETURN_IF_ERROR(CopyFile(fs_, path, target, &sum->bytes).status());
    }
  }
  if (error) return DataLoss("jobs: ", from, " cannot be listed: ", error.message());
  ++sum->jobs;
  return absl::OkStatus();
}

}  // namespace optod::jobs

#include "server/store/sqlite_backup.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "base/status.h"

namespace optod::store {
namespace {

absl::Status CopyPages(Connection& from, Connection& to) {
  sqlite3_backup* backup = sqlite3_backup_init(to.handle(), "main", from.handle(), "main");
  if (backup == nullptr) return SqliteStatus(sqlite3_extended_errcode(to.handle()), "backup");
  // All pages in one step: a snapshot. In steps, each commit of the writer would start the copy anew.
  const int code = sqlite3_backup_step(backup, -1);
  const int end = sqlite3_backup_finish(backup);
  if (code == SQLITE_DONE && end == SQLITE_OK) return absl::OkStatus();
  return SqliteStatus(code != SQLITE_DONE && code != SQLITE_OK ? code : end, "backup");
}

absl::Status CopyAndCheck(const Connection::Options& source, const std::string& path) {
  ASSIGN_OR_RETURN(std::unique_ptr<Connection> from, Connection::Open(source));
  Connection::Options target = source;
  target.path = path;
  target.read_only = false;
  target.create = true;
  target.full_sync = true;
  target.mmap_bytes = 0;
  ASSIGN_OR_RETURN(std::unique_ptr<Connection> to, Connection::Open(target));
  RETURN_IF_ERROR(CopyPages(*from, *to));
  RETURN_IF_ERROR(to->Exec("PRAGMA journal_mode=DELETE"));
  ASSIGN_OR_RETURN(const std::string check, to->QueryText("PRAGMA integrity_check"));
  if (check != "ok") return DataLoss("the backup fails its integrity check: ", check);
  ASSIGN_OR_RETURN(const std::string orphan, to->QueryText("PRAGMA foreign_key_check"));
  if (!orphan.empty()) return DataLoss("the backup fails its foreign key check: rows of ", orphan, " have no session");
  return absl::OkStatus();
}

absl::Status SyncDirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string directory = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const int fd = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return FailedPrecondition("backup: its directory cannot be opened");
  const bool ok = fsync(fd) == 0;
  close(fd);
  return ok ? absl::OkStatus() : DataLoss("backup: fsync of its directory failed");
}

}  // namespace

absl::Status BackupDatabase(const Connection::Options& source, const std::string& path) {
  if (access(path.c_str(), F_OK) == 0) return AlreadyExists("backup: the file exists already");
  const std::string temporary = path + ".tmp";
  std::remove(temporary.c_str());
  absl::Status status = CopyAndCheck(source, temporary);
  if (status.ok() && std::rename(temporary.c_str(), path.c_str()) != 0)
    status = FailedPrecondition("backup: renaming failed, errno ", errno);
  if (status.ok()) status = SyncDirectoryOf(path);
  for (const char* suffix : {"", "-journal", "-wal", "-shm"}) std::remove((temporary + suffix).c_str());
  return status;
}

}  // namespace optod::store

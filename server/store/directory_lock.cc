#include "server/store/directory_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/status.h"

namespace optod::store {
namespace {

/// "pid 41 (127.0.0.1:7070)", or less when the file says less.
std::string HolderOf(int fd) {
  char text[512];
  const ssize_t size = pread(fd, text, sizeof text, 0);
  std::string holder(text, size > 0 ? static_cast<size_t>(size) : 0);
  while (!holder.empty() && holder.back() == '\n') holder.pop_back();
  return holder.empty() ? "another process" : holder;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DirectoryLock>> DirectoryLock::Acquire(const std::string& directory) {
  const int fd = open((directory + "/LOCK").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return FailedPrecondition("data directory: its LOCK file cannot be opened: ", std::strerror(errno));
  std::unique_ptr<DirectoryLock> lock(new DirectoryLock(fd));
  int code = 0;
  do code = flock(fd, LOCK_EX | LOCK_NB);
  while (code != 0 && errno == EINTR);
  if (code != 0) {
    if (errno != EWOULDBLOCK) return FailedPrecondition("data directory: it cannot be locked: ", std::strerror(errno));
    return FailedPrecondition("data directory: in use by ", HolderOf(fd), "; stop it, or choose another --data-dir");
  }
  RETURN_IF_ERROR(lock->Write(Cat("pid ", getpid(), "\n")));
  return lock;
}

DirectoryLock::~DirectoryLock() { close(fd_); }

absl::Status DirectoryLock::SetAddress(const std::string& address) {
  return Write(Cat("pid ", getpid(), " (", address, ")\n"));
}

absl::Status DirectoryLock::Write(const std::string& text) {
  // Longer text first, then the cut: a reader in between sees no half of it.
  if (pwrite(fd_, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()) ||
      ftruncate(fd_, static_cast<off_t>(text.size())) != 0) {
    return errno == ENOSPC ? ResourceExhausted("data directory: the disk is full")
                           : Unavailable("data directory: LOCK cannot be written: ", std::strerror(errno));
  }
  return absl::OkStatus();
}

}  // namespace optod::store

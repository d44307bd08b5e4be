#include "base/posix_io.h"

#include <string.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "base/errno_status.h"
#include "base/status.h"

namespace optod {

UniqueFd::~UniqueFd() { Reset(); }

UniqueFd& UniqueFd::operator=(UniqueFd&& other) noexcept {
  if (this != &other) {
    Reset();
    fd_ = other.Release();
  }
  return *this;
}

int UniqueFd::Release() { return std::exchange(fd_, -1); }

void UniqueFd::Reset() {
  if (const int fd = Release(); fd >= 0) close(fd);
}

absl::Status UniqueFd::Close(const std::string& what) {
  // After EINTR the descriptor is gone on Linux: closing again could hit another thread's file.
  if (const int fd = Release(); fd >= 0 && close(fd) != 0 && errno != EINTR) return ErrnoStatus(errno, what);
  return absl::OkStatus();
}

absl::Status WriteAll(int fd, std::span<const std::byte> data, const std::string& what) {
  while (!data.empty()) {
    const ssize_t written = write(fd, data.data(), data.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrnoStatus(errno, what);
    data = data.subspan(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::Status ReadAll(int fd, std::string* out, const std::string& what) {
  char buffer[64 << 10];
  while (true) {
    const ssize_t got = read(fd, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, what);
    if (got == 0) return absl::OkStatus();
    out->append(buffer, static_cast<size_t>(got));
    explicit_bzero(buffer, static_cast<size_t>(got));  // the file may be one of keys
  }
}

absl::Status SyncFd(int fd, const std::string& what) {
  while (fsync(fd) != 0) {
    if (errno == EINTR) continue;
    if (errno == ENOSPC || errno == EDQUOT) return ErrnoStatus(errno, what);
    return DataLoss(what, ": fsync failed: ", std::generic_category().message(errno));
  }
  return absl::OkStatus();
}

}  // namespace optod

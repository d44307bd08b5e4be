#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "base/errno_status.h"
#include "base/fs.h"
#include "base/posix_io.h"
#include "base/random_id.h"
#include "base/status.h"

namespace optod {
namespace {

std::string DirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

/// The last component: what messages call a file, since full paths do not belong in them.
std::string NameOf(const std::string& path) {
  const size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return path;
  const size_t slash = path.rfind('/', end);
  return path.substr(slash == std::string::npos ? 0 : slash + 1,
                     end - (slash == std::string::npos ? 0 : slash + 1) + 1);
}

absl::Status SyncDirectory(const std::string& path) {
  UniqueFd dir(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!dir.ok()) return ErrnoStatus(errno, Cat("open directory ", NameOf(path)));
  return SyncFd(dir.get(), NameOf(path));
}

absl::Status WriteAndSync(int fd, std::span<const std::byte> data, const std::string& name) {
  RETURN_IF_ERROR(WriteAll(fd, data, name));
  return SyncFd(fd, name);
}

/// A temporary file that the kernel begins to write out while more arrives, so that the fsync at the end finds little
/// left to do.
class PosixStagedFile final : public StagedFile {
 public:
  PosixStagedFile(UniqueFd file, std::string temporary) : file_(std::move(file)), temporary_(std::move(temporary)) {}
  ~PosixStagedFile() override {
    if (!temporary_.empty()) unlink(temporary_.c_str());
  }

  absl::Status Append(std::span<const std::byte> data) override {
    RETURN_IF_ERROR(WriteAll(file_.get(), data, "write a staged file"));
    size_ += static_cast<off_t>(data.size());
    if (size_ - begun_ < kWriteBackBytes) return absl::OkStatus();
    // A hint: whether it fails is seen by the fsync.
    (void)sync_file_range(file_.get(), begun_, size_ - begun_, SYNC_FILE_RANGE_WRITE);
    begun_ = size_;
    return absl::OkStatus();
  }

  absl::Status Commit(const std::string& path) override {
    const std::string name = Cat("write ", NameOf(path));
    RETURN_IF_ERROR(SyncFd(file_.get(), name));
    RETURN_IF_ERROR(file_.Close(name));
    if (rename(temporary_.c_str(), path.c_str()) != 0) return ErrnoStatus(errno, name);
    temporary_.clear();
    return SyncDirectory(DirectoryOf(path));
  }

 private:
  static constexpr off_t kWriteBackBytes = 16 << 20;
  UniqueFd file_;
  std::string temporary_;  ///< empty once renamed
  off_t size_ = 0, begun_ = 0;
};

class RealFs final : public Fs {
 public:
  absl::StatusOr<std::string> ReadFile(const std::string& path) override {
    UniqueFd file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file.ok()) return ErrnoStatus(errno, Cat("read ", NameOf(path)));
    struct stat info;
    std::string content;
    // The size is a hint only: files under /proc say 0, and others may grow while they are read.
    if (fstat(file.get(), &info) == 0 && S_ISREG(info.st_mode)) content.reserve(static_cast<size_t>(info.st_size) + 1);
    RETURN_IF_ERROR(ReadAll(file.get(), &content, Cat("read ", NameOf(path))));
    return content;
  }

  absl::Status ReadRange(const std::string& path, int64_t offset, std::span<std::byte> out) override {
    const std::string name = Cat("read ", NameOf(path));
    UniqueFd file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file.ok()) return ErrnoStatus(errno, name);
    size_t done = 0;
    while (done < out.size()) {
      const ssize_t got =
          pread(file.get(), out.data() + done, out.size() - done, static_cast<off_t>(offset) + static_cast<off_t>(done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return ErrnoStatus(errno, name);
      if (got == 0) return DataLoss(name, ": the file ends after ", offset + static_cast<int64_t>(done), " bytes");
      done += static_cast<size_t>(got);
    }
    return absl::OkStatus();
  }

  absl::Status WriteFileAtomic(const std::string& path, std::span<const std::byte> data, int mode) override {
    const std::string name = Cat("write ", NameOf(path));
    const std::string temporary = Cat(path, ".tmp-", RandomId(12));
    UniqueFd file(
        open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, static_cast<mode_t>(mode)));
    if (!file.ok()) return ErrnoStatus(errno, name);
    absl::Status status = WriteAndSync(file.get(), data, name);
    if (status.ok()) status = file.Close(name);
    if (status.ok() && rename(temporary.c_str(), path.c_str()) != 0) status = ErrnoStatus(errno, name);
    if (!status.ok()) {
      unlink(temporary.c_str());
      return status;
    }
    return SyncDirectory(DirectoryOf(path));
  }

  absl::StatusOr<std::unique_ptr<StagedFile>> Stage(const std::string& directory, int mode) override {
    std::string temporary = Cat(directory, "/staged.tmp-", RandomId(12));
    UniqueFd file(
        open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, static_cast<mode_t>(mode)));
    if (!file.ok()) return ErrnoStatus(errno, Cat("create a file in ", NameOf(directory)));
    return std::make_unique<PosixStagedFile>(std::move(file), std::move(temporary));
  }

  absl::Status AppendFile(const std::string& path, std::span<const std::byte> data, int mode) override {
    const std::string name = Cat("append to ", NameOf(path));
    const bool existed = Exists(path);
    UniqueFd file(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, static_cast<mode_t>(mode)));
    if (!file.ok()) return ErrnoStatus(errno, name);
    struct stat before;
    if (fstat(file.get(), &before) != 0) return ErrnoStatus(errno, name);
    if (absl::Status status = WriteAndSync(file.get(), data, name); !status.ok()) {
      // A torn tail would be read as a record: cut it off again. Where even that fails the first error is the one to
      // report.
      if (ftruncate(file.get(), before.st_size) != 0) return status;
      return status;
    }
    RETURN_IF_ERROR(file.Close(name));
    return existed ? absl::OkStatus() : SyncDirectory(DirectoryOf(path));
  }

  absl::Status CreateDirectories(const std::string& path, int mode) override {
    if (path.empty()) return InvalidArgument("create directory: the path is empty");
    for (size_t at = path.find_first_not_of('/'); at != std::string::npos; at = path.find_first_not_of('/', at)) {
      at = std::min(path.find('/', at), path.size());
      const std::string prefix = path.substr(0, at);
      if (mkdir(prefix.c_str(), static_cast<mode_t>(mode)) == 0) {
        RETURN_IF_ERROR(SyncDirectory(DirectoryOf(prefix)));
        continue;
      }
      const int error = errno;
      struct stat info;
      if (stat(prefix.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) continue;
      return ErrnoStatus(error == EEXIST ? ENOTDIR : error, Cat("create directory ", NameOf(prefix)));
    }
    return absl::OkStatus();
  }

  absl::Status Remove(const std::string& path) override {
    if (::remove(path.c_str()) != 0) return ErrnoStatus(errno, Cat("remove ", NameOf(path)));
    return absl::OkStatus();
  }

  bool Exists(const std::string& path) override {
    struct stat info;
    return stat(path.c_str(), &info) == 0;
  }

  absl::StatusOr<int64_t> FileSize(const std::string& path) override {
    struct stat info;
    if (stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, Cat("size of ", NameOf(path)));
    return static_cast<int64_t>(info.st_size);
  }

  absl::StatusOr<int> FileMode(const std::string& path) override {
    struct stat info;
    if (stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, Cat("mode of ", NameOf(path)));
    return static_cast<int>(info.st_mode & 07777);
  }

  absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path) override {
    const std::unique_ptr<DIR, int (*)(DIR*)> dir(opendir(path.c_str()), &closedir);
    if (dir == nullptr) return ErrnoStatus(errno, Cat("list ", NameOf(path)));
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* entry = readdir(dir.get())) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(name);
      errno = 0;
    }
    if (errno != 0) return ErrnoStatus(errno, Cat("list ", NameOf(path)));
    std::sort(names.begin(), names.end());
    return names;
  }
};

}  // namespace

Fs& PosixFs() {
  static RealFs* fs = new RealFs;
  return *fs;
}

}  // namespace optod

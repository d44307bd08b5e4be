#include "optim/tier/direct_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <latch>
#include <mutex>
#include <utility>

#include "base/errno_status.h"
#include "base/posix_io.h"
#include "base/status.h"
#include "base/thread_pool.h"

namespace optod::tier {
namespace {

constexpr size_t kPiece = 1 << 20;

class PosixDirectFile final : public DirectFile {
 public:
  PosixDirectFile(UniqueFd file, int threads) : file_(std::move(file)), pool_(threads) {}

  absl::Status Read(uint64_t offset, std::span<std::byte> out) override {
    return Shared(out.size(), [&](size_t begin, size_t size) { return ReadPiece(offset + begin, out.subspan(begin, size)); });
  }
  absl::Status Write(uint64_t offset, std::span<const std::byte> data) override {
    return Shared(data.size(),
                  [&](size_t begin, size_t size) { return WritePiece(offset + begin, data.subspan(begin, size)); });
  }
  absl::Status Reserve(uint64_t bytes) override {
    const int error = posix_fallocate(file_.get(), 0, static_cast<off_t>(bytes));
    return error == 0 ? absl::OkStatus() : ErrnoStatus(error, Cat("block file: reserve ", bytes, " bytes"));
  }
  absl::Status Sync() override { return SyncFd(file_.get(), "block file"); }
  absl::StatusOr<uint64_t> Size() override {
    struct stat info;
    if (fstat(file_.get(), &info) != 0) return ErrnoStatus(errno, "block file");
    return static_cast<uint64_t>(info.st_size);
  }

 private:
  // All pieces on the pool, the caller waits; the first error wins.
  template <class Body>
  absl::Status Shared(size_t size, Body body) {
    if (size <= kPiece) return body(0, size);
    const size_t pieces = (size + kPiece - 1) / kPiece;
    std::latch left(static_cast<ptrdiff_t>(pieces));
    std::mutex mutex;
    absl::Status first;
    for (size_t p = 0; p < pieces; ++p) {
      pool_.Post([&, p] {
        absl::Status status = body(p * kPiece, std::min(kPiece, size - p * kPiece));
        if (!status.ok()) {
          std::lock_guard lock(mutex);
          if (first.ok()) first = std::move(status);
        }
        left.count_down();
      });
    }
    left.wait();
    std::lock_guard lock(mutex);
    return first;
  }

  absl::Status ReadPiece(uint64_t offset, std::span<std::byte> out) {
    while (!out.empty()) {
      const ssize_t got = pread(file_.get(), out.data(), out.size(), static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return ErrnoStatus(errno, "block file: read");
      if (got == 0) return DataLoss("block file: read: the file ends at byte ", offset);
      offset += static_cast<uint64_t>(got);
      out = out.subspan(static_cast<size_t>(got));
    }
    return absl::OkStatus();
  }
  absl::Status WritePiece(uint64_t offset, std::span<const std::byte> data) {
    while (!data.empty()) {
      const ssize_t put = pwrite(file_.get(), data.data(), data.size(), static_cast<off_t>(offset));
      if (put < 0 && errno == EINTR) continue;
      if (put < 0) return ErrnoStatus(errno, "block file: write");
      offset += static_cast<uint64_t>(put);
      data = data.subspan(static_cast<size_t>(put));
    }
    return absl::OkStatus();
  }

  UniqueFd file_;
  ThreadPool pool_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DirectFile>> OpenDirectFile(const std::string& path, int threads) {
  constexpr int kFlags = O_RDWR | O_CREAT | O_CLOEXEC;
  UniqueFd file(open(path.c_str(), kFlags | O_DIRECT, 0600));
  if (!file.ok() && errno == EINVAL) file = UniqueFd(open(path.c_str(), kFlags, 0600));
  if (!file.ok()) return ErrnoStatus(errno, "block file");
  if (flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return Unavailable("block file: another process has it open");
    return ErrnoStatus(errno, "block file: lock");
  }
  return std::make_unique<PosixDirectFile>(std::move(file), std::max(1, threads));
}

absl::StatusOr<PageBuffer> PageBuffer::Create(size_t bytes) {
  PageBuffer buffer;
  if (bytes == 0) return buffer;
  const size_t size = RoundUp(bytes);
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return ResourceExhausted("tier: no memory for a buffer of ", size, " bytes");
  buffer.data_ = static_cast<std::byte*>(memory);
  buffer.size_ = size;
  return buffer;
}
PageBuffer::PageBuffer(PageBuffer&& other) noexcept { *this = std::move(other); }
PageBuffer& PageBuffer::operator=(PageBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}
PageBuffer::~PageBuffer() {
  if (data_ != nullptr) munmap(data_, size_);
}

}  // namespace optod::tier

#include "server/services/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <thread>
#include <tuple>
#include <vector>

#include "base/crc32c.h"
#include "base/errno_status.h"
#include "base/status.h"

namespace optod::services {
namespace {

constexpr uint64_t kLargest = uint64_t{1} << 46;
constexpr char kName[] = "/memfd:optod-";  // as /proc shows it

class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() {
    if (fd_ >= 0) close(fd_);
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

bool IsOurMemfd(const std::string& link) {
  char target[256];
  const ssize_t n = readlink(link.c_str(), target, sizeof(target));
  return n >= static_cast<ssize_t>(sizeof(kName) - 1) && std::memcmp(target, kName, sizeof(kName) - 1) == 0;
}

absl::Status CheckSizes(const v1::SharedMemory& offer, uint64_t values_bytes) {
  const uint64_t total = offer.total_bytes(), values = offer.values_offset();
  if (offer.pid() < 1 || offer.fd() < 0) return InvalidArgument("shared_memory: pid and fd must be those of a process");
  if (offer.nonce().size() != SharedMemory::kNonceBytes)
    return InvalidArgument("shared_memory.nonce: ", offer.nonce().size(), " bytes; must be ",
                           SharedMemory::kNonceBytes);
  if (total > kLargest) return InvalidArgument("shared_memory.total_bytes: ", total, "; at most ", kLargest);
  if (values < SharedMemory::kHeaderBytes || values % 64 != 0 || values > total)
    return InvalidArgument("shared_memory.values_offset: ", values, "; must be a multiple of 64 in [64, total_bytes]");
  if (values_bytes > total - values)
    return InvalidArgument("shared_memory.total_bytes: ", total, "; the parameters need ", values_bytes, " at ",
                           values);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<SharedMemory>> SharedMemory::Map(const v1::SharedMemory& offer, uint64_t values_bytes) {
  RETURN_IF_ERROR(CheckSizes(offer, values_bytes));
  const std::string link = Cat("/proc/", offer.pid(), "/fd/", offer.fd());
  // Looked at before it is opened: opening something else could block or have effects.
  if (!IsOurMemfd(link))
    return FailedPrecondition("shared_memory: ", link, " is no memory of a client on this machine");
  const Fd fd(open(link.c_str(), O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (fd.get() < 0) return FailedPrecondition("shared_memory: cannot be opened: ", std::strerror(errno));
  if (!IsOurMemfd(Cat("/proc/self/fd/", fd.get())))
    return FailedPrecondition("shared_memory: ", link, " changed while it was opened");
  const int seals = fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0)
    return FailedPrecondition("shared_memory: must be sealed with F_SEAL_SHRINK");
  struct stat stat {};
  if (fstat(fd.get(), &stat) != 0 || static_cast<uint64_t>(stat.st_size) < offer.total_bytes())
    return InvalidArgument("shared_memory.total_bytes: ", offer.total_bytes(), "; the memory has ", stat.st_size);
  const size_t size = offer.total_bytes();
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) return ResourceExhausted("shared_memory: cannot be mapped: ", std::strerror(errno));
  auto memory =
      std::unique_ptr<SharedMemory>(new SharedMemory(static_cast<std::byte*>(data), size, offer.values_offset()));
  if (std::memcmp(data, offer.nonce().data(), kNonceBytes) != 0)
    return InvalidArgument("shared_memory.nonce: is not what the memory holds");
  return memory;
}

SharedMemory::~SharedMemory() { munmap(data_, size_); }

bool IsLocalPeer(const std::string& peer) {
  return peer.rfind("unix:", 0) == 0 || peer.rfind("ipv4:127.", 0) == 0 || peer.rfind("ipv6:[::1]", 0) == 0 ||
         peer.rfind("ipv6:%5B::1%5D", 0) == 0;
}

namespace {

constexpr size_t kPieces = std::tuple_size_v<PieceSums>;

/// work(piece, begin, end) for every piece of `size` bytes, by as many threads as are worth it.
void ForEachPiece(size_t size, const std::function<void(size_t, size_t, size_t)>& work) {
  constexpr size_t kAlone = size_t{8} << 20;
  const size_t threads = size < kAlone ? 1 : std::clamp<size_t>(std::thread::hardware_concurrency(), 1, kPieces);
  const size_t share = (size / kPieces + 63) / 64 * 64;
  const auto run = [&](size_t thread) {
    for (size_t piece = thread; piece < kPieces; piece += threads) {
      const size_t end = piece + 1 == kPieces ? size : std::min(size, (piece + 1) * share);
      work(piece, std::min(size, piece * share), end);
    }
  };
  std::vector<std::thread> others;
  for (size_t thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
  run(0);
  for (std::thread& other : others) other.join();
}

}  // namespace

void CopyBytes(std::byte* to, const std::byte* from, size_t size) {
  ForEachPiece(size, [=](size_t, size_t begin, size_t end) {
    if (end > begin) std::memcpy(to + begin, from + begin, end - begin);
  });
}

Arrived CopyAndLook(std::byte* to, const std::byte* from, size_t size, const engine::FlatNumbers& numbers) {
  Arrived out;
  std::array<bool, kPieces> finite;
  finite.fill(true);
  ForEachPiece(size, [&](size_t piece, size_t begin, size_t end) {
    for (size_t at = begin; at < end; at += engine::FlatNumbers::kInCache) {
      const size_t n = std::min<size_t>(engine::FlatNumbers::kInCache, end - at);
      std::memcpy(to + at, from + at, n);  // what is looked at from here on is what is applied
      out.sums[piece] = Crc32c(std::span<const std::byte>(to + at, n), out.sums[piece]);
      finite[piece] = finite[piece] && numbers.Finite(to, at, at + n);
    }
  });
  out.finite = std::find(finite.begin(), finite.end(), false) == finite.end();
  return out;
}

PieceSums SumPieces(std::span<const std::byte> data) {
  PieceSums sums{};
  ForEachPiece(data.size(), [&](size_t piece, size_t begin, size_t end) {
    sums[piece] = Crc32c(data.subspan(begin, end - begin));
  });
  return sums;
}

}  // namespace optod::services

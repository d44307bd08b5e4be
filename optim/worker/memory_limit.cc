#include "optim/worker/memory_limit.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/fs.h"
#include "base/status.h"
#include "optim/nn/inference.h"

namespace optod::worker {

namespace {

/// A line of /proc/self/status, in bytes; 0 when there is none.
long long StatusBytes(const std::string& status, const std::string& name) {
  const size_t at = status.find("\n" + name + ":");
  return at == std::string::npos ? 0 : std::atoll(status.c_str() + at + name.size() + 2) * 1024;
}

/// Bytes that this process has reserved and not touched.
long long Untouched() {
  const std::string status = PosixFs().ReadFile("/proc/self/status").value_or("");
  return std::max(0LL, StatusBytes(status, "VmData") - StatusBytes(status, "RssAnon"));
}

}  // namespace

absl::Status TakeMemoryLimit() {
  const char* text = std::getenv("OPTOD_WORKER_MEMORY");
  const long long bytes = text == nullptr ? 0 : std::atoll(text);
  if (bytes <= 0) return absl::OkStatus();
  nn::TouchBlas();
  const auto most = static_cast<rlim_t>(bytes + Untouched());
  const rlimit limit{most, most};
  if (setrlimit(RLIMIT_DATA, &limit) != 0) return Internal("limits.memory: setrlimit: ", std::strerror(errno));
  constexpr size_t kRoom = size_t{32} << 20;
  void* room = mmap(nullptr, kRoom, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED)
    return ResourceExhausted("limits.memory: ", bytes >> 20, " MiB is too little: the program itself leaves less than ",
                             kRoom >> 20, " MiB of it");
  munmap(room, kRoom);
  return absl::OkStatus();
}

}  // namespace optod::worker

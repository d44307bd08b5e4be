#include "optim/worker/memory_limit.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/status.h"
#include "optim/nn/inference.h"

namespace optod::worker {

absl::Status TakeMemoryLimit() {
  const char* text = std::getenv("OPTOD_WORKER_MEMORY");
  const long long bytes = text == nullptr ? 0 : std::atoll(text);
  if (bytes <= 0) return absl::OkStatus();
  nn::TouchBlas();
  const rlimit limit{static_cast<rlim_t>(bytes), static_cast<rlim_t>(bytes)};
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

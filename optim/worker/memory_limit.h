#pragma once
/// limits.memory of a job, which optod hands to its workers in OPTOD_WORKER_MEMORY (bytes): RLIMIT_DATA of this process.

#include "absl/status/status.h"

namespace optod::worker {

/// From here on; nothing without the variable. To be called when the number of threads is set: OpenBLAS takes its work
/// areas (128 MiB a thread) before the limit holds, for where it is refused them it asks again for ever.
/// RESOURCE_EXHAUSTED: the program itself leaves less than 32 MiB of it.
absl::Status TakeMemoryLimit();

}  // namespace optod::worker

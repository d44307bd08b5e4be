#pragma once
/// limits.memory of a job, which optod hands to its workers in OPTOD_WORKER_MEMORY (bytes), by RLIMIT_DATA. That counts
/// what is reserved; libraries reserve several 100 MiB that they never touch (OpenBLAS 128 MiB a thread), and those are
/// not held against the job.

#include "absl/status/status.h"

namespace optod::worker {

/// From here on; nothing without the variable. To be called when the number of threads is set: OpenBLAS takes its work
/// areas before the limit holds, for where it is refused them it asks again for ever.
/// RESOURCE_EXHAUSTED: the program itself leaves less than 32 MiB of it.
absl::Status TakeMemoryLimit();

}  // namespace optod::worker

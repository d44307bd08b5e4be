#pragma once
/// Resident memory of a process and all that descend from it, read from /proc. A watchdog's measure where no control
/// group bounds it.

#include <sys/types.h>

#include <cstdint>

namespace optod::trace {

/// Bytes of anonymous memory; 0 when the process is gone. Counts at most 4096 processes. Pages that a fork shares until
/// they are written count for each, so the sum is an upper bound.
int64_t ResidentBytesOfTree(pid_t root);

}  // namespace optod::trace

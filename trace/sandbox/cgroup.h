#pragma once
/// A control group that bounds the memory and the processes of one sandbox as a whole, where this process may make one:
/// in the groups it is in itself (version 2, or version 1 with the controllers `memory` and `pids`). Thread-safe.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace optod::trace {

struct CgroupLimits {
  int64_t memory_bytes = 0;
  int processes = 0;
};

/// Where groups can be made. Absent: `version` is 0 and `why` says what is missing.
struct CgroupParents {
  int version = 0;
  std::vector<std::string> folders;  ///< one (version 2), or those of memory and pids (version 1)
  std::string why;
};

/// Looks at the text of /proc/self/cgroup and at the tree at `root` ("/sys/fs/cgroup"); tries to make a group.
CgroupParents FindCgroupParents(const std::string& self_cgroup, const std::string& root);

/// One group; gone when this is (it must be empty by then).
class Cgroup {
 public:
  /// UNAVAILABLE when a folder or a limit cannot be written: the caller falls back.
  static absl::StatusOr<std::unique_ptr<Cgroup>> Make(const CgroupParents& parents, const CgroupLimits& limits);
  ~Cgroup();
  /// Files to which a process writes its number to enter.
  const std::vector<std::string>& entrances() const { return entrances_; }
  /// Whether the kernel ended something for want of memory.
  bool OutOfMemory() const;

 private:
  Cgroup() = default;
  std::vector<std::string> folders_, entrances_;
};

}  // namespace optod::trace

#pragma once
/// Runs code that a language model (or anybody) wrote: in bubblewrap, or not at all.
///
///   optod ─ [sh: enter cgroup] ─ [setpriv: user nobody] ─ bwrap ─────────────── seccomp ─ prlimit ─ the program
///           when there is one     when optod is root       new user, pid, net, ipc,        hard limits
///                                                          uts, mount namespaces
///
/// What the program finds: /usr read-only (with /bin, /lib, /lib64, /sbin into it), a /dev with null, zero, full,
/// random, urandom and a tty that is none, a scratch folder /tmp of bounded size that is gone afterwards, the files and
/// folders it was given; no /proc, no /sys, no /etc but the loader's cache and alternatives, no network, an environment
/// of PATH, HOME, LANG and what it was given. The wall clock, the output and (with or without a control group) the
/// memory of all its processes together are bounded; at a bound everything is killed. What it writes is as trustworthy
/// as its author: scores are computed outside. Thread-safe.

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/subprocess.h"
#include "trace/sandbox/cgroup.h"

namespace optod::trace {

struct SandboxLimits {
  std::chrono::milliseconds wall{10'000};
  int cpu_seconds = 10;                       ///< of each process
  int64_t memory_bytes = int64_t{512} << 20;  ///< resident, of all processes together; each process's address space is
                                              ///< bounded by it plus 256 MiB for libraries
  int64_t scratch_bytes = int64_t{64} << 20;  ///< /tmp; also the largest file
  int processes = 32;                         ///< and threads
  int open_files = 128;
  size_t output_bytes = 1u << 20;  ///< of each stream; more ends it
};

/// INVALID_ARGUMENT `sandbox.wall: ...` when a bound is not positive.
absl::Status CheckLimits(const SandboxLimits& limits);

struct SandboxCommand {
  std::vector<std::string> argv;  ///< argv[0] is a path in the sandbox or a name in /usr/bin
  std::string stdin_data;
  std::vector<std::pair<std::string, std::string>> files;  ///< {path below /tmp, content}: there at the start, writable
  std::vector<std::pair<std::string, std::string>> environment;  ///< beside PATH, HOME, LANG
  std::vector<std::string> read_only;  ///< absolute paths of this machine, seen at the same place
  std::string working_folder;  ///< of this machine, seen read-only as /work, where the program starts; "" = it starts
                               ///< in /tmp. Where optod is root its files must be readable for everybody.
  SandboxLimits limits;
  const std::atomic<bool>* cancelled = nullptr;
};

struct SandboxResult {
  SubprocessResult process;  ///< `result` holds what it wrote to descriptor 3
  bool out_of_memory = false;
  /// Why it did not end by itself ("the wall clock of 10000 ms ran out", "wrote more than 1048576 bytes", ...); "" when
  /// it did.
  std::string contained;
};

/// What this machine offers.
struct SandboxFeatures {
  bool available = false;
  std::string reason;  ///< why not
  std::string bwrap, bwrap_version;
  bool drops_user = false;  ///< optod is root: the sandbox runs as `nobody`
  CgroupParents cgroup;
  std::string Text() const;  ///< one line for `optoctl doctor`
};

class Sandbox {
 public:
  /// Looks for the parts and runs a probe in a real sandbox. `path`: where to look for programs (PATH). Without
  /// `use_cgroups` memory is bounded by the watchdog alone. Never fails: see features().available.
  static std::unique_ptr<Sandbox> Detect(const std::string& path, bool use_cgroups = true);

  const SandboxFeatures& features() const { return features_; }

  /// FAILED_PRECONDITION [features().reason] when there is no sandbox: nothing runs unprotected. INVALID_ARGUMENT for a
  /// command that cannot be. What the program does, its death included, is a result.
  absl::StatusOr<SandboxResult> Run(const SandboxCommand& command) const;

 private:
  Sandbox() = default;
  absl::StatusOr<SandboxResult> RunIn(const SandboxCommand& command) const;
  std::vector<std::string> Prefix(const Cgroup* group) const;
  SandboxFeatures features_;
  std::string path_;
};

}  // namespace optod::trace

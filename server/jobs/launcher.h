#pragma once
/// Starts worker processes and says how they end. The queue knows this interface only; the local one is fork and exec,
/// others (a cluster's scheduler) fit behind it. Thread-safe.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace optod::jobs {

struct LaunchSpec {
  std::vector<std::string> argv;
  std::vector<std::pair<std::string, std::string>> environment;  ///< all of it: nothing is inherited
  std::string log_path;                                          ///< standard output and error are appended to it
};

/// How a process ended: by itself (`code`), or by a signal.
struct ExitStatus {
  int code = -1;
  int signal = 0;
};

class Launcher {
 public:
  virtual ~Launcher() = default;
  /// A handle for Kill. `on_exit` is called once, on a thread of the launcher, unless Launch failed. NOT_FOUND: no such
  /// program.
  virtual absl::StatusOr<int64_t> Launch(const LaunchSpec& spec, std::function<void(ExitStatus)> on_exit) = 0;
  /// SIGKILL to the process and everything it started. Nothing happens when it has ended.
  virtual void Kill(int64_t handle) = 0;
};

/// Processes of this machine. Its destructor kills those that still run and waits for them.
std::unique_ptr<Launcher> MakeLocalLauncher();

}  // namespace optod::jobs

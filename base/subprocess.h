#pragma once
/// Runs one program to its end with limits. Used for evaluation commands, formatters and (through the sandbox)
/// model-written code. The child gets its own process group; at a timeout or a cancel the whole group is killed, so
/// nothing it started is left behind.

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace optod {

struct SubprocessOptions {
  std::vector<std::string> argv{};                                 ///< argv[0] is looked up in PATH
  std::string working_directory{};                                 ///< "" = the caller's
  bool inherit_environment = true;                                 ///< false: only `environment`
  std::vector<std::pair<std::string, std::string>> environment{};  ///< added to or replacing the inherited ones
  std::string stdin_data{};                                        ///< fed to the child, then closed
  std::chrono::milliseconds timeout{0};                            ///< 0 = none
  size_t max_output_bytes = 1u << 20;            ///< kept per stream; more is drained and counted, not kept
  const std::atomic<bool>* cancelled = nullptr;  ///< polled about every 50 ms; true = kill
  bool end_at_max_output = false;  ///< kill it when a stream passes max_output_bytes, instead of draining on
  bool result_pipe = false;  ///< the child's descriptor 3 is a pipe of its own, read into `SubprocessResult::result`
  std::vector<std::pair<int, int>> inherit{};  ///< {descriptor here, its number in the child}; 4 or more there
  std::function<bool(pid_t)> watchdog{};       ///< called about every 50 ms while it runs; true = kill
};

struct SubprocessResult {
  int exit_code = -1;  ///< when it exited by itself
  int signal = 0;      ///< when a signal ended it
  bool timed_out = false;
  bool cancelled = false;
  bool flooded = false;                                   ///< ended by end_at_max_output
  bool stopped = false;                                   ///< ended by the watchdog
  std::string out, err, result;                           ///< first max_output_bytes of each stream
  size_t out_bytes = 0, err_bytes = 0, result_bytes = 0;  ///< what it really wrote
  std::chrono::milliseconds wall{0};
};

/// Errors: NOT_FOUND (no such program), INVALID_ARGUMENT (empty argv, bad directory), INTERNAL (fork or pipe failed).
/// A non-zero exit, a signal or a timeout is a result, not an error.
absl::StatusOr<SubprocessResult> RunSubprocess(const SubprocessOptions& options);

}  // namespace optod

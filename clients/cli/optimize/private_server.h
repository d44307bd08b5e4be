#pragma once
/// A server of one's own: `optod` started on a Unix socket and a data directory that nobody else uses, stopped at
/// destruction. For one thread.

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace optod::cli {

struct PrivateServerOptions {
  std::string data_dir{};              ///< kept afterwards; "" = a temporary one that is removed
  std::vector<std::string> arguments;  ///< further flags of optod
};

class PrivateServer {
 public:
  /// Finds `optod` beside this program, else in PATH, and waits until it says that it serves. NOT_FOUND: no such
  /// program. UNAVAILABLE: it ended or said nothing within 20 s; the message holds the end of its log.
  static absl::StatusOr<std::unique_ptr<PrivateServer>> Start(const PrivateServerOptions& options);
  /// SIGTERM, up to 15 s for a drain, then SIGKILL.
  ~PrivateServer();

  /// unix:PATH
  const std::string& address() const { return address_; }

 private:
  PrivateServer() = default;
  absl::Status Launch(const PrivateServerOptions& options);
  absl::Status WaitUntilReady(int stdout_fd);
  std::string LogTail() const;

  std::string folder_, address_;  // folder_: socket, log and temporary data
  pid_t pid_ = -1;
  int stdout_fd_ = -1;
};

}  // namespace optod::cli

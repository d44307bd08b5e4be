#pragma once
/// The server as an object: everything that main runs, in the order in which it must be made and unmade. Tests and
/// benches start one in process.
///
///   directory lock ─ store ─ blobs ─ pools ─ authenticator ─ engine ─ services ─ gRPC ─ HTTP        (start: left to
///   right; end: right to left)
///
/// Start and Shutdown are for one thread; the rest is thread-safe.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/config/config.h"

namespace optod::server {

/// What comes from outside the configuration.
struct Environment {
  /// Reads an environment variable (OPTOD_LLM_*, PATH); the default has none. main passes getenv.
  std::function<std::optional<std::string>(const std::string&)> get_env = [](const std::string&) {
    return std::nullopt;
  };
  /// Folder of this program, where optod-worker is looked for; "" = nowhere.
  std::string program_dir;
  /// Called when a client asks to drain (AdminService.Drain), on any thread; must return at once. grace_ms < 0 = as
  /// configured.
  std::function<void(int64_t grace_ms)> on_drain_request = [](int64_t) {};
};

class App {
 public:
  /// Serves when it returns. INVALID_ARGUMENT: the configuration; FAILED_PRECONDITION: another server has the data
  /// directory (the message names it); UNAVAILABLE: an address is taken; others from the file system and the store.
  /// `data_dir` ":memory:" keeps nothing.
  static absl::StatusOr<std::unique_ptr<App>> Start(const config::Config& config, Environment environment = {});
  /// Shutdown with the configured grace, unless that was done.
  ~App();
  App(const App&) = delete;
  App& operator=(const App&) = delete;

  /// As bound ("127.0.0.1:34567", "unix:PATH"), in the order of the configuration.
  const std::vector<std::string>& grpc_addresses() const;
  /// "127.0.0.1:34568", or "off".
  const std::string& http_address() const;
  /// "optod ready grpc=... http=...", without newline.
  std::string ReadyLine() const;

  /// Health says NOT_SERVING, new calls get UNAVAILABLE, running ones may end within the grace, what is in memory
  /// becomes durable, everything closes. grace_ms < 0 = as configured. Idempotent.
  void Shutdown(int64_t grace_ms = -1);

 private:
  struct Impl;
  explicit App(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace optod::server

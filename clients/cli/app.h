#pragma once
/// What all commands of optoctl share: global flags, the client, and how results and errors leave. For one thread.

#include <google/protobuf/message.h>

#include <functional>
#include <memory>
#include <string>

#include "clients/cli/exit_codes.h"
#include "clients/cpp/client.h"

namespace CLI {
class App;
}

namespace optod::cli {

class App {
 public:
  bool json = false;
  std::string address, token, tls_ca;  ///< flags; "" = environment, then defaults
  int deadline_s = 30;

  /// From flags and environment.
  client::ClientOptions ClientOptions() const;
  /// True when the caller said where the server is.
  bool AddressGiven() const;
  /// The client, made on first use.
  absl::StatusOr<client::Client*> Connect();

  /// Prints the error on stderr and returns its exit code.
  int Fail(const absl::Status& status) const;
  /// Prints "optoctl: text" on stderr; returns kExitUsage.
  int Usage(const std::string& text) const;
  /// With --json the message, else `text`. Returns kExitDone.
  int Print(const google::protobuf::Message& message, const std::string& text) const;

  /// What the chosen command does; its result is the exit code.
  std::function<int()> command;

 private:
  std::unique_ptr<client::Client> client_;
};

/// RUN_OR_FAIL(auto x, app.client->Call(...)): assigns, or returns app.Fail(error) from a function that returns an exit
/// code.
#define RUN_OR_FAIL(lhs, expr) RUN_OR_FAIL_IMPL_(OPTOD_CONCAT(run_or_, __LINE__), lhs, expr)
#define RUN_OR_FAIL_IMPL_(tmp, lhs, expr)       \
  auto tmp = (expr);                            \
  if (!tmp.ok()) return app.Fail(tmp.status()); \
  lhs = std::move(tmp).value()

// Each adds its commands to `root`; `app` outlives it.
void AddOptimizerCommands(CLI::App& root, App& app);
void AddSessionCommands(CLI::App& root, App& app);
void AddJobCommands(CLI::App& root, App& app);
void AddSearchCommands(CLI::App& root, App& app);
void AddArtifactCommands(CLI::App& root, App& app);
void AddOptimizeCommand(CLI::App& root, App& app);
void AddTraceCommands(CLI::App& root, App& app);
void AddAdminCommands(CLI::App& root, App& app);
void AddReproduceCommand(CLI::App& root, App& app);

/// Folder of this program's own executable.
std::string ProgramFolder();
/// Path of a program in PATH, "" when there is none.
std::string FindInPath(const std::string& name);

/// Parses and runs. Returns the exit code.
int Main(int argc, const char* const* argv);

}  // namespace optod::cli

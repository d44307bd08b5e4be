#include "clients/cli/app.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "base/status.h"
#include "clients/cli/order_commands.h"
#include "clients/cli/output.h"

namespace optod::cli {

client::ClientOptions App::ClientOptions() const {
  client::ClientOptions options = client::OptionsFromEnv();
  if (!address.empty()) options.address = address;
  if (!token.empty()) options.token = token;
  if (!tls_ca.empty()) options.tls_ca_file = tls_ca;
  options.deadline = std::chrono::seconds(deadline_s);
  return options;
}

bool App::AddressGiven() const {
  const char* from_environment = std::getenv("OPTOD_ADDRESS");
  return !address.empty() || (from_environment && *from_environment);
}

absl::StatusOr<client::Client*> App::Connect() {
  if (!client_) {
    ASSIGN_OR_RETURN(client_, client::Client::Connect(ClientOptions()));
  }
  return client_.get();
}

int App::Fail(const absl::Status& status) const {
  const std::string text(status.message());
  if (ExitCodeOf(status) == kExitUnreachable)
    std::fprintf(stderr, "optoctl: no answer from optod at %s: %s\n", ClientOptions().address.c_str(), text.c_str());
  else
    std::fprintf(stderr, "optoctl: %s: %s\n", absl::StatusCodeToString(status.code()).c_str(), text.c_str());
  return ExitCodeOf(status);
}

int App::Usage(const std::string& text) const {
  std::fprintf(stderr, "optoctl: %s\n", text.c_str());
  return kExitUsage;
}

int App::Print(const google::protobuf::Message& message, const std::string& text) const {
  if (json)
    std::printf("%s\n", ToJson(message).c_str());
  else
    std::fputs(text.c_str(), stdout);
  return kExitDone;
}

std::string ProgramFolder() {
  std::error_code error;
  return std::filesystem::read_symlink("/proc/self/exe", error).parent_path().string();
}

std::string FindInPath(const std::string& name) {
  const char* path = std::getenv("PATH");
  std::istringstream folders(path ? path : "");
  for (std::string folder; std::getline(folders, folder, ':');) {
    const std::string candidate = folder + "/" + name;
    if (access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return "";
}

int Main(int argc, const char* const* argv) {
  CLI::App root("optoctl: the command line of the optimization server optod", "optoctl");
  App app;
  root.require_subcommand(1);
  root.fallthrough();
  root.add_flag("--json", app.json, "one JSON document on stdout (one a line when streaming), nothing else");
  root.add_option("--address", app.address,
                  "server, HOST:PORT or unix:PATH (default: OPTOD_ADDRESS, then 127.0.0.1:7070)");
  root.add_option("--token", app.token, "access token (default: OPTOD_TOKEN)");
  root.add_option(
      "--tls-ca", app.tls_ca,
      "PEM file of the authority that signed the server's certificate (default: OPTOD_TLS_CA; none = no TLS)");
  root.add_option("--deadline", app.deadline_s, "seconds a call may take")
      ->check(CLI::Range(1, 86'400))
      ->capture_default_str();
  root.footer("Exit codes: 0 done, 1 gate not met, 2 usage, 3 server unreachable, 4 refused, 5 job failed.");
  AddOptimizerCommands(root, app);
  AddSessionCommands(root, app);
  AddJobCommands(root, app);
  AddSearchCommands(root, app);
  AddOrderCommands(root, app);
  AddArtifactCommands(root, app);
  AddOptimizeCommand(root, app);
  AddTraceCommands(root, app);
  AddReproduceCommand(root, app);
  AddAdminCommands(root, app);
  try {
    root.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    const bool help = e.get_exit_code() == 0;
    root.exit(e, std::cout, std::cerr);
    return help ? kExitDone : kExitUsage;
  }
  return app.command ? app.command() : kExitUsage;
}

}  // namespace optod::cli

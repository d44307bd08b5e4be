#pragma once
/// What the operator may choose. Every key is one row of a table (config.cc) and is both a flag (`--drain-grace 5s`)
/// and a key of the YAML file
/// (`drain-grace: 5s`); both go through the same check. Flags win over the file, the file over the defaults. Plain
/// data; no threads.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace optod::config {

struct Config {
  std::string data_dir = "./optod-data";
  std::vector<std::string> listen = {
      "127.0.0.1:7070"};                ///< IP:PORT, localhost:PORT or unix:PATH; port 0 picks a free one
  std::string http = "127.0.0.1:7071";  ///< IP:PORT, or "off"
  std::string config_file;              ///< "" = none
  bool insecure = false;                ///< allow plaintext beyond loopback
  std::string auth = "off";             ///< "off" | "token"
  std::string log_level = "info";       ///< "debug" | "info" | "warn" | "error"
  std::string log_format = "text";      ///< "text" (key=value) | "json"
  int64_t drain_grace_ms = 10'000;      ///< how long running calls may go on after SIGTERM
  int64_t max_sessions_loaded = 10'000;
  int64_t memory_budget_bytes = int64_t{4} << 30;  ///< of sessions in memory
  int64_t max_artifact_bytes = int64_t{256} << 20;
  std::string synchronous = "full";    ///< "full" (survives power loss) | "normal" (survives a crash of the process)
  std::string llm_endpoints;           ///< YAML file of named endpoints, prices, daily budgets; "" = none
  std::string llm_secrets;             ///< file of `endpoint: key` lines, mode 0600; "" = none
  std::string executor = "client";     ///< "disabled" | "sandbox" | "client"
  std::string cassette;                ///< file of recorded LLM traffic; "" = none
  std::string cassette_mode = "auto";  ///< "auto" | "record" | "replay"
  std::string tls_cert, tls_key;       ///< PEM files; both or neither
  std::string worker;                  ///< program of training jobs; "" = optod-worker beside this one, "none" = no jobs
  int64_t max_workers = 1;             ///< training jobs at once
  int64_t max_job_workers = 8;         ///< worker processes that one job may have
  int64_t worker_lease_ms = 30'000;    ///< a training worker that is silent for so long is replaced
  std::vector<std::string> job_files;  ///< folders that jobs may read from; empty = all that the server may read
};

/// An address taken apart.
struct Address {
  bool is_unix = false;
  std::string path;  ///< of a Unix socket
  std::string host;  ///< numeric IPv4 or IPv6 without brackets ("localhost" becomes 127.0.0.1)
  int port = 0;
  bool loopback = false;
  /// "127.0.0.1:7070", "[::1]:7070" or "unix:PATH".
  std::string Text() const;
};

/// "IP:PORT", "[IPv6]:PORT", "localhost:PORT", "unix:PATH". INVALID_ARGUMENT says what is wrong (no field name in
/// front).
absl::StatusOr<Address> ParseAddress(const std::string& text);

/// What a command line asks for: a server, or a text to print (help, version) and exit 0.
struct CommandLine {
  Config config;
  bool only_print = false;
  std::string text;
};

/// Reads flags, then the file that --config names (or `config_file_text` stands for in tests of the YAML half), then
/// checks the whole. INVALID_ARGUMENT with the whole line to show: `--listen: ...` for a flag, `FILE:LINE: key: ...`
/// for the file. `argv` is without the program.
absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<std::string>& argv);

/// Sets the keys of a YAML mapping on top of `config`, leaving those named in `already_set` alone. Errors begin with
/// `file_name:LINE: `.
absl::Status ApplyYaml(const std::string& text, const std::string& file_name,
                       const std::vector<std::string>& already_set, Config* config);

/// Rules between keys: token authentication and TLS (or --insecure) beyond loopback, certificate with key.
absl::Status Validate(const Config& config);

/// The version of this build, as `optod --version` prints it: "0.1.0".
std::string Version();

}  // namespace optod::config

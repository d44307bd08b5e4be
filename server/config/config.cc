#include "server/config/config.h"

#include <yaml-cpp/yaml.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>
#include <map>
#include <sstream>
#include <variant>

#include "base/status.h"
#include "server/config/value.h"

namespace optod::config {
namespace {

enum class Kind { kText, kAddress, kAddresses, kFolders, kFlag, kCount, kBytes, kDuration, kChoice };

struct Key {
  std::string_view name;
  Kind kind;
  std::variant<std::string Config::*, std::vector<std::string> Config::*, bool Config::*, int64_t Config::*> field;
  const char* shape;  ///< shown in the help; for kChoice the choices, separated by "|"
  const char* help;
};

// The only list of keys: flags, YAML keys, checks and the help come from it.
const Key kKeys[] = {
    {"data-dir", Kind::kText, &Config::data_dir, "DIR", "where everything is kept; made when absent [./optod-data]"},
    {"listen", Kind::kAddresses, &Config::listen, "HOST:PORT|unix:PATH",
     "gRPC address, repeatable; port 0 picks a free one [127.0.0.1:7070]"},
    {"http", Kind::kAddress, &Config::http, "HOST:PORT|off",
     "status page, /metrics, /healthz, /readyz [127.0.0.1:7071]"},
    {"config", Kind::kText, &Config::config_file, "FILE", "YAML file with these keys; flags win over it"},
    {"insecure", Kind::kFlag, &Config::insecure, "", "allow plaintext on addresses other machines can reach"},
    {"auth", Kind::kChoice, &Config::auth, "off|token",
     "who may call; off is for loopback and Unix sockets only [off]"},
    {"tls-cert", Kind::kText, &Config::tls_cert, "FILE", "PEM certificate chain for the TCP addresses"},
    {"tls-key", Kind::kText, &Config::tls_key, "FILE", "PEM private key of the certificate"},
    {"log-level", Kind::kChoice, &Config::log_level, "debug|info|warn|error",
     "least level that is logged, on stderr [info]"},
    {"log-format", Kind::kChoice, &Config::log_format, "text|json", "one event a line, as key=value or as JSON [text]"},
    {"drain-grace", Kind::kDuration, &Config::drain_grace_ms, "TIME",
     "how long running calls may go on after SIGTERM [10s]"},
    {"max-sessions-loaded", Kind::kCount, &Config::max_sessions_loaded, "N",
     "sessions kept in memory; others stay on disk [10000]"},
    {"memory-budget", Kind::kBytes, &Config::memory_budget_bytes, "SIZE",
     "memory of the sessions kept in memory [4GiB]"},
    {"max-artifact-size", Kind::kBytes, &Config::max_artifact_bytes, "SIZE", "largest artifact that is taken [256MiB]"},
    {"synchronous", Kind::kChoice, &Config::synchronous, "full|normal",
     "commits survive power loss, or only a crash of the process [full]"},
    {"llm-endpoints", Kind::kText, &Config::llm_endpoints, "FILE",
     "YAML file of LLM endpoints by name, with limits, prices, fallbacks and daily budgets"},
    {"llm-secrets", Kind::kText, &Config::llm_secrets, "FILE",
     "keys of LLM endpoints, lines of `endpoint: key`; mode 0600"},
    {"executor", Kind::kChoice, &Config::executor, "disabled|sandbox|client",
     "where declared workflows run: here in a sandbox, at the client, or not at all [client]"},
    {"worker", Kind::kText, &Config::worker, "FILE",
     "program that runs training jobs; none = no jobs [optod-worker beside this program]"},
    {"max-workers", Kind::kCount, &Config::max_workers, "N", "training jobs at once [1]"},
    {"max-job-workers", Kind::kCount, &Config::max_job_workers, "N", "worker processes that one job may have [8]"},
    {"worker-lease", Kind::kDuration, &Config::worker_lease_ms, "TIME",
     "a training job's worker that says nothing for so long is replaced [30s]"},
    {"job-files", Kind::kFolders, &Config::job_files, "DIR",
     "folder that training jobs may name files in, repeatable [all that this server may read]"},
    {"cassette", Kind::kText, &Config::cassette, "FILE", "recorded LLM traffic"},
    {"cassette-mode", Kind::kChoice, &Config::cassette_mode, "auto|record|replay",
     "auto replays what is there and records the rest [auto]"},
};

bool IsList(const Key& key) { return key.kind == Kind::kAddresses || key.kind == Kind::kFolders; }

const Key* FindKey(std::string_view name) {
  auto found = std::find_if(std::begin(kKeys), std::end(kKeys), [&](const Key& key) { return key.name == name; });
  return found == std::end(kKeys) ? nullptr : found;
}

/// `prefix` is "--" for flags.
std::string UnknownName(const std::string& kind, const std::string& prefix, const std::string& name) {
  std::vector<std::string_view> names;
  for (const Key& key : kKeys) names.push_back(key.name);
  std::string nearest = Nearest(name, names);
  return Cat("unknown ", kind, " ", prefix, name, nearest.empty() ? std::string("; see --help") : "; did you mean " + prefix + nearest + "?");
}

absl::Status CheckChoice(const Key& key, const std::string& value) {
  std::vector<std::string> names;
  std::stringstream all(key.shape);
  for (std::string name; std::getline(all, name, '|');) names.push_back(name);
  if (std::find(names.begin(), names.end(), value) != names.end()) return absl::OkStatus();
  std::vector<std::string_view> views(names.begin(), names.end());
  std::string nearest = Nearest(value, views);
  return InvalidArgument('"', value, "\" is not one of ", key.shape,
                         nearest.empty() ? "" : "; did you mean " + nearest + "?");
}

template <typename T>
absl::Status Store(absl::StatusOr<T> parsed, T* field) {
  if (!parsed.ok()) return parsed.status();
  *field = *parsed;
  return absl::OkStatus();
}

/// The one place where a text becomes a setting. Messages have no key in front: the caller knows where the text came
/// from.
absl::Status Set(const Key& key, const std::vector<std::string>& values, Config* config) {
  if (IsList(key)) {
    for (const std::string& value : values) {
      if (key.kind == Kind::kAddresses) RETURN_IF_ERROR(ParseAddress(value).status());
      if (key.kind == Kind::kFolders && !value.starts_with("/")) return InvalidArgument("\"", value, "\" is not an absolute path");
    }
    config->*std::get<std::vector<std::string> Config::*>(key.field) = values;
    return absl::OkStatus();
  }
  if (values.size() != 1) return InvalidArgument("takes one value, ", values.size(), " are given");
  const std::string& value = values[0];
  switch (key.kind) {
    case Kind::kFlag:
      return Store(ParseBool(value), &(config->*std::get<bool Config::*>(key.field)));
    case Kind::kCount:
      return Store(ParseCount(value), &(config->*std::get<int64_t Config::*>(key.field)));
    case Kind::kBytes:
      return Store(ParseBytes(value), &(config->*std::get<int64_t Config::*>(key.field)));
    case Kind::kDuration:
      return Store(ParseDurationMs(value), &(config->*std::get<int64_t Config::*>(key.field)));
    case Kind::kChoice:
      RETURN_IF_ERROR(CheckChoice(key, value));
      break;
    case Kind::kAddress:
      if (value != "off") {
        ASSIGN_OR_RETURN(Address address, ParseAddress(value));
        if (address.is_unix) return InvalidArgument("must be HOST:PORT or off");
      }
      break;
    default:
      if (value.empty()) return InvalidArgument("is empty");
  }
  config->*std::get<std::string Config::*>(key.field) = value;
  return absl::OkStatus();
}

/// The texts of a YAML value: one for a scalar, several for a list of scalars.
absl::StatusOr<std::vector<std::string>> Texts(const Key& key, const YAML::Node& value) {
  if (value.IsScalar()) return std::vector<std::string>{value.Scalar()};
  if (value.IsSequence() && IsList(key)) {
    std::vector<std::string> texts;
    for (const YAML::Node& item : value) {
      if (!item.IsScalar()) return InvalidArgument("must be a list of texts");
      texts.push_back(item.Scalar());
    }
    if (texts.empty()) return InvalidArgument("is an empty list");
    return texts;
  }
  const char* got = value.IsNull() ? "nothing" : value.IsSequence() ? "a list" : "a mapping";
  return InvalidArgument("must be ", IsList(key) ? "a text or a list of texts" : "a single value",
                         ", not ", got);
}

absl::Status ApplyYamlRoot(const YAML::Node& root, const std::string& file, const std::vector<std::string>& already_set,
                           Config* config) {
  if (root.IsNull() || !root.IsDefined()) return absl::OkStatus();
  auto at = [&](const YAML::Node& node) { return Cat(file, ":", node.Mark().line + 1, ": "); };
  if (!root.IsMap()) return InvalidArgument(at(root), "must be a mapping of keys to values, like `log-level: debug`");
  std::map<std::string, int> first_line;
  for (const auto& entry : root) {
    if (!entry.first.IsScalar()) return InvalidArgument(at(entry.first), "a key must be a plain word");
    const std::string& name = entry.first.Scalar();
    const Key* key = FindKey(name);
    if (key == nullptr) return InvalidArgument(at(entry.first), UnknownName("key", "", name));
    if (name == "config") return InvalidArgument(at(entry.first), "config: a file cannot name another one");
    auto [seen, fresh] = first_line.emplace(name, entry.first.Mark().line + 1);
    if (!fresh) return InvalidArgument(at(entry.first), name, ": given twice (first in line ", seen->second, ")");
    Config checked = *config;
    auto texts = Texts(*key, entry.second);
    absl::Status status = texts.ok() ? Set(*key, *texts, &checked) : texts.status();
    if (!status.ok()) return InvalidArgument(at(entry.second), name, ": ", status.message());
    if (std::find(already_set.begin(), already_set.end(), name) == already_set.end()) *config = checked;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  if (!in || !(text << in.rdbuf() || in.peek() == EOF)) {
    return InvalidArgument(path, ": cannot be read");
  }
  return std::move(text).str();
}

}  // namespace

absl::Status ApplyYaml(const std::string& text, const std::string& file_name,
                       const std::vector<std::string>& already_set, Config* config) {
  try {
    Config changed = *config;
    RETURN_IF_ERROR(ApplyYamlRoot(YAML::Load(text), file_name, already_set, &changed));
    *config = changed;
    return absl::OkStatus();
  } catch (const YAML::Exception& error) {
    return InvalidArgument(file_name, ":", std::max(error.mark.line, 0) + 1, ": not YAML: ", error.msg);
  }
}

absl::Status Validate(const Config& config) {
  if (config.tls_cert.empty() != config.tls_key.empty()) {
    return InvalidArgument(config.tls_cert.empty() ? "tls-cert" : "tls-key",
                           ": missing; tls-cert and tls-key go together");
  }
  if (config.listen.empty()) return InvalidArgument("listen: no address");
  for (const std::string& text : config.listen) {
    ASSIGN_OR_RETURN(Address address, ParseAddress(text));
    if (address.loopback) continue;
    if (config.tls_cert.empty() && !config.insecure) {
      return InvalidArgument("listen: ", text,
                             " can be reached by other machines and has no TLS; give tls-cert and tls-key, or allow "
                             "plaintext with --insecure");
    }
    if (config.auth != "token") {
      return InvalidArgument("listen: ", text, " can be reached by other machines; needs --auth token");
    }
  }
  if (config.http != "off") {
    ASSIGN_OR_RETURN(Address address, ParseAddress(config.http));
    if (!address.loopback && !config.insecure) {
      return InvalidArgument("http: ", config.http,
                             " can be reached by other machines and is plaintext; allow it with --insecure");
    }
  }
  if (config.cassette_mode != "auto" && config.cassette.empty()) {
    return InvalidArgument("cassette-mode: ", config.cassette_mode, " needs cassette");
  }
  return absl::OkStatus();
}

absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<std::string>& argv) {
  CommandLine line;
  CLI::App app("optod: the optimization server. Serves gRPC; stops cleanly on SIGTERM.", "optod");
  app.set_version_flag("--version", "optod " + Version());
  app.allow_extras();
  std::map<std::string_view, std::vector<std::string>> values;
  for (const Key& key : kKeys) {
    std::vector<std::string>& into = values[key.name];
    std::string flag = "--" + std::string(key.name);
    if (key.kind == Kind::kFlag) {
      app.add_flag(flag, into, key.help);
    } else {
      app.add_option(flag, into, key.help)->type_name(key.shape)->expected(1)->allow_extra_args(false)->take_all();
    }
  }
  try {
    app.parse(std::vector<std::string>(argv.rbegin(), argv.rend()));
  } catch (const CLI::CallForHelp&) {
    return CommandLine{{}, true, app.help()};
  } catch (const CLI::CallForVersion&) {
    return CommandLine{{}, true, "optod " + Version() + "\n"};
  } catch (const CLI::ParseError& error) {
    return InvalidArgument(error.what());
  }
  for (const std::string& extra : app.remaining()) {
    if (!extra.starts_with("--")) return InvalidArgument(extra, ": unexpected argument; see --help");
    std::string name = extra.substr(2, extra.find('=') - 2);
    return InvalidArgument(UnknownName("flag", "--", name));
  }
  std::vector<std::string> given;
  for (const Key& key : kKeys) {
    const std::vector<std::string>& texts = values[key.name];
    if (texts.empty()) continue;
    absl::Status status = Set(key, texts, &line.config);
    if (!status.ok()) return InvalidArgument("--", key.name, ": ", status.message());
    given.emplace_back(key.name);
  }
  if (!line.config.config_file.empty()) {
    ASSIGN_OR_RETURN(std::string text, ReadText(line.config.config_file));
    RETURN_IF_ERROR(ApplyYaml(text, line.config.config_file, given, &line.config));
  }
  RETURN_IF_ERROR(Validate(line.config));
  return line;
}

std::string Version() { return OPTOD_VERSION; }

}  // namespace optod::config

#include "trace/llm/endpoint.h"

#include <algorithm>
#include <cctype>
#include <string_view>

#include "base/status.h"
#include "trace/llm/json_parse.h"

namespace optod::trace {
namespace {

constexpr int64_t kMaxSecretsBytes = 1 << 20;

bool IsName(const std::string& name) {
  if (name.empty() || name.size() > 63 || !(name[0] >= 'a' && name[0] <= 'z')) return false;
  return name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789-") == std::string::npos;
}

bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

/// A part of `text`. Views, not copies: what is read here may be a key.
std::string_view Trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

/// A YAML scalar on one line: quoted, or plain up to " #". A part of `text`.
absl::StatusOr<std::string_view> Scalar(std::string_view text) {
  text = Trim(text);
  if (text.empty()) return text;
  const char quote = text[0];
  if (quote != '"' && quote != '\'') return Trim(text.substr(0, text.find(" #")));
  const size_t end = text.find(quote, 1);
  const std::string_view rest = end == std::string_view::npos ? "" : Trim(text.substr(end + 1));
  if (end == std::string_view::npos || (!rest.empty() && rest[0] != '#')) return InvalidArgument("quotes do not match");
  return text.substr(1, end - 1);
}

absl::Status AddKey(std::map<std::string, Secret>* keys, const std::string& name, std::string_view key) {
  if (!IsName(name)) return InvalidArgument("the endpoint's name is not of the form [a-z][a-z0-9-]{0,62}");
  const auto control = [](unsigned char c) { return c < 0x20 || c == 0x7f; };
  if (key.empty() || std::any_of(key.begin(), key.end(), control))
    return InvalidArgument("the key is empty or holds control characters");
  if (!keys->emplace(name, Secret(key)).second) return InvalidArgument("the endpoint is named twice");
  return absl::OkStatus();
}

absl::Status ParseSecretLine(std::map<std::string, Secret>* keys, std::string_view text) {
  const size_t colon = text.find(':');
  if (colon == std::string_view::npos) return InvalidArgument("is not of the form `endpoint: key`");
  ASSIGN_OR_RETURN(const std::string_view name, Scalar(text.substr(0, colon)));
  ASSIGN_OR_RETURN(const std::string_view key, Scalar(text.substr(colon + 1)));
  return AddKey(keys, std::string(name), key);
}

}  // namespace

absl::StatusOr<ParsedUrl> ParseEndpointUrl(const std::string& field, const std::string& url) {
  ParsedUrl parsed;
  std::string text(Trim(url));
  std::string lower = text.substr(0, 8);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const size_t scheme = lower.compare(0, 7, "http://") == 0 ? 7 : lower == "https://" ? 8 : 0;
  if (scheme == 0) return InvalidArgument(field, ": must begin with http:// or https://, as http://127.0.0.1:8080/v1");
  const std::string authority = text.substr(scheme, text.find_first_of("/?#", scheme) - scheme);
  if (authority.find('@') != std::string::npos) {
    return InvalidArgument(
        field, ": holds a user name or password before '@'; keys belong into OPTOD_LLM_KEY or the secrets file");
  }
  if (authority.empty() || authority[0] == ':') return InvalidArgument(field, ": names no host");
  if (text.find_first_of("?#") != std::string::npos)
    return InvalidArgument(field, ": holds a query or a fragment; must end in /v1");
  const auto unprintable = [](unsigned char c) { return c <= 0x20 || c == 0x7f; };
  if (std::any_of(text.begin(), text.end(), unprintable))
    return InvalidArgument(field, ": holds spaces or control characters");
  while (EndsWith(text, "/")) text.pop_back();
  if (EndsWith(text, "/chat/completions")) {
    text.resize(text.size() - std::string("/chat/completions").size());
    parsed.hints.push_back(field + ": /chat/completions at the end is not needed and was taken off");
  }
  if (!EndsWith(text, "/v1")) parsed.hints.push_back(field + ": does not end in /v1; most servers expect that it does");
  parsed.base_url = text;
  return parsed;
}

absl::Status CheckEndpoint(const EndpointConfig& config) {
  if (!IsName(config.name)) return InvalidArgument("llm endpoint: name: must be of the form [a-z][a-z0-9-]{0,62}");
  const std::string who = "llm endpoint " + config.name + ": ";
  RETURN_IF_ERROR(ParseEndpointUrl(who + "base_url", config.base_url).status());
  if (config.model.empty()) return InvalidArgument(who, "model: is empty");
  const auto positive = [&](const char* field, int64_t value) {
    return value >= 1 ? absl::OkStatus() : InvalidArgument(who, field, ": ", value, " is too small; must be >= 1");
  };
  RETURN_IF_ERROR(positive("max_concurrency", config.max_concurrency));
  RETURN_IF_ERROR(positive("max_attempts", config.max_attempts));
  RETURN_IF_ERROR(positive("context_tokens", config.context_tokens));
  RETURN_IF_ERROR(positive("timeout_ms", config.timeout.count()));
  const auto not_negative = [&](const char* field, double value) {
    return value >= 0 ? absl::OkStatus() : InvalidArgument(who, field, ": ", value, " is negative; must be >= 0");
  };
  for (const std::string& name : config.fallback) {
    if (!IsName(name) || name == config.name) return InvalidArgument(who, "fallback: must name other endpoints");
  }
  RETURN_IF_ERROR(not_negative("requests_per_minute", config.requests_per_minute));
  RETURN_IF_ERROR(not_negative("tokens_per_minute", static_cast<double>(config.tokens_per_minute)));
  RETURN_IF_ERROR(not_negative("usd_per_million_prompt_tokens", config.usd_per_million_prompt_tokens));
  return not_negative("usd_per_million_completion_tokens", config.usd_per_million_completion_tokens);
}

absl::StatusOr<EndpointsFromEnv> EndpointsFromEnvironment(const GetEnv& get_env) {
  const auto value = [&](const char* name) {
    std::string given = get_env(name).value_or("");
    std::string trimmed(Trim(given));
    Wipe(given);
    return trimmed;
  };
  EndpointsFromEnv found;
  const std::string url = value("OPTOD_LLM_URL"), model = value("OPTOD_LLM_MODEL");
  std::string key = value("OPTOD_LLM_KEY");
  if (url.empty()) {
    if (!key.empty())
      return InvalidArgument("OPTOD_LLM_KEY: is set without OPTOD_LLM_URL, which says where to send it");
    if (!model.empty())
      return InvalidArgument("OPTOD_LLM_MODEL: is set without OPTOD_LLM_URL, which says where the model is");
    return found;
  }
  ASSIGN_OR_RETURN(ParsedUrl parsed, ParseEndpointUrl("OPTOD_LLM_URL", url));
  EndpointConfig config;
  config.base_url = parsed.base_url;
  if (!model.empty()) config.model = model;
  if (std::any_of(key.begin(), key.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; })) {
    return InvalidArgument("OPTOD_LLM_KEY: holds control characters");
  }
  config.key = Secret(key);
  Wipe(key);
  found.default_endpoint = std::move(config);
  found.hints = std::move(parsed.hints);
  return found;
}

absl::StatusOr<std::map<std::string, Secret>> ParseSecrets(const std::string& text) {
  std::map<std::string, Secret> keys;
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string::npos) return keys;
  if (text[first] == '{') {
    const Json json = ReadJson(text);
    if (json.is_discarded()) return InvalidArgument("secrets file: is not valid JSON");
    for (const auto& [name, value] : json.items()) {
      absl::Status added = value.is_string() ? AddKey(&keys, name, value.get_ref<const std::string&>())
                                             : InvalidArgument("the key is not a string");
      if (!added.ok()) return InvalidArgument("secrets file: entry ", keys.size() + 1, ": ", added.message());
    }
    return keys;
  }
  int number = 1;
  for (size_t at = 0; at < text.size(); ++number) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = Trim(std::string_view(text).substr(at, end - at));
    at = end + 1;
    if (line.empty() || line[0] == '#' || line == "---") continue;
    const absl::Status added = ParseSecretLine(&keys, line);
    if (!added.ok()) return InvalidArgument("secrets file: line ", number, ": ", added.message());
  }
  return keys;
}

absl::StatusOr<std::map<std::string, Secret>> LoadSecretsFile(Fs& fs, const std::string& path) {
  ASSIGN_OR_RETURN(const int mode, fs.FileMode(path));
  if ((mode & 077) != 0) {
    char octal[16];
    std::snprintf(octal, sizeof octal, "%04o", static_cast<unsigned>(mode));
    return FailedPrecondition("secrets file: mode ", octal,
                              " lets others read it; must be 0600 or stricter (chmod 600)");
  }
  ASSIGN_OR_RETURN(const int64_t size, fs.FileSize(path));
  if (size > kMaxSecretsBytes)
    return InvalidArgument("secrets file: ", size, " bytes is too large; at most ", kMaxSecretsBytes);
  ASSIGN_OR_RETURN(std::string text, fs.ReadFile(path));
  auto keys = ParseSecrets(text);
  Wipe(text);
  return keys;
}

}  // namespace optod::trace

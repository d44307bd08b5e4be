#pragma once
/// Named language-model endpoints and where they are configured: the environment, and a secrets file. Pure functions;
/// thread-safe.

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/fs.h"
#include "base/secret.h"

namespace optod::trace {

/// Whether an endpoint constrains replies to a JSON schema. kAuto: asked with one; where it answers 400 or 422 to that
/// and takes the same request without, it is not asked again.
enum class SchemaSupport { kAuto, kYes, kNo };

struct EndpointConfig {
  std::string name = "default";                ///< [a-z][a-z0-9-]{0,62}
  std::string base_url;                        ///< up to and including /v1; holds no credentials and no query
  std::string model = "default";               ///< sent as it is; local servers with one model take any name
  Secret key;                                  ///< sent as "Authorization: Bearer"; empty = no such header
  int max_concurrency = 8;                     ///< requests on the wire at once, >= 1; more wait in order
  int requests_per_minute = 0;                 ///< 0 = no limit
  int64_t tokens_per_minute = 0;               ///< prompt and reply; 0 = no limit
  std::chrono::milliseconds timeout{120'000};  ///< of one attempt
  int max_attempts = 5;                        ///< >= 1
  int context_tokens = 8192;                   ///< prompt and reply together; for whoever builds prompts
  double usd_per_million_prompt_tokens = 0;
  double usd_per_million_completion_tokens = 0;
  SchemaSupport json_schema = SchemaSupport::kAuto;
  /// Asked in this order when this one cannot be reached, fails, does not answer in time or has too many requests.
  std::vector<std::string> fallback;
  /// An equal request (same model, messages, seed, ...) gets the reply it got before, for nothing.
  bool cache = false;
};

/// A URL as the gateway wants it, and what a user should know about it.
struct ParsedUrl {
  std::string base_url;            ///< without a slash or "/chat/completions" at the end
  std::vector<std::string> hints;  ///< for a log line at start, such as "OPTOD_LLM_URL: does not end in /v1; ..."
};

/// `field` is what messages call the URL. INVALID_ARGUMENT when it is not http(s), has no host, or carries credentials
/// or a query.
absl::StatusOr<ParsedUrl> ParseEndpointUrl(const std::string& field, const std::string& url);

/// INVALID_ARGUMENT naming the field, as `llm endpoint default: max_attempts: 0 is too small; must be >= 1`.
absl::Status CheckEndpoint(const EndpointConfig& config);

/// Reads an environment variable; nullopt or "" = not set. main passes the real getenv.
using GetEnv = std::function<std::optional<std::string>(const std::string& name)>;

struct EndpointsFromEnv {
  std::optional<EndpointConfig> default_endpoint;  ///< absent when OPTOD_LLM_URL is not set
  std::vector<std::string> hints;
};

/// OPTOD_LLM_URL, OPTOD_LLM_MODEL and OPTOD_LLM_KEY define the endpoint `default`. INVALID_ARGUMENT when the URL is
/// wrong, or when a key or a model is set without a URL.
absl::StatusOr<EndpointsFromEnv> EndpointsFromEnvironment(const GetEnv& get_env);

/// Keys by endpoint name from a file of `endpoint: key` lines (YAML: quotes and # comments allowed) or one flat JSON
/// object. The file must be readable by its owner alone: FAILED_PRECONDITION otherwise. NOT_FOUND when absent.
/// INVALID_ARGUMENT names the line and never shows it.
absl::StatusOr<std::map<std::string, Secret>> LoadSecretsFile(Fs& fs, const std::string& path);

/// The text form of the above, for tests and for callers that hold the bytes.
absl::StatusOr<std::map<std::string, Secret>> ParseSecrets(const std::string& text);

}  // namespace optod::trace

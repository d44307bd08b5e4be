#include "server/language_models.h"

#include <map>

#include "base/random_id.h"
#include "base/secret.h"
#include "base/status.h"
#include "server/llm_file.h"
#include "trace/llm/endpoint.h"

namespace optod::server {
namespace {

/// Wrong settings are the operator's to mend, whatever code the reader of the file gave them.
absl::Status AsConfigError(const std::string& key, const absl::Status& status) {
  return InvalidArgument(key, ": ", status.message());
}

}  // namespace

absl::StatusOr<LanguageModels> OpenLanguageModels(
    const config::Config& config, const std::function<std::optional<std::string>(const std::string&)>& get_env, Fs& fs,
    Clock& clock) {
  LanguageModels models;
  models.transport = MakeCurlTransport();
  trace::GatewayOptions options;
  options.jitter_seed = RandomU64();
  models.gateway = std::make_unique<trace::LlmGateway>(*models.transport, clock, options);

  absl::StatusOr<trace::EndpointsFromEnv> environment = trace::EndpointsFromEnvironment(get_env);
  if (!environment.ok()) return AsConfigError("environment", environment.status());
  models.hints = environment->hints;
  std::map<std::string, Secret> keys;
  if (!config.llm_secrets.empty()) {
    absl::StatusOr<std::map<std::string, Secret>> loaded = trace::LoadSecretsFile(fs, config.llm_secrets);
    if (!loaded.ok()) return AsConfigError("llm-secrets", loaded.status());
    keys = *std::move(loaded);
  }
  std::vector<trace::EndpointConfig> endpoints;
  if (!config.llm_endpoints.empty()) {
    absl::StatusOr<std::string> text = fs.ReadFile(config.llm_endpoints);
    if (!text.ok()) return InvalidArgument("llm-endpoints: ", config.llm_endpoints, ": cannot be read");
    ASSIGN_OR_RETURN(LlmFile file, ParseLlmFile(*text, config.llm_endpoints));
    endpoints = std::move(file.endpoints);
    models.limits = file.limits;
  }
  if (environment->default_endpoint.has_value()) {
    for (const trace::EndpointConfig& endpoint : endpoints) {
      if (endpoint.name == environment->default_endpoint->name)
        return InvalidArgument("llm-endpoints: endpoint ", endpoint.name,
                               " is defined there and by OPTOD_LLM_URL; keep one of them");
    }
    endpoints.push_back(*environment->default_endpoint);
  }
  for (trace::EndpointConfig& endpoint : endpoints) {
    if (auto key = keys.find(endpoint.name); key != keys.end()) endpoint.key = key->second;
    keys.erase(endpoint.name);
    RETURN_IF_ERROR(models.gateway->SetEndpoint(endpoint));
  }
  for (const auto& [name, key] : keys)
    models.hints.push_back("llm-secrets: there is no endpoint " + name + "; its key is not used");
  if (!config.cassette.empty()) {
    ASSIGN_OR_RETURN(trace::CassetteMode mode, trace::ParseCassetteMode(config.cassette_mode));
    auto cassette = trace::Cassette::Open(fs, config.cassette, mode);
    if (!cassette.ok()) return AsConfigError("cassette", cassette.status());
    models.cassette = *std::move(cassette);
  }
  return models;
}

}  // namespace optod::server

#include "server/llm_file.h"

#include "base/status.h"
#include "trace/workflow/document.h"

namespace optod::server {
namespace {

using trace::DocMap;
using trace::EndpointConfig;

absl::Status ReadPrices(const DocMap& map, EndpointConfig* config) {
  if (!map.Has("usd_per_million")) return absl::OkStatus();
  ASSIGN_OR_RETURN(const DocMap prices, map.Map("usd_per_million"));
  RETURN_IF_ERROR(prices.CheckFields({"prompt", "completion"}));
  RETURN_IF_ERROR(prices.Read("prompt", &config->usd_per_million_prompt_tokens));
  return prices.Read("completion", &config->usd_per_million_completion_tokens);
}

absl::Status ReadSchemaSupport(const DocMap& map, EndpointConfig* config) {
  std::string text = "auto";
  RETURN_IF_ERROR(map.Read("json_schema", &text));
  if (text == "auto")
    config->json_schema = trace::SchemaSupport::kAuto;
  else if (text == "yes" || text == "true")
    config->json_schema = trace::SchemaSupport::kYes;
  else if (text == "no" || text == "false")
    config->json_schema = trace::SchemaSupport::kNo;
  else
    return map.Error("json_schema", "must be auto, yes or no");
  return absl::OkStatus();
}

absl::StatusOr<EndpointConfig> ReadEndpoint(const DocMap& map, const std::string& name) {
  RETURN_IF_ERROR(
      map.CheckFields({"url", "model", "concurrency", "requests_per_minute", "tokens_per_minute", "timeout", "attempts",
                       "context_tokens", "json_schema", "usd_per_million", "fallback", "cache"}));
  EndpointConfig config;
  config.name = name;
  if (!map.Has("url")) return map.Error("url", "missing");
  RETURN_IF_ERROR(map.Read("url", &config.base_url));
  RETURN_IF_ERROR(map.Read("model", &config.model));
  int64_t concurrency = config.max_concurrency, requests = 0, attempts = config.max_attempts,
          context = config.context_tokens;
  int64_t timeout_ms = config.timeout.count();
  RETURN_IF_ERROR(map.Read("concurrency", &concurrency, 1, 10'000));
  RETURN_IF_ERROR(map.Read("requests_per_minute", &requests, 0, 100'000'000));
  RETURN_IF_ERROR(map.Read("tokens_per_minute", &config.tokens_per_minute, 0, int64_t{1} << 50));
  RETURN_IF_ERROR(map.ReadDuration("timeout", &timeout_ms));
  RETURN_IF_ERROR(map.Read("attempts", &attempts, 1, 100));
  RETURN_IF_ERROR(map.Read("context_tokens", &context, 1, 1'000'000'000));
  config.max_concurrency = static_cast<int>(concurrency);
  config.requests_per_minute = static_cast<int>(requests);
  config.max_attempts = static_cast<int>(attempts);
  config.context_tokens = static_cast<int>(context);
  config.timeout = std::chrono::milliseconds(timeout_ms);
  RETURN_IF_ERROR(ReadSchemaSupport(map, &config));
  RETURN_IF_ERROR(ReadPrices(map, &config));
  RETURN_IF_ERROR(map.Read("fallback", &config.fallback));
  RETURN_IF_ERROR(map.Read("cache", &config.cache));
  const absl::Status checked = trace::CheckEndpoint(config);
  return checked.ok() ? absl::StatusOr<EndpointConfig>(config) : map.Error("", std::string(checked.message()));
}

absl::Status ReadLimits(const DocMap& budgets, const std::string& name, trace::BudgetLimits* limits) {
  if (!budgets.Has(name)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const DocMap map, budgets.Map(name));
  RETURN_IF_ERROR(map.CheckFields({"usd", "tokens", "calls"}));
  if (map.Has("usd")) {
    double usd = 0;
    RETURN_IF_ERROR(map.Read("usd", &usd));
    if (usd < 0) return map.Error("usd", "is negative; must be >= 0");
    limits->max_usd = usd;
  }
  int64_t count = 0;
  if (map.Has("tokens")) {
    RETURN_IF_ERROR(map.Read("tokens", &count, 0, int64_t{1} << 53));
    limits->max_tokens = count;
  }
  if (map.Has("calls")) {
    RETURN_IF_ERROR(map.Read("calls", &count, 0, int64_t{1} << 53));
    limits->max_calls = count;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LlmFile> ParseLlmFile(const std::string& text, const std::string& file) {
  ASSIGN_OR_RETURN(const trace::DocNode document, trace::ParseDocument(text, file));
  ASSIGN_OR_RETURN(const DocMap root, DocMap::Of(document, file, ""));
  RETURN_IF_ERROR(root.CheckFields({"endpoints", "budgets"}));
  LlmFile out;
  if (root.Has("endpoints")) {
    ASSIGN_OR_RETURN(const DocMap endpoints, root.Map("endpoints"));
    for (const auto& [name, node] : endpoints.node().map) {
      ASSIGN_OR_RETURN(const DocMap map, endpoints.Map(name));
      ASSIGN_OR_RETURN(EndpointConfig config, ReadEndpoint(map, name));
      for (const std::string& other : config.fallback)
        if (!endpoints.Has(other)) return map.Error("fallback", "there is no endpoint " + other);
      out.endpoints.push_back(std::move(config));
    }
  }
  if (!root.Has("budgets")) return out;
  ASSIGN_OR_RETURN(const DocMap budgets, root.Map("budgets"));
  RETURN_IF_ERROR(budgets.CheckFields({"user_day", "day"}));
  RETURN_IF_ERROR(ReadLimits(budgets, "user_day", &out.limits.user_day));
  RETURN_IF_ERROR(ReadLimits(budgets, "day", &out.limits.day));
  return out;
}

}  // namespace optod::server

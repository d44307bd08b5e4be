#pragma once
/// The file of --llm-endpoints: named language-model endpoints with limits, prices and fallbacks, and what may be spent
/// in a day. Keys do not belong into it: they come from --llm-secrets, by the endpoint's name. Pure functions.
///
///   endpoints:
///     default: {url: "https://api.example.com/v1", model: big-1, concurrency: 8, requests_per_minute: 60,
///     tokens_per_minute: 200000, timeout: 60s,
///               attempts: 5, context_tokens: 128000, json_schema: auto, usd_per_million: {prompt: 0.15, completion:
///               0.6}, fallback: [local], cache: true}
///     local:   {url: "http://127.0.0.1:8080/v1"}
///   budgets:
///     user_day: {usd: 5, tokens: 2000000, calls: 10000}     # of each user; absent = no limit
///     day:      {usd: 50}                                   # of all users together

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/spending.h"
#include "trace/llm/endpoint.h"

namespace optod::server {

struct LlmFile {
  std::vector<trace::EndpointConfig> endpoints;
  SpendingLimits limits;
};

/// INVALID_ARGUMENT `FILE:LINE: endpoints.default.modle: unknown field; did you mean model?`.
absl::StatusOr<LlmFile> ParseLlmFile(const std::string& text, const std::string& file);

}  // namespace optod::server

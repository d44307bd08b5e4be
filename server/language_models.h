#pragma once
/// The language-model endpoints of this server, from the environment and the secrets file, and the cassette. Used by
/// App at start only.
///
///   OPTOD_LLM_URL, OPTOD_LLM_MODEL, OPTOD_LLM_KEY   the endpoint `default`
///   --llm-endpoints FILE                             named endpoints, prices, fallbacks, daily budgets (server/llm_file.h)
///   --llm-secrets FILE                               lines `endpoint: key`: the key of each, over OPTOD_LLM_KEY

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/fs.h"
#include "base/http_transport.h"
#include "server/config/config.h"
#include "server/spending.h"
#include "trace/llm/cassette.h"
#include "trace/llm/gateway.h"

namespace optod::server {

struct LanguageModels {
  std::unique_ptr<HttpTransport> transport;
  std::unique_ptr<trace::LlmGateway> gateway;
  std::unique_ptr<trace::Cassette> cassette;  ///< null = none
  SpendingLimits limits;                      ///< of a day
  std::vector<std::string> hints;             ///< for the log
};

/// INVALID_ARGUMENT when the environment or the file is wrong; the message shows no key.
absl::StatusOr<LanguageModels> OpenLanguageModels(
    const config::Config& config, const std::function<std::optional<std::string>(const std::string&)>& get_env, Fs& fs,
    Clock& clock);

}  // namespace optod::server

#pragma once
/// What `optoctl doctor` asks: is this installation fit for work? Each check reads the machine when it is asked; none
/// changes anything.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "server/config/config.h"
#include "server/services/server_state.h"

namespace optod::server {

struct Facts {
  double commits_per_second = 0;  ///< 0 = not measured
  std::vector<std::string> llm_endpoints;
  std::string sandbox;  ///< SandboxFeatures::Text(); "none: ..." without one
};

std::vector<services::HealthCheck> RunChecks(const config::Config& config, const Facts& facts);

}  // namespace optod::server

#pragma once
/// Replays a recorded sample-order case (system `fut` of tests/golden/optim): the reference run and every retrained run
/// go through MakeRule and Rule::Step, update terms and estimates through optim/order; all are compared with the file.

#include "absl/status/status.h"
#include "nlohmann/json_fwd.hpp"

namespace optod {

/// FAILED_PRECONDITION with the first number outside the file's tolerance. Throws what nlohmann::json throws when a
/// field is absent.
absl::Status ReplayOrderCase(const nlohmann::ordered_json& golden);

}  // namespace optod

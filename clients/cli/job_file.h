#pragma once
/// What optoctl does to a job file before it sends it. The server sees paths only, and absolute ones.

#include <functional>
#include <string>

#include "absl/status/statusor.h"

namespace optod::cli {

/// `${NAME}` in the places that hold paths (model, task.train, task.dev, task.test) becomes what `lookup` gives, so that
/// one job file serves every machine. `$` elsewhere, and in other fields, stays. INVALID_ARGUMENT:
/// `model: OPTOD_MODEL is not set`, `task.dev: "${" without "}"`.
absl::StatusOr<std::string> ExpandJobPaths(const std::string& spec_json,
                                           const std::function<const char*(const char*)>& lookup);

}  // namespace optod::cli

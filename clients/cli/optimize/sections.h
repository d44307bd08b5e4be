#pragma once
/// Sections that the file of `optoctl optimize` and the file of `optoctl session create` share. Pure functions.

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "clients/cli/optimize/optimize_file.h"
#include "clients/cli/strict_yaml.h"

namespace optod::cli {

/// `parameters:`, at least one.
absl::Status ReadParameters(const YamlMap& root, std::vector<ParameterEntry>* out);

/// `optimizer:`. Keys of the section beside name, llm, seed, candidates and `not_hyper` are hyperparameters; the server
/// knows their names.
absl::Status ReadOptimizer(const YamlMap& root, const std::vector<std::string>& not_hyper, OptimizerSection* out);

}  // namespace optod::cli

#pragma once
/// Parameters of the file as the protocol has them, and values back. Pure functions.

#include "absl/status/statusor.h"
#include "clients/cli/optimize/candidate_tree.h"
#include "clients/cli/optimize/optimize_file.h"
#include "optod/v1/session.pb.h"

namespace optod::cli {

/// Name, type, initial value, what the model is told and what is enforced.
v1::ParameterSpec ToParameterSpec(const ParameterEntry& entry, const std::string& start);

/// The text form of a value. "" for an empty one.
std::string ValueText(const v1::Value& value);

/// All parameters of `file` from a version's values (keys: NAME, or NAME:0). Checked against type, range and choices:
/// INVALID_ARGUMENT names the parameter. A file's value gets back the line end at its end that the start had.
absl::StatusOr<Values> FromVersion(const v1::Version& version, const OptimizeFile& file, const Values& start);

v1::OptimizerSpec ToOptimizerSpec(const OptimizerSection& section);

}  // namespace optod::cli

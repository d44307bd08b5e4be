#pragma once
/// Reads a score out of what the evaluation command printed. Pure function.

#include <string>

#include "absl/status/statusor.h"
#include "clients/cli/optimize/optimize_file.h"

namespace optod::cli {

/// json: the last line of `out` that is a JSON object must hold the field (a.b: nested), a finite number, true (1) or
/// false (0). regex: the last match over the lines of `out`; its first group (or the whole match) must be a finite
/// number. exit-code: 1 when `exit_code` is 0, else 0. INVALID_ARGUMENT says what was looked for and what was found.
absl::StatusOr<double> ExtractScore(const ScoreRule& rule, const std::string& out, int exit_code);

}  // namespace optod::cli

#pragma once
/// The built-in problem of a job file, with its data generated or read from a table of numbers.

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/fs.h"
#include "optim/order_job/spec.h"

namespace optod::order {

/// Lines of comma-separated numbers, the last of which is the class 0, 1, ...: the first batches * rows lines are the
/// batches, the next evaluation_rows the held-out sets. INVALID_ARGUMENT: "table: line 3: 63 numbers; line 1 has 65",
/// "table: line 7: label 1.5 is no class", "table: 100 lines; 320 are needed".
absl::StatusOr<LabelledData> ReadTable(const std::string& text, const SampleOrderSpec& spec);

/// spec.builtin must be there. NOT_FOUND: the table.
absl::StatusOr<std::shared_ptr<const Model>> MakeBuiltinProblem(const SampleOrderSpec& spec, Fs& fs);

}  // namespace optod::order

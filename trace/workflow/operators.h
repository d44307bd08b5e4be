#pragma once
/// The built-in operators of workflows, as functions from JSON values to a JSON value. Numbers are IEEE doubles, or
/// 64-bit integers where all operands are integers and the result fits. Pure functions; the table in operators.cc is
/// the only list.

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace optod::trace {

struct OperatorRow {
  const char* name;
  int min_arguments, max_arguments;  ///< max -1 = any number
  const char* help;
};
const std::vector<OperatorRow>& Operators();

/// INVALID_ARGUMENT: no such operator (with the nearest name), or the wrong number of arguments.
absl::Status CheckOperator(const std::string& name, size_t arguments);

/// Arguments and result are JSON texts. INVALID_ARGUMENT `div: 1 / 0`: what the operator cannot do with these values.
absl::StatusOr<std::string> ApplyOperator(const std::string& name, const std::vector<std::string>& arguments);

}  // namespace optod::trace

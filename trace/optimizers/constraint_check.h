#pragma once
/// Enforces constraints on proposed values. Patterns are RE2 expressions: time linear in the text, whatever the
/// pattern. Pure functions.

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "trace/graph/constraint.h"

namespace optod::trace {

/// A constraint that can be enforced: pattern compiles, min <= max, both finite or absent. Errors: INVALID_ARGUMENT
/// `constraint.regex: ...`. To be called when a client declares one.
absl::Status ValidateConstraint(const Constraint& constraint);

/// Empty when `text` (a value of declared type `type`) is allowed; else the rule that it breaks: `21 is above the
/// maximum 20`.
std::string CheckConstraint(const Constraint& constraint, std::string_view type, std::string_view text);

/// Empty when `text` may replace `current` as source of a code parameter: it passes the light syntax check and defines
/// the same function.
std::string CheckCode(std::string_view current, std::string_view text);

}  // namespace optod::trace

#pragma once
/// Enforces constraints on proposed values. Patterns are RE2 expressions: time linear in the text, whatever the
/// pattern. Pure functions.

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "trace/graph/constraint.h"

namespace optod::trace {

/// A constraint that can be enforced: pattern compiles, min <= max, both finite or absent. Errors: INVALID_ARGUMENT
/// `constraint.regex: ...`. To be called when a client declares one.
absl::Status ValidateConstraint(const Constraint& constraint);

/// Empty when `text` (a value of declared type `type`) is allowed; else the rule that it breaks: `21 is above the
/// maximum 20`.
/// `json`: the value's JSON, for json_schema; absent: its text is read as JSON, or taken as a JSON string. A number
/// against the range, the text against choices, length, pattern, signature and syntax.
std::string CheckConstraint(const Constraint& constraint, std::string_view type, std::string_view text,
                            const std::optional<std::string>& json = std::nullopt);

/// Empty when `source` defines a function of the name, the argument names, kinds and order of `signature` (`def f(x,
/// y=1, *args)`); defaults and annotations may differ, but an argument with a default must keep having one. Else what
/// differs: `f: arguments are (x), must be (x, y=)`.
std::string CheckSignature(std::string_view signature, std::string_view source);

/// `def f(x, y=1):` as "f" and {"x", "y="} (annotations gone, defaults as "="); absent when it is none.
std::optional<std::pair<std::string, std::vector<std::string>>> ParseSignature(std::string_view source,
                                                                               std::string_view name = {});

/// Empty when `text` may replace `current` as source of a code parameter: it passes the light syntax check and defines
/// the same function.
std::string CheckCode(std::string_view current, std::string_view text);

}  // namespace optod::trace

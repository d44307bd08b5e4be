#include "trace/optimizers/constraint_check.h"

#include <re2/re2.h>

#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "trace/optimizers/python_syntax.h"
#include "trace/optimizers/python_text.h"

namespace optod::trace {
namespace {

RE2::Options Quiet() {
  RE2::Options options;
  options.set_log_errors(false);
  options.set_dot_nl(true);
  options.set_max_mem(8 << 20);
  return options;
}

uint64_t CodePoints(std::string_view text) {
  return static_cast<uint64_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

}  // namespace

absl::Status ValidateConstraint(const Constraint& c) {
  if (c.min && !std::isfinite(*c.min)) return InvalidArgument("constraint.min: must be finite");
  if (c.max && !std::isfinite(*c.max)) return InvalidArgument("constraint.max: must be finite");
  if (c.min && c.max && *c.min > *c.max) return InvalidArgument("constraint.min: ", *c.min, " is above max ", *c.max);
  if (!c.regex.empty()) {
    const RE2 pattern(c.regex, Quiet());
    if (!pattern.ok()) return InvalidArgument("constraint.regex: ", pattern.error());
  }
  return absl::OkStatus();
}

std::string CheckConstraint(const Constraint& c, std::string_view type, std::string_view text) {
  if ((c.min || c.max) && (type == "int" || type == "float")) {
    const std::optional<double> value = ParsePythonFloat(text);
    if (!value || std::isnan(*value)) return Cat(text, " is no number in a range");
    if (c.min && *value < *c.min) return Cat(text, " is below the minimum ", FloatRepr(*c.min));
    if (c.max && *value > *c.max) return Cat(text, " is above the maximum ", FloatRepr(*c.max));
  }
  if (!c.enum_values.empty() && std::find(c.enum_values.begin(), c.enum_values.end(), text) == c.enum_values.end()) {
    std::string allowed;
    for (const std::string& v : c.enum_values) allowed += (allowed.empty() ? "" : ", ") + v;
    return Cat("is none of ", allowed);
  }
  if (c.max_length && CodePoints(text) > *c.max_length) {
    return Cat("has ", CodePoints(text), " characters; at most ", *c.max_length, " are allowed");
  }
  if (!c.regex.empty()) {
    const RE2 pattern(c.regex, Quiet());
    if (!pattern.ok()) return Cat("the pattern ", c.regex, " is invalid");
    if (!RE2::FullMatch(re2::StringPiece(text.data(), text.size()), pattern)) return Cat("does not match ", c.regex);
  }
  return {};
}

std::string CheckCode(std::string_view current, std::string_view text) {
  const std::string name = FirstFunctionName(current);
  if (!name.empty() && !DefinesFunction(text, name)) return Cat("does not define the function ", name);
  const std::string error = CheckPythonSource(text);
  return error.empty() ? error : Cat("is no Python source: ", error);
}

}  // namespace optod::trace

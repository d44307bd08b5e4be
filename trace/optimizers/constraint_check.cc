#include "trace/optimizers/constraint_check.h"

#include <re2/re2.h>

#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "trace/optimizers/json_schema.h"
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
  if (!c.json_schema.empty()) RETURN_IF_ERROR(ValidateJsonSchema(c.json_schema));
  if (!c.python_signature.empty() && !ParseSignature(c.python_signature))
    return InvalidArgument("constraint.python_signature: must be like def f(x, y=1)");
  return absl::OkStatus();
}

namespace {

std::string CheckSchema(const Constraint& c, std::string_view text, const std::optional<std::string>& json) {
  std::optional<JsonValue> value = json ? ParseJson(*json) : ParseJson(text);
  if (!value) value = JsonValue::String(std::string(text));
  // A text parameter that holds a document is judged by the document.
  if (value->kind == JsonValue::Kind::kString) {
    if (auto inner = ParseJson(value->text); inner && CheckJsonSchema(c.json_schema, *inner).empty()) return {};
  }
  const std::string broken = CheckJsonSchema(c.json_schema, *value);
  return broken.empty() ? broken : Cat("breaks its JSON schema: ", broken);
}

}  // namespace

std::string CheckConstraint(const Constraint& c, std::string_view type, std::string_view text,
                            const std::optional<std::string>& json) {
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
  if (!c.json_schema.empty()) {
    if (std::string broken = CheckSchema(c, text, json); !broken.empty()) return broken;
  }
  if (c.python || !c.python_signature.empty()) {
    if (std::string error = CheckPythonSource(text); !error.empty()) return Cat("is no Python source: ", error);
  }
  if (!c.python_signature.empty()) return CheckSignature(c.python_signature, text);
  return {};
}

std::optional<std::pair<std::string, std::vector<std::string>>> ParseSignature(std::string_view source,
                                                                               std::string_view name) {
  const std::vector<std::string_view> tokens = PythonTokens(source);
  for (size_t i = 0; i + 2 < tokens.size(); ++i) {
    if (tokens[i] != "def" || tokens[i + 2] != "(" || (!name.empty() && tokens[i + 1] != name)) continue;
    std::pair<std::string, std::vector<std::string>> out{std::string(tokens[i + 1]), {}};
    std::string argument;
    int depth = 0;
    bool rest = false;  // behind ':' or '=' of an argument
    for (size_t k = i + 3; k < tokens.size(); ++k) {
      const std::string_view t = tokens[k];
      if (depth == 0 && (t == ")" || t == ",")) {
        if (!argument.empty()) out.second.push_back(std::move(argument));
        argument.clear();
        rest = false;
        if (t == ")") return out;
        continue;
      }
      if (t == "(" || t == "[" || t == "{") ++depth;
      if (t == ")" || t == "]" || t == "}") --depth;
      if (depth == 0 && t == "=") argument += '=';
      rest = rest || (depth == 0 && (t == ":" || t == "="));
      if (!rest) argument += t;
    }
    return std::nullopt;  // never closed
  }
  return std::nullopt;
}

std::string CheckSignature(std::string_view signature, std::string_view source) {
  const auto wanted = ParseSignature(signature);
  if (!wanted) return "the signature is none";
  const auto got = ParseSignature(source, wanted->first);
  if (!got) return Cat("does not define the function ", wanted->first);
  if (got->second == wanted->second) return {};
  const auto list = [](const std::vector<std::string>& all) {
    std::string out;
    for (const std::string& one : all) out += (out.empty() ? "" : ", ") + one;
    return out;
  };
  return Cat(wanted->first, ": arguments are (", list(got->second), "), must be (", list(wanted->second), ")");
}

std::string CheckCode(std::string_view current, std::string_view text) {
  const std::string name = FirstFunctionName(current);
  if (!name.empty() && !DefinesFunction(text, name)) return Cat("does not define the function ", name);
  const std::string error = CheckPythonSource(text);
  return error.empty() ? error : Cat("is no Python source: ", error);
}

}  // namespace optod::trace

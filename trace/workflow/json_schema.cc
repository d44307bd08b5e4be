#include "trace/workflow/json_schema.h"

#include <re2/re2.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "base/status.h"
#include "trace/llm/json_parse.h"

namespace optod::trace {
namespace {

const std::set<std::string> kPassedOver = {"title",   "description", "default",  "examples",
                                           "$schema", "$id",         "$comment", "format"};
const std::set<std::string> kTypes = {"null", "boolean", "integer", "number", "string", "array", "object"};
const std::set<std::string> kCounts = {"minProperties", "maxProperties", "minItems",
                                       "maxItems",      "minLength",     "maxLength"};
const std::set<std::string> kNumbers = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"};

absl::Status CheckSchemaAt(const Json& schema, const std::string& at);

absl::Status CheckEach(const Json& list, const std::string& at) {
  if (!list.is_array() || list.empty()) return InvalidArgument(at, ": must be a list of schemas");
  for (size_t i = 0; i < list.size(); ++i) RETURN_IF_ERROR(CheckSchemaAt(list[i], Cat(at, "[", i, "]")));
  return absl::OkStatus();
}

absl::Status CheckType(const Json& type, const std::string& at) {
  const auto known = [](const Json& one) { return one.is_string() && kTypes.count(one.get<std::string>()) > 0; };
  if (known(type) || (type.is_array() && !type.empty() && std::all_of(type.begin(), type.end(), known)))
    return absl::OkStatus();
  return InvalidArgument(at, ": must be null, boolean, integer, number, string, array, object, or a list of these");
}

absl::Status CheckKeyword(const std::string& key, const Json& value, const std::string& at) {
  if (kPassedOver.count(key) || key == "const") return absl::OkStatus();
  if (key == "type") return CheckType(value, at);
  if (key == "enum") return value.is_array() ? absl::OkStatus() : InvalidArgument(at, ": must be a list");
  if (key == "required") {
    const bool good =
        value.is_array() && std::all_of(value.begin(), value.end(), [](const Json& v) { return v.is_string(); });
    return good ? absl::OkStatus() : InvalidArgument(at, ": must be a list of names");
  }
  if (kCounts.count(key))
    return value.is_number_unsigned() ? absl::OkStatus() : InvalidArgument(at, ": must be a count");
  if (kNumbers.count(key)) {
    const bool good = value.is_number() && (key != "multipleOf" || value.get<double>() > 0);
    return good ? absl::OkStatus() : InvalidArgument(at, ": must be a number", key == "multipleOf" ? " > 0" : "");
  }
  if (key == "uniqueItems")
    return value.is_boolean() ? absl::OkStatus() : InvalidArgument(at, ": must be true or false");
  if (key == "pattern") {
    if (!value.is_string()) return InvalidArgument(at, ": must be a text");
    const RE2 pattern(value.get<std::string>(), RE2::Quiet);
    return pattern.ok() ? absl::OkStatus() : InvalidArgument(at, ": not a regular expression: ", pattern.error());
  }
  if (key == "properties") {
    if (!value.is_object()) return InvalidArgument(at, ": must be a mapping");
    for (const auto& [name, schema] : value.items()) RETURN_IF_ERROR(CheckSchemaAt(schema, at + "." + name));
    return absl::OkStatus();
  }
  if (key == "items" || key == "additionalProperties" || key == "not") return CheckSchemaAt(value, at);
  if (key == "allOf" || key == "anyOf" || key == "oneOf") return CheckEach(value, at);
  return InvalidArgument(at, ": this keyword of JSON schema is not supported");
}

absl::Status CheckSchemaAt(const Json& schema, const std::string& at) {
  if (schema.is_boolean()) return absl::OkStatus();
  if (!schema.is_object()) return InvalidArgument(at, ": must be a schema (a mapping)");
  for (const auto& [key, value] : schema.items()) RETURN_IF_ERROR(CheckKeyword(key, value, at + "." + key));
  return absl::OkStatus();
}

bool IsWhole(const Json& value) {
  return value.is_number_integer() ||
         (value.is_number_float() && std::floor(value.get<double>()) == value.get<double>());
}

bool HasType(const Json& value, const std::string& type) {
  if (type == "null") return value.is_null();
  if (type == "boolean") return value.is_boolean();
  if (type == "integer") return IsWhole(value);
  if (type == "number") return value.is_number();
  if (type == "string") return value.is_string();
  return type == "array" ? value.is_array() : value.is_object();
}

size_t Characters(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

std::string Short(const Json& value) {
  const std::string text = Dump(value);
  return text.size() <= 60 ? text : text.substr(0, 57) + "...";
}

class Checker {
 public:
  std::string Check(const Json& schema, const Json& value, const std::string& at) const {
    if (schema.is_boolean()) return schema.get<bool>() ? "" : at + ": is not allowed";
    for (const auto& [key, rule] : schema.items()) {
      const std::string broken = Rule(schema, key, rule, value, at);
      if (!broken.empty()) return broken;
    }
    return "";
  }

 private:
  std::string Rule(const Json& schema, const std::string& key, const Json& rule, const Json& value,
                   const std::string& at) const {
    if (key == "type") {
      const bool good = rule.is_string() ? HasType(value, rule.get<std::string>())
                                         : std::any_of(rule.begin(), rule.end(), [&](const Json& t) {
                                             return HasType(value, t.get<std::string>());
                                           });
      return good ? "" : Cat(at, ": ", Short(value), " is not of type ", Dump(rule));
    }
    if (key == "enum")
      return std::find(rule.begin(), rule.end(), value) != rule.end()
                 ? ""
                 : Cat(at, ": ", Short(value), " is none of ", Short(rule));
    if (key == "const") return value == rule ? "" : Cat(at, ": ", Short(value), " is not ", Short(rule));
    if (key == "allOf" || key == "anyOf" || key == "oneOf" || key == "not") return Combined(key, rule, value, at);
    if (value.is_number()) return Number(key, rule, value, at);
    if (value.is_string()) return TextRule(key, rule, value.get<std::string>(), at);
    if (value.is_array()) return List(key, rule, value, at);
    if (value.is_object()) return Object(schema, key, rule, value, at);
    return "";
  }

  std::string Combined(const std::string& key, const Json& rule, const Json& value, const std::string& at) const {
    if (key == "not") return Check(rule, value, at).empty() ? at + ": follows a schema that it must not" : "";
    size_t good = 0;
    std::string first;
    for (const Json& schema : rule) {
      const std::string broken = Check(schema, value, at);
      if (broken.empty()) ++good;
      if (!broken.empty() && first.empty()) first = broken;
    }
    if (key == "allOf") return first;
    if (key == "anyOf") return good > 0 ? "" : Cat(at, ": follows none of the schemas of anyOf (", first, ")");
    return good == 1 ? "" : Cat(at, ": follows ", good, " of the schemas of oneOf instead of one");
  }

  static std::string Number(const std::string& key, const Json& rule, const Json& value, const std::string& at) {
    if (!kNumbers.count(key)) return "";
    const double x = value.get<double>(), bound = rule.get<double>();
    const std::string who = Cat(at, ": ", Short(value));
    if (key == "minimum" && x < bound) return Cat(who, " is below the minimum ", Short(rule));
    if (key == "maximum" && x > bound) return Cat(who, " is above the maximum ", Short(rule));
    if (key == "exclusiveMinimum" && x <= bound) return Cat(who, " is not above ", Short(rule));
    if (key == "exclusiveMaximum" && x >= bound) return Cat(who, " is not below ", Short(rule));
    if (key == "multipleOf" && std::abs(std::remainder(x, bound)) > 1e-9 * std::max(1.0, std::abs(x)))
      return Cat(who, " is not a multiple of ", Short(rule));
    return "";
  }

  static std::string TextRule(const std::string& key, const Json& rule, const std::string& text,
                              const std::string& at) {
    if (key == "minLength" && Characters(text) < rule.get<size_t>())
      return Cat(at, ": shorter than ", Short(rule), " characters");
    if (key == "maxLength" && Characters(text) > rule.get<size_t>())
      return Cat(at, ": longer than ", Short(rule), " characters");
    if (key == "pattern" && !RE2::PartialMatch(text, RE2(rule.get<std::string>(), RE2::Quiet)))
      return Cat(at, ": ", Short(Json(text)), " does not match ", Short(rule));
    return "";
  }

  std::string List(const std::string& key, const Json& rule, const Json& value, const std::string& at) const {
    if (key == "minItems" && value.size() < rule.get<size_t>())
      return Cat(at, ": fewer than ", Short(rule), " entries");
    if (key == "maxItems" && value.size() > rule.get<size_t>()) return Cat(at, ": more than ", Short(rule), " entries");
    if (key == "uniqueItems" && rule.get<bool>()) {
      for (size_t i = 0; i < value.size(); ++i)
        if (std::find(value.begin() + static_cast<ptrdiff_t>(i) + 1, value.end(), value[i]) != value.end())
          return Cat(at, ": ", Short(value[i]), " occurs twice");
    }
    if (key != "items") return "";
    for (size_t i = 0; i < value.size(); ++i) {
      const std::string broken = Check(rule, value[i], Cat(at, "[", i, "]"));
      if (!broken.empty()) return broken;
    }
    return "";
  }

  std::string Object(const Json& schema, const std::string& key, const Json& rule, const Json& value,
                     const std::string& at) const {
    if (key == "required") {
      for (const Json& name : rule)
        if (!value.contains(name.get<std::string>())) return Cat(at, ": has no member ", name.get<std::string>());
    }
    if (key == "minProperties" && value.size() < rule.get<size_t>())
      return Cat(at, ": fewer than ", Short(rule), " members");
    if (key == "maxProperties" && value.size() > rule.get<size_t>())
      return Cat(at, ": more than ", Short(rule), " members");
    if (key == "properties") {
      for (const auto& [name, inner] : rule.items()) {
        if (!value.contains(name)) continue;
        const std::string broken = Check(inner, value[name], at + "." + name);
        if (!broken.empty()) return broken;
      }
    }
    if (key == "additionalProperties") {
      const Json& named = Member(schema, "properties");
      for (const auto& [name, member] : value.items()) {
        if (named.is_object() && named.contains(name)) continue;
        if (rule.is_boolean() && !rule.get<bool>()) return Cat(at, ": member ", name, " is not allowed");
        const std::string broken = Check(rule, member, at + "." + name);
        if (!broken.empty()) return broken;
      }
    }
    return "";
  }
};

}  // namespace

absl::Status CheckJsonSchema(const std::string& schema) {
  const Json json = ReadJson(schema);
  if (json.is_discarded()) return InvalidArgument("schema: is not JSON");
  return CheckSchemaAt(json, "schema");
}

std::string JsonSchemaViolation(const std::string& schema, const std::string& value) {
  const Json json = ReadJson(value);
  if (json.is_discarded()) return "is not JSON";
  return Checker().Check(ReadJson(schema), json, "$");
}

bool MatchesRegex(const std::string& pattern, const std::string& text) {
  return RE2::PartialMatch(text, RE2(pattern, RE2::Quiet));
}

}  // namespace optod::trace

#include "trace/optimizers/json_schema.h"

#include <re2/re2.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/status.h"
#include "trace/optimizers/python_text.h"

namespace optod::trace {
namespace {

using Kind = JsonValue::Kind;

const std::set<std::string_view> kAnnotations = {"title",      "description", "default",  "examples",
                                                 "format",     "$schema",     "$id",      "$comment",
                                                 "deprecated", "readOnly",    "writeOnly"};
const std::set<std::string_view> kTypes = {"null", "boolean", "integer", "number", "string", "array", "object"};
const std::set<std::string_view> kCounts = {"minProperties", "maxProperties", "minItems",
                                            "maxItems",      "minLength",     "maxLength"};
const std::set<std::string_view> kNumbers = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
                                             "multipleOf"};
const std::set<std::string_view> kSchemaLists = {"anyOf", "allOf", "oneOf"};
const std::set<std::string_view> kSchemas = {"additionalProperties", "items", "not"};

bool IsNumber(const JsonValue& v) { return v.kind == Kind::kInt || v.kind == Kind::kFloat; }
bool IsWhole(const JsonValue& v) {
  return v.kind == Kind::kInt ||
         (v.kind == Kind::kFloat && std::floor(v.Number()) == v.Number() && std::isfinite(v.Number()));
}

RE2::Options Quiet() {
  RE2::Options options;
  options.set_log_errors(false);
  options.set_max_mem(8 << 20);
  return options;
}

std::string Short(const JsonValue& v) {
  std::string text = ToJson(v).value_or("?");
  return text.size() > 60 ? text.substr(0, 57) + "..." : text;
}

bool Equal(const JsonValue& a, const JsonValue& b) {
  if (IsNumber(a) && IsNumber(b))
    return a.kind == b.kind ? a.text == b.text || a.Number() == b.Number() : a.Number() == b.Number();
  if (a.kind != b.kind || a.items.size() != b.items.size()) return false;
  if (a.kind == Kind::kBool) return a.boolean == b.boolean;
  if (a.kind == Kind::kString) return a.text == b.text;
  for (size_t i = 0; i < a.items.size(); ++i) {
    const JsonValue* other = a.kind == Kind::kObject ? b.Find(a.keys[i]) : &b.items[i];
    if (other == nullptr || !Equal(a.items[i], *other)) return false;
  }
  return true;
}

bool HasType(const JsonValue& v, std::string_view type) {
  switch (v.kind) {
    case Kind::kNull:
      return type == "null";
    case Kind::kBool:
      return type == "boolean";
    case Kind::kString:
      return type == "string";
    case Kind::kArray:
      return type == "array";
    case Kind::kObject:
      return type == "object";
    case Kind::kInt:
    case Kind::kFloat:
      return type == "number" || (type == "integer" && IsWhole(v));
  }
  return false;
}

// ---- the schema itself

absl::Status Valid(const JsonValue& schema, const std::string& where);

absl::Status ValidKeyword(const std::string& key, const JsonValue& value, const std::string& where) {
  const auto bad = [&](std::string_view rule) { return InvalidArgument(where, ": ", rule); };
  if (kAnnotations.contains(key)) return absl::OkStatus();
  if (key == "type") {
    const bool list = value.kind == Kind::kArray;
    for (const JsonValue& type : list ? value.items : std::vector<JsonValue>{value}) {
      if (type.kind != Kind::kString || !kTypes.contains(type.text)) return bad(Cat(Short(type), " is no type"));
    }
    return absl::OkStatus();
  }
  if (key == "enum")
    return value.kind == Kind::kArray && !value.items.empty() ? absl::OkStatus() : bad("must be a list of values");
  if (key == "const") return absl::OkStatus();
  if (key == "uniqueItems") return value.kind == Kind::kBool ? absl::OkStatus() : bad("must be true or false");
  if (kCounts.contains(key))
    return IsWhole(value) && value.Number() >= 0 ? absl::OkStatus() : bad("must be a whole number from 0 on");
  if (kNumbers.contains(key)) {
    if (!IsNumber(value) || !std::isfinite(value.Number())) return bad("must be a number");
    return key == "multipleOf" && value.Number() <= 0 ? bad("must be above 0") : absl::OkStatus();
  }
  if (key == "required") {
    const bool strings =
        value.kind == Kind::kArray &&
        std::all_of(value.items.begin(), value.items.end(), [](const JsonValue& v) { return v.kind == Kind::kString; });
    return strings ? absl::OkStatus() : bad("must be a list of names");
  }
  if (key == "pattern") {
    if (value.kind != Kind::kString) return bad("must be a text");
    const RE2 pattern(value.text, Quiet());
    return pattern.ok() ? absl::OkStatus() : bad(pattern.error());
  }
  if (kSchemas.contains(key)) return Valid(value, where);
  if (kSchemaLists.contains(key)) {
    if (value.kind != Kind::kArray || value.items.empty()) return bad("must be a list of schemas");
    for (size_t i = 0; i < value.items.size(); ++i) RETURN_IF_ERROR(Valid(value.items[i], Cat(where, "[", i, "]")));
    return absl::OkStatus();
  }
  if (key == "properties") {
    if (value.kind != Kind::kObject) return bad("must be an object of schemas");
    for (size_t i = 0; i < value.items.size(); ++i)
      RETURN_IF_ERROR(Valid(value.items[i], Cat(where, ".", value.keys[i])));
    return absl::OkStatus();
  }
  return bad("is not supported");
}

absl::Status Valid(const JsonValue& schema, const std::string& where) {
  if (schema.kind == Kind::kBool) return absl::OkStatus();
  if (schema.kind != Kind::kObject) return InvalidArgument(where, ": must be an object, true or false");
  for (size_t i = 0; i < schema.items.size(); ++i)
    RETURN_IF_ERROR(ValidKeyword(schema.keys[i], schema.items[i], Cat(where, ".", schema.keys[i])));
  return absl::OkStatus();
}

// ---- values

class Checker {
 public:
  std::string Check(const JsonValue& schema, const JsonValue& value, const std::string& where) {
    if (--work_ < 0) return Cat(where, ": takes too long to check");
    if (schema.kind == Kind::kBool) return schema.boolean ? std::string() : Cat(Where(where), "is not allowed");
    for (size_t i = 0; i < schema.items.size(); ++i) {
      if (std::string broken = Keyword(schema, schema.keys[i], schema.items[i], value, where); !broken.empty())
        return broken;
    }
    return {};
  }

 private:
  static std::string Where(const std::string& where) { return where.empty() ? std::string() : where + ": "; }

  std::string Keyword(const JsonValue& schema, const std::string& key, const JsonValue& rule, const JsonValue& v,
                      const std::string& where) {
    const auto broken = [&](const std::string& what) { return Cat(Where(where), what); };
    if (key == "type") {
      for (const JsonValue& type : rule.kind == Kind::kArray ? rule.items : std::vector<JsonValue>{rule}) {
        if (HasType(v, type.text)) return {};
      }
      return broken(Cat(Short(v), " is not of type ", PythonStr(rule)));
    }
    if (key == "enum") {
      const bool in =
          std::any_of(rule.items.begin(), rule.items.end(), [&](const JsonValue& one) { return Equal(one, v); });
      return in ? std::string() : broken(Cat(Short(v), " is none of ", Short(rule)));
    }
    if (key == "const") return Equal(rule, v) ? std::string() : broken(Cat(Short(v), " is not ", Short(rule)));
    if (key == "anyOf" || key == "oneOf" || key == "allOf") return Combined(key, rule, v, where);
    if (key == "not")
      return Check(rule, v, where).empty() ? broken(Cat(Short(v), " is what `not` forbids")) : std::string();
    if (IsNumber(v)) return Number(key, rule, v, where);
    if (v.kind == Kind::kString) return Text(key, rule, v.text, where);
    if (v.kind == Kind::kArray) return Array(key, rule, v, where);
    if (v.kind == Kind::kObject) return Object(schema, key, rule, v, where);
    return {};
  }

  std::string Combined(const std::string& key, const JsonValue& rule, const JsonValue& v, const std::string& where) {
    size_t passed = 0;
    std::string first;
    for (const JsonValue& one : rule.items) {
      const std::string b = Check(one, v, where);
      passed += b.empty();
      if (first.empty()) first = b;
    }
    if (key == "allOf") return first;
    if (key == "anyOf") return passed > 0 ? std::string() : Cat(Where(where), "fits no schema of anyOf (", first, ")");
    return passed == 1 ? std::string() : Cat(Where(where), "fits ", passed, " schemas of oneOf; must fit exactly one");
  }

  static std::string Number(const std::string& key, const JsonValue& rule, const JsonValue& value, const std::string& where) {
    if (!IsNumber(rule)) return {};
    const double v = value.Number(), r = rule.Number();
    const auto broken = [&](const std::string& what) { return Cat(Where(where), Short(value), what, rule.text); };
    if (key == "minimum" && v < r) return broken(" is below the minimum ");
    if (key == "maximum" && v > r) return broken(" is above the maximum ");
    if (key == "exclusiveMinimum" && v <= r) return broken(" must be above ");
    if (key == "exclusiveMaximum" && v >= r) return broken(" must be below ");
    if (key == "multipleOf") {
      const double times = v / r;
      if (!(std::abs(times - std::round(times)) <= 1e-9 * std::max(1.0, std::abs(times))))
        return broken(" is no multiple of ");
    }
    return {};
  }

  static std::string Text(const std::string& key, const JsonValue& rule, const std::string& v,
                          const std::string& where) {
    if (key == "minLength" || key == "maxLength") {
      const auto points = static_cast<double>(
          std::count_if(v.begin(), v.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
      const bool low = key == "minLength";
      if (low ? points < rule.Number() : points > rule.Number())
        return Cat(Where(where), "has ", static_cast<int64_t>(points), " characters; at ", low ? "least " : "most ",
                   rule.text, " are allowed");
    }
    if (key == "pattern" && !RE2::PartialMatch(v, RE2(rule.text, Quiet())))
      return Cat(Where(where), "does not match ", rule.text);
    return {};
  }

  std::string Array(const std::string& key, const JsonValue& rule, const JsonValue& v, const std::string& where) {
    const auto size = static_cast<double>(v.items.size());
    if (key == "minItems" && size < rule.Number())
      return Cat(Where(where), "has ", v.items.size(), " items; at least ", rule.text, " are wanted");
    if (key == "maxItems" && size > rule.Number())
      return Cat(Where(where), "has ", v.items.size(), " items; at most ", rule.text, " are allowed");
    if (key == "uniqueItems" && rule.boolean) {
      for (size_t i = 0; i < v.items.size(); ++i) {
        for (size_t j = 0; j < i; ++j) {  // equal numbers may be written differently
          if (--work_ < 0) return Cat(where, ": takes too long to check");
          if (Equal(v.items[i], v.items[j])) return Cat(Where(where), Short(v.items[i]), " stands twice");
        }
      }
    }
    if (key == "items") {
      for (size_t i = 0; i < v.items.size(); ++i) {
        if (std::string b = Check(rule, v.items[i], Cat(where, "[", i, "]")); !b.empty()) return b;
      }
    }
    return {};
  }

  std::string Object(const JsonValue& schema, const std::string& key, const JsonValue& rule, const JsonValue& v,
                     const std::string& where) {
    const auto size = static_cast<double>(v.items.size());
    if (key == "minProperties" && size < rule.Number())
      return Cat(Where(where), "has ", v.items.size(), " members; at least ", rule.text, " are wanted");
    if (key == "maxProperties" && size > rule.Number())
      return Cat(Where(where), "has ", v.items.size(), " members; at most ", rule.text, " are allowed");
    if (key == "required") {
      for (const JsonValue& name : rule.items) {
        if (v.Find(name.text) == nullptr) return Cat(Where(where), "member ", name.text, " is missing");
      }
    }
    if (key == "properties") {
      for (size_t i = 0; i < rule.items.size(); ++i) {
        const JsonValue* member = v.Find(rule.keys[i]);
        if (member == nullptr) continue;
        if (std::string b = Check(rule.items[i], *member, Cat(where, ".", rule.keys[i])); !b.empty()) return b;
      }
    }
    if (key == "additionalProperties") {
      const JsonValue* known = schema.Find("properties");
      for (size_t i = 0; i < v.items.size(); ++i) {
        if (known != nullptr && known->Find(v.keys[i]) != nullptr) continue;
        if (std::string b = Check(rule, v.items[i], Cat(where, ".", v.keys[i])); !b.empty()) return b;
      }
    }
    return {};
  }

  int64_t work_ = 1 << 20;
};

}  // namespace

absl::Status ValidateJsonSchema(std::string_view schema, const std::string& root) {
  const auto parsed = ParseJson(schema);
  if (!parsed) return InvalidArgument(root, ": is no JSON document");
  return Valid(*parsed, root);
}

std::string CheckJsonSchema(std::string_view schema, const JsonValue& value, const std::string& root) {
  const auto parsed = ParseJson(schema);
  if (!parsed) return "the schema is no JSON document";
  return Checker().Check(*parsed, value, root);
}

}  // namespace optod::trace

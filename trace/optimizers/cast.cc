#include "trace/optimizers/cast.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>

#include "absl/container/flat_hash_set.h"
#include "base/status.h"
#include "trace/optimizers/python_text.h"
#include "trace/optimizers/reply.h"

namespace optod::trace {
namespace {

using Kind = JsonValue::Kind;

constexpr std::string_view kKindWords[] = {"null", "a boolean", "a number", "a number", "text", "a list", "an object"};

CastResult Done(std::string text, std::optional<std::string> json, std::string_view fix = {}) {
  return {true, std::move(text), std::move(json), {}, fix, {}};
}
CastResult Failed(std::string reason, std::string_view fix = {}) {
  return {false, {}, std::nullopt, std::move(reason), fix, {}};
}
CastResult Raises(std::string_view error) { return {false, {}, std::nullopt, std::string(error), {}, error}; }

CastResult Int(std::string digits) { return Done(digits, digits); }
CastResult Float(double v) {
  return Done(FloatRepr(v), std::isfinite(v) ? std::optional<std::string>(FloatRepr(v)) : std::nullopt);
}
CastResult Bool(bool v, std::string_view fix = {}) { return Done(v ? "True" : "False", v ? "true" : "false", fix); }
CastResult Text(const std::string& v) { return Done(v, QuoteJson(v)); }

// Exact decimal digits of the integer part.
std::string Truncated(double v) {
  char buffer[330];
  std::snprintf(buffer, sizeof buffer, "%.0f", std::trunc(v));
  return std::string_view(buffer) == "-0" ? "0" : buffer;
}

bool Truthy(const JsonValue& v) {
  switch (v.kind) {
    case Kind::kNull:
      return false;
    case Kind::kBool:
      return v.boolean;
    case Kind::kInt:
      return v.text != "0";
    case Kind::kFloat:
      return v.Number() != 0;
    case Kind::kString:
      return !v.text.empty();
    case Kind::kArray:
    case Kind::kObject:
      return !v.items.empty();
  }
  return false;
}

JsonValue ListOf(std::vector<JsonValue> items) {
  JsonValue v;
  v.kind = Kind::kArray;
  v.items = std::move(items);
  return v;
}

// A list as Python writes it for list, tuple or set. Sets keep the first of equal elements, in order.
CastResult Sequence(JsonValue list, std::string_view type) {
  if (type == "set") {
    std::vector<JsonValue> kept;
    absl::flat_hash_set<std::string, std::hash<std::string>> seen;
    for (JsonValue& item : list.items) {
      if (seen.insert(PythonRepr(item)).second) kept.push_back(std::move(item));
    }
    list.items = std::move(kept);
  }
  std::string text = PythonRepr(list);
  if (type == "tuple") {
    text.front() = '(';
    text.back() = ')';
    if (list.items.size() == 1) text.insert(text.size() - 1, ",");
  } else if (type == "set") {
    text.front() = '{';
    text.back() = '}';
    if (list.items.empty()) text = "set()";
  }
  return Done(std::move(text), ToJson(list));
}

std::vector<JsonValue> Characters(std::string_view text) {
  std::vector<JsonValue> out;
  for (size_t i = 0; i < text.size();) {
    size_t n = 1;
    while (i + n < text.size() && (static_cast<unsigned char>(text[i + n]) & 0xC0) == 0x80) ++n;
    out.push_back(JsonValue::String(std::string(text.substr(i, n))));
    i += n;
  }
  return out;
}

bool IsSequenceType(std::string_view type) { return type == "list" || type == "tuple" || type == "set"; }

CastResult CastNumber(const JsonValue& v, std::string_view type) {
  const bool integer = type == "int";
  switch (v.kind) {
    case Kind::kBool:
      return integer ? Int(v.boolean ? "1" : "0") : Float(v.boolean ? 1 : 0);
    case Kind::kInt:
      return integer ? Int(v.text) : Float(v.Number());
    case Kind::kFloat:
      if (!integer) return Float(v.Number());
      if (!std::isfinite(v.Number())) return Failed(Cat(FloatRepr(v.Number()), " is no int"));
      return Int(Truncated(v.Number()));
    case Kind::kString:
      if (integer) {
        if (auto digits = ParsePythonInt(v.text)) return Int(*digits);
      } else if (auto number = ParsePythonFloat(v.text)) {
        return Float(*number);
      }
      return Failed(Cat("'", v.text.substr(0, 80), "' is no ", type));
    default:
      return Failed(Cat(kKindWords[static_cast<int>(v.kind)], " is no ", type), kFixTyped);
  }
}

CastResult CastBool(const JsonValue& v) {
  if (v.kind == Kind::kBool || v.kind == Kind::kInt || v.kind == Kind::kFloat) return Bool(Truthy(v));
  if (v.kind != Kind::kString) return Failed(Cat(kKindWords[static_cast<int>(v.kind)], " is no bool"), kFixBool);
  std::string word(Strip(v.text));
  for (char& c : word) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  if (word == "true" || word == "yes" || word == "on" || word == "1") return Bool(true);
  if (word == "false" || word == "no" || word == "off" || word == "0") return Bool(false, kFixBool);
  return Failed(Cat("'", v.text.substr(0, 80), "' is no bool"), kFixBool);
}

CastResult CastContainer(const JsonValue& v, std::string_view type) {
  const bool object = type == "dict";
  const Kind want = object ? Kind::kObject : Kind::kArray;
  if (v.kind == want) return object ? Done(PythonRepr(v), ToJson(v)) : Sequence(v, type);
  if (v.kind == Kind::kString) {
    std::optional<JsonValue> parsed = ParseJson(v.text, {.lenient = true});
    if (parsed && parsed->kind == want) {
      CastResult r = CastContainer(*parsed, type);
      r.fix = kFixContainer;
      return r;
    }
    return Failed(Cat("text that is no JSON ", object ? "object" : "list", " is no ", type), kFixContainer);
  }
  return Failed(Cat(kKindWords[static_cast<int>(v.kind)], " is no ", type), kFixContainer);
}

// dict(list): pairs, each a list or text of length 2.
CastResult DictFromPairs(const std::vector<JsonValue>& items) {
  JsonValue dict;
  dict.kind = Kind::kObject;
  for (const JsonValue& item : items) {
    std::vector<JsonValue> pair;
    if (item.kind == Kind::kString) {
      pair = Characters(item.text);
    } else if (item.kind == Kind::kArray) {
      pair = item.items;
    } else if (item.kind == Kind::kObject) {
      for (const std::string& k : item.keys) pair.push_back(JsonValue::String(k));
    } else {
      return Raises("TypeError");
    }
    if (pair.size() != 2) return Failed("a pair has not two elements");
    if (pair[0].kind == Kind::kArray || pair[0].kind == Kind::kObject) return Raises("TypeError");
    std::string key = PythonStr(pair[0]);
    const auto known = std::find(dict.keys.begin(), dict.keys.end(), key);
    if (known != dict.keys.end()) {
      dict.items[static_cast<size_t>(known - dict.keys.begin())] = pair[1];
    } else {
      dict.keys.push_back(std::move(key));
      dict.items.push_back(pair[1]);
    }
  }
  return Done(PythonRepr(dict), ToJson(dict));
}

}  // namespace

CastResult CastValue(const JsonValue& value, std::string_view type) {
  if (value.kind == Kind::kNull) return Failed("null is no value", kFixNull);
  if (type == "int" || type == "float") return CastNumber(value, type);
  if (type == "bool") return CastBool(value);
  if (type == "str") return Text(PythonStr(value));
  if (type == "code") {
    if (value.kind != Kind::kString)
      return Failed(Cat(kKindWords[static_cast<int>(value.kind)], " is no source text"), kFixTyped);
    return Text(value.text);
  }
  if (type == "dict" || IsSequenceType(type)) return CastContainer(value, type);
  return Failed(Cat("values of type ", type, " cannot be made from a reply"), kFixTyped);
}

CastResult CastLikeReference(const JsonValue& v, std::string_view type) {
  if (type == "int" || type == "float") {
    if (v.kind == Kind::kNull || v.kind == Kind::kArray || v.kind == Kind::kObject) return Raises("TypeError");
    if (type == "int" && v.kind == Kind::kFloat && std::isinf(v.Number())) return Raises("OverflowError");
    return CastNumber(v, type);
  }
  if (type == "bool") return Bool(Truthy(v));
  if (type == "str" || type == "code") return Text(PythonStr(v));
  if (IsSequenceType(type)) {
    if (v.kind == Kind::kString) return Sequence(ListOf(Characters(v.text)), type);
    if (v.kind == Kind::kObject) {
      std::vector<JsonValue> keys;
      for (const std::string& k : v.keys) keys.push_back(JsonValue::String(k));
      return Sequence(ListOf(std::move(keys)), type);
    }
    if (v.kind != Kind::kArray) return Raises("TypeError");
    const bool nested = std::any_of(v.items.begin(), v.items.end(), [](const JsonValue& i) {
      return i.kind == Kind::kArray || i.kind == Kind::kObject;
    });
    return type == "set" && nested ? Raises("TypeError") : Sequence(v, type);
  }
  if (type == "dict") {
    if (v.kind == Kind::kObject) return Done(PythonRepr(v), ToJson(v));
    if (v.kind == Kind::kArray) return DictFromPairs(v.items);
    if (v.kind == Kind::kString) return DictFromPairs(Characters(v.text));
    return Raises("TypeError");
  }
  return Raises("TypeError");
}

}  // namespace optod::trace

#pragma once
/// A JSON value that keeps numbers as written and members in order, and its two parsers: strict (exactly what Python's
/// json.loads takes) and lenient (what language models write). Pure functions; nesting is limited to 200, so no input
/// overflows the stack.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace optod::trace {

struct JsonValue {
  enum class Kind { kNull, kBool, kInt, kFloat, kString, kArray, kObject };
  Kind kind = Kind::kNull;
  bool boolean = false;
  std::string text;               ///< string: its content, UTF-8; int: canonical decimal digits; float: as written
  std::vector<JsonValue> items;   ///< array elements, or object values
  std::vector<std::string> keys;  ///< object: one an item, no repeats (the last value wins, the first place stays)

  const JsonValue* Find(std::string_view key) const;  ///< nullptr: no such member, or not an object
  double Number() const;                              ///< of an int or float; infinite when too large
  static JsonValue String(std::string text);
};

struct JsonOptions {
  /// Also raw line breaks in strings, trailing commas, comments (// /* #), 'single quotes', True False None, unknown
  /// escapes, and a missing comma at a line end.
  bool lenient = false;
};

/// Parses one value at the head of `text`. On success `*end` is the offset behind it and `*leniency` (optional) whether
/// strict mode would have refused. `*work` (optional) is reduced by the bytes read; at 0 the parse fails.
std::optional<JsonValue> ParseJsonPrefix(std::string_view text, JsonOptions options, size_t* end,
                                         bool* leniency = nullptr, int64_t* work = nullptr);

/// The whole text is one value with white space around it.
std::optional<JsonValue> ParseJson(std::string_view text, JsonOptions options = {});

/// Compact JSON. Non-finite numbers have no JSON form: nullopt.
std::optional<std::string> ToJson(const JsonValue& value);
/// Text as a JSON string, with quotes.
std::string QuoteJson(std::string_view text);

}  // namespace optod::trace

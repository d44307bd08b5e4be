#pragma once
/// Casts a proposed JSON value to a parameter's declared type. Types: int float str bool list dict tuple set code; the
/// text result is the value as Python's str() writes it. Pure functions.

#include <optional>
#include <string>
#include <string_view>

#include "trace/optimizers/json_value.h"

namespace optod::trace {

struct CastResult {
  bool ok = false;
  std::string text;
  std::optional<std::string> json;  ///< absent: no JSON form (nan, inf)
  std::string reason;               ///< when not ok
  std::string_view fix;             ///< documented departure from the reference library (reply.h, kFix...), or empty
  std::string_view raises;          ///< CastLikeReference only: class of an error that the library does not catch
};

/// By the documented rules: numbers may come as text, text never becomes a list, booleans are parsed, null is no value.
CastResult CastValue(const JsonValue& value, std::string_view type);

/// As the reference library: the constructor of the type, applied to the value.
CastResult CastLikeReference(const JsonValue& value, std::string_view type);

}  // namespace optod::trace

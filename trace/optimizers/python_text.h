#pragma once
/// How Python writes and reads plain values: str() and repr() of JSON values, int() and float() of text. Pure
/// functions. Parameters are shown to the model in this form, whatever the client's language.

#include <optional>
#include <string>
#include <string_view>

#include "trace/optimizers/json_value.h"

namespace optod::trace {

/// Shortest text that reads back as `value`, in Python's form: `5.0`, `1e+16`, `1e-05`, `inf`, `nan`.
std::string FloatRepr(double value);

std::string PythonRepr(const JsonValue& value);  ///< `'a'`, `[1, 'b', None]`, `{'k': 1.5}`
std::string PythonStr(const JsonValue& value);   ///< as PythonRepr, but a string as it is

/// int(text): white space around, a sign, digits with single underscores between; canonical digits of any length.
/// nullopt: ValueError.
std::optional<std::string> ParsePythonInt(std::string_view text);
/// float(text), also `inf`, `nan`, `1_000.5`. nullopt: ValueError.
std::optional<double> ParsePythonFloat(std::string_view text);

/// Text without white space at both ends (Python's str.strip() on ASCII).
std::string_view Strip(std::string_view text);

}  // namespace optod::trace

#pragma once
/// JSON from outside, for .cc files of this folder only (it drags in nlohmann/json.hpp): nothing here throws, whatever
/// the bytes are.

#include <nlohmann/json.hpp>
#include <string>

namespace optod::trace {

/// Keeps the order of members: models write in the order of a schema, and a cassette's lines stay as they were.
using Json = nlohmann::ordered_json;

/// The value, or one with is_discarded() for bytes that are no JSON or nest deeper than 256 (nlohmann destroys by
/// recursion, which a megabyte of '[' would turn into a stack overflow).
Json ReadJson(const std::string& text);

/// A member of an object; null when there is none or `json` is no object.
const Json& Member(const Json& json, const char* name);

/// The string, or "" for any other value.
std::string Text(const Json& json);

/// A count from outside: 0 for anything but a number in [0, 1e12).
int64_t Count(const Json& json);

/// One line; invalid UTF-8 as U+FFFD.
std::string Dump(const Json& json);

}  // namespace optod::trace

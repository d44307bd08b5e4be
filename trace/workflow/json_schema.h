#pragma once
/// Checks a JSON value against a JSON schema (draft 2020-12, the part that replies and data need): type, enum, const,
/// properties, required, additionalProperties, minProperties, maxProperties, items, minItems, maxItems, uniqueItems,
/// minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf, minLength, maxLength (in characters), pattern
/// (RE2), allOf, anyOf, oneOf, not. title, description, default, examples, $schema, $id, $comment, format are passed
/// over. Pure functions.

#include <string>

#include "absl/status/status.h"

namespace optod::trace {

/// INVALID_ARGUMENT naming the place for a keyword that is not listed above: a rule that nobody checks is a trap.
absl::Status CheckJsonSchema(const std::string& schema);

/// "" when the value (JSON text) follows the schema, else the first rule that it breaks: `$.items[2].age: -1 is below
/// the minimum 0`. The schema must have passed CheckJsonSchema.
std::string JsonSchemaViolation(const std::string& schema, const std::string& value);

/// Whether a part of `text` matches the pattern (RE2: time linear in the text). False for a pattern that is none.
bool MatchesRegex(const std::string& pattern, const std::string& text);

}  // namespace optod::trace

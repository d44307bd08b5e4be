#pragma once
/// JSON Schema, the part that says what a parameter, a reply of a model or a result may be: type, enum, const, properties, required,
/// additionalProperties, minProperties, maxProperties, items, minItems, maxItems, uniqueItems, minLength, maxLength,
/// pattern, minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf, anyOf, allOf, oneOf, not; true and false
/// as schemas. title, description, default, examples, format, $schema, $id and $comment say nothing about values and
/// are passed over. Any other keyword is refused when the schema is declared, so that nothing is silently not enforced.
/// Source: JSON Schema 2020-12, validation vocabulary. Patterns are RE2 and match anywhere, as the standard says. Pure
/// functions; nesting is limited by the JSON parser.

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "trace/optimizers/json_value.h"

namespace optod::trace {

/// INVALID_ARGUMENT `json_schema.properties.a.$ref: is not supported`, or that it is no JSON object. `root`: what the
/// schema is called there.
absl::Status ValidateJsonSchema(std::string_view schema, const std::string& root = "json_schema");

/// Empty when `value` obeys `schema` (which ValidateJsonSchema passes); else where and which rule it breaks: `.a[2]: 7
/// is above the maximum 5`. `root` stands before the place: "$" gives `$.a[2]: ...`.
std::string CheckJsonSchema(std::string_view schema, const JsonValue& value, const std::string& root = "");

}  // namespace optod::trace

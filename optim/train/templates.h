#pragma once
/// Rows of a data file, and templates that put their fields into text.
///
///   "{premise|clause} {asks_for|connective}"      + row      -> "The man broke his toe because"

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace optod::train {

/// Names and values of a row; values that a JSON file has as numbers, lists or objects are their JSON text.
using Row = std::vector<std::pair<std::string, std::string>>;

/// nullptr when there is none.
const std::string* FieldOf(const Row& row, const std::string& name);

/// Fields put in. Filters: lower, lower-first (the first word, unless it is I), clause (without the final full stop),
/// connective (cause -> because, effect -> so), question (capital, with its question mark), before-blank (blanks at
/// its end taken off) and after-blank, of a sentence with one "_". INVALID_ARGUMENT for an unknown field or filter.
absl::StatusOr<std::string> Render(const std::string& text_template, const Row& row);

/// Texts of a field: a text, a list of texts, or, by a path "answers.text", of what is inside a JSON object.
/// INVALID_ARGUMENT: the field is missing, or there is no text in it.
absl::StatusOr<std::vector<std::string>> ListOf(const std::string& path, const Row& row);

}  // namespace optod::train

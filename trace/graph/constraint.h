#pragma once
/// What a parameter may become. `text` is shown to the model; the other fields are enforced on every proposed value
/// (optimizers/constraint_check.h). Plain data, no threading rules.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace optod::trace {

/// Absent fields allow everything. `min`, `max` (inclusive) apply to numbers, and to the length of lists and dicts
/// never.
struct Constraint {
  std::string text{};                      ///< free text for the prompt; empty: none
  std::optional<double> min{};             ///< inclusive lower bound of int and float parameters
  std::optional<double> max{};             ///< inclusive upper bound
  std::vector<std::string> enum_values{};  ///< allowed text renderings; empty: any
  std::string regex{};                     ///< ECMAScript expression that the whole text must match; empty: any
  std::optional<uint64_t> max_length{};    ///< of the text, in Unicode code points
  std::string json_schema{};               ///< that the value's JSON must obey (optimizers/json_schema.h); empty: any
  std::string python_signature{};          ///< `def name(args)` that the source text must define; empty: any
  bool python = false;                     ///< the text must parse as Python source

  bool operator==(const Constraint&) const = default;
  /// True when some field other than `text` is set.
  bool Enforced() const {
    return min || max || !enum_values.empty() || !regex.empty() || max_length || !json_schema.empty() ||
           !python_signature.empty() || python;
  }
};

}  // namespace optod::trace

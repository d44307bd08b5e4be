#pragma once
/// A model's reply, read into typed outcomes: one for the whole reply and one for each key it proposes. Pure functions;
/// no input makes them fail, throw or recurse without bound.
///
/// Default rules. Blocks of private reasoning (`<think>`, also unclosed) are dropped. The word TERMINATE in what
/// remains asks for no update (unless a current value holds that word: then only outside of JSON). All balanced `{...}`
/// objects are read, in fences or not; line breaks inside strings, trailing commas, comments and single-quoted literals
/// are tolerated; the last object with an object "suggestion" counts. Keys match py_name, and `base:index`. Values are
/// cast by the parameter's declared type (cast.h). Peer rules (`peer_compat`): what the reference library does, defects
/// included, for parity checks.

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "trace/graph/constraint.h"
#include "trace/graph/graph.h"

namespace optod::trace {

enum class ReplyKind {
  kApplied,            ///< at least one value changes
  kNothingApplied,     ///< there were suggestions, but none changes a value: see the keys
  kNoUpdateRequested,  ///< TERMINATE
  kUnparsable,         ///< no suggestion object could be read: see reason
  kEmpty,              ///< blank reply, or a suggestion without keys
  kRaises              ///< peer_compat only: the reference library throws; reason is the class name
};

enum class KeyOutcome {
  kApplied,
  kUnchanged,   ///< equal to the current value
  kCastFailed,  ///< not a value of the declared type
  kUnknownKey,  ///< names no parameter of the optimizer
  kNotTrainable,
  kConstraintRejected,  ///< a bound, enumeration, pattern, length or code rule is broken
  kSkippedBlankCode     ///< blank text for a code parameter
};

std::string_view ReplyKindName(ReplyKind kind);       ///< `applied`, `nothing_applied`, ...
std::string_view KeyOutcomeName(KeyOutcome outcome);  ///< `applied`, `unchanged`, `cast_failed`, ...

struct ReplyParameter {
  std::string py_name{};
  std::string name{};                 ///< `base:index`
  std::string type_name{};            ///< declared type
  std::string text{};                 ///< current value
  std::optional<std::string> json{};  ///< its JSON, if it has one
  bool trainable = true;
  bool is_code = false;
  Constraint constraint{};
};

struct KeyResult {
  std::string key;  ///< as in the reply
  KeyOutcome outcome = KeyOutcome::kUnknownKey;
  int parameter = -1;  ///< index into the given parameters; -1: unknown
  std::string old_text;
  std::string new_text;                 ///< value after the cast; for failures the proposed text, cut at 200 characters
  std::optional<std::string> new_json;  ///< JSON of the new value, if it has one
  std::string reason;                   ///< for anything but applied
};

struct ReplyOutcome {
  ReplyKind kind = ReplyKind::kEmpty;
  std::string reason;     ///< why not applied
  std::string reasoning;  ///< the model's own words, if given
  std::string answer;
  std::vector<KeyResult> keys;  ///< in reply order, repeated keys once (the last wins)
  std::vector<std::string>
      fixes;  ///< documented departures from the reference library that this reply needed (kFix...)
};

// Names of the documented departures, as they appear in `fixes`.
inline constexpr std::string_view kFixThink = "think_block_stripped";
inline constexpr std::string_view kFixScan = "balanced_brace_scan";  ///< braces in prose, several objects
inline constexpr std::string_view kFixLenientJson = "lenient_json";  ///< raw line breaks, trailing commas, ...
inline constexpr std::string_view kFixBool = "bool_parsed";          ///< "False" is false; other words are refused
inline constexpr std::string_view kFixContainer = "container_requires_json";  ///< no splitting of text into characters
inline constexpr std::string_view kFixPlainText =
    "plain_text_not_code";  ///< prose with the letters def is no source text
inline constexpr std::string_view kFixNull = "null_refused";
inline constexpr std::string_view kFixTyped = "typed_failure";      ///< the reference library throws
inline constexpr std::string_view kFixKeyColon = "key_with_colon";  ///< `name:8` matches `name8`
inline constexpr std::string_view kFixCodeRule = "code_rule";       ///< source must parse and define the same function
inline constexpr std::string_view kFixConstraint = "constraint_enforced";
inline constexpr std::string_view kFixTerminateValue = "terminate_in_value";

struct ReplyOptions {
  bool peer_compat = false;
  bool accept_bare_object = false;  ///< no "suggestion" key: take the whole object if it names a parameter
  size_t max_bytes = 8u << 20;      ///< longer replies are unparsable
  /// A stricter check of source text than ours (an interpreter's own parser): empty or the reason. Asked last, about
  /// values that all else allows.
  std::function<std::string(std::string_view source)> check_python{};
};

ReplyOutcome ParseReply(std::string_view reply, const std::vector<ReplyParameter>& parameters,
                        const ReplyOptions& options = {});

/// The parameters' current state as ParseReply needs it. Every id must be contained.
std::vector<ReplyParameter> ReplyParameters(const Graph& graph, std::span<const NodeId> parameters);

}  // namespace optod::trace

#pragma once
/// What the two readings of a reply (reply.cc, reply_peer.cc) share. Not for other folders.

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "trace/optimizers/json_value.h"
#include "trace/optimizers/reply.h"

namespace optod::trace {

ReplyOutcome ParseReplyLikeReference(std::string_view reply, const std::vector<ReplyParameter>& parameters);

/// Index of the parameter that has `key` as py_name, or -1.
int FindParameter(const std::vector<ReplyParameter>& parameters, std::string_view key);

/// Declared type for casts: `code` parameters by their role, others by their name.
std::string_view CastType(const ReplyParameter& parameter);

/// Whether the new value is the current one.
bool SameValue(const ReplyParameter& parameter, const std::string& text, const std::optional<std::string>& json);

/// `"key": "text"` found right behind `"suggestion": {`, the text greedy up to the last quote before the first `}`.
struct LoosePair {
  std::string key, text;
  bool single = false;  ///< no second pair seems to be inside the text
};
std::optional<LoosePair> FindLoosePair(std::string_view reply);

/// Offsets just behind each `"suggestion"` + white space + `:` + white space where a `{` stands.
std::vector<size_t> SuggestionObjects(std::string_view reply);

/// The reply without its thoughts; inside JSON objects nothing is taken for a thought.
std::string WithoutThoughts(std::string_view reply);

/// Casts and checks proposed texts by name, into `out`.
ReplyOutcome JudgeTexts(ReplyOutcome out, const std::vector<std::pair<std::string, std::string>>& values,
                        const std::vector<ReplyParameter>& parameters, const ReplyOptions& options);

/// Sets kind to applied or nothing_applied by the keys.
void Conclude(ReplyOutcome& outcome);

}  // namespace optod::trace

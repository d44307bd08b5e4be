// The reference library's reading of a reply (its version 0.1.3.8), defects included: used to check parity, never by
// default.
#include <algorithm>

#include "trace/optimizers/cast.h"
#include "trace/optimizers/python_syntax.h"
#include "trace/optimizers/python_text.h"
#include "trace/optimizers/reply_internal.h"

namespace optod::trace {
namespace {

using Kind = JsonValue::Kind;

// The suggestion object, after at most two attempts at strict JSON and one at a loose pair.
JsonValue ExtractSuggestion(std::string_view reply) {
  JsonValue suggestion;
  suggestion.kind = Kind::kObject;
  std::string_view text = reply;
  bool have_text = true;
  for (int attempt = 0; attempt < 2 && have_text; ++attempt) {
    if (auto value = ParseJson(text)) {
      if (const JsonValue* found = value->Find("suggestion")) {
        suggestion = *found;
        break;
      }
      continue;  // no such key, or no object: the same text is read again, in vain
    }
    const size_t open = text.find('{');
    const size_t close = text.rfind('}');
    have_text = open != std::string_view::npos && close != std::string_view::npos && close > open;
    if (have_text) text = text.substr(open, close - open + 1);
  }
  if (suggestion.kind != Kind::kObject) {
    suggestion = {};
    suggestion.kind = Kind::kObject;
  }
  if (suggestion.items.empty() && have_text) {
    if (auto pair = FindLoosePair(text)) {
      suggestion.keys.push_back(pair->key);
      suggestion.items.push_back(JsonValue::String(pair->text));
    }
  }
  return suggestion;
}

// Text that contains `def` passes through a source formatter, which refuses what is no Python. Layout is not
// reproduced.
std::optional<JsonValue> Formatted(const JsonValue& value) {
  if (value.kind != Kind::kString || value.text.find("def") == std::string::npos) return value;
  if (!CheckPythonSource(value.text).empty()) return std::nullopt;
  std::string text = value.text;
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  return JsonValue::String(text + "\n");
}

}  // namespace

ReplyOutcome ParseReplyLikeReference(std::string_view reply, const std::vector<ReplyParameter>& parameters) {
  ReplyOutcome out;
  if (reply.find("TERMINATE") != std::string_view::npos) {
    out.kind = ReplyKind::kNoUpdateRequested;
    return out;
  }
  JsonValue suggestion = ExtractSuggestion(reply);
  auto raise = [&](std::string_view error) {
    ReplyOutcome raised;
    raised.kind = ReplyKind::kRaises;
    raised.reason = error;
    return raised;
  };
  for (size_t i = suggestion.items.size(); i-- > 0;) {
    if (suggestion.keys[i].find("__code") == std::string::npos) continue;
    if (suggestion.items[i].kind != Kind::kString) return raise("AttributeError");
    if (!Strip(suggestion.items[i].text).empty()) continue;
    KeyResult skipped;
    skipped.key = suggestion.keys[i];
    skipped.outcome = KeyOutcome::kSkippedBlankCode;
    skipped.parameter = FindParameter(parameters, skipped.key);
    out.keys.push_back(std::move(skipped));
    suggestion.keys.erase(suggestion.keys.begin() + static_cast<std::ptrdiff_t>(i));
    suggestion.items.erase(suggestion.items.begin() + static_cast<std::ptrdiff_t>(i));
  }
  if (suggestion.items.empty()) {
    out.kind = out.keys.empty() ? ReplyKind::kEmpty : ReplyKind::kNothingApplied;
    return out;
  }
  for (size_t i = 0; i < parameters.size(); ++i) {
    const ReplyParameter& p = parameters[i];
    const JsonValue* proposed = p.trainable ? suggestion.Find(p.py_name) : nullptr;
    if (!proposed) continue;
    KeyResult r;
    r.key = p.py_name;
    r.parameter = static_cast<int>(i);
    r.old_text = p.text;
    const std::optional<JsonValue> formatted = Formatted(*proposed);
    const CastResult cast = formatted ? CastLikeReference(*formatted, CastType(p)) : CastResult{};
    if (!cast.raises.empty()) return raise(cast.raises);
    if (cast.ok) {
      r.new_text = cast.text;
      r.new_json = cast.json;
      r.outcome = SameValue(p, r.new_text, r.new_json) ? KeyOutcome::kUnchanged : KeyOutcome::kApplied;
    } else {
      r.outcome = KeyOutcome::kCastFailed;
      r.reason = formatted ? cast.reason : "is no Python source";
    }
    out.keys.push_back(std::move(r));
  }
  Conclude(out);
  return out;
}

}  // namespace optod::trace

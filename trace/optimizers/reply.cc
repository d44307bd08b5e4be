#include "trace/optimizers/reply.h"

#include <algorithm>
#include <cctype>

#include "absl/container/flat_hash_map.h"
#include "base/status.h"
#include "trace/optimizers/cast.h"
#include "trace/optimizers/constraint_check.h"
#include "trace/optimizers/json_value.h"
#include "trace/optimizers/python_syntax.h"
#include "trace/optimizers/python_text.h"
#include "trace/optimizers/reply_internal.h"

namespace optod::trace {
namespace {

using Kind = JsonValue::Kind;
constexpr std::string_view kTerminate = "TERMINATE";
constexpr std::string_view kThinkTags[] = {"think", "thinking", "thought"};
constexpr std::string_view kKindNames[] = {"applied",    "nothing_applied", "no_update_requested",
                                           "unparsable", "empty",           "raises"};
constexpr std::string_view kOutcomeNames[] = {
    "applied", "unchanged", "cast_failed", "unknown_key", "not_trainable", "constraint_rejected", "skipped_blank_code"};

void Note(ReplyOutcome& out, std::string_view fix) {
  if (!fix.empty() && std::find(out.fixes.begin(), out.fixes.end(), fix) == out.fixes.end())
    out.fixes.emplace_back(fix);
}

bool IsSpace(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

// Length of `<think>` or `</think>` (any of the tags, any case) at the head of `text`; 0: none.
size_t ThinkTag(std::string_view text, bool closing) {
  const std::string_view head = closing ? "</" : "<";
  if (text.substr(0, head.size()) != head) return 0;
  for (std::string_view tag : kThinkTags) {
    const size_t size = head.size() + tag.size() + 1;
    if (text.size() < size || text[size - 1] != '>') continue;
    const bool same = std::equal(tag.begin(), tag.end(), text.begin() + static_cast<std::ptrdiff_t>(head.size()),
                                 [](char a, char b) { return a == (b >= 'A' && b <= 'Z' ? b + 32 : b); });
    if (same) return size;
  }
  return 0;
}

// Behind the closing tag that follows `from`, or npos.
size_t BehindThought(std::string_view text, size_t from) {
  for (size_t at = text.find("</", from); at != std::string_view::npos; at = text.find("</", at + 2)) {
    if (const size_t tag = ThinkTag(text.substr(at), true)) return at + tag;
  }
  return std::string_view::npos;
}

// What a reply holds outside of thoughts.
struct Scanned {
  struct Object {
    JsonValue value;
    bool leniency = false;
    size_t begin = 0;
  };
  std::vector<Object> objects;  // top-level `{...}` that parse
  std::string prose;            // text outside of these
  std::string visible;          // all but thoughts
  bool thoughts = false;
  bool thought_open = false;  // the reply ends inside a thought
  bool stray_brace = false;   // a `{` in prose that begins no object
};

Scanned Scan(std::string_view text) {
  Scanned out;
  int64_t work = static_cast<int64_t>(text.size()) * 16 + (1 << 20);
  size_t kept = 0;  // everything before is in prose
  auto keep = [&](size_t until) { out.prose += text.substr(kept, until - kept); };
  auto show = [&](size_t from, size_t until) { out.visible += text.substr(from, until - from); };
  for (size_t pos = 0; pos < text.size();) {
    pos = text.find_first_of("{<", pos);
    if (pos == std::string_view::npos) break;
    if (text[pos] == '{') {
      size_t size = 0;
      Scanned::Object object;
      if (auto value = ParseJsonPrefix(text.substr(pos), {.lenient = true}, &size, &object.leniency, &work)) {
        keep(pos);
        show(kept, pos + size);
        object.value = *std::move(value);
        object.begin = pos;
        out.objects.push_back(std::move(object));
        kept = pos = pos + size;
      } else {
        out.stray_brace = true;
        ++pos;
      }
    } else if (ThinkTag(text.substr(pos), false)) {
      out.thoughts = true;
      keep(pos);
      show(kept, pos);
      pos = kept = BehindThought(text, pos);
      if (pos == std::string_view::npos) {
        out.thought_open = true;
        return out;
      }
    } else if (const size_t tag = ThinkTag(text.substr(pos), true)) {
      // The opening tag was in the prompt: all so far was thought.
      out = {};
      out.thoughts = true;
      pos = kept = pos + tag;
    } else {
      ++pos;
    }
  }
  keep(text.size());
  show(kept, text.size());
  return out;
}

std::string TextOf(const JsonValue* value) {
  return value && value->kind != Kind::kNull ? PythonStr(*value) : std::string();
}

// The text of a fenced block when the whole value is one; else the value itself.
std::string StripFence(const std::string& text, bool& stripped) {
  const std::string_view t = Strip(text);
  if (t.size() < 7 || t.substr(0, 3) != "```" || t.substr(t.size() - 3) != "```") return text;
  const size_t line = t.find('\n');
  if (line == std::string_view::npos || line + 1 > t.size() - 3) return text;
  stripped = true;
  return std::string(t.substr(line + 1, t.size() - 3 - line - 1));
}

class Reader {
 public:
  Reader(const std::vector<ReplyParameter>& parameters, const ReplyOptions& options)
      : parameters_(parameters), options_(options) {
    for (size_t i = 0; i < parameters.size(); ++i) {
      by_key_.emplace(parameters[i].py_name, static_cast<int>(i));
      if (!parameters[i].name.empty()) by_name_.emplace(parameters[i].name, static_cast<int>(i));
    }
  }

  ReplyOutcome Read(std::string_view reply) {
    if (Strip(reply).empty()) return Fail(ReplyKind::kEmpty, "the reply is blank");
    if (reply.size() > options_.max_bytes) {
      return Fail(ReplyKind::kUnparsable,
                  Cat("the reply has ", reply.size(), " bytes; at most ", options_.max_bytes, " are read"));
    }
    const Scanned scan = Scan(reply);
    if (scan.thoughts) Note(out_, kFixThink);
    if (AsksForNoUpdate(scan)) return Fail(ReplyKind::kNoUpdateRequested, "the reply says TERMINATE");
    if (scan.thoughts && reply.find(kTerminate) != std::string_view::npos) Note(out_, kFixThink);
    if (Strip(scan.visible).empty()) return Fail(ReplyKind::kEmpty, "the reply is nothing but a thought");
    return ReadObjects(scan);
  }

  // Values that were read in another way than from JSON.
  ReplyOutcome Judge(ReplyOutcome out, const JsonValue& suggestion) {
    out_ = std::move(out);
    return Suggestion(suggestion);
  }

 private:
  ReplyOutcome Fail(ReplyKind kind, std::string reason) {
    out_.kind = kind;
    out_.reason = std::move(reason);
    return std::move(out_);
  }

  bool AsksForNoUpdate(const Scanned& scan) {
    if (scan.visible.find(kTerminate) == std::string::npos) return false;
    const bool in_value = std::any_of(parameters_.begin(), parameters_.end(), [](const ReplyParameter& p) {
      return p.text.find(kTerminate) != std::string::npos;
    });
    if (!in_value || scan.prose.find(kTerminate) != std::string::npos) return true;
    Note(out_, kFixTerminateValue);
    return false;
  }

  ReplyOutcome ReadObjects(const Scanned& scan) {
    const Scanned::Object* chosen = nullptr;
    for (const Scanned::Object& o : scan.objects) {
      const JsonValue* suggestion = o.value.Find("suggestion");
      if (suggestion && suggestion->kind == Kind::kObject) chosen = &o;
    }
    if (chosen) {
      if (scan.objects.size() > 1 || scan.stray_brace) Note(out_, kFixScan);
      if (chosen->leniency) Note(out_, kFixLenientJson);
      out_.reasoning = TextOf(chosen->value.Find("reasoning"));
      out_.answer = TextOf(chosen->value.Find("answer"));
      return Suggestion(*chosen->value.Find("suggestion"));
    }
    if (options_.accept_bare_object) {
      for (auto o = scan.objects.rbegin(); o != scan.objects.rend(); ++o) {
        for (const std::string& key : o->value.keys) {
          if (Find(key) >= 0) return Suggestion(o->value);
        }
      }
    }
    return ReadInside(scan);
  }

  // No object of its own has a suggestion: look for one inside other text, for instance behind a broken "reasoning".
  ReplyOutcome ReadInside(const Scanned& scan) {
    int64_t work = static_cast<int64_t>(scan.visible.size()) * 16 + (1 << 20);
    for (size_t at : SuggestionObjects(scan.visible)) {
      size_t end = 0;
      auto value = ParseJsonPrefix(std::string_view(scan.visible).substr(at), {.lenient = true}, &end, nullptr, &work);
      if (!value || value->items.empty()) continue;
      Note(out_, kFixScan);
      return Suggestion(*value);
    }
    if (auto pair = FindLoosePair(scan.visible); pair && pair->single) {
      JsonValue suggestion;
      suggestion.kind = Kind::kObject;
      suggestion.keys.push_back(pair->key);
      suggestion.items.push_back(JsonValue::String(pair->text));
      return Suggestion(suggestion);
    }
    if (scan.objects.empty()) return Fail(ReplyKind::kUnparsable, "no complete JSON object was found");
    const JsonValue* suggestion = scan.objects.back().value.Find("suggestion");
    if (!suggestion) return Fail(ReplyKind::kUnparsable, "the JSON object has no member \"suggestion\"");
    return Fail(suggestion->kind == Kind::kNull ? ReplyKind::kEmpty : ReplyKind::kUnparsable,
                "\"suggestion\" is no JSON object");
  }

  ReplyOutcome Suggestion(const JsonValue& suggestion) {
    if (suggestion.items.empty()) return Fail(ReplyKind::kEmpty, "the suggestion names no parameter");
    absl::flat_hash_map<int, size_t> seen;  // parameter -> place in keys: `x0` and `x:0` are one
    for (size_t i = 0; i < suggestion.items.size(); ++i) {
      KeyResult result = Key(suggestion.keys[i], suggestion.items[i]);
      if (result.parameter >= 0) {
        auto [place, is_new] = seen.try_emplace(result.parameter, out_.keys.size());
        if (!is_new) {
          out_.keys[place->second] = std::move(result);
          continue;
        }
      }
      out_.keys.push_back(std::move(result));
    }
    Conclude(out_);
    return std::move(out_);
  }

  int Find(std::string_view key) const {
    if (auto found = by_key_.find(key); found != by_key_.end()) return found->second;
    auto found = by_name_.find(key);
    return found == by_name_.end() ? -1 : found->second;
  }

  KeyResult Key(const std::string& key, const JsonValue& proposed) {
    KeyResult r;
    r.key = key.substr(0, 200);
    r.parameter = Find(key);
    auto give_up = [&](KeyOutcome outcome, std::string reason) {
      r.outcome = outcome;
      r.reason = std::move(reason);
      if (r.new_text.empty()) r.new_text = PythonStr(proposed).substr(0, 200);
      r.new_json.reset();
      return r;
    };
    if (r.parameter < 0) return give_up(KeyOutcome::kUnknownKey, "names no parameter of this optimizer");
    const ReplyParameter& p = parameters_[static_cast<size_t>(r.parameter)];
    if (key != p.py_name) Note(out_, kFixKeyColon);
    r.old_text = p.text;
    if (!p.trainable) return give_up(KeyOutcome::kNotTrainable, "the parameter is not trainable");
    CastResult cast = CastValue(proposed, CastType(p));
    Note(out_, cast.fix);
    if (!cast.ok) return give_up(KeyOutcome::kCastFailed, cast.reason);
    if (p.is_code) {
      if (Strip(cast.text).empty()) return give_up(KeyOutcome::kSkippedBlankCode, "the source text is blank");
      bool stripped = false;
      cast.text = StripFence(cast.text, stripped);
      if (stripped) {
        Note(out_, kFixCodeRule);
        cast.json = QuoteJson(cast.text);
      }
      if (std::string error = CheckCode(p.text, cast.text); !error.empty()) {
        Note(out_, kFixCodeRule);
        return give_up(KeyOutcome::kConstraintRejected, std::move(error));
      }
    } else if (proposed.kind == Kind::kString && proposed.text.find("def") != std::string::npos &&
               !CheckPythonSource(proposed.text).empty()) {
      Note(out_, kFixPlainText);
    }
    r.new_text = cast.text;
    std::string error = CheckConstraint(p.constraint, p.type_name, cast.text, cast.json);
    const bool source = p.is_code || p.constraint.python || !p.constraint.python_signature.empty();
    if (error.empty() && source && options_.check_python && cast.text != p.text)
      error = options_.check_python(cast.text);
    if (!error.empty()) {
      Note(out_, kFixConstraint);
      r.new_text.resize(std::min<size_t>(r.new_text.size(), 200));
      return give_up(KeyOutcome::kConstraintRejected, std::move(error));
    }
    r.new_json = std::move(cast.json);
    const bool same = SameValue(p, r.new_text, r.new_json);
    r.outcome = same ? KeyOutcome::kUnchanged : KeyOutcome::kApplied;
    if (same) r.reason = "equals the current value";
    return r;
  }

  const std::vector<ReplyParameter>& parameters_;
  const ReplyOptions& options_;
  absl::flat_hash_map<std::string_view, int, std::hash<std::string_view>> by_key_, by_name_;
  ReplyOutcome out_;
};

}  // namespace

std::string_view ReplyKindName(ReplyKind kind) { return kKindNames[static_cast<int>(kind)]; }
std::string_view KeyOutcomeName(KeyOutcome outcome) { return kOutcomeNames[static_cast<int>(outcome)]; }

int FindParameter(const std::vector<ReplyParameter>& parameters, std::string_view key) {
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (parameters[i].py_name == key) return static_cast<int>(i);
  }
  return -1;
}

std::string_view CastType(const ReplyParameter& p) { return p.is_code ? "code" : std::string_view(p.type_name); }

bool SameValue(const ReplyParameter& p, const std::string& text, const std::optional<std::string>& json) {
  if (text == p.text) return true;
  if (!json || !p.json || p.type_name == "str" || p.is_code) return false;
  // The client's rendering may differ from ours ([1,2] and [1, 2]): compare the values.
  const auto current = ParseJson(*p.json), proposed = ParseJson(*json);
  return current && proposed && PythonRepr(*current) == PythonRepr(*proposed);
}

std::vector<size_t> SuggestionObjects(std::string_view reply) {
  constexpr std::string_view kName = "\"suggestion\"";
  std::vector<size_t> out;
  for (size_t at = reply.find(kName); at != std::string_view::npos; at = reply.find(kName, at + 1)) {
    size_t p = at + kName.size();
    while (p < reply.size() && IsSpace(reply[p])) ++p;
    if (p >= reply.size() || reply[p] != ':') continue;
    ++p;
    while (p < reply.size() && IsSpace(reply[p])) ++p;
    if (p < reply.size() && reply[p] == '{') out.push_back(p);
  }
  return out;
}

std::optional<LoosePair> FindLoosePair(std::string_view reply) {
  for (size_t open : SuggestionObjects(reply)) {
    const size_t close = reply.find('}', open);
    if (close == std::string_view::npos) return std::nullopt;
    const std::string_view inside = reply.substr(open + 1, close - open - 1);
    // The first `"key" : "` whose key is a word.
    for (size_t quote = inside.find('"'); quote != std::string_view::npos; quote = inside.find('"', quote + 1)) {
      size_t p = quote + 1;
      while (p < inside.size() && (std::isalnum(static_cast<unsigned char>(inside[p])) || inside[p] == '_')) ++p;
      if (p == quote + 1 || p >= inside.size() || inside[p] != '"') continue;
      const std::string_view key = inside.substr(quote + 1, p - quote - 1);
      ++p;
      while (p < inside.size() && IsSpace(inside[p])) ++p;
      if (p >= inside.size() || inside[p] != ':') continue;
      ++p;
      while (p < inside.size() && IsSpace(inside[p])) ++p;
      if (p >= inside.size() || inside[p] != '"') continue;
      const size_t last = inside.rfind('"');
      if (last <= p) continue;
      const std::string_view text = inside.substr(p + 1, last - p - 1);
      const size_t colon = text.find("\":");
      const size_t spaced = text.find("\" :");
      return LoosePair{std::string(key), std::string(text),
                       colon == std::string_view::npos && spaced == std::string_view::npos};
    }
    return std::nullopt;
  }
  return std::nullopt;
}

std::string WithoutThoughts(std::string_view reply) { return Scan(reply).visible; }

ReplyOutcome JudgeTexts(ReplyOutcome out, const std::vector<std::pair<std::string, std::string>>& values,
                        const std::vector<ReplyParameter>& parameters, const ReplyOptions& options) {
  JsonValue suggestion;
  suggestion.kind = Kind::kObject;
  for (const auto& [name, text] : values) {
    suggestion.keys.push_back(name);
    suggestion.items.push_back(JsonValue::String(text));
  }
  return Reader(parameters, options).Judge(std::move(out), suggestion);
}

void Conclude(ReplyOutcome& out) {
  const bool applied = std::any_of(out.keys.begin(), out.keys.end(),
                                   [](const KeyResult& k) { return k.outcome == KeyOutcome::kApplied; });
  out.kind = applied ? ReplyKind::kApplied : ReplyKind::kNothingApplied;
  if (!applied) out.reason = "no suggested value changes a parameter";
}

ReplyOutcome ParseReply(std::string_view reply, const std::vector<ReplyParameter>& parameters,
                        const ReplyOptions& options) {
  return options.peer_compat ? ParseReplyLikeReference(reply, parameters) : Reader(parameters, options).Read(reply);
}

std::vector<ReplyParameter> ReplyParameters(const Graph& graph, std::span<const NodeId> parameters) {
  std::vector<ReplyParameter> out;
  out.reserve(parameters.size());
  for (NodeId id : parameters) {
    ReplyParameter p;
    p.py_name = graph.PyName(id);
    p.name = graph.Name(id);
    p.type_name = graph.TypeName(id);
    p.text = graph.ValueText(id);
    if (auto json = graph.ValueJson(id)) p.json = *json;
    p.trainable = graph.Trainable(id);
    p.is_code = graph.IsCode(id);
    if (const Constraint* c = graph.ConstraintOf(id)) p.constraint = *c;
    out.push_back(std::move(p));
  }
  return out;
}

}  // namespace optod::trace

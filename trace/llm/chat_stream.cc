#include "trace/llm/chat_stream.h"

#include <algorithm>

#include "base/status.h"
#include "trace/llm/chat_json.h"
#include "trace/llm/error.h"
#include "trace/llm/json_parse.h"

namespace optod::trace {

std::string ChatStream::Feed(std::string_view bytes) {
  all_ += bytes;
  pending_ += bytes;
  const size_t before = text_.size();
  size_t at = 0;
  for (size_t end; (end = pending_.find('\n', at)) != std::string::npos; at = end + 1)
    Line(std::string_view(pending_).substr(at, end - at));
  pending_.erase(0, at);
  return text_.substr(before);
}

void ChatStream::Line(std::string_view line) {
  if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
  if (line.substr(0, 5) != "data:") return;  // comments, event names, blank lines between events
  events_ = true;
  line.remove_prefix(5);
  if (!line.empty() && line.front() == ' ') line.remove_prefix(1);
  if (line == "[DONE]") {
    done_ = true;
    return;
  }
  const Json json = ReadJson(std::string(line));
  if (!json.is_object()) {
    if (bad_.empty()) bad_ = line;
    return;
  }
  if (const std::string model = Text(Member(json, "model")); !model.empty()) model_ = model;
  const Json& usage = Member(json, "usage");
  if (usage.is_object()) {
    usage_.prompt_tokens = Count(Member(usage, "prompt_tokens"));
    usage_.completion_tokens = Count(Member(usage, "completion_tokens"));
  }
  const Json& choices = Member(json, "choices");
  if (!choices.is_array() || choices.empty()) return;  // the last event holds the usage alone
  text_ += Text(Member(Member(choices[0], "delta"), "content"));
  if (const std::string reason = Text(Member(choices[0], "finish_reason")); !reason.empty()) finish_reason_ = reason;
}

ChatOutcome ChatStream::Finish(const std::string& who, std::span<const Secret> secrets) {
  if (!pending_.empty()) {
    Line(pending_);
    pending_.clear();
  }
  if (!events_) return ParseReply(who, all_, secrets);
  ChatReply reply;
  reply.text = text_;
  reply.finish_reason = finish_reason_;
  reply.model = model_;
  reply.usage = usage_;
  const auto unusable = [&](absl::StatusCode code, const char* reason, const std::string& message) {
    return ChatOutcome{reply, LlmError(code, reason, message)};
  };
  if (!bad_.empty())
    return unusable(absl::StatusCode::kFailedPrecondition, "malformed",
                    Cat(who, ": an event of the stream is not JSON; it sent: ", Quote(bad_, secrets)));
  if (!done_ && finish_reason_.empty())
    return unusable(absl::StatusCode::kUnavailable, "cut",
                    Cat(who, ": the stream ended after ", text_.size(), " bytes of text, before its end"));
  if (text_.empty())
    return unusable(absl::StatusCode::kUnavailable, "empty", Cat(who, ": the reply is empty (a stream without text)"));
  return {std::move(reply), absl::OkStatus()};
}

StreamRedactor::StreamRedactor(std::span<const Secret> secrets) : secrets_(secrets) {
  // Twice: Redact also looks for the form with "/" as "\/".
  for (const Secret& secret : secrets) held_ = std::max(held_, 2 * secret.size());
}

std::string StreamRedactor::Feed(std::string_view text) {
  pending_ = Redact(pending_ + std::string(text), secrets_);
  if (pending_.size() <= held_) return "";
  size_t cut = pending_.size() - held_;
  while (cut > 0 && (static_cast<unsigned char>(pending_[cut]) & 0xC0) == 0x80) --cut;  // between characters
  std::string out = pending_.substr(0, cut);
  pending_.erase(0, cut);
  return out;
}

std::string StreamRedactor::Finish() { return Redact(std::move(pending_), secrets_); }

}  // namespace optod::trace

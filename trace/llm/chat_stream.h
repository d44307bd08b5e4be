#pragma once
/// A chat completion that arrives as server-sent events (`data: {...}` lines, the last one `data: [DONE]`), put
/// together. Never throws, whatever the bytes are. For one thread. Source: the streaming form of the OpenAI chat
/// completions API.

#include <span>
#include <string>
#include <string_view>

#include "base/secret.h"
#include "trace/llm/chat.h"

namespace optod::trace {

class ChatStream {
 public:
  /// Takes the next bytes; returns the text that they added to the reply.
  std::string Feed(std::string_view bytes);
  /// Whether any bytes came.
  bool Fed() const { return !all_.empty(); }
  /// The reply as ParseReply would give it. An endpoint that does not stream and answers with the whole at once is read
  /// as such. FAILED_PRECONDITION [malformed] for an event that is not JSON; UNAVAILABLE [cut] when the end did not
  /// come: what was paid is unknown and counts 0.
  ChatOutcome Finish(const std::string& who, std::span<const Secret> secrets);

 private:
  void Line(std::string_view line);
  std::string all_, pending_, text_, finish_reason_, model_, bad_;
  ChatUsage usage_;
  bool events_ = false, done_ = false;
};

/// Hands a stream of text on without secrets in it: as much as a secret is long is held back, since one may come in two
/// pieces. For one thread.
class StreamRedactor {
 public:
  explicit StreamRedactor(std::span<const Secret> secrets);
  /// What may go out now.
  std::string Feed(std::string_view text);
  /// The rest.
  std::string Finish();

 private:
  std::span<const Secret> secrets_;
  size_t held_ = 0;
  std::string pending_;
};

}  // namespace optod::trace

#pragma once
/// One exchange with a language model, as plain data: what every endpoint that speaks "chat completions" can carry.

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace optod::trace {

struct ChatMessage {
  std::string role;     ///< "system", "user" or "assistant"
  std::string content;  ///< UTF-8
};

/// A JSON schema that the reply must follow. Endpoints that can constrain decoding are asked to; others get the plain
/// request, so the reader must check the reply in either case. The order of "properties" is kept: the model writes them
/// in that order.
struct JsonSchema {
  std::string name = "reply";  ///< [A-Za-z0-9_-]{1,64}
  std::string schema;          ///< the schema itself, JSON text of an object
};

struct ChatRequest {
  std::vector<ChatMessage> messages;  ///< at least one
  std::optional<double> temperature;  ///< 0 to 2; absent = the endpoint's default
  int max_tokens = 1024;              ///< of the reply, > 0
  std::optional<int64_t> seed;        ///< for endpoints that can repeat a draw; >= 0
  std::optional<JsonSchema> json_schema;
  std::vector<std::string> stop;  ///< the reply ends before any of these; at most 4
};

struct ChatUsage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  double usd = 0;  ///< by the endpoint's price table
  int64_t total_tokens() const { return prompt_tokens + completion_tokens; }
};

struct ChatReply {
  std::string text;           ///< never empty
  std::string finish_reason;  ///< "stop", "length", ...; "" when the endpoint names none
  std::string model;          ///< as the endpoint names it
  ChatUsage usage;
  int attempts = 1;                     ///< HTTP requests this took; 0 when it came from a cassette
  std::chrono::nanoseconds latency{0};  ///< of all attempts and waits; 0 when it came from a cassette
  bool replayed = false;                ///< came from a cassette
  bool cached = false;                  ///< came from the request cache: nothing was paid
  std::string endpoint;                 ///< which endpoint answered: another than asked when a fallback did
};

/// What an answered call came to. When `error` is set the reply's text is unusable (malformed, empty), but its usage
/// still counts: it was paid for.
struct ChatOutcome {
  ChatReply reply;
  absl::Status error;
  absl::StatusOr<ChatReply> Result() && {
    if (!error.ok()) return std::move(error);
    return std::move(reply);
  }
};

}  // namespace optod::trace

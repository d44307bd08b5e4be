#pragma once
/// The wire form of a chat completion: pure functions between ChatRequest/ChatReply and JSON text. Thread-safe.
/// Source: the OpenAI chat completions API, as llama.cpp, vLLM and others serve it.

#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/secret.h"
#include "trace/llm/chat.h"

namespace optod::trace {

/// How a schema is asked for: by itself, as "some JSON object", or not at all. Endpoints that refuse one are asked the
/// next.
enum class SchemaForm { kSchema, kObject, kNone };

/// INVALID_ARGUMENT naming the field, as `llm request: max_tokens: 0 is too small; must be >= 1`. Texts must be UTF-8.
absl::Status CheckRequest(const ChatRequest& request);

/// The body to POST. The request must have passed CheckRequest.
/// With `stream` the endpoint is asked to send the reply as it writes it, and the usage at the end.
std::string EncodeRequest(const std::string& model, const ChatRequest& request, SchemaForm form, bool stream = false);

/// The canonical JSON that a cassette hashes: fixed order of fields, absent ones left out, no spaces.
std::string CanonicalRequest(const std::string& model, const ChatRequest& request);

/// Reads the body of a 200: a reply (usd 0), or FAILED_PRECONDITION [malformed], or UNAVAILABLE [empty]. Never throws,
/// whatever the bytes are. Messages begin with `who` and quote the body redacted. Usage that is absent or absurd counts
/// as 0.
ChatOutcome ParseReply(const std::string& who, const std::string& body, std::span<const Secret> secrets);

/// The text of an error body: `error.message`, `error`, `message` or `detail` when it is JSON of that form, else the
/// body itself.
std::string ErrorText(const std::string& body);

}  // namespace optod::trace

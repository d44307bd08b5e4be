#include "trace/llm/error.h"

#include "absl/strings/cord.h"
#include "trace/llm/gateway.h"

namespace optod::trace {
namespace {

constexpr char kPayload[] = "optod.llm.reason";

/// Length of the UTF-8 character at text[at], or 0 when there is none. Overlong forms and surrogates pass: the text is
/// only shown.
size_t CharacterLength(const std::string& text, size_t at) {
  const auto lead = static_cast<unsigned char>(text[at]);
  const size_t length = lead < 0x80 ? 1 : (lead >> 5) == 6 ? 2 : (lead >> 4) == 14 ? 3 : (lead >> 3) == 30 ? 4 : 0;
  if (length == 0 || at + length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((static_cast<unsigned char>(text[at + i]) >> 6) != 2) return 0;
  }
  return length;
}

}  // namespace

absl::Status LlmError(absl::StatusCode code, std::string_view reason, const std::string& message) {
  absl::Status status(code, message);
  status.SetPayload(kPayload, absl::Cord(std::string(reason)));
  return status;
}

std::string LlmErrorReason(const absl::Status& status) {
  const auto payload = status.GetPayload(kPayload);
  return payload.has_value() ? std::string(*payload) : std::string();
}

std::string Quote(const std::string& text, std::span<const Secret> secrets, size_t limit) {
  const std::string safe = Redact(text, secrets);
  std::string quoted;
  for (size_t at = 0; at < safe.size();) {
    const size_t length = CharacterLength(safe, at);
    if (quoted.size() + std::max<size_t>(length, 1) > limit) return quoted + "...";
    const auto byte = static_cast<unsigned char>(safe[at]);
    if (length == 0) {
      quoted += '?';
    } else if (byte < 0x20 || byte == 0x7f) {
      quoted += ' ';
    } else {
      quoted.append(safe, at, length);
    }
    at += std::max<size_t>(length, 1);
  }
  return quoted;
}

}  // namespace optod::trace

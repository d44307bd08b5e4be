// Whatever an endpoint, a cassette file or a secrets file holds, reading it neither crashes nor shows a key.
//   clang++ build: cmake -DOPTOD_FUZZ=ON; run: llm_response_fuzz -max_len=65536 CORPUS

#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>

#include "base/fs.h"
#include "trace/llm/cassette.h"
#include "trace/llm/chat_json.h"
#include "trace/llm/endpoint.h"
#include "trace/llm/error.h"
#include "trace/llm/retry.h"

namespace {

constexpr char kKey[] = "sk-canary-key";

void Check(bool good) {
  if (!good) std::abort();
}

/// One file in memory.
class OneFile final : public optod::Fs {
 public:
  explicit OneFile(std::string content) : content_(std::move(content)) {}
  absl::StatusOr<std::string> ReadFile(const std::string&) override { return content_; }
  absl::Status WriteFileAtomic(const std::string&, std::span<const std::byte> data, int) override {
    content_.assign(reinterpret_cast<const char*>(data.data()), data.size());
    return absl::OkStatus();
  }
  absl::Status CreateDirectories(const std::string&, int) override { return absl::OkStatus(); }
  absl::Status Remove(const std::string&) override { return absl::OkStatus(); }
  bool Exists(const std::string&) override { return true; }
  absl::StatusOr<int64_t> FileSize(const std::string&) override { return static_cast<int64_t>(content_.size()); }
  absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string&) override { return std::vector<std::string>{}; }

 private:
  std::string content_;
};

void ReadAsReply(const std::string& text) {
  static const optod::Secret key(kKey);
  const optod::Secret secrets[] = {key};
  const auto outcome = optod::trace::ParseReply("llm endpoint x", text, secrets);
  const std::string message(outcome.error.message());
  Check(message.find(kKey) == std::string::npos);
  Check(message.size() < 500);
  Check(outcome.error.ok() == !outcome.reply.text.empty());
  Check(outcome.reply.usage.prompt_tokens >= 0 && outcome.reply.usage.completion_tokens >= 0);
  (void)optod::trace::Quote(optod::trace::ErrorText(text), secrets);
}

/// What auto mode keeps of any file is a file that it reads again, whole.
void ReadAsCassette(const std::string& text) {
  OneFile fs(text);
  const auto first = optod::trace::Cassette::Open(fs, "cassette", optod::trace::CassetteMode::kAuto);
  if (!first.ok()) return;
  const auto again = optod::trace::Cassette::Open(fs, "cassette", optod::trace::CassetteMode::kReplay);
  Check(again.ok() && (*again)->size() == (*first)->size());
  optod::trace::ChatRequest request;
  request.messages = {{"user", text.substr(0, 100)}};
  (void)(*again)->Find((*again)->Take("m", request));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  ReadAsReply(text);
  ReadAsReply(R"({"choices":[{"message":{"content":)" + text + R"(}}],"usage":{"prompt_tokens":)" + text.substr(0, 30) + "}}");
  ReadAsCassette(text);
  (void)optod::trace::ParseSecrets(text);
  (void)optod::trace::ParseEndpointUrl("url", text);
  const auto wait = optod::trace::ParseRetryAfter(text, 1'700'000'000'000);
  Check(!wait || wait->count() >= 0);
  return 0;
}

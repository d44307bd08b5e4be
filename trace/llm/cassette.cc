#include "trace/llm/cassette.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "base/sha256.h"
#include "base/status.h"
#include "trace/llm/chat_json.h"
#include "trace/llm/error.h"
#include "trace/llm/gateway.h"
#include "trace/llm/json_parse.h"

namespace optod::trace {
namespace {

constexpr int kMode = 0600;  // prompts are the user's own

std::string NameOf(const std::string& path) { return path.substr(path.rfind('/') + 1); }

/// The members behind "request": `"reply":{..}`, and `"error":{..}` when there is one.
std::string EncodeOutcome(const ChatOutcome& outcome) {
  const ChatReply& reply = outcome.reply;
  const Json encoded = {{"text", reply.text},
                        {"finish_reason", reply.finish_reason},
                        {"model", reply.model},
                        {"usage",
                         {{"prompt_tokens", reply.usage.prompt_tokens},
                          {"completion_tokens", reply.usage.completion_tokens},
                          {"usd", reply.usage.usd}}}};
  if (outcome.error.ok()) return "\"reply\":" + Dump(encoded);
  const Json error = {{"code", static_cast<int>(outcome.error.code())},
                      {"reason", LlmErrorReason(outcome.error)},
                      {"message", std::string(outcome.error.message())}};
  return "\"reply\":" + Dump(encoded) + ",\"error\":" + Dump(error);
}

struct Line {
  std::string hash, request, model;
  int occurrence = 0;
  ChatOutcome outcome;
};

ChatOutcome DecodeOutcome(const Json& reply, const Json& error) {
  ChatOutcome outcome;
  ChatReply& decoded = outcome.reply;
  decoded.text = Text(Member(reply, "text"));
  decoded.finish_reason = Text(Member(reply, "finish_reason"));
  decoded.model = Text(Member(reply, "model"));
  const Json& usage = Member(reply, "usage");
  decoded.usage.prompt_tokens = Count(Member(usage, "prompt_tokens"));
  decoded.usage.completion_tokens = Count(Member(usage, "completion_tokens"));
  if (const Json& usd = Member(usage, "usd"); usd.is_number()) decoded.usage.usd = usd.get<double>();
  decoded.attempts = 0;
  decoded.replayed = true;
  if (error.is_object()) {
    outcome.error = LlmError(static_cast<absl::StatusCode>(Count(Member(error, "code"))), Text(Member(error, "reason")),
                             Text(Member(error, "message")));
  }
  return outcome;
}

/// The line, or what is wrong with it.
absl::StatusOr<Line> DecodeLine(const std::string& text) {
  const Json json = ReadJson(text);
  if (json.is_discarded() || !json.is_object()) return DataLoss("is not a JSON object");
  const Json &request = Member(json, "request"), &occurrence = Member(json, "occurrence");
  const Json &reply = Member(json, "reply"), &error = Member(json, "error");
  if (!request.is_object()) return DataLoss("request: is missing or no object");
  if (!occurrence.is_number_unsigned() || Count(occurrence) > 1'000'000'000)
    return DataLoss("occurrence: is missing or no count");
  const int64_t code = Count(Member(error, "code"));
  const bool good = error.is_null() ? !Text(Member(reply, "text")).empty() : code >= 1 && code <= 16;
  if (!good) return DataLoss("holds neither a reply with a text nor an error");
  Line line{Text(Member(json, "hash")), Dump(request), Text(Member(request, "model")),
            static_cast<int>(Count(occurrence)), DecodeOutcome(reply, error)};
  if (line.hash != Sha256Hex(line.request)) return DataLoss("hash: does not belong to the request");
  return line;
}

/// Where two canonical requests first differ, as `messages/1/content: recorded "...a", now "...b"`.
std::string FirstDifference(const std::string& recorded, const std::string& now) {
  const Json before = ReadJson(recorded).flatten(), after = ReadJson(now).flatten();
  const auto show = [](const Json& value, size_t at) {
    const std::string text = value.is_string() ? value.get<std::string>() : value.is_null() ? "nothing" : Dump(value);
    const size_t begin = at > 20 ? at - 20 : 0;
    return Cat(begin > 0 ? "\"..." : "\"", Quote(begin < text.size() ? text.substr(begin) : "", {}, 60), "\"");
  };
  const auto differs = [&](const std::string& key) {
    const Json &a = Member(before, key.c_str()), &b = Member(after, key.c_str());
    if (a == b) return std::string();
    size_t at = 0;
    if (a.is_string() && b.is_string()) {
      const std::string x = Text(a), y = Text(b);
      at = static_cast<size_t>(
          std::mismatch(x.begin(), x.begin() + static_cast<ptrdiff_t>(std::min(x.size(), y.size())), y.begin()).first -
          x.begin());
    }
    return Cat(key.substr(1), ": recorded ", show(a, at), ", now ", show(b, at));
  };
  for (const Json* side : {&after, &before}) {
    for (const auto& [key, value] : side->items()) {
      if (std::string found = differs(key); !found.empty()) return found;
    }
  }
  return "nothing: it was recorded fewer times than it is asked now";
}

size_t CommonPrefix(const std::string& a, const std::string& b) {
  const size_t size = std::min(a.size(), b.size());
  return static_cast<size_t>(std::mismatch(a.begin(), a.begin() + static_cast<ptrdiff_t>(size), b.begin()).first -
                             a.begin());
}

}  // namespace

absl::StatusOr<CassetteMode> ParseCassetteMode(const std::string& text) {
  if (text == "off") return CassetteMode::kOff;
  if (text == "auto") return CassetteMode::kAuto;
  if (text == "record") return CassetteMode::kRecord;
  if (text == "replay") return CassetteMode::kReplay;
  return InvalidArgument("cassette mode: ", text, " is unknown; must be off, auto, record or replay");
}

struct Cassette::Impl {
  Fs& fs;
  const std::string path;
  const CassetteMode mode;
  mutable std::mutex mutex;
  std::map<std::pair<std::string, int>, ChatOutcome> exchanges;
  std::vector<std::string> requests;  // recorded, in the file's order
  std::set<std::string> models;
  std::map<std::string, int> taken;  // how often each hash was asked in this run
  int calls = 0;
  absl::Status health;

  void Add(Line line) {
    requests.push_back(std::move(line.request));
    models.insert(std::move(line.model));
    exchanges.insert_or_assign({std::move(line.hash), line.occurrence}, std::move(line.outcome));
  }

  /// Reads `content`; what of it is good is its first `*good` bytes.
  absl::Status Load(const std::string& content, size_t* good) {
    int number = 1;
    for (*good = 0; *good < content.size(); ++number) {
      const size_t end = content.find('\n', *good);
      const bool last = end == std::string::npos;
      const std::string text = content.substr(*good, last ? end : end - *good);
      if (text.find_first_not_of(" \t\r") != std::string::npos) {
        auto line = DecodeLine(text);
        if (!line.ok() && last) return absl::OkStatus();  // torn by a crash
        if (!line.ok()) return DataLoss("cassette ", NameOf(path), ": line ", number, ": ", line.status().message());
        Add(*std::move(line));
      }
      *good = last ? content.size() : end + 1;
    }
    return absl::OkStatus();
  }

  absl::Status OpenFile() {
    if (mode == CassetteMode::kOff) return absl::OkStatus();
    if (mode == CassetteMode::kRecord) return fs.WriteFileAtomic(path, {}, kMode);
    auto content = fs.ReadFile(path);
    if (absl::IsNotFound(content.status()) && mode == CassetteMode::kAuto) return absl::OkStatus();
    if (absl::IsNotFound(content.status()))
      return NotFound("cassette ", NameOf(path), ": no such file; record it first");
    if (!content.ok()) return content.status();
    size_t good = 0;
    RETURN_IF_ERROR(Load(*content, &good));
    if (mode == CassetteMode::kReplay || content->empty()) return absl::OkStatus();
    // What is appended next must begin on a line of its own.
    std::string whole = content->substr(0, good);
    if (!whole.empty() && whole.back() != '\n') whole += '\n';
    return whole == *content ? absl::OkStatus() : fs.WriteFileAtomic(path, BytesOf(whole), kMode);
  }

  absl::Status Missing(const Ticket& ticket) const {
    const std::string where = Cat("cassette ", NameOf(path), ": call ", calls, " of this run was not recorded");
    if (requests.empty())
      return LlmError(absl::StatusCode::kNotFound, "not_recorded", where + " (the cassette is empty)");
    const auto nearest =
        std::max_element(requests.begin(), requests.end(), [&](const std::string& a, const std::string& b) {
          return CommonPrefix(a, ticket.request) < CommonPrefix(b, ticket.request);
        });
    return LlmError(absl::StatusCode::kNotFound, "not_recorded",
                    Cat(where, "; against recorded exchange ", nearest - requests.begin() + 1, " it differs in ",
                        FirstDifference(*nearest, ticket.request)));
  }
};

Cassette::Cassette(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Cassette::~Cassette() = default;

absl::StatusOr<std::unique_ptr<Cassette>> Cassette::Open(Fs& fs, const std::string& path, CassetteMode mode) {
  std::unique_ptr<Impl> impl(new Impl{fs, path, mode, {}, {}, {}, {}, {}, 0, {}});
  RETURN_IF_ERROR(impl->OpenFile());
  return std::unique_ptr<Cassette>(new Cassette(std::move(impl)));
}

CassetteMode Cassette::mode() const { return impl_->mode; }

Cassette::Ticket Cassette::Take(const std::string& model, const ChatRequest& request) {
  Ticket ticket;
  ticket.request = CanonicalRequest(model, request);
  ticket.hash = Sha256Hex(ticket.request);
  std::lock_guard lock(impl_->mutex);
  ++impl_->calls;
  ticket.occurrence = impl_->taken[ticket.hash]++;
  return ticket;
}

std::optional<ChatOutcome> Cassette::Find(const Ticket& ticket) {
  if (impl_->mode == CassetteMode::kOff || impl_->mode == CassetteMode::kRecord) return std::nullopt;
  std::lock_guard lock(impl_->mutex);
  const auto it = impl_->exchanges.find({ticket.hash, ticket.occurrence});
  if (it != impl_->exchanges.end()) return it->second;
  if (impl_->mode == CassetteMode::kReplay) return ChatOutcome{{}, impl_->Missing(ticket)};
  return std::nullopt;
}

void Cassette::Record(const Ticket& ticket, const ChatOutcome& outcome) {
  if (impl_->mode != CassetteMode::kAuto && impl_->mode != CassetteMode::kRecord) return;
  // Put together as text: the request must stay the very bytes that were hashed.
  const std::string text = Cat("{\"hash\":\"", ticket.hash, "\",\"occurrence\":", ticket.occurrence,
                               ",\"request\":", ticket.request, ",", EncodeOutcome(outcome), "}");
  std::lock_guard lock(impl_->mutex);
  auto line = DecodeLine(text);
  absl::Status status = line.ok() ? impl_->fs.AppendFile(impl_->path, BytesOf(text + "\n"), kMode) : line.status();
  if (status.ok()) {
    impl_->Add(*std::move(line));
  } else if (impl_->health.ok()) {
    impl_->health = absl::Status(status.code(), Cat("cassette ", NameOf(impl_->path), ": ", status.message()));
  }
}

absl::Status Cassette::Health() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->health;
}

std::string Cassette::OnlyModel() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->models.size() == 1 ? *impl_->models.begin() : std::string();
}

size_t Cassette::size() const {
  std::lock_guard lock(impl_->mutex);
  return impl_->exchanges.size();
}

}  // namespace optod::trace

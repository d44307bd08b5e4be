#include "trace/llm/gateway.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "base/sha256.h"
#include "base/status.h"
#include "trace/llm/chat_json.h"
#include "trace/llm/chat_stream.h"
#include "trace/llm/error.h"
#include "trace/llm/limiter.h"
#include "trace/llm/reply_cache.h"
#include "trace/llm/retry.h"

namespace optod::trace {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

/// An endpoint and what was learned about it. Shared by the calls under way, so that replacing it disturbs none of
/// them.
struct EndpointState {
  EndpointState(EndpointConfig c, Clock& clock)
      : config(std::move(c)),
        who("llm endpoint " + config.name),
        limiter(clock, config.max_concurrency, config.requests_per_minute, config.tokens_per_minute),
        form(config.json_schema == SchemaSupport::kNo ? SchemaForm::kNone : SchemaForm::kSchema) {}
  const EndpointConfig config;
  const std::string who;
  Limiter limiter;
  std::atomic<SchemaForm> form;  ///< the best form that it is believed to take
  std::atomic<int64_t> answered{0}, failed{0}, prompt_tokens{0}, completion_tokens{0};
};

struct CallContext {
  std::shared_ptr<EndpointState> endpoint;
  std::vector<Secret> secrets;
  const std::atomic<bool>* cancelled = nullptr;
  milliseconds timeout{0};  ///< of an attempt
  const std::function<void(std::string_view)>* on_text = nullptr;
  bool* text_went_out = nullptr;
  std::string key;  ///< of the call, for `Idempotency-Key`
};

/// What came of one HTTP request.
struct Attempt {
  ChatOutcome outcome;  ///< of a 200
  absl::Status error;   ///< of anything else
  int http_status = 0;  ///< 0 = no answer
  bool retryable = false;
  std::optional<milliseconds> retry_after;
};

int64_t ExpectedTokens(const ChatRequest& request) {
  size_t bytes = 0;
  for (const ChatMessage& message : request.messages) bytes += message.content.size();
  return static_cast<int64_t>(bytes / 4) +
         request.max_tokens;  // four bytes a token: the usual rule of thumb for English
}

std::optional<SchemaForm> Simpler(SchemaForm form) {
  if (form == SchemaForm::kSchema) return SchemaForm::kObject;
  if (form == SchemaForm::kObject) return SchemaForm::kNone;
  return std::nullopt;
}

/// What another endpoint may do better.
bool WorthAFallback(const absl::Status& status) {
  const std::string reason = LlmErrorReason(status);
  return reason == "unreachable" || reason == "server_error" || reason == "timeout" || reason == "rate_limited" ||
         reason == "cut";
}

absl::Status TransportError(const EndpointState& endpoint, const absl::Status& status, milliseconds timeout) {
  const std::string& who = endpoint.who;
  switch (status.code()) {
    case absl::StatusCode::kDeadlineExceeded:
      return LlmError(status.code(), "timeout", Cat(who, ": no complete reply within ", timeout.count(), " ms"));
    case absl::StatusCode::kCancelled:
      return LlmError(status.code(), "cancelled", "llm call: cancelled");
    case absl::StatusCode::kResourceExhausted:
      return LlmError(status.code(), "oversize", Cat(who, ": the reply is too large (", status.message(), ")"));
    case absl::StatusCode::kInvalidArgument:
      return LlmError(status.code(), "bad_request",
                      Cat(who, ": base_url or key cannot be used (", status.message(), ")"));
    default:
      return LlmError(absl::StatusCode::kUnavailable, "unreachable",
                      Cat(who, ": cannot be reached (", status.message(), ")"));
  }
}

absl::Status HttpError(const CallContext& call, const HttpResponse& response) {
  const std::string& who = call.endpoint->who;
  const int status = response.status;
  const std::string said = Quote(ErrorText(response.body), call.secrets);
  const std::string tail = said.empty() ? std::string() : ": " + said;
  if (status == 401 || status == 403) {
    const bool has_key = !call.endpoint->config.key.empty();
    return LlmError(absl::StatusCode::kFailedPrecondition, "key_refused",
                    has_key ? Cat(who, ": the key was refused (", status, ")")
                            : Cat(who, ": it wants a key and none is set (", status, ")"));
  }
  if (status == 429)
    return LlmError(absl::StatusCode::kResourceExhausted, "rate_limited", Cat(who, ": too many requests (429)", tail));
  if (status == 408 || status >= 500) {
    return LlmError(absl::StatusCode::kUnavailable, "server_error",
                    Cat(who, ": the server failed (", status, ")", tail));
  }
  if (status >= 400) {
    const char* hint = status == 404 ? "; is the model's name right, and does the URL end in /v1?" : "";
    return LlmError(absl::StatusCode::kInvalidArgument, "refused",
                    Cat(who, ": it refused the request (", status, ")", tail, hint));
  }
  return LlmError(absl::StatusCode::kFailedPrecondition, "malformed",
                  Cat(who, ": unexpected HTTP status ", status, " (redirects are not followed); is the URL right?"));
}

absl::Status WithAttempts(const absl::Status& status, int attempts) {
  if (attempts <= 1) return status;
  return LlmError(status.code(), LlmErrorReason(status), Cat(status.message(), "; ", attempts, " attempts"));
}

}  // namespace

struct LlmGateway::Impl {
  HttpTransport& transport;
  Clock& clock;
  const GatewayOptions options;
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<EndpointState>> endpoints;
  std::atomic<uint64_t> draws{0}, calls{0};
  ReplyCache cache;
  UsageLedger* ledger = nullptr;

  Impl(HttpTransport& t, Clock& c, GatewayOptions o) : transport(t), clock(c), options(o), cache(o.cache_bytes) {}

  /// SplitMix64 (Steele et al., 2014) by counter: waits need spread, not quality.
  uint64_t Draw() {
    uint64_t z = options.jitter_seed + (draws.fetch_add(1) + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }

  absl::StatusOr<CallContext> Prepare(const std::string& name, const std::atomic<bool>* cancelled) {
    std::lock_guard lock(mutex);
    CallContext call;
    call.cancelled = cancelled;
    std::string known;
    for (const auto& [other, endpoint] : endpoints) {
      known += (known.empty() ? "" : ", ") + other;
      if (!endpoint->config.key.empty()) call.secrets.push_back(endpoint->config.key);
      if (other == name) call.endpoint = endpoint;
    }
    if (call.endpoint != nullptr) {
      call.timeout = call.endpoint->config.timeout;
      return call;
    }
    return LlmError(absl::StatusCode::kNotFound, "unknown_endpoint",
                    Cat("llm endpoint ", Quote(name, call.secrets, 63), ": is not configured; ",
                        known.empty() ? "set OPTOD_LLM_URL to define `default`" : "there is: " + known));
  }

  static bool WentOut(const CallContext& call) { return call.text_went_out != nullptr && *call.text_went_out; }

  static void HandOn(const CallContext& call, const std::string& text) {
    if (text.empty()) return;
    if (call.text_went_out != nullptr) *call.text_went_out = true;
    (*call.on_text)(text);
  }

  Attempt Post(const CallContext& call, const ChatRequest& request, SchemaForm form) {
    const EndpointState& endpoint = *call.endpoint;
    HttpRequest http;
    http.url = endpoint.config.base_url + "/chat/completions";
    http.headers = {{"Content-Type", "application/json"}, {"Accept", "application/json"}};
    const bool stream = call.on_text != nullptr && *call.on_text;
    http.body = EncodeRequest(endpoint.config.model, request, form, stream);
    http.timeout = call.timeout;
    http.max_response_bytes = options.max_reply_bytes;
    // Of the bytes as well: an endpoint may refuse a key that comes again with another body (another form of a schema).
    http.headers.emplace_back("Idempotency-Key", "optod-" + Sha256Hex(Cat(call.key, "\n", http.url, "\n", http.body)).substr(0, 40));
    ChatStream reader;
    StreamRedactor redactor(call.secrets);
    if (stream) {
      http.on_body = [&](std::string_view piece) {
        if (IsCancelled(call.cancelled)) return false;
        HandOn(call, redactor.Feed(reader.Feed(piece)));
        return true;
      };
    }
    if (!endpoint.config.key.empty()) {
      http.headers.emplace_back("Authorization", std::string("Bearer ").append(endpoint.config.key.Reveal()));
    }
    absl::StatusOr<HttpResponse> response = transport.Perform(http);
    for (auto& header : http.headers) Wipe(header.second);

    Attempt attempt;
    if (!response.ok()) {
      attempt.error = TransportError(endpoint, response.status(), call.timeout);
      attempt.retryable = absl::IsUnavailable(attempt.error) && !WentOut(call);
      return attempt;
    }
    attempt.http_status = response->status;
    if (response->status == 200) {
      if (!stream) {
        attempt.outcome = ParseReply(endpoint.who, response->body, call.secrets);
        return attempt;
      }
      if (response->body.size() > 0 && !reader.Fed())
        reader.Feed(response->body);  // a transport that hands out no pieces
      attempt.outcome = reader.Finish(endpoint.who, call.secrets);
      if (LlmErrorReason(attempt.outcome.error) == "cut") {
        attempt.http_status = 0;
        attempt.error = attempt.outcome.error;
        attempt.retryable = !WentOut(call);
        return attempt;
      }
      HandOn(call, redactor.Finish());
      if (!WentOut(call)) HandOn(call, Redact(attempt.outcome.reply.text, call.secrets));  // it came in one piece
      return attempt;
    }
    attempt.error = HttpError(call, *response);
    // An account without money answers 429 too, for ever.
    attempt.retryable = IsRetryable(response->status) && response->body.find("insufficient_quota") == std::string::npos;
    attempt.retry_after = ParseRetryAfter(response->Header("retry-after"), clock.NowUnixMs());
    return attempt;
  }

  absl::StatusOr<Attempt> PostWithinLimits(const CallContext& call, const ChatRequest& request, SchemaForm form) {
    const int64_t expected = ExpectedTokens(request);
    RETURN_IF_ERROR(call.endpoint->limiter.Enter(expected, call.cancelled));
    Attempt attempt = Post(call, request, form);
    const int64_t used = attempt.outcome.reply.usage.total_tokens();
    call.endpoint->limiter.Leave(expected, attempt.http_status != 200 ? 0 : used > 0 ? used : expected);
    return attempt;
  }

  /// Walks down the forms of a schema while the endpoint answers 400 or 422, and remembers the first that it takes.
  /// When it takes none the request is at fault, not the schema: the first answer stands.
  absl::StatusOr<Attempt> PostNegotiated(const CallContext& call, const ChatRequest& request) {
    EndpointState& endpoint = *call.endpoint;
    const SchemaForm known = endpoint.form.load();
    ASSIGN_OR_RETURN(Attempt first, PostWithinLimits(call, request, known));
    const auto refused = [](const Attempt& attempt) {
      return attempt.http_status == 400 || attempt.http_status == 422;
    };
    if (!request.json_schema || endpoint.config.json_schema != SchemaSupport::kAuto || !refused(first)) return first;
    for (auto form = Simpler(known); form.has_value(); form = Simpler(*form)) {
      ASSIGN_OR_RETURN(Attempt next, PostWithinLimits(call, request, *form));
      if (next.http_status == 200) endpoint.form.store(*form);
      if (!refused(next)) return next;
    }
    return first;
  }

  /// How long to wait before the next attempt, or nullopt: give up now.
  std::optional<milliseconds> WaitAfter(const Attempt& attempt, int number) {
    if (!attempt.retryable) return std::nullopt;
    const milliseconds backoff = Backoff(number, options.first_backoff, options.max_backoff, Draw());
    if (!attempt.retry_after || attempt.retry_after->count() == 0) return backoff;
    if (*attempt.retry_after > options.max_retry_after) return std::nullopt;
    return attempt.retry_after;
  }

  /// The parsed answer (usable or not) with attempts and latency, or the error of the last attempt: then nothing was
  /// paid.
  absl::StatusOr<ChatOutcome> Ask(const CallContext& call, const ChatRequest& request) {
    const EndpointConfig& config = call.endpoint->config;
    const int64_t start = clock.NowMonotonicNs();
    for (int number = 1;; ++number) {
      ASSIGN_OR_RETURN(Attempt attempt, PostNegotiated(call, request));
      if (attempt.http_status == 200) {
        ChatReply& reply = attempt.outcome.reply;
        reply.text = Redact(std::move(reply.text),
                            call.secrets);  // an endpoint that echoes headers must not plant the key in a store
        reply.model = Redact(std::move(reply.model), call.secrets);
        reply.finish_reason = Redact(std::move(reply.finish_reason), call.secrets);
        reply.attempts = number;
        reply.latency = nanoseconds(clock.NowMonotonicNs() - start);
        reply.usage.usd =
            (static_cast<double>(reply.usage.prompt_tokens) * config.usd_per_million_prompt_tokens +
             static_cast<double>(reply.usage.completion_tokens) * config.usd_per_million_completion_tokens) /
            1e6;
        return std::move(attempt.outcome);
      }
      const std::optional<milliseconds> wait = WaitAfter(attempt, number);
      if (!wait || number >= config.max_attempts) {
        if (attempt.retry_after > options.max_retry_after) {
          return LlmError(
              attempt.error.code(), LlmErrorReason(attempt.error),
              Cat(attempt.error.message(), "; it asks to wait ", attempt.retry_after->count() / 1000, " s"));
        }
        return WithAttempts(attempt.error, number);
      }
      RETURN_IF_ERROR(SleepUnlessCancelled(clock, *wait, call.cancelled));
    }
  }

  /// The endpoint, then its fallbacks. Their own fallbacks do not count: the chain is what the one that was asked for
  /// says.
  absl::StatusOr<ChatOutcome> AskInTurn(const CallContext& asked, const ChatRequest& request, const CallOptions& how) {
    bool text_went_out = false;
    std::string others;
    CallContext call = asked;
    const std::string key = how.purpose.empty() ? Cat("call ", options.jitter_seed, " ", ++calls) : Cat("for ", how.purpose);
    for (size_t next = 0;; ++next) {
      call.key = key;
      if (how.timeout.count() > 0) call.timeout = std::min(call.timeout, how.timeout);
      call.on_text = &how.on_text;
      call.text_went_out = &text_went_out;
      EndpointState& endpoint = *call.endpoint;
      absl::StatusOr<ChatOutcome> answer = Ask(call, request);
      if (answer.ok()) {
        answer->reply.endpoint = endpoint.config.name;
        ++(answer->error.ok() ? endpoint.answered : endpoint.failed);
        endpoint.prompt_tokens += answer->reply.usage.prompt_tokens;
        endpoint.completion_tokens += answer->reply.usage.completion_tokens;
        return answer;
      }
      ++endpoint.failed;
      const bool last = next >= asked.endpoint->config.fallback.size();
      if (last || text_went_out || !WorthAFallback(answer.status())) {
        if (others.empty()) return answer.status();
        return LlmError(answer.status().code(), LlmErrorReason(answer.status()),
                        Cat(answer.status().message(), "; before it: ", others));
      }
      others += (others.empty() ? "" : "; ") + std::string(answer.status().message());
      ASSIGN_OR_RETURN(call, Prepare(asked.endpoint->config.fallback[next], asked.cancelled));
    }
  }
};

LlmGateway::LlmGateway(HttpTransport& transport, Clock& clock, GatewayOptions options)
    : impl_(new Impl(transport, clock, options)) {}
LlmGateway::~LlmGateway() = default;

absl::Status LlmGateway::SetEndpoint(EndpointConfig config) {
  RETURN_IF_ERROR(CheckEndpoint(config));
  ASSIGN_OR_RETURN(const ParsedUrl url, ParseEndpointUrl("base_url", config.base_url));
  config.base_url = url.base_url;
  const std::string name = config.name;
  auto endpoint = std::make_shared<EndpointState>(std::move(config), impl_->clock);
  std::lock_guard lock(impl_->mutex);
  impl_->endpoints.insert_or_assign(name, std::move(endpoint));
  return absl::OkStatus();
}

std::vector<std::string> LlmGateway::EndpointNames() const {
  std::lock_guard lock(impl_->mutex);
  std::vector<std::string> names;
  for (const auto& [name, endpoint] : impl_->endpoints) names.push_back(name);
  return names;
}

std::vector<EndpointTotals> LlmGateway::Totals() const {
  std::lock_guard lock(impl_->mutex);
  std::vector<EndpointTotals> totals;
  for (const auto& [name, endpoint] : impl_->endpoints) {
    totals.push_back(
        {name, endpoint->answered, endpoint->failed, endpoint->prompt_tokens, endpoint->completion_tokens});
  }
  return totals;
}

absl::StatusOr<EndpointConfig> LlmGateway::Endpoint(const std::string& name) const {
  ASSIGN_OR_RETURN(const CallContext call, impl_->Prepare(name, nullptr));
  return call.endpoint->config;
}

void LlmGateway::SetLedger(UsageLedger* ledger) { impl_->ledger = ledger; }

absl::StatusOr<ChatReply> LlmGateway::Complete(const std::string& endpoint, const ChatRequest& request, Budget* budget,
                                               const std::atomic<bool>* cancelled, Cassette* cassette) {
  CallOptions options;
  options.budget = budget;
  options.cancelled = cancelled;
  options.cassette = cassette;
  return Complete(endpoint, request, options);
}

namespace {

/// Room for one call in the session's budget and in the ledger; given back unless it is charged.
class Purse {
 public:
  Purse(Budget* budget, UsageLedger* ledger, std::string user)
      : budget_(budget), ledger_(ledger), user_(std::move(user)) {}
  ~Purse() {
    if (!open_) return;
    if (budget_ != nullptr) budget_->Release();
    if (ledger_ != nullptr) ledger_->Release(user_);
  }
  absl::Status Begin() {
    if (budget_ != nullptr) RETURN_IF_ERROR(budget_->Begin());
    if (ledger_ != nullptr) {
      if (absl::Status status = ledger_->Begin(user_); !status.ok()) {
        if (budget_ != nullptr) budget_->Release();
        return status;
      }
    }
    open_ = true;
    return absl::OkStatus();
  }
  /// `paid`: somebody was asked; what a cassette replays counts in the session's budget alone.
  void Charge(const std::string& endpoint, const ChatUsage& usage, bool paid) {
    open_ = false;
    if (budget_ != nullptr) budget_->Charge(usage);
    if (ledger_ == nullptr) return;
    if (paid)
      ledger_->Charge(user_, endpoint, usage);
    else
      ledger_->Release(user_);
  }

 private:
  Budget* budget_;
  UsageLedger* ledger_;
  const std::string user_;
  bool open_ = false;
};

}  // namespace

absl::StatusOr<ChatReply> LlmGateway::Complete(const std::string& endpoint, const ChatRequest& request,
                                               const CallOptions& options) {
  ASSIGN_OR_RETURN(ChatOutcome outcome, Exchange(endpoint, request, options));
  return std::move(outcome).Result();
}

absl::StatusOr<ChatOutcome> LlmGateway::Exchange(const std::string& endpoint, const ChatRequest& request,
                                                 const CallOptions& options) {
  RETURN_IF_ERROR(CheckRequest(request));
  Cassette* cassette = options.cassette;
  absl::StatusOr<CallContext> call = impl_->Prepare(endpoint, options.cancelled);
  const bool offline = cassette != nullptr && cassette->mode() == CassetteMode::kReplay;
  const std::string model = call.ok() ? call->endpoint->config.model : offline ? cassette->OnlyModel() : std::string();
  if (model.empty()) return call.status();
  ChatRequest safe = request;  // a prompt built from a program's output may hold a key that the program printed
  if (call.ok()) {
    for (ChatMessage& message : safe.messages) message.content = Redact(std::move(message.content), call->secrets);
  }
  if (cassette != nullptr) RETURN_IF_ERROR(cassette->Health());
  if (IsCancelled(options.cancelled)) return LlmError(absl::StatusCode::kCancelled, "cancelled", "llm call: cancelled");

  const auto whole = [&](ChatOutcome outcome) {  // what did not come from a stream comes in one piece
    if (outcome.error.ok() && options.on_text) options.on_text(outcome.reply.text);
    return outcome;
  };
  const bool caching = cassette == nullptr && call.ok() && call->endpoint->config.cache;
  const std::string cache_key = caching ? Sha256Hex(CanonicalRequest(model, safe)) : "";
  if (caching) {
    if (std::optional<ChatReply> found = impl_->cache.Find(cache_key))
      return whole(ChatOutcome{*std::move(found), absl::OkStatus()});
  }
  Purse purse(options.budget, impl_->ledger, options.user);
  RETURN_IF_ERROR(purse.Begin());
  std::optional<Cassette::Ticket> ticket;
  if (cassette != nullptr) {
    ticket = cassette->Take(model, safe);
    if (std::optional<ChatOutcome> found = cassette->Find(*ticket)) {
      if (LlmErrorReason(found->error) == "not_recorded") return found->error;
      purse.Charge(endpoint, found->reply.usage, false);
      return whole(*std::move(found));
    }
  }
  absl::StatusOr<ChatOutcome> answer = impl_->AskInTurn(*call, safe, options);
  if (!answer.ok()) return answer.status();
  purse.Charge(answer->reply.endpoint, answer->reply.usage, true);
  if (ticket) cassette->Record(*ticket, *answer);
  if (caching && answer->error.ok()) impl_->cache.Put(cache_key, answer->reply);
  return answer;
}

}  // namespace optod::trace

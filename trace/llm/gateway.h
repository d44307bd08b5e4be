#pragma once
/// The one door to language models. It knows the endpoints by name, holds their keys, and does what every caller would
/// otherwise do by itself: limits, retries, budgets, schema negotiation, record and replay. Thread-safe; Complete
/// blocks its caller.
///
///   Complete -> cassette? -> budget -> concurrency and rate limits -> POST {base_url}/chat/completions -> read ->
///   charge -> cassette
///                                             ^                                    |
///                                             +---- wait: Retry-After or backoff --+  connect errors, 408, 429, 5xx
///
/// Errors; LlmErrorReason() gives the word in brackets. Messages name the endpoint, never its key; what an endpoint
/// sent is quoted up to 200 characters with known keys replaced.
///   NOT_FOUND            no endpoint of that name [unknown_endpoint]; not in the cassette (replay) [not_recorded]
///   INVALID_ARGUMENT     the request is wrong [bad_request], or the endpoint answered 400, 404, 413, 422 ... [refused]
///   FAILED_PRECONDITION  401, 403: the key was refused [key_refused]; the answer is not what the API promises
///   [malformed] UNAVAILABLE          cannot connect, connection broke [unreachable]; 5xx [server_error]; an empty
///   reply [empty] DEADLINE_EXCEEDED    no answer within the endpoint's timeout [timeout]; not retried: a slow model
///   would only be asked again RESOURCE_EXHAUSTED   429 after all attempts [rate_limited]; `llm budget: ...` [budget];
///   a reply over 1 MiB [oversize] CANCELLED            [cancelled]

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/http_transport.h"
#include "trace/llm/budget.h"
#include "trace/llm/cassette.h"
#include "trace/llm/chat.h"
#include "trace/llm/endpoint.h"

namespace optod::trace {

struct GatewayOptions {
  std::chrono::milliseconds first_backoff{500};  ///< doubled after each attempt; each wait is drawn from its upper half
  std::chrono::milliseconds max_backoff{30'000};
  std::chrono::milliseconds max_retry_after{120'000};  ///< an endpoint that asks for more is given up at once
  size_t max_reply_bytes = 1u << 20;
  uint64_t jitter_seed = 0;        ///< main draws it from the kernel; a fixed one makes waits repeatable. Calls without
                                   ///< a purpose take their idempotency keys from it
  size_t cache_bytes = 64u << 20;  ///< of the replies of endpoints with `cache`
};

/// Who is told of every call that was paid, and may refuse one before it is made: budgets by user and by day live
/// there. Thread-safe.
class UsageLedger {
 public:
  virtual ~UsageLedger() = default;
  /// RESOURCE_EXHAUSTED [budget]: what the user may spend is spent. Counts the call as under way.
  virtual absl::Status Begin(const std::string& user) = 0;
  /// A call that was begun was answered.
  virtual void Charge(const std::string& user, const std::string& endpoint, const ChatUsage& usage) = 0;
  /// A call that was begun was not answered.
  virtual void Release(const std::string& user) = 0;
};

/// How one call is made. All pointers may be null.
struct CallOptions {
  std::string user;          ///< for the ledger; "" = the server itself
  Budget* budget = nullptr;  ///< of the session or the run
  const std::atomic<bool>* cancelled =
      nullptr;  ///< looked at about every 50 ms while waiting, and with each piece of a stream
  Cassette* cassette = nullptr;
  std::chrono::milliseconds timeout{0};  ///< of an attempt, when shorter than the endpoint's; 0 = the endpoint's
  /// What this call is for, in words that are the same when the work is done again after a crash. It becomes the header
  /// `Idempotency-Key`, so that an endpoint that knows the header answers from what it has and charges once. "": a key
  /// of the call's own, the same for its attempts.
  std::string purpose;
  /// The reply is streamed: called with each new piece of text, in order, on the calling thread. A reply from the
  /// cassette, the cache or an endpoint that does not stream comes in one piece. After the first piece nothing is tried
  /// again and no fallback asked: the text would come twice.
  std::function<void(std::string_view text)> on_text;
};

/// What was asked of an endpoint since the start. Replies from a cassette are not counted: nobody was asked.
struct EndpointTotals {
  std::string name;
  int64_t answered = 0, failed = 0;  ///< calls of Complete, whatever the number of attempts
  int64_t prompt_tokens = 0, completion_tokens = 0;
};

class LlmGateway {
 public:
  /// `transport` and `clock` must outlive it.
  LlmGateway(HttpTransport& transport, Clock& clock, GatewayOptions options = {});
  ~LlmGateway();

  /// Adds or replaces. Calls under way keep the old configuration. INVALID_ARGUMENT as CheckEndpoint.
  absl::Status SetEndpoint(EndpointConfig config);
  /// Sorted.
  std::vector<std::string> EndpointNames() const;
  /// By name. An endpoint that was replaced begins anew.
  std::vector<EndpointTotals> Totals() const;
  /// What prompts may be built for. NOT_FOUND names the endpoints there are, or says how to define one.
  absl::StatusOr<EndpointConfig> Endpoint(const std::string& name) const;

  /// As Complete, but a paid answer that cannot be used (empty, malformed) comes back with its usage instead of as an
  /// error.
  absl::StatusOr<ChatOutcome> Exchange(const std::string& endpoint, const ChatRequest& request,
                                       const CallOptions& options);

  /// One reply. `budget`, `cancelled` and `cassette` may be null; `cancelled` is looked at about every 50 ms while
  /// waiting (a request that is already on the wire runs to its end or its timeout, since it is paid for). Replayed
  /// replies are charged to the budget as recorded, so that a replayed run ends where the recorded one ended.
  absl::StatusOr<ChatReply> Complete(const std::string& endpoint, const ChatRequest& request, Budget* budget = nullptr,
                                     const std::atomic<bool>* cancelled = nullptr, Cassette* cassette = nullptr);
  /// The same with everything. When the endpoint is [unreachable], [server_error], [timeout], [rate_limited] or [cut]
  /// its fallbacks are asked in turn, each with its own retries; the last error says who was asked. A cassette records
  /// under the endpoint that was asked for.
  absl::StatusOr<ChatReply> Complete(const std::string& endpoint, const ChatRequest& request,
                                     const CallOptions& options);

  /// Must outlive the gateway's calls; nullptr = none. Set once, before the first call.
  void SetLedger(UsageLedger* ledger);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The word for an error of this module (see the table above); "" for any other status.
std::string LlmErrorReason(const absl::Status& status);

}  // namespace optod::trace

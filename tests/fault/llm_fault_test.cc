// The gateway against a real endpoint over TCP that misbehaves in every way that endpoints do. A table: what it sends,
// what the caller is told, and how often it was asked.
#include <atomic>
#include <string>
#include <thread>

#include "../unit/base/scripted_http_server.h"
#include "gtest/gtest.h"
#include "trace/llm/gateway.h"

namespace optod::trace {
namespace {

using std::chrono::milliseconds;

const std::string kGood = HttpAnswer(
    200,
    R"({"model":"m","choices":[{"message":{"content":"good"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1}})");

std::string Event(const std::string& text) {
  return "data: {\"choices\":[{\"delta\":{\"content\":\"" + text + "\"}}]}\n\n";
}

/// A stream whose end is the end of the connection.
std::string Stream(const std::string& events) {
  return "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + events;
}

const std::string kWholeStream =
    Stream(Event("one ") + ": keep-alive\n\n" + Event("two") +
           "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\r\n\r\ndata: [DONE]\n\n");

ChatRequest Hello() {
  ChatRequest request;
  request.messages = {{"user", "hello"}};
  return request;
}

EndpointConfig To(const ScriptedHttpServer& server, const std::string& name = "default") {
  EndpointConfig config;
  config.name = name;
  config.base_url = server.url() + "/v1";
  config.model = "m";
  config.key = Secret("key-canary-7781");
  config.max_attempts = 3;
  config.timeout = milliseconds(20'000);
  return config;
}

/// A gateway over TCP whose waits take no time.
struct Door {
  explicit Door(GatewayOptions options = {}) : gateway(*transport, clock, options) {}
  const std::unique_ptr<HttpTransport> transport = MakeCurlTransport();
  FakeClock clock;
  LlmGateway gateway;
};

struct Fault {
  const char* name;
  std::vector<std::string> answers;
  const char* reason;   ///< of the error; "" = it succeeds
  const char* message;  ///< part of the message, or the reply's text
  size_t asked;
  int timeout_ms = 20'000;
};
const Fault kFaults[] = {
    {"retry_after_once", {HttpAnswer(429, "slow down", "Retry-After: 3\r\n"), kGood}, "", "good", 2},
    {"retry_after_date", {HttpAnswer(429, "", "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT\r\n"), kGood}, "", "good", 2},
    {"retry_after_too_long",
     {HttpAnswer(429, "", "Retry-After: 100000\r\n"), kGood},
     "rate_limited",
     "it asks to wait 100000 s",
     1},
    {"rate_limited_for_ever",
     {HttpAnswer(429, R"({"error":{"message":"quota"}})")},
     "rate_limited",
     "too many requests (429): quota; 3 attempts",
     3},
    {"no_money", {HttpAnswer(429, R"({"error":{"code":"insufficient_quota"}})")}, "rate_limited", "429", 1},
    {"fails_twice", {HttpAnswer(500, "oops"), HttpAnswer(503, ""), kGood}, "", "good", 3},
    {"fails_for_ever", {HttpAnswer(500, "oops")}, "server_error", "the server failed (500): oops; 3 attempts", 3},
    {"drops_twice", {kDrop, kDrop, kGood}, "", "good", 3},
    {"malformed_json",
     {HttpAnswer(200, "{\"choices\": [")},
     "malformed",
     "the answer is not JSON; it sent: {\"choices\": [",
     1},
    {"html", {HttpAnswer(200, "<html>hi</html>")}, "malformed", "it sent: <html>hi</html>", 1},
    {"no_choices", {HttpAnswer(200, "{\"choices\":[]}")}, "malformed", "no choices", 1},
    {"empty_body", {HttpAnswer(200, "")}, "malformed", "200 without a body", 1},
    {"empty_text", {HttpAnswer(200, R"({"choices":[{"message":{"content":""}}]})")}, "empty", "the reply is empty", 1},
    {"one_megabyte", {HttpAnswer(200, std::string(1u << 20, ' ') + "{}")}, "oversize", "too large", 1},
    {"nested_brackets", {HttpAnswer(200, std::string(500'000, '['))}, "malformed", "not JSON", 1},
    {"hangs", {kHang}, "timeout", "no complete reply within 200 ms", 1, 200},
    {"cut_in_the_body", {"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"cho", kGood}, "", "good", 2},
    {"not_http", {"SSH-2.0-OpenSSH\r\n\r\n Content-Length"}, "unreachable", "cannot be reached", 3},
    {"key_refused", {HttpAnswer(401, "no")}, "key_refused", "the key was refused (401)", 1},
    {"echoes_the_key", {HttpAnswer(400, "bad header Bearer key-canary-7781")}, "refused", "Bearer [redacted]", 1},
    {"redirect",
     {HttpAnswer(302, "", "Location: http://127.0.0.1:1/\r\n")},
     "malformed",
     "redirects are not followed",
     1},
};

class LlmFaultTest : public ::testing::TestWithParam<Fault> {};
TEST_P(LlmFaultTest, IsTold) {
  const ScriptedHttpServer server(GetParam().answers);
  Door door;
  LlmGateway& gateway = door.gateway;
  EndpointConfig config = To(server);
  config.timeout = milliseconds(GetParam().timeout_ms);
  ASSERT_TRUE(gateway.SetEndpoint(config).ok());
  const auto reply = gateway.Complete("default", Hello());
  const std::string text = reply.ok() ? reply->text : std::string(reply.status().message());
  EXPECT_EQ(LlmErrorReason(reply.status()), GetParam().reason) << text;
  EXPECT_NE(text.find(GetParam().message), std::string::npos) << text;
  EXPECT_EQ(text.find("canary"), std::string::npos) << text;
  EXPECT_EQ(server.seen().size(), GetParam().asked);
}
INSTANTIATE_TEST_SUITE_P(All, LlmFaultTest, ::testing::ValuesIn(kFaults),
                         [](const auto& info) { return info.param.name; });

// --- streams

struct StreamFault {
  const char* name;
  std::vector<std::string> answers;
  const char* reason;
  const char* shown;  ///< what the reader got, joined
  size_t asked;
};
const StreamFault kStreams[] = {
    {"whole", {kWholeStream}, "", "one two", 1},
    {"endpoint_that_does_not_stream", {kGood}, "", "good", 1},
    {"fails_before_it_begins", {HttpAnswer(500, ""), kWholeStream}, "", "one two", 2},
    {"cut_before_any_text", {Stream(": hello\n\ndata: {\"choices\":[]}\n\n"), kWholeStream}, "", "one two", 2},
    {"not_json", {Stream("data: {\"cho\n\n")}, "malformed", "", 1},
    {"no_text",
     {Stream("data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n")},
     "empty",
     "",
     1},
};
class StreamFaultTest : public ::testing::TestWithParam<StreamFault> {};
TEST_P(StreamFaultTest, IsTold) {
  const ScriptedHttpServer server(GetParam().answers);
  Door door;
  LlmGateway& gateway = door.gateway;
  ASSERT_TRUE(gateway.SetEndpoint(To(server)).ok());
  std::string shown;
  CallOptions options;
  options.on_text = [&](std::string_view text) { shown += text; };
  const auto reply = gateway.Complete("default", Hello(), options);
  EXPECT_EQ(LlmErrorReason(reply.status()), GetParam().reason) << reply.status();
  EXPECT_EQ(shown, GetParam().shown);
  EXPECT_TRUE(!reply.ok() || reply->text == shown);
  EXPECT_EQ(server.seen().size(), GetParam().asked);
  EXPECT_NE(server.seen()[0].body.find("\"stream\":true"), std::string::npos);
}
INSTANTIATE_TEST_SUITE_P(All, StreamFaultTest, ::testing::ValuesIn(kStreams),
                         [](const auto& info) { return info.param.name; });

TEST(LlmStream, CutAfterTextIsNotTriedAgain) {
  const std::string text(200, 'x');  // more than is held back for redaction
  const ScriptedHttpServer server({Stream(Event(text)), kWholeStream});
  Door door;
  LlmGateway& gateway = door.gateway;
  ASSERT_TRUE(gateway.SetEndpoint(To(server)).ok());
  std::string shown;
  CallOptions options;
  options.on_text = [&](std::string_view piece) { shown += piece; };
  const auto reply = gateway.Complete("default", Hello(), options);
  EXPECT_EQ(LlmErrorReason(reply.status()), "cut") << reply.status();
  EXPECT_FALSE(shown.empty());
  EXPECT_EQ(server.seen().size(), 1u);
}

TEST(LlmStream, UsageComesFromTheLastEvent) {
  const ScriptedHttpServer server({kWholeStream});
  Door door;
  LlmGateway& gateway = door.gateway;
  EndpointConfig config = To(server);
  config.usd_per_million_prompt_tokens = 1'000'000;
  ASSERT_TRUE(gateway.SetEndpoint(config).ok());
  Budget budget;
  CallOptions options;
  options.budget = &budget;
  options.on_text = [](std::string_view) {};
  ASSERT_TRUE(gateway.Complete("default", Hello(), options).ok());
  EXPECT_EQ(budget.used().prompt_tokens, 7);
  EXPECT_EQ(budget.used().completion_tokens, 2);
  EXPECT_EQ(budget.used().usd, 7);
}

TEST(LlmStream, ASecretInTwoPiecesStaysIn) {
  const ScriptedHttpServer server({Stream(Event("a key-cana") + Event("ry-7781 b") + "data: [DONE]\n\n")});
  Door door;
  LlmGateway& gateway = door.gateway;
  ASSERT_TRUE(gateway.SetEndpoint(To(server)).ok());
  std::string shown;
  CallOptions options;
  options.on_text = [&](std::string_view piece) { shown += piece; };
  const auto reply = gateway.Complete("default", Hello(), options);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(shown, "a [redacted] b");
  EXPECT_EQ(reply->text, shown);
}

TEST(LlmStream, CancelEndsIt) {
  std::atomic<bool> cancelled{false};
  std::string events;
  for (int i = 0; i < 20'000; ++i) events += Event("xxxxxxxxxxxxxxxxxxxxxxxx");
  const ScriptedHttpServer server({Stream(events)});
  GatewayOptions limits;
  limits.max_reply_bytes = 64u << 20;
  Door door(limits);
  LlmGateway& gateway = door.gateway;
  ASSERT_TRUE(gateway.SetEndpoint(To(server)).ok());
  CallOptions options;
  options.cancelled = &cancelled;
  options.on_text = [&](std::string_view) { cancelled = true; };
  EXPECT_EQ(gateway.Complete("default", Hello(), options).status().code(), absl::StatusCode::kCancelled);
}

// --- several endpoints

TEST(LlmFallback, TheNextIsAskedAndNamed) {
  const ScriptedHttpServer broken({HttpAnswer(500, "down")}), busy({HttpAnswer(429, "busy")}), good({kGood});
  Door door;
  LlmGateway& gateway = door.gateway;
  EndpointConfig first = To(broken);
  first.fallback = {"busy", "good"};
  ASSERT_TRUE(gateway.SetEndpoint(first).ok());
  ASSERT_TRUE(gateway.SetEndpoint(To(busy, "busy")).ok());
  ASSERT_TRUE(gateway.SetEndpoint(To(good, "good")).ok());
  Budget budget;
  const auto reply = gateway.Complete("default", Hello(), &budget);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->endpoint, "good");
  EXPECT_EQ(budget.used().calls, 1);
  EXPECT_EQ(broken.seen().size(), 3u);
  EXPECT_EQ(busy.seen().size(), 3u);
}

TEST(LlmFallback, WhenAllFailTheErrorNamesThemAll) {
  const ScriptedHttpServer broken({HttpAnswer(500, "down")}), busy({HttpAnswer(429, "busy")});
  Door door;
  LlmGateway& gateway = door.gateway;
  EndpointConfig first = To(broken);
  first.fallback = {"busy"};
  ASSERT_TRUE(gateway.SetEndpoint(first).ok());
  ASSERT_TRUE(gateway.SetEndpoint(To(busy, "busy")).ok());
  const auto reply = gateway.Complete("default", Hello());
  const std::string message(reply.status().message());
  EXPECT_EQ(LlmErrorReason(reply.status()), "rate_limited");
  EXPECT_NE(message.find("llm endpoint busy"), std::string::npos);
  EXPECT_NE(message.find("before it: llm endpoint default: the server failed (500)"), std::string::npos) << message;
}

TEST(LlmFallback, ABadRequestGoesNoFurther) {
  const ScriptedHttpServer strict({HttpAnswer(400, "no")}), good({kGood});
  Door door;
  LlmGateway& gateway = door.gateway;
  EndpointConfig first = To(strict);
  first.fallback = {"good"};
  ASSERT_TRUE(gateway.SetEndpoint(first).ok());
  ASSERT_TRUE(gateway.SetEndpoint(To(good, "good")).ok());
  EXPECT_EQ(LlmErrorReason(gateway.Complete("default", Hello()).status()), "refused");
  EXPECT_TRUE(good.seen().empty());
}

TEST(LlmCache, EqualRequestsArePaidOnce) {
  const ScriptedHttpServer server({kGood});
  Door door;
  LlmGateway& gateway = door.gateway;
  EndpointConfig config = To(server);
  config.cache = true;
  ASSERT_TRUE(gateway.SetEndpoint(config).ok());
  Budget budget;
  ASSERT_TRUE(gateway.Complete("default", Hello(), &budget).ok());
  const auto again = gateway.Complete("default", Hello(), &budget);
  ASSERT_TRUE(again.ok());
  EXPECT_TRUE(again->cached);
  EXPECT_EQ(again->text, "good");
  EXPECT_EQ(again->usage.total_tokens(), 0);
  ChatRequest other = Hello();
  other.seed = 1;
  ASSERT_TRUE(gateway.Complete("default", other, &budget).ok());
  EXPECT_EQ(server.seen().size(), 2u);
  EXPECT_EQ(budget.used().calls, 2);
}

class CountingLedger : public UsageLedger {
 public:
  absl::Status Begin(const std::string& user) override {
    if (charged >= limit) return absl::ResourceExhaustedError(user + " has spent it");
    ++under_way;
    return absl::OkStatus();
  }
  void Charge(const std::string& user, const std::string& endpoint, const ChatUsage& usage) override {
    --under_way;
    ++charged;
    last = user + " " + endpoint + " " + std::to_string(usage.total_tokens());
  }
  void Release(const std::string&) override { --under_way; }
  int under_way = 0, charged = 0, limit = 2;
  std::string last;
};

TEST(LlmLedger, IsAskedBeforeAndToldAfter) {
  const ScriptedHttpServer server({HttpAnswer(400, ""), kGood});
  Door door;
  LlmGateway& gateway = door.gateway;
  CountingLedger ledger;
  gateway.SetLedger(&ledger);
  ASSERT_TRUE(gateway.SetEndpoint(To(server)).ok());
  CallOptions options;
  options.user = "ann";
  Budget budget;
  options.budget = &budget;
  EXPECT_FALSE(gateway.Complete("default", Hello(), options).ok());
  EXPECT_EQ(ledger.under_way, 0);
  EXPECT_TRUE(gateway.Complete("default", Hello(), options).ok());
  EXPECT_EQ(ledger.last, "ann default 4");
  EXPECT_TRUE(gateway.Complete("default", Hello(), options).ok());
  const auto refused = gateway.Complete("default", Hello(), options);
  EXPECT_EQ(refused.status().message(), "ann has spent it");
  EXPECT_EQ(ledger.under_way, 0);
  EXPECT_EQ(budget.used().calls, 2);
  EXPECT_EQ(server.seen().size(), 3u);
}

}  // namespace
}  // namespace optod::trace

#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "../base/scripted_http_server.h"
#include "base/random_id.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "trace/llm/gateway.h"

// The gateway over the real transport against a server that misbehaves. The clock is a fake: waits take no time and are
// exact.

namespace optod::trace {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::Not;

constexpr char kKey[] = "sk-canary-0123456789";

std::string ReplyJson(const std::string& text, int prompt_tokens = 10, int completion_tokens = 5) {
  return nlohmann::json{
      {"model", "served"},
      {"choices", {{{"index", 0}, {"finish_reason", "stop"}, {"message", {{"role", "assistant"}, {"content", text}}}}}},
      {"usage", {{"prompt_tokens", prompt_tokens}, {"completion_tokens", completion_tokens}}}}
      .dump();
}

std::string Good(const std::string& text = "hello") { return HttpAnswer(200, ReplyJson(text)); }

ChatRequest Ask(const std::string& text = "hi") {
  ChatRequest request;
  request.messages = {{"system", "be brief"}, {"user", text}};
  request.temperature = 0.5;
  request.seed = 1;
  return request;
}

ChatRequest AskForJson() {
  ChatRequest request = Ask();
  request.json_schema =
      JsonSchema{"answer", R"({"type":"object","properties":{"z":{"type":"string"},"a":{"type":"integer"}}})"};
  return request;
}

/// One endpoint `default` on a scripted server.
struct World {
  explicit World(
      ScriptedHttpServer& server, std::function<void(EndpointConfig&)> adjust = [](EndpointConfig&) {})
      : transport(MakeCurlTransport()), gateway(*transport, clock) {
    EndpointConfig config;
    config.base_url = server.url() + "/v1";
    config.model = "m1";
    config.key = Secret(kKey);
    config.timeout = milliseconds(20'000);
    config.max_attempts = 3;
    adjust(config);
    EXPECT_TRUE(gateway.SetEndpoint(std::move(config)).ok());
  }
  int64_t waited_ms() { return clock.NowMonotonicNs() / 1'000'000; }

  FakeClock clock;
  std::unique_ptr<HttpTransport> transport;
  LlmGateway gateway;
};

nlohmann::json Body(const ScriptedHttpServer& server, size_t request) {
  return nlohmann::json::parse(server.seen().at(request).body);
}

TEST(LlmGateway, SendsTheRequestAndReadsTheReply) {
  ScriptedHttpServer server({Good("the answer")});
  World world(server, [](EndpointConfig& config) {
    config.usd_per_million_prompt_tokens = 2;
    config.usd_per_million_completion_tokens = 8;
  });
  auto request = Ask("what?");
  request.stop = {"END"};
  const auto reply = world.gateway.Complete("default", request);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->text, "the answer");
  EXPECT_EQ(reply->finish_reason, "stop");
  EXPECT_EQ(reply->model, "served");
  EXPECT_EQ(reply->usage.prompt_tokens, 10);
  EXPECT_EQ(reply->usage.completion_tokens, 5);
  EXPECT_DOUBLE_EQ(reply->usage.usd, (10 * 2 + 5 * 8) / 1e6);
  EXPECT_EQ(reply->attempts, 1);
  EXPECT_FALSE(reply->replayed);
  EXPECT_THAT(server.seen()[0].head, HasSubstr("POST /v1/chat/completions HTTP/1.1"));
  EXPECT_THAT(server.seen()[0].head, HasSubstr(std::string("Authorization: Bearer ") + kKey));
  EXPECT_EQ(Body(server, 0), nlohmann::json::parse(R"({"model":"m1","messages":[{"role":"system","content":"be brief"},
      {"role":"user","content":"what?"}],"temperature":0.5,"max_tokens":1024,"seed":1,"stop":["END"]})"));
}

struct Case {
  const char* name;
  std::vector<std::string> answers;
  absl::StatusCode code;
  const char* reason;
  const char* message;  ///< part of it
  size_t requests;      ///< that reached the server
};

class LlmGatewayErrors : public testing::TestWithParam<Case> {};

TEST_P(LlmGatewayErrors, AreTypedAndHoldNoKey) {
  const Case& test = GetParam();
  ScriptedHttpServer server(test.answers);
  World world(server, [&](EndpointConfig& config) {
    if (test.answers[0] == kHang) config.timeout = milliseconds(150);
  });
  Budget budget;
  const auto reply = world.gateway.Complete("default", Ask(), &budget);
  EXPECT_EQ(reply.status().code(), test.code) << reply.status();
  EXPECT_EQ(LlmErrorReason(reply.status()), test.reason) << reply.status();
  const std::string message(reply.status().message());
  EXPECT_THAT(message, HasSubstr(test.message));
  EXPECT_THAT(message, Not(HasSubstr("canary")));
  if (test.code != absl::StatusCode::kOk) {
    EXPECT_THAT(message, HasSubstr("llm endpoint default: "));
  }
  EXPECT_LT(message.size(), 450u);
  EXPECT_EQ(server.seen().size(), test.requests);
}

const std::string kBad = HttpAnswer(500, R"({"error":{"message":"boom sk-canary-0123456789"}})");
const std::string kBusy = HttpAnswer(429, R"({"error":"slow down"})", "Retry-After: 7\r\n");
using enum absl::StatusCode;
const Case kCases[] = {
    {"ok_after_500s", {kBad, kBad, Good()}, kOk, "", "", 3},
    {"ok_after_429", {kBusy, Good()}, kOk, "", "", 2},
    {"ok_after_408", {HttpAnswer(408, ""), Good()}, kOk, "", "", 2},
    {"ok_after_dropped", {kDrop, Good()}, kOk, "", "", 2},
    {"always_500", {kBad}, kUnavailable, "server_error", "the server failed (500): boom [redacted]; 3 attempts", 3},
    {"always_429", {kBusy}, kResourceExhausted, "rate_limited", "too many requests (429): slow down; 3 attempts", 3},
    {"no_money",
     {HttpAnswer(429, R"({"error":{"code":"insufficient_quota","message":"pay"}})")},
     kResourceExhausted,
     "rate_limited",
     "pay",
     1},
    {"wait_too_long",
     {HttpAnswer(429, "", "Retry-After: 86400\r\n")},
     kResourceExhausted,
     "rate_limited",
     "asks to wait 86400 s",
     1},
    {"always_dropped", {kDrop}, kUnavailable, "unreachable", "cannot be reached", 3},
    {"hang", {kHang}, kDeadlineExceeded, "timeout", "no complete reply within 150 ms", 1},
    {"key_401",
     {HttpAnswer(401, "sk-canary-0123456789")},
     kFailedPrecondition,
     "key_refused",
     "the key was refused (401)",
     1},
    {"key_403", {HttpAnswer(403, "")}, kFailedPrecondition, "key_refused", "the key was refused (403)", 1},
    {"refused_400",
     {HttpAnswer(400, R"({"error":{"message":"too long"}})")},
     kInvalidArgument,
     "refused",
     "refused the request (400): too long",
     1},
    {"refused_404", {HttpAnswer(404, "nope")}, kInvalidArgument, "refused", "does the URL end in /v1?", 1},
    {"refused_409", {HttpAnswer(409, "")}, kInvalidArgument, "refused", "(409)", 1},
    {"redirect",
     {HttpAnswer(302, "", "Location: http://x/\r\n")},
     kFailedPrecondition,
     "malformed",
     "unexpected HTTP status 302",
     1},
    {"no_body", {HttpAnswer(200, "")}, kFailedPrecondition, "malformed", "the answer is empty", 1},
    {"html",
     {HttpAnswer(200, "<html>proxy\n\x01 sk-canary-0123456789")},
     kFailedPrecondition,
     "malformed",
     "not JSON; it sent: <html>proxy   [redacted]",
     1},
    {"cut_json", {HttpAnswer(200, ReplyJson("hello").substr(0, 40))}, kFailedPrecondition, "malformed", "not JSON", 1},
    {"not_utf8",
     {HttpAnswer(200, "{\"a\":\"\xff\xfe\"}")},
     kFailedPrecondition,
     "malformed",
     "it sent: {\"a\":\"??\"}",
     1},
    {"deep", {HttpAnswer(200, std::string(100'000, '['))}, kFailedPrecondition, "malformed", "not JSON", 1},
    {"array", {HttpAnswer(200, "[1]")}, kFailedPrecondition, "malformed", "no choices", 1},
    {"no_choices", {HttpAnswer(200, R"({"choices":[]})")}, kFailedPrecondition, "malformed", "no choices", 1},
    {"odd_choices", {HttpAnswer(200, R"({"choices":[7]})")}, kFailedPrecondition, "malformed", "has no message", 1},
    {"odd_message",
     {HttpAnswer(200, R"({"choices":[{"message":"text"}]})")},
     kFailedPrecondition,
     "malformed",
     "has no message",
     1},
    {"empty_content",
     {HttpAnswer(200, ReplyJson(""))},
     kUnavailable,
     "empty",
     "the reply is empty (finish_reason stop, 5 tokens)",
     1},
    {"null_content",
     {HttpAnswer(200, R"({"choices":[{"message":{"content":null},"finish_reason":"length"}]})")},
     kUnavailable,
     "empty",
     "finish_reason length",
     1},
    {"refusal",
     {HttpAnswer(200, R"({"choices":[{"message":{"content":null,"refusal":"I will not"}}]})")},
     kUnavailable,
     "empty",
     "the model refused: I will not",
     1},
    {"reply_over_1_mib",
     {HttpAnswer(200, ReplyJson(std::string(1 << 20, 'x')))},
     kResourceExhausted,
     "oversize",
     "too large",
     1},
    {"reply_of_almost_1_mib", {HttpAnswer(200, ReplyJson(std::string(1'000'000, 'x')))}, kOk, "", "", 1},
};
INSTANTIATE_TEST_SUITE_P(Trace, LlmGatewayErrors, testing::ValuesIn(kCases),
                         [](const auto& info) { return info.param.name; });

TEST(LlmGateway, NobodyListens) {
  auto server = std::make_unique<ScriptedHttpServer>(std::vector<std::string>{kDrop});
  World world(*server);
  server.reset();
  const auto status = world.gateway.Complete("default", Ask()).status();
  EXPECT_EQ(status.code(), kUnavailable);
  EXPECT_EQ(LlmErrorReason(status), "unreachable");
  EXPECT_THAT(std::string(status.message()), HasSubstr("3 attempts"));
}

TEST(LlmGateway, NoKeySetIsSaid) {
  ScriptedHttpServer server({HttpAnswer(401, "")});
  World world(server, [](EndpointConfig& config) { config.key = Secret(); });
  EXPECT_THAT(std::string(world.gateway.Complete("default", Ask()).status().message()),
              HasSubstr("it wants a key and none is set (401)"));
  EXPECT_THAT(server.seen()[0].head, Not(HasSubstr("Authorization")));
}

TEST(LlmGateway, WaitsAsLongAsTheServerAsks) {
  const struct {
    const char* header;
    int64_t want_ms;
  } kWaits[] = {{"Retry-After: 7\r\n", 7'000},
                // The fake clock starts at 2023-11-14 22:13:20 UTC.
                {"Retry-After: Tue, 14 Nov 2023 22:13:50 GMT\r\n", 30'000}};
  for (const auto& test : kWaits) {
    ScriptedHttpServer server({HttpAnswer(429, "", test.header), Good()});
    World world(server);
    const auto reply = world.gateway.Complete("default", Ask());
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(world.waited_ms(), test.want_ms) << test.header;
    EXPECT_EQ(reply->attempts, 2);
    EXPECT_EQ(reply->latency, milliseconds(test.want_ms));
  }
}

std::string IdempotencyKey(const ScriptedHttpServer& server, size_t request) {
  const std::string head = server.seen().at(request).head, name = "Idempotency-Key: ";
  const size_t begin = head.find(name);
  return begin == std::string::npos ? "" : head.substr(begin + name.size(), head.find("\r\n", begin) - begin - name.size());
}

TEST(LlmGateway, AttemptsOfACallShareAnIdempotencyKeyAndCallsDoNot) {
  ScriptedHttpServer server({HttpAnswer(500, "{}"), Good(), Good()});
  World world(server);
  ASSERT_TRUE(world.gateway.Complete("default", Ask()).ok());
  ASSERT_TRUE(world.gateway.Complete("default", Ask()).ok());  // the same request, another call
  EXPECT_THAT(IdempotencyKey(server, 0), testing::MatchesRegex("optod-[0-9a-f]+"));
  EXPECT_EQ(IdempotencyKey(server, 1), IdempotencyKey(server, 0));
  EXPECT_NE(IdempotencyKey(server, 2), IdempotencyKey(server, 0));
}

TEST(LlmGateway, APurposeHasTheSameIdempotencyKeyInAnotherProcess) {
  ScriptedHttpServer server({Good(), Good(), Good(), Good()});
  const auto ask = [&](const std::string& purpose, const std::string& text) {
    World world(server);  // as after a crash: nothing is remembered
    CallOptions options;
    options.purpose = purpose;
    ASSERT_TRUE(world.gateway.Complete("default", Ask(text), options).ok());
  };
  ask("session a, call 1", "x");
  ask("session a, call 1", "x");
  ask("session a, call 2", "x");
  ask("session a, call 1", "y");
  EXPECT_EQ(IdempotencyKey(server, 1), IdempotencyKey(server, 0));
  EXPECT_NE(IdempotencyKey(server, 2), IdempotencyKey(server, 0));
  EXPECT_NE(IdempotencyKey(server, 3), IdempotencyKey(server, 0)) << "another body under the same key is an error of the caller";
}

TEST(LlmGateway, BackoffGrows) {
  ScriptedHttpServer server({kBad});
  World world(server, [](EndpointConfig& config) { config.max_attempts = 5; });
  EXPECT_FALSE(world.gateway.Complete("default", Ask()).ok());
  // 500 + 1000 + 2000 + 4000 ms, each at least half.
  EXPECT_GE(world.waited_ms(), 3'750);
  EXPECT_LE(world.waited_ms(), 7'500);
}

TEST(LlmGateway, SchemaIsAskedForAndForgottenWhenRefused) {
  ScriptedHttpServer server([](const SeenRequest& request) {
    const auto body = nlohmann::json::parse(request.body);
    return body.contains("response_format") ? HttpAnswer(400, "unknown field response_format") : Good("{}");
  });
  World world(server);
  ASSERT_TRUE(world.gateway.Complete("default", AskForJson()).ok());
  ASSERT_TRUE(world.gateway.Complete("default", AskForJson()).ok());
  ASSERT_EQ(server.seen().size(), 4u) << "json_schema, json_object, plain; then plain at once";
  EXPECT_EQ(Body(server, 0)["response_format"]["type"], "json_schema");
  EXPECT_EQ(Body(server, 0)["response_format"]["json_schema"]["strict"], true);
  EXPECT_THAT(server.seen()[0].body, HasSubstr(R"("properties":{"z":{"type":"string"},"a":)"))
      << "the order of members is kept";
  EXPECT_EQ(Body(server, 1)["response_format"]["type"], "json_object");
  EXPECT_FALSE(Body(server, 2).contains("response_format"));
  EXPECT_FALSE(Body(server, 3).contains("response_format"));
}

TEST(LlmGateway, ABadRequestIsNotBlamedOnTheSchema) {
  ScriptedHttpServer server(
      {HttpAnswer(400, "context exceeded"), HttpAnswer(400, "b"), HttpAnswer(400, "c"), Good("{}")});
  World world(server);
  EXPECT_THAT(std::string(world.gateway.Complete("default", AskForJson()).status().message()),
              HasSubstr("context exceeded"));
  ASSERT_TRUE(world.gateway.Complete("default", AskForJson()).ok());
  EXPECT_EQ(Body(server, 3)["response_format"]["type"], "json_schema");
}

TEST(LlmGateway, SchemaSupportCanBeFixed) {
  ScriptedHttpServer server({HttpAnswer(400, "no")});
  World yes(server, [](EndpointConfig& config) { config.json_schema = SchemaSupport::kYes; });
  EXPECT_FALSE(yes.gateway.Complete("default", AskForJson()).ok());
  EXPECT_EQ(server.seen().size(), 1u);
  World no(server, [](EndpointConfig& config) { config.json_schema = SchemaSupport::kNo; });
  EXPECT_FALSE(no.gateway.Complete("default", AskForJson()).ok());
  EXPECT_EQ(server.seen().size(), 2u);
  EXPECT_FALSE(Body(server, 1).contains("response_format"));
}

TEST(LlmGateway, BadRequestsAreRefusedUnsent) {
  ScriptedHttpServer server({Good()});
  World world(server);
  const struct {
    const char* field;
    std::function<void(ChatRequest&)> spoil;
  } kSpoilers[] = {
      {"messages: is empty", [](ChatRequest& r) { r.messages.clear(); }},
      {"messages[1].role: must be", [](ChatRequest& r) { r.messages[1].role = "robot"; }},
      {"messages[0].content: is not UTF-8", [](ChatRequest& r) { r.messages[0].content = "\xff"; }},
      {"temperature: 2.5 is out of range", [](ChatRequest& r) { r.temperature = 2.5; }},
      {"temperature: nan", [](ChatRequest& r) { r.temperature = std::nan(""); }},
      {"max_tokens: 0 is too small", [](ChatRequest& r) { r.max_tokens = 0; }},
      {"seed: -1 is negative", [](ChatRequest& r) { r.seed = -1; }},
      {"stop: 5 entries", [](ChatRequest& r) { r.stop.assign(5, "x"); }},
      {"json_schema.name",
       [](ChatRequest& r) {
         r.json_schema = JsonSchema{"a b", "{}"};
       }},
      {"json_schema.schema: is not a JSON object",
       [](ChatRequest& r) {
         r.json_schema = JsonSchema{"a", "{"};
       }},
  };
  for (const auto& test : kSpoilers) {
    auto request = Ask();
    test.spoil(request);
    const auto status = world.gateway.Complete("default", request).status();
    EXPECT_EQ(status.code(), kInvalidArgument) << test.field;
    EXPECT_THAT(std::string(status.message()), HasSubstr(test.field));
  }
  EXPECT_TRUE(server.seen().empty());
}

TEST(LlmGateway, UnknownEndpointIsNamed) {
  FakeClock clock;
  const auto transport = MakeCurlTransport();
  LlmGateway gateway(*transport, clock);
  EXPECT_THAT(std::string(gateway.Complete("default", Ask()).status().message()),
              HasSubstr("set OPTOD_LLM_URL to define `default`"));
  ScriptedHttpServer server({Good()});
  World world(server);
  const auto status = world.gateway.Complete("other", Ask()).status();
  EXPECT_EQ(status.code(), kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("llm endpoint other: is not configured; there is: default"));
  EXPECT_EQ(world.gateway.EndpointNames(), std::vector<std::string>{"default"});
  EXPECT_EQ(world.gateway.Endpoint("default")->model, "m1");
}

TEST(LlmGateway, BudgetIsLookedAtBeforeAndChargedAfter) {
  ScriptedHttpServer server({Good()});                                                              // 15 tokens a call
  World world(server, [](EndpointConfig& config) { config.usd_per_million_prompt_tokens = 1e5; });  // 1 USD a call
  const struct {
    BudgetLimits limits;
    int want_calls;
    const char* message;
  } kBudgets[] = {
      {{.max_calls = 2}, 2, "llm budget: 2 of 2 calls are used"},
      {{.max_tokens = 31}, 3, "llm budget: 45 of 31 tokens are used"},  // 30 < 31: the third call is made and kept
      {{.max_usd = 1.5}, 2, "llm budget: 2 of 1.5 USD are used"},
      {{.max_calls = 0}, 0, "llm budget: 0 of 0 calls are used"}};
  for (const auto& test : kBudgets) {
    Budget budget(test.limits);
    for (int i = 0; i < test.want_calls; ++i) ASSERT_TRUE(world.gateway.Complete("default", Ask(), &budget).ok());
    const size_t before = server.seen().size();
    const auto status = world.gateway.Complete("default", Ask(), &budget).status();
    EXPECT_EQ(status.code(), kResourceExhausted);
    EXPECT_EQ(LlmErrorReason(status), "budget");
    EXPECT_EQ(std::string(status.message()), test.message);
    EXPECT_EQ(server.seen().size(), before);
    EXPECT_EQ(budget.used().calls, test.want_calls);
  }
}

TEST(LlmGateway, PaidButUnusableIsChargedUnansweredIsNot) {
  ScriptedHttpServer server({HttpAnswer(200, ReplyJson("", 10, 5)), HttpAnswer(400, "no")});
  World world(server);
  Budget budget({.max_calls = 2});
  EXPECT_FALSE(world.gateway.Complete("default", Ask(), &budget).ok());
  EXPECT_EQ(budget.used().calls, 1);
  EXPECT_EQ(budget.used().prompt_tokens + budget.used().completion_tokens, 15);
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(world.gateway.Complete("default", Ask(), &budget).status().code(), kInvalidArgument);
  EXPECT_EQ(budget.used().calls, 1);
}

TEST(LlmGateway, ConcurrencyIsLimited) {
  std::atomic<int> now{0}, most{0};
  ScriptedHttpServer server([&](const SeenRequest&) {
    const int inside = ++now;
    int seen = most.load();
    while (inside > seen && !most.compare_exchange_weak(seen, inside)) {
    }
    std::this_thread::yield();
    --now;
    return Good();
  });
  World world(server, [](EndpointConfig& config) { config.max_concurrency = 2; });
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10; ++i) good += world.gateway.Complete("default", Ask()).ok();
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(good, 80);
  EXPECT_LE(most, 2);
}

TEST(LlmGateway, WaitersCanBeCancelled) {
  ScriptedHttpServer server({kHang});
  World world(server, [](EndpointConfig& config) {
    config.max_concurrency = 1;
    config.timeout = milliseconds(3'000);
  });
  std::thread holder([&] { EXPECT_EQ(world.gateway.Complete("default", Ask()).status().code(), kDeadlineExceeded); });
  while (server.seen().empty()) std::this_thread::yield();
  std::atomic<bool> cancelled{false};
  Budget budget({.max_calls = 1});
  std::thread canceller([&] { cancelled = true; });
  const auto status = world.gateway.Complete("default", Ask(), &budget, &cancelled).status();
  canceller.join();
  EXPECT_EQ(status.code(), kCancelled);
  EXPECT_EQ(LlmErrorReason(status), "cancelled");
  EXPECT_TRUE(budget.Begin().ok()) << "its room was given back";
  holder.join();
  EXPECT_EQ(server.seen().size(), 1u);
}

TEST(LlmGateway, CancelEndsABackoff) {
  std::atomic<bool> cancelled{false};
  ScriptedHttpServer server([&](const SeenRequest&) {
    cancelled = true;
    return kBad;
  });
  World world(server);
  EXPECT_EQ(world.gateway.Complete("default", Ask(), nullptr, &cancelled).status().code(), kCancelled);
  EXPECT_EQ(server.seen().size(), 1u);
  EXPECT_EQ(world.waited_ms(), 0);
}

TEST(LlmGateway, RequestsPerMinuteAreSpread) {
  ScriptedHttpServer server({Good()});
  World world(server, [](EndpointConfig& config) { config.requests_per_minute = 6; });
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(world.gateway.Complete("default", Ask()).ok());
  EXPECT_EQ(world.waited_ms(), 0) << "a minute's worth at once";
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(world.gateway.Complete("default", Ask()).ok());
  EXPECT_NEAR(static_cast<double>(world.waited_ms()), 60'000, 100);
}

TEST(LlmGateway, TokensPerMinuteUseWhatWasReallyUsed) {
  ScriptedHttpServer server({HttpAnswer(200, ReplyJson("x", 900, 100))});
  World world(server, [](EndpointConfig& config) { config.tokens_per_minute = 6'000; });
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(world.gateway.Complete("default", Ask()).ok());
  EXPECT_EQ(world.waited_ms(), 0);
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(world.gateway.Complete("default", Ask()).ok());
  // Each of the later five waits until the debt of the one before (up to 1,000 tokens, 10 s) is paid.
  EXPECT_GE(world.waited_ms(), 49'000);
  EXPECT_LE(world.waited_ms(), 61'000);
}

TEST(LlmGateway, TheKeyIsNowhereButInTheHeader) {
  // The endpoint echoes the key in every place it can, and the prompt holds it too.
  ScriptedHttpServer server({HttpAnswer(200, ReplyJson(std::string("you sent ") + kKey))});
  World world(server);
  const std::string path = testing::TempDir() + "/optod-canary-" + RandomId() + ".jsonl";
  auto cassette = Cassette::Open(PosixFs(), path, CassetteMode::kRecord);
  ASSERT_TRUE(cassette.ok());
  const auto reply = world.gateway.Complete("default", Ask(std::string("env: OPTOD_LLM_KEY=") + kKey), nullptr, nullptr,
                                            cassette->get());
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->text, "you sent [redacted]");
  EXPECT_THAT(server.seen()[0].body, Not(HasSubstr("canary")));
  const std::string file = *PosixFs().ReadFile(path);
  EXPECT_THAT(file, HasSubstr("OPTOD_LLM_KEY=[redacted]"));
  EXPECT_THAT(file, Not(HasSubstr("canary")));
  EXPECT_THAT(file, Not(HasSubstr("127.0.0.1")));
  EXPECT_EQ(*PosixFs().FileMode(path), 0600);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace optod::trace

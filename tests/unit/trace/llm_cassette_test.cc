#include <filesystem>

#include "base/clock.h"
#include "base/random_id.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "trace/llm/cassette.h"
#include "trace/llm/gateway.h"

namespace optod::trace {
namespace {

using testing::HasSubstr;

/// Answers `reply N` to the N-th request; a body that is set replaces the next answer. Counts what reached it.
class CountingTransport final : public HttpTransport {
 public:
  absl::StatusOr<HttpResponse> Perform(const HttpRequest&) override {
    ++requests;
    HttpResponse response;
    response.status = 200;
    response.body = next_body.empty()
                        ? R"({"model":"m","choices":[{"finish_reason":"length","message":{"content":"reply )" +
                              std::to_string(requests) +
                              R"( \u00e9 \"q\""}}],"usage":{"prompt_tokens":7,"completion_tokens":)" +
                              std::to_string(requests) + "}}"
                        : next_body;
    next_body.clear();
    return response;
  }
  int requests = 0;
  std::string next_body;
};

ChatRequest Ask(const std::string& text, int seed = 1) {
  ChatRequest request;
  request.messages = {{"system", "sys"}, {"user", text}};
  request.temperature = 0.7;
  request.seed = seed;
  request.json_schema = JsonSchema{"s", R"({"type":"object"})"};
  return request;
}

class CassetteTest : public testing::Test {
 protected:
  CassetteTest() : path_(testing::TempDir() + "/optod-cassette-" + RandomId() + ".jsonl") { Configure(gateway_); }
  ~CassetteTest() override { std::filesystem::remove(path_); }

  static void Configure(LlmGateway& gateway, const std::string& model = "m") {
    EndpointConfig config;
    config.base_url = "http://127.0.0.1:1/v1";
    config.model = model;
    config.usd_per_million_completion_tokens = 0.1;
    EXPECT_TRUE(gateway.SetEndpoint(config).ok());
  }
  std::unique_ptr<Cassette> Open(CassetteMode mode) {
    auto cassette = Cassette::Open(PosixFs(), path_, mode);
    EXPECT_TRUE(cassette.ok()) << cassette.status();
    return cassette.ok() ? *std::move(cassette) : nullptr;
  }
  absl::StatusOr<ChatReply> Complete(const ChatRequest& request, Cassette* cassette, Budget* budget = nullptr) {
    return gateway_.Complete("default", request, budget, nullptr, cassette);
  }
  absl::Status LoadError(const std::string& content) {
    EXPECT_TRUE(PosixFs().WriteFileAtomic(path_, BytesOf(content)).ok());
    return Cassette::Open(PosixFs(), path_, CassetteMode::kReplay).status();
  }

  const std::string path_;
  FakeClock clock_;
  CountingTransport transport_;
  LlmGateway gateway_{transport_, clock_};
};

void ExpectSame(const ChatReply& a, const ChatReply& b) {
  EXPECT_EQ(a.text, b.text);
  EXPECT_EQ(a.finish_reason, b.finish_reason);
  EXPECT_EQ(a.model, b.model);
  EXPECT_EQ(a.usage.prompt_tokens, b.usage.prompt_tokens);
  EXPECT_EQ(a.usage.completion_tokens, b.usage.completion_tokens);
  EXPECT_EQ(a.usage.usd, b.usage.usd) << "bit for bit";
}

TEST_F(CassetteTest, ReplaysARunBitForBitAndOffline) {
  const std::vector<ChatRequest> run = {Ask("a"), Ask("b"), Ask("a"), Ask("a"),
                                        Ask("a", 2)};  // identical ones get their own replies
  std::vector<ChatReply> recorded;
  {
    const auto cassette = Open(CassetteMode::kRecord);
    for (const auto& request : run) recorded.push_back(*Complete(request, cassette.get()));
    EXPECT_EQ(cassette->size(), 5u);
  }
  EXPECT_NE(recorded[0].text, recorded[2].text);
  const auto cassette = Open(CassetteMode::kReplay);
  LlmGateway offline(transport_, clock_);  // no endpoint is configured: the model is the cassette's
  for (size_t i = 0; i < run.size(); ++i) {
    const auto reply = offline.Complete("default", run[i], nullptr, nullptr, cassette.get());
    ASSERT_TRUE(reply.ok()) << reply.status();
    ExpectSame(*reply, recorded[i]);
    EXPECT_TRUE(reply->replayed);
    EXPECT_EQ(reply->attempts, 0);
  }
  EXPECT_EQ(transport_.requests, 5);
}

TEST_F(CassetteTest, AutoAsksOnlyForWhatIsMissing) {
  Complete(Ask("a"), Open(CassetteMode::kAuto).get()).value();
  const auto cassette = Open(CassetteMode::kAuto);
  EXPECT_TRUE(Complete(Ask("a"), cassette.get())->replayed);
  EXPECT_FALSE(Complete(Ask("b"), cassette.get())->replayed);
  EXPECT_FALSE(Complete(Ask("a"), cassette.get())->replayed) << "the second of its kind was not recorded";
  EXPECT_EQ(transport_.requests, 3);
  EXPECT_EQ(Open(CassetteMode::kReplay)->size(), 3u);
}

TEST_F(CassetteTest, RecordStartsAnew) {
  Complete(Ask("a"), Open(CassetteMode::kRecord).get()).value();
  EXPECT_FALSE(Complete(Ask("a"), Open(CassetteMode::kRecord).get())->replayed);
  EXPECT_EQ(Open(CassetteMode::kReplay)->size(), 1u);
}

TEST_F(CassetteTest, OffTouchesNothing) {
  EXPECT_TRUE(Complete(Ask("a"), Open(CassetteMode::kOff).get()).ok());
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(CassetteTest, UnusableAnswersAndBudgetsReplayToo) {
  const auto play = [&](CassetteMode mode) {
    const auto cassette = Open(mode);
    Budget budget({.max_calls = 2});
    std::vector<std::string> log;
    for (const char* text : {"a", "b", "c"}) {
      transport_.next_body = R"({"choices":[{"message":{"content":""}}],"usage":{"prompt_tokens":3}})";
      const auto reply = Complete(Ask(text), cassette.get(), &budget);
      log.push_back(reply.status().ToString() + LlmErrorReason(reply.status()));
    }
    log.push_back(std::to_string(budget.used().prompt_tokens));
    return log;
  };
  const auto recorded = play(CassetteMode::kRecord);
  EXPECT_THAT(recorded[0], HasSubstr("the reply is empty"));
  EXPECT_THAT(recorded[2], HasSubstr("llm budget: 2 of 2 calls"));
  EXPECT_EQ(recorded[3], "6");
  EXPECT_EQ(play(CassetteMode::kReplay), recorded);
  EXPECT_EQ(transport_.requests, 2);
}

TEST_F(CassetteTest, AMissSaysWhereTheRequestDiffers) {
  Complete(Ask("the quick brown fox jumps over the lazy dog"), Open(CassetteMode::kRecord).get()).value();
  auto cooler = Ask("the quick brown fox jumps over the lazy dog");
  cooler.temperature = 0.25;
  auto longer = Ask("the quick brown fox jumps over the lazy dog");
  longer.messages.push_back({"user", "more"});
  const struct {
    ChatRequest request;
    const char* message;
  } kMisses[] = {
      {Ask("the quick brown fox jumps over the happy dog"),
       R"(call 1 of this run was not recorded; against recorded exchange 1 it differs in messages/1/content: recorded "... fox jumps over the lazy dog", now "... fox jumps over the happy dog")"},
      {Ask("the quick brown fox jumps over the lazy dog", 9), R"(differs in seed: recorded "1", now "9")"},
      {cooler, R"(differs in temperature: recorded "0.7", now "0.25")"},
      {longer, R"(differs in messages/2/role: recorded "nothing", now "user")"},
  };
  for (const auto& test : kMisses) {
    const auto cassette = Open(CassetteMode::kReplay);
    Budget budget({.max_calls = 1});
    const auto status = Complete(test.request, cassette.get(), &budget).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(LlmErrorReason(status), "not_recorded");
    EXPECT_THAT(std::string(status.message()), HasSubstr(test.message));
    EXPECT_EQ(budget.used().calls, 0);
  }
  const auto cassette = Open(CassetteMode::kReplay);
  const auto again = Ask("the quick brown fox jumps over the lazy dog");
  EXPECT_TRUE(Complete(again, cassette.get()).ok());
  EXPECT_THAT(std::string(Complete(again, cassette.get()).status().message()),
              HasSubstr("call 2 of this run was not recorded"));
  EXPECT_EQ(transport_.requests, 1);
}

TEST_F(CassetteTest, FileIsOneReadableLineAnExchange) {
  Complete(Ask("hello"), Open(CassetteMode::kRecord).get()).value();
  const std::string file = *PosixFs().ReadFile(path_);
  EXPECT_THAT(file, testing::StartsWith(R"({"hash":")"));
  EXPECT_THAT(file,
              HasSubstr(R"(","occurrence":0,"request":{"model":"m","messages":[{"role":"system","content":"sys"},)"));
  EXPECT_THAT(file, HasSubstr("},\"reply\":{\"text\":\"reply 1 \xc3\xa9 "));
  EXPECT_THAT(file, testing::EndsWith("}}}\n"));
  EXPECT_EQ(std::count(file.begin(), file.end(), '\n'), 1);
}

TEST_F(CassetteTest, ATornLastLineIsCutOff) {
  {
    const auto cassette = Open(CassetteMode::kRecord);
    Complete(Ask("a"), cassette.get()).value();
    Complete(Ask("b"), cassette.get()).value();
  }
  const std::string whole = *PosixFs().ReadFile(path_);
  const size_t first_line = whole.find('\n') + 1;
  for (size_t size = first_line; size < whole.size(); size += 61) {
    ASSERT_TRUE(PosixFs().WriteFileAtomic(path_, BytesOf(whole.substr(0, size))).ok());
    EXPECT_EQ(Open(CassetteMode::kReplay)->size(), 1u) << size;
    EXPECT_EQ(Open(CassetteMode::kAuto)->size(), 1u);
    EXPECT_EQ(*PosixFs().ReadFile(path_), whole.substr(0, first_line)) << "auto cuts before it appends";
  }
  // All but the line break: the exchange is whole and stays.
  ASSERT_TRUE(PosixFs().WriteFileAtomic(path_, BytesOf(whole.substr(0, whole.size() - 1))).ok());
  EXPECT_EQ(Open(CassetteMode::kAuto)->size(), 2u);
  EXPECT_EQ(*PosixFs().ReadFile(path_), whole);
}

TEST_F(CassetteTest, GarbageIsNamedByLine) {
  Complete(Ask("a"), Open(CassetteMode::kRecord).get()).value();
  const std::string good = *PosixFs().ReadFile(path_);
  std::string edited = good;
  edited.replace(edited.find("\"content\":\"a\""), 13, "\"content\":\"b\"");
  const struct {
    std::string content;
    const char* message;
  } kFiles[] = {{"garbage\n" + good, "line 1: is not a JSON object"},
                {good + "[1,2]\n" + good, "line 2: is not a JSON object"},
                {good + "\n" + std::string(100'000, '[') + "\n", "line 3: is not a JSON object"},
                {good + "{}\n", "line 2: request: is missing"},
                {R"({"hash":"x","request":{},"reply":{"text":"t"}})"
                 "\n",
                 "line 1: occurrence: is missing"},
                {R"({"hash":"x","occurrence":-1,"request":{},"reply":{"text":"t"}})"
                 "\n",
                 "line 1: occurrence"},
                {R"({"hash":"x","occurrence":0,"request":{}})"
                 "\n",
                 "neither a reply with a text nor an error"},
                {R"({"hash":"x","occurrence":0,"request":{},"error":{"code":99}})"
                 "\n",
                 "neither a reply with a text nor an error"},
                {edited, "line 1: hash: does not belong to the request"}};
  for (const auto& test : kFiles) {
    const auto status = LoadError(test.content);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << test.message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(test.message));
  }
}

TEST_F(CassetteTest, AMissingFileIsAnErrorOnlyForReplay) {
  EXPECT_EQ(Cassette::Open(PosixFs(), path_, CassetteMode::kReplay).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Open(CassetteMode::kAuto)->size(), 0u);
}

/// Appends fail while `full` is set.
class FullFs final : public Fs {
 public:
  absl::StatusOr<std::string> ReadFile(const std::string& path) override { return PosixFs().ReadFile(path); }
  absl::Status WriteFileAtomic(const std::string& path, std::span<const std::byte> data, int mode) override {
    return PosixFs().WriteFileAtomic(path, data, mode);
  }
  absl::Status AppendFile(const std::string& path, std::span<const std::byte> data, int mode) override {
    return full ? absl::ResourceExhaustedError("No space left on device") : PosixFs().AppendFile(path, data, mode);
  }
  absl::Status CreateDirectories(const std::string& path, int mode) override {
    return PosixFs().CreateDirectories(path, mode);
  }
  absl::Status Remove(const std::string& path) override { return PosixFs().Remove(path); }
  bool Exists(const std::string& path) override { return PosixFs().Exists(path); }
  absl::StatusOr<int64_t> FileSize(const std::string& path) override { return PosixFs().FileSize(path); }
  absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path) override {
    return PosixFs().ListDirectory(path);
  }
  bool full = false;
};

TEST_F(CassetteTest, AFullDiskLosesNoPaidReplyAndStopsTheNextCall) {
  FullFs fs;
  const auto cassette = Cassette::Open(fs, path_, CassetteMode::kRecord);
  ASSERT_TRUE(cassette.ok());
  fs.full = true;
  EXPECT_TRUE(Complete(Ask("a"), cassette->get()).ok()) << "paid for";
  const auto status = Complete(Ask("b"), cassette->get()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("No space left on device"));
  EXPECT_EQ(transport_.requests, 1);
}

TEST(CassetteMode, Names) {
  EXPECT_EQ(*ParseCassetteMode("off"), CassetteMode::kOff);
  EXPECT_EQ(*ParseCassetteMode("auto"), CassetteMode::kAuto);
  EXPECT_EQ(*ParseCassetteMode("record"), CassetteMode::kRecord);
  EXPECT_EQ(*ParseCassetteMode("replay"), CassetteMode::kReplay);
  EXPECT_EQ(ParseCassetteMode("rec").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace optod::trace

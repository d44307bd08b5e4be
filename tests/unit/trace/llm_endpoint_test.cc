#include <filesystem>

#include "base/random_id.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "trace/llm/endpoint.h"
#include "trace/llm/error.h"
#include "trace/llm/retry.h"

namespace optod::trace {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::Not;

GetEnv Environment(std::map<std::string, std::string> values) {
  return [values](const std::string& name) -> std::optional<std::string> {
    const auto it = values.find(name);
    return it == values.end() ? std::nullopt : std::optional(it->second);
  };
}

TEST(EndpointUrl, Table) {
  const struct {
    const char *url, *want, *error_or_hint;
  } kCases[] = {
      {"http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1", ""},
      {" https://api.example.org/v1/ \n", "https://api.example.org/v1", ""},
      {"HTTPS://host/openai/v1", "HTTPS://host/openai/v1", ""},
      {"http://[::1]:80/v1", "http://[::1]:80/v1", ""},
      {"http://host", "http://host", "does not end in /v1"},
      {"http://host/v1/chat/completions", "http://host/v1", "was taken off"},
      {"", "", "must begin with http"},
      {"localhost:8080/v1", "", "must begin with http"},
      {"ftp://host/v1", "", "must begin with http"},
      {"http:///v1", "", "names no host"},
      {"http://:80/v1", "", "names no host"},
      {"http://me:canary@host/v1", "", "holds a user name or password"},
      {"http://host/v1?key=canary", "", "holds a query"},
      {"http://host/v1#x", "", "holds a query or a fragment"},
      {"http://ho st/v1", "", "holds spaces"},
  };
  for (const auto& test : kCases) {
    const auto parsed = ParseEndpointUrl("OPTOD_LLM_URL", test.url);
    if (*test.want == '\0') {
      EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << test.url;
      EXPECT_THAT(std::string(parsed.status().message()),
                  HasSubstr(std::string("OPTOD_LLM_URL: ") + test.error_or_hint));
      EXPECT_THAT(std::string(parsed.status().message()), Not(HasSubstr("canary")));
      continue;
    }
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->base_url, test.want);
    ASSERT_EQ(parsed->hints.size(), *test.error_or_hint == '\0' ? 0u : 1u) << test.url;
    if (!parsed->hints.empty()) {
      EXPECT_THAT(parsed->hints[0], HasSubstr(test.error_or_hint));
    }
  }
}

TEST(EndpointEnvironment, DefinesDefault) {
  const auto found = EndpointsFromEnvironment(
      Environment({{"OPTOD_LLM_URL", "http://h/v1"}, {"OPTOD_LLM_MODEL", "big"}, {"OPTOD_LLM_KEY", " sk-canary\n"}}));
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->default_endpoint->name, "default");
  EXPECT_EQ(found->default_endpoint->base_url, "http://h/v1");
  EXPECT_EQ(found->default_endpoint->model, "big");
  EXPECT_TRUE(found->default_endpoint->key.Equals("sk-canary"));
  EXPECT_TRUE(found->hints.empty());

  const auto url_only = EndpointsFromEnvironment(Environment({{"OPTOD_LLM_URL", "http://h"}}));
  EXPECT_EQ(url_only->default_endpoint->model, "default");
  EXPECT_TRUE(url_only->default_endpoint->key.empty());
  EXPECT_EQ(url_only->hints.size(), 1u);

  EXPECT_FALSE(EndpointsFromEnvironment(Environment({{"OPTOD_LLM_URL", ""}}))->default_endpoint.has_value());
}

TEST(EndpointEnvironment, HalfADefinitionIsAnError) {
  const std::pair<std::map<std::string, std::string>, const char*> kCases[] = {
      {{{"OPTOD_LLM_KEY", "sk-canary"}}, "OPTOD_LLM_KEY: is set without OPTOD_LLM_URL"},
      {{{"OPTOD_LLM_MODEL", "m"}}, "OPTOD_LLM_MODEL: is set without OPTOD_LLM_URL"},
      {{{"OPTOD_LLM_URL", "h"}}, "OPTOD_LLM_URL: must begin with"},
      {{{"OPTOD_LLM_URL", "http://h/v1"}, {"OPTOD_LLM_KEY", "sk-canary\r\nX: y"}},
       "OPTOD_LLM_KEY: holds control characters"}};
  for (const auto& [values, message] : kCases) {
    const auto status = EndpointsFromEnvironment(Environment(values)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("canary")));
  }
}

TEST(EndpointCheck, NamesTheField) {
  const std::pair<std::function<void(EndpointConfig&)>, const char*> kCases[] = {
      {[](EndpointConfig& c) { c.name = "Bad"; }, "name: must be"},
      {[](EndpointConfig& c) { c.base_url = "x"; }, "llm endpoint default: base_url: must begin"},
      {[](EndpointConfig& c) { c.model = ""; }, "llm endpoint default: model: is empty"},
      {[](EndpointConfig& c) { c.max_attempts = 0; }, "max_attempts: 0 is too small; must be >= 1"},
      {[](EndpointConfig& c) { c.max_concurrency = -1; }, "max_concurrency: -1 is too small"},
      {[](EndpointConfig& c) { c.timeout = milliseconds(0); }, "timeout_ms: 0"},
      {[](EndpointConfig& c) { c.requests_per_minute = -2; }, "requests_per_minute: -2 is negative"},
      {[](EndpointConfig& c) { c.usd_per_million_completion_tokens = -1; },
       "usd_per_million_completion_tokens: -1 is negative"}};
  for (const auto& [spoil, message] : kCases) {
    EndpointConfig config;
    config.base_url = "http://h/v1";
    EXPECT_TRUE(CheckEndpoint(config).ok());
    spoil(config);
    EXPECT_THAT(std::string(CheckEndpoint(config).message()), HasSubstr(message));
  }
}

TEST(Secrets, LinesAndJson) {
  for (const char* text : {"---\n# keys\ndefault: sk-one   # mine\nother-1: \"sk two: #x\"\n\nthird: 'sk3'\n",
                           R"({"default":"sk-one","other-1":"sk two: #x","third":"sk3"})"}) {
    const auto keys = ParseSecrets(text);
    ASSERT_TRUE(keys.ok()) << keys.status();
    ASSERT_EQ(keys->size(), 3u);
    EXPECT_TRUE(keys->at("default").Equals("sk-one"));
    EXPECT_TRUE(keys->at("other-1").Equals("sk two: #x"));
    EXPECT_TRUE(keys->at("third").Equals("sk3"));
  }
  EXPECT_TRUE(ParseSecrets(" \n")->empty());
}

TEST(Secrets, ErrorsNameTheLineAndShowNothing) {
  const std::pair<const char*, const char*> kCases[] = {{"a: canary-1\nno colon canary", "line 2: is not of the form"},
                                                        {"Bad Name: canary", "line 1: the endpoint's name"},
                                                        {"a:", "line 1: the key is empty"},
                                                        {"a: \"canary", "line 1: quotes do not match"},
                                                        {"a: 'canary' canary", "line 1: quotes do not match"},
                                                        {"a: canary\na: canary", "line 2: the endpoint is named twice"},
                                                        {"a: can\x01nary", "control characters"},
                                                        {"{\"a\": \"canary\"", "is not valid JSON"},
                                                        {"{\"a\": 5}", "entry 1: the key is not a string"}};
  for (const auto& [text, message] : kCases) {
    const auto status = ParseSecrets(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("canary")));
  }
}

TEST(Secrets, FileMustBePrivate) {
  const std::string path = testing::TempDir() + "/optod-secrets-" + RandomId();
  EXPECT_EQ(LoadSecretsFile(PosixFs(), path).status().code(), absl::StatusCode::kNotFound);
  for (const auto& [mode, ok] :
       std::map<int, bool>{{0600, true}, {0400, true}, {0640, false}, {0604, false}, {0620, false}}) {
    ASSERT_TRUE(PosixFs().WriteFileAtomic(path, BytesOf("default: sk-canary"), 0600).ok());
    std::filesystem::permissions(path, static_cast<std::filesystem::perms>(mode));
    const auto keys = LoadSecretsFile(PosixFs(), path);
    EXPECT_EQ(keys.ok(), ok) << std::oct << mode;
    if (!ok) {
      EXPECT_THAT(std::string(keys.status().message()), HasSubstr("must be 0600 or stricter"));
    }
  }
  std::filesystem::remove(path);
}

TEST(RetryAfter, Table) {
  constexpr int64_t kNow = 784'111'777'000;  // Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110
  const struct {
    const char* text;
    std::optional<int64_t> want_ms;
  } kCases[] = {{"0", 0},
                {" 120 ", 120'000},
                {"99999999999999999999", 1'000'000'000'000},
                {"Sun, 06 Nov 1994 08:49:37 GMT", 0},
                {"Sun, 06 Nov 1994 08:50:07 GMT", 30'000},
                {"Mon, 07 Nov 1994 08:49:37 GMT", 86'400'000},
                {"Sat, 05 Nov 1994 08:49:37 GMT", 0},
                {"", std::nullopt},
                {"-5", std::nullopt},
                {"1.5", std::nullopt},
                {"soon", std::nullopt},
                {"Sun, 06 Nov 1994 08:49:37 PST", std::nullopt},
                {"Sun, 06 Foo 1994 08:49:37 GMT", std::nullopt},
                {"Sun, 31 Feb 1994 08:49:37 GMT", std::nullopt},
                {"Sun, 06 Nov 1994 25:49:37 GMT", std::nullopt},
                {"Sun, 06 Nov 1994 08:49:37 GMT x", std::nullopt}};
  for (const auto& test : kCases) {
    const auto wait = ParseRetryAfter(test.text, kNow);
    ASSERT_EQ(wait.has_value(), test.want_ms.has_value()) << test.text;
    if (wait) {
      EXPECT_EQ(wait->count(), *test.want_ms) << test.text;
    }
  }
}

TEST(Retry, Statuses) {
  for (int status : {408, 429, 500, 502, 503, 504, 520, 529}) EXPECT_TRUE(IsRetryable(status)) << status;
  for (int status : {200, 301, 400, 401, 403, 404, 409, 413, 422, 501, 505})
    EXPECT_FALSE(IsRetryable(status)) << status;
}

TEST(Retry, BackoffDoublesUpToItsLimitAndKeepsItsUpperHalf) {
  const int64_t kFull[] = {500, 1'000, 2'000, 4'000, 4'000};
  for (int attempt = 1; attempt <= 5; ++attempt) {
    const int64_t full = kFull[attempt - 1];
    for (uint64_t random : {uint64_t{0}, uint64_t{1}, uint64_t{250}, ~uint64_t{0}}) {
      const int64_t wait = Backoff(attempt, milliseconds(500), milliseconds(4'000), random).count();
      EXPECT_GE(wait, full / 2);
      EXPECT_LE(wait, full);
    }
  }
  EXPECT_EQ(Backoff(1'000'000, milliseconds(1), milliseconds(8), 0).count(), 4);
}

TEST(Quote, CutsBetweenCharactersAfterRedaction) {
  const Secret secrets[] = {Secret("sk-canary")};
  EXPECT_EQ(Quote("plain", secrets), "plain");
  EXPECT_EQ(Quote("a\tb\n\x7f", secrets), "a b  ");
  EXPECT_EQ(Quote("\xc3\xa9\xff\xc3", secrets), "\xc3\xa9??");
  EXPECT_EQ(Quote(std::string(300, 'x'), secrets), std::string(200, 'x') + "...");
  EXPECT_EQ(Quote(std::string(199, 'x') + "\xc3\xa9", secrets), std::string(199, 'x') + "...");
  EXPECT_EQ(Quote(std::string(195, 'x') + "sk-canary", secrets), std::string(195, 'x') + "[reda...")
      << "no head of a key is left at the cut";
}

}  // namespace
}  // namespace optod::trace

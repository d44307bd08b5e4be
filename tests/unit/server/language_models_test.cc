// Named endpoints from a file, and what users may spend on them in a day.
#include <map>

#include "base/clock.h"
#include "base/status.h"
#include "gtest/gtest.h"
#include "server/llm_file.h"
#include "server/spending.h"
#include "server/store/memory_store.h"

namespace optod::server {
namespace {

TEST(LlmFile, WholeExample) {
  const auto file = ParseLlmFile(R"(
endpoints:
  default: {url: "https://h/v1", model: big, concurrency: 3, requests_per_minute: 60, tokens_per_minute: 2000, timeout: 90s, attempts: 2,
            context_tokens: 128000, json_schema: "no", usd_per_million: {prompt: 0.15, completion: 0.6}, fallback: [local], cache: true}
  local: {url: "http://127.0.0.1:8080/v1"}
budgets:
  user_day: {usd: 5, tokens: 2000, calls: 10}
  day: {usd: 50}
)",
                                 "f.yaml");
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->endpoints.size(), 2u);
  const trace::EndpointConfig& first = file->endpoints[0];
  EXPECT_EQ(first.model, "big");
  EXPECT_EQ(first.max_concurrency, 3);
  EXPECT_EQ(first.requests_per_minute, 60);
  EXPECT_EQ(first.tokens_per_minute, 2000);
  EXPECT_EQ(first.timeout.count(), 90'000);
  EXPECT_EQ(first.max_attempts, 2);
  EXPECT_EQ(first.json_schema, trace::SchemaSupport::kNo);
  EXPECT_EQ(first.usd_per_million_completion_tokens, 0.6);
  EXPECT_EQ(first.fallback, std::vector<std::string>{"local"});
  EXPECT_TRUE(first.cache);
  EXPECT_EQ(file->limits.user_day.max_calls, 10);
  EXPECT_EQ(file->limits.day.max_usd, 50);
  EXPECT_FALSE(file->limits.day.max_tokens.has_value());
}

struct Bad {
  const char* name;
  const char* text;
  const char* message;
};
const Bad kBad[] = {
    {"unknown", "endpoint: {}", "f.yaml:1: endpoint: unknown field; did you mean endpoints?"},
    {"unknown_in_endpoint", "endpoints:\n  a: {url: 'http://h/v1', modle: x}",
     "endpoints.a.modle: unknown field; did you mean model?"},
    {"key", "endpoints:\n  a: {url: 'http://h/v1', key: x}", "endpoints.a.key: unknown field"},
    {"no_url", "endpoints:\n  a: {model: x}", "endpoints.a.url: missing"},
    {"bad_url", "endpoints:\n  a: {url: 'ftp://h'}", "must begin with http:// or https://"},
    {"bad_name", "endpoints:\n  A: {url: 'http://h/v1'}", "name: must be of the form"},
    {"fallback_unknown", "endpoints:\n  a: {url: 'http://h/v1', fallback: [b]}",
     "endpoints.a.fallback: there is no endpoint b"},
    {"fallback_itself", "endpoints:\n  a: {url: 'http://h/v1', fallback: [a]}", "fallback: must name other endpoints"},
    {"concurrency", "endpoints:\n  a: {url: 'http://h/v1', concurrency: 0}",
     "endpoints.a.concurrency: must be a whole number from 1"},
    {"price", "endpoints:\n  a: {url: 'http://h/v1', usd_per_million: {prompt: -1}}", "is negative; must be >= 0"},
    {"budget", "budgets: {day: {usd: -1}}", "budgets.day.usd: is negative"},
    {"budget_period", "budgets: {week: {usd: 1}}", "budgets.week: unknown field"},
};
class BadLlmFileTest : public ::testing::TestWithParam<Bad> {};
TEST_P(BadLlmFileTest, IsToldWithItsPlace) {
  const auto file = ParseLlmFile(GetParam().text, "f.yaml");
  EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(file.status().message()).find(GetParam().message), std::string::npos) << file.status();
}
INSTANTIATE_TEST_SUITE_P(All, BadLlmFileTest, ::testing::ValuesIn(kBad),
                         [](const auto& info) { return info.param.name; });

class SpendingTest : public ::testing::Test {
 protected:
  void Pay(Spending& spending, const std::string& user, int64_t tokens, double usd = 0) {
    ASSERT_TRUE(spending.Begin(user).ok());
    spending.Charge(user, "default", {tokens, 0, usd});
  }
  std::unique_ptr<store::Store> store_ = store::MakeMemoryStore();
  FakeClock clock_{1'700'000'000'000};  // 2023-11-14
  SpendingLimits limits_;
};

TEST_F(SpendingTest, AUserIsStoppedAndOthersAreNot) {
  limits_.user_day.max_tokens = 100;
  Spending spending(*store_, clock_, limits_);
  Pay(spending, "ann", 60);
  Pay(spending, "ann", 60);  // looked at before the call: a paid reply is never thrown away
  const absl::Status refused = spending.Begin("ann");
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.message(), "llm budget of user ann today: 120 of 100 tokens are used");
  EXPECT_TRUE(spending.Begin("bob").ok());
  spending.Release("bob");
}

TEST_F(SpendingTest, TheServersDayIsThatOfAll) {
  limits_.day.max_usd = 1;
  Spending spending(*store_, clock_, limits_);
  Pay(spending, "ann", 1, 0.5);
  Pay(spending, "bob", 1, 0.5);
  EXPECT_EQ(spending.Begin("eve").message(), "llm budget of this server today: 1 of 1 USD are used");
  EXPECT_EQ(spending.Today("*").calls, 2);
  EXPECT_EQ(spending.Today("ann").usd, 0.5);
}

TEST_F(SpendingTest, CallsUnderWayCountAsCalls) {
  limits_.user_day.max_calls = 1;
  Spending spending(*store_, clock_, limits_);
  ASSERT_TRUE(spending.Begin("ann").ok());
  EXPECT_FALSE(spending.Begin("ann").ok());
  spending.Release("ann");
  EXPECT_TRUE(spending.Begin("ann").ok());
  spending.Release("ann");
}

TEST_F(SpendingTest, ARestartForgetsNothing) {
  limits_.user_day.max_tokens = 100;
  {
    Spending spending(*store_, clock_, limits_);
    Pay(spending, "ann", 100, 0.25);
  }
  ASSERT_TRUE(store_->CommitAndWait({}).ok());  // rows are written behind the calls
  Spending again(*store_, clock_, limits_);
  EXPECT_FALSE(again.Begin("ann").ok());
  EXPECT_EQ(again.Today("ann").usd, 0.25);
  EXPECT_EQ(again.Today("*").prompt_tokens, 100);
  EXPECT_NE(store_->GetMeta("llm-usage/2023-11-14/ann")->find("\"endpoints\":{\"default\""), std::string::npos);
}

TEST_F(SpendingTest, ANewDayBeginsAtZeroWithWhatIsUnderWay) {
  limits_.user_day.max_calls = 1;
  Spending spending(*store_, clock_, limits_);
  ASSERT_TRUE(spending.Begin("ann").ok());
  clock_.Advance(std::chrono::hours(24));
  EXPECT_FALSE(spending.Begin("ann").ok());
  spending.Charge("ann", "default", {5, 5, 0});
  EXPECT_EQ(spending.Today("ann").calls, 1);
  ASSERT_TRUE(store_->CommitAndWait({}).ok());
  EXPECT_TRUE(store_->GetMeta("llm-usage/2023-11-15/ann").ok());
}

TEST_F(SpendingTest, DaysAreReadFromTheStoreAndFromMemory) {
  const auto told = [this](Spending& spending, const std::string& user) {
    const auto days = spending.Days(user, "2023-11-14", "2023-11-15");
    std::string text;
    for (const DayOfUse& d : *days)
      text += Cat(d.day, " ", d.user, " ", d.llm.calls, " ", d.endpoints.size(), " ", d.evaluations, " ", d.job_ms, "\n");
    return text;
  };
  const std::string first = "2023-11-14 ann 1 1 3 0\n", second = "2023-11-15 bob 0 0 0 1500\n";
  {
    Spending spending(*store_, clock_, limits_);
    Pay(spending, "ann", 60);
    spending.CountEvaluations("ann", 3);
    clock_.Advance(std::chrono::hours(24));  // what was not flushed is, before the new day begins
    spending.CountJob("bob", 1500);
    ASSERT_TRUE(store_->CommitAndWait({}).ok());
    EXPECT_EQ(told(spending, ""), first + second);
    EXPECT_EQ(told(spending, "*"), "2023-11-14 * 1 1 3 0\n2023-11-15 * 0 0 0 1500\n");
    Spending crashed(*store_, clock_, limits_);
    EXPECT_EQ(told(crashed, ""), first);
    spending.Flush();
  }
  ASSERT_TRUE(store_->CommitAndWait({}).ok());
  Spending again(*store_, clock_, limits_);
  EXPECT_EQ(told(again, ""), first + second);
  EXPECT_EQ(told(again, "bob"), second);
  EXPECT_TRUE(again.Days("", "2023-11-16", "2023-11-20")->empty());
}

}  // namespace
}  // namespace optod::server

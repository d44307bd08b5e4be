// Several workers and the server between them, as conversations: what each rank says, and what goes to whom. Then the
// relay against the worker's end of it, with real threads.
#include "server/jobs/exchange_relay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mutex>
#include <thread>

#include "optim/worker/server_exchange.h"

namespace optod::jobs {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using v1::WorkerMessage;

WorkerMessage Join(int64_t done) {
  WorkerMessage m;
  m.mutable_join()->set_done(done);
  return m;
}
void Fill(int64_t step, double g, v1::StepRecord* record) {
  record->set_step(step);
  record->set_lr(0.5);
  record->set_loss(g);
  record->add_g(g);
}
WorkerMessage Tell(int64_t step, double g) {
  WorkerMessage m;
  Fill(step, g, m.mutable_exchange());
  return m;
}
WorkerMessage Records(int64_t from, int64_t to) {
  WorkerMessage m;
  m.mutable_records();
  for (int64_t i = from; i < to; ++i) Fill(i, static_cast<double>(i), m.mutable_records()->add_records());
  return m;
}

/// "0:joined 3", "1:missed 2..2", "0:agreed 3 g=1.5", "2:send 1..2"
std::string Text(const ToRank& to) {
  const v1::ServerMessage& m = to.message;
  std::string text = std::to_string(to.rank) + ":";
  if (m.has_joined()) text += "joined " + std::to_string(m.joined().step());
  if (m.has_send_records())
    text += "send " + std::to_string(m.send_records().from()) + ".." + std::to_string(m.send_records().to());
  if (m.has_missed())
    text += "missed " + std::to_string(m.missed().records(0).step()) + "+" + std::to_string(m.missed().records_size());
  if (m.has_agreed()) {
    text += "agreed " + std::to_string(m.agreed().step());
    for (double g : m.agreed().g()) text += " " + std::to_string(g).substr(0, 3);
  }
  return text;
}

struct Said {
  int rank;
  WorkerMessage message;
  std::vector<std::string> answers;  // or one that begins with "!": the error
};
struct Case {
  const char *name, *share;
  int workers;
  std::vector<Said> talk;
};

const Case kCases[] = {
    {"all_new", "examples", 2, {{0, Join(0), {}}, {1, Join(0), {"0:joined 0", "1:joined 0"}}}},
    {"one_is_behind",
     "examples",
     3,
     {{0, Join(5), {}},
      {2, Join(6), {}},
      {1, Join(5), {"2:send 5..6"}},
      {2, Records(5, 6), {"0:missed 5+1", "1:missed 5+1", "0:joined 6", "1:joined 6", "2:joined 6"}}}},
    {"one_has_lost_its_log_and_it_comes_in_pieces",
     "examples",
     2,
     {{0, Join(0), {}},
      {1, Join(4), {"1:send 0..4"}},
      {1, Records(0, 3), {"0:missed 0+3", "1:send 3..4"}},
      {1, Records(3, 4), {"0:missed 3+1", "0:joined 4", "1:joined 4"}}}},
    {"means_of_examples",
     "examples",
     2,
     {{0, Join(0), {}},
      {1, Join(0), {"0:joined 0", "1:joined 0"}},
      {1, Tell(0, 2), {}},
      {0, Tell(0, 1), {"0:agreed 0 1.5", "1:agreed 0 1.5"}},
      {0, Tell(1, 4), {}},
      {1, Tell(1, 4), {"0:agreed 1 4.0", "1:agreed 1 4.0"}}}},
    {"queries_in_the_order_of_the_ranks",
     "queries",
     2,
     {{0, Join(0), {}},
      {1, Join(0), {"0:joined 0", "1:joined 0"}},
      {1, Tell(0, 2), {}},
      {0, Tell(0, 1), {"0:agreed 0 1.0 2.0", "1:agreed 0 1.0 2.0"}}}},
    {"a_step_that_is_not_under_way",
     "examples",
     2,
     {{0, Tell(0, 1), {"!rank 0 tells step 0; step -1 is under way"}}}},
    {"a_step_twice",
     "examples",
     2,
     {{0, Join(0), {}},
      {1, Join(0), {"0:joined 0", "1:joined 0"}},
      {0, Tell(0, 1), {}},
      {0, Tell(0, 1), {"!rank 0 tells step 0"}}}},
    {"joins_twice", "examples", 2, {{0, Join(0), {}}, {0, Join(0), {"!rank 0 joins twice"}}}},
    {"records_that_nobody_asked_for", "examples", 2, {{0, Records(0, 1), {"!rank 0 was not asked for records"}}}},
    {"records_that_are_not_there",
     "examples",
     2,
     {{0, Join(0), {}}, {1, Join(2), {"1:send 0..2"}}, {1, Records(0, 0), {"!rank 1 was not asked"}}}},
    {"records_out_of_order",
     "examples",
     2,
     {{0, Join(0), {}}, {1, Join(2), {"1:send 0..2"}}, {1, Records(1, 2), {"!rank 1 sent step 1 out of order"}}}},
};

class Relay : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Talks, Relay, testing::ValuesIn(kCases), [](const auto& info) { return info.param.name; });

TEST_P(Relay, SaysWhatIsDue) {
  ExchangeRelay relay(GetParam().workers, GetParam().share);
  for (const Said& said : GetParam().talk) {
    const auto out = relay.OnMessage(said.rank, said.message);
    if (!said.answers.empty() && said.answers[0][0] == '!') {
      EXPECT_THAT(std::string(out.status().message()), HasSubstr(said.answers[0].substr(1)));
      continue;
    }
    ASSERT_TRUE(out.ok()) << out.status();
    std::vector<std::string> texts;
    for (const ToRank& to : *out) texts.push_back(Text(to));
    EXPECT_EQ(texts, said.answers);
  }
}

TEST(Relay, RefusesRecordsOfAnotherRun) {
  ExchangeRelay relay(2, "examples");
  ASSERT_TRUE(relay.OnMessage(0, Join(0)).ok() && relay.OnMessage(1, Join(0)).ok());
  ASSERT_TRUE(relay.OnMessage(0, Tell(0, 1)).ok());
  WorkerMessage other = Tell(0, 1);
  other.mutable_exchange()->set_lr(0.25);
  const absl::Status status = relay.OnMessage(1, other).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 has lr 0.25 and 1 scalars, rank 0 has 0.5 and 1"));
}

// ---- with the worker's end

train::ReplayRecord Record(uint32_t step, double g) { return {step, 0, 0.5, g, {g}}; }

/// Three ranks on threads of their own; the first has lost two records of its log of four.
TEST(ServerExchange, RanksOfDifferentLogsBeginTogetherAndAgree) {
  constexpr int kWorkers = 3;
  constexpr uint32_t kSteps = 50;
  std::mutex mutex;
  ExchangeRelay relay(kWorkers, "examples");
  std::vector<std::unique_ptr<worker::ServerExchange>> ends;
  for (int r = 0; r < kWorkers; ++r) {
    ends.push_back(std::make_unique<worker::ServerExchange>(r, [&, r](const WorkerMessage& message) {
      std::lock_guard lock(mutex);
      const auto out = relay.OnMessage(r, message);
      ASSERT_TRUE(out.ok()) << out.status();
      for (const ToRank& to : *out) ends[static_cast<size_t>(to.rank)]->Deliver(to.message);
    }));
  }
  std::vector<train::ReplayRecord> whole;
  for (uint32_t i = 0; i < 4; ++i) whole.push_back(Record(i, i));
  std::vector<std::vector<double>> agreed(kWorkers);
  std::vector<std::thread> threads;
  for (int r = 0; r < kWorkers; ++r) {
    threads.emplace_back([&, r] {
      const auto place = static_cast<size_t>(r);
      std::vector<train::ReplayRecord> log(whole.begin(), whole.begin() + (r == 0 ? 2 : 4)), missed;
      EXPECT_TRUE(*ends[place]->Join(log, &missed, nullptr));
      EXPECT_EQ(missed.size(), r == 0 ? 2u : 0u);
      for (uint32_t step = 4; step < kSteps; ++step)
        agreed[place].push_back(ends[place]->Agree(Record(step, step + 3.0 * r), nullptr)->g[0]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(agreed[0][0], 7);
  EXPECT_EQ(agreed[1], agreed[0]);
  EXPECT_EQ(agreed[2], agreed[0]);
}

TEST(ServerExchange, AnEndedStreamAndAStopAreCancelled) {
  worker::ServerExchange end(0, [](const WorkerMessage&) {});
  std::vector<train::ReplayRecord> missed;
  EXPECT_EQ(end.Join({}, &missed, [] { return true; }).status().code(), absl::StatusCode::kCancelled);
  end.End();
  EXPECT_EQ(end.Agree(Record(0, 1), nullptr).status().code(), absl::StatusCode::kCancelled);
}

TEST(ServerExchange, RefusesAnAnswerToAnotherStep) {
  worker::ServerExchange end(0, [](const WorkerMessage&) {});
  v1::ServerMessage wrong;
  Fill(7, 1, wrong.mutable_agreed());
  end.Deliver(wrong);
  EXPECT_EQ(end.Agree(Record(6, 1), nullptr).status().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace optod::jobs

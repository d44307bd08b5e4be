// Zeroth-order sessions through the engine: probes, leases, steps against the formula, replay, rollback, crash and
// reload, cost.
#include "server/engine/zeroth_order.h"

#include <chrono>
#include <cmath>
#include <future>
#include <iostream>
#include <set>
#include <thread>

#include "numeric_testing.h"
#include "optim/zo/stream.h"

namespace optod::engine {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kSeed = 99;

v1::CreateSessionRequest Request(const std::string& id, int queries, bool values = true) {
  v1::CreateSessionRequest request;
  request.set_session_id(id);
  request.mutable_optimizer()->set_name("zo-sgd");
  request.mutable_optimizer()->set_seed(kSeed);
  auto& hyper = *request.mutable_optimizer()->mutable_hyperparameters();
  hyper["lr"].set_number(0.01);
  hyper["eps"].set_number(0.001);
  hyper["queries"].set_number(queries);
  for (const v1::Tensor& tensor : {TensorOf("w", {2, 3}, {1, 2, 3, 4, 5, 6}), TensorOf("b", {3}, {-1, 0.5f, 2})}) {
    *request.mutable_layout()->add_tensors() = tensor.spec();
    if (values) *request.add_initial() = tensor;
  }
  request.mutable_layout()->mutable_tensors(1)->set_no_decay(true);
  return request;
}

v1::AskRequest AskFor(const std::string& id, int count = 1, const std::string& worker = "") {
  v1::AskRequest ask;
  ask.set_session(id);
  ask.set_count(count);
  ask.set_worker(worker);
  return ask;
}

double LossAt(int64_t version, int64_t query, bool plus) {
  return 2.0 + 0.001 * static_cast<double>((version * 5 + query * 3 + (plus ? 7 : 2)) % 13);
}

v1::TellRequest Losses(const std::string& id, int64_t version, std::vector<int64_t> queries) {
  v1::TellRequest tell;
  tell.set_session(id);
  for (const int64_t query : queries) {
    v1::ProbeResult* result = tell.mutable_losses()->add_results();
    result->set_probe_id(std::to_string(version) + "." + std::to_string(query));
    result->set_loss_plus(LossAt(version, query, true));
    result->set_loss_minus(LossAt(version, query, false));
  }
  return tell;
}

std::vector<int64_t> All(int q) {
  std::vector<int64_t> out(q);
  for (int i = 0; i < q; ++i) out[i] = i;
  return out;
}

/// The slow obvious reference: one step on a plain vector, z materialised.
void ReferenceStep(std::vector<float>* theta, int64_t base, int q, double lr, double weight_decay, bool two_side = true,
                   std::optional<uint32_t> direction = {}) {
  const auto rate = static_cast<float>(lr * weight_decay);
  const size_t sizes[] = {6, 3};
  size_t offset = 0;
  for (uint32_t t = 0; t < 2; offset += sizes[t++]) {
    for (size_t i = 0; i < sizes[t] && t == 0; ++i) {
      const float decayed = rate * (*theta)[offset + i];
      (*theta)[offset + i] -= decayed;
    }
    for (int query = 0; query < q; ++query) {
      const double g = (LossAt(base, query, true) - LossAt(base, query, false)) / (two_side ? 0.002 : 0.001);
      const auto coefficient = static_cast<float>(lr * g / q);
      std::vector<float> z(sizes[t]);
      zo::FillNormalScalar({kSeed, direction.value_or(static_cast<uint32_t>(base)), static_cast<uint32_t>(query)}, t, 0, z);
      for (size_t i = 0; i < sizes[t]; ++i) {
        const float product = coefficient * z[i];
        (*theta)[offset + i] = (*theta)[offset + i] - product;
      }
    }
  }
}

const std::vector<float> kStart = {1, 2, 3, 4, 5, 6, -1, 0.5f, 2};

TEST(ZerothOrder, ProbesAreHandedOutOnceAndComeBackWhenTheLeaseEnds) {
  Server server;
  ASSERT_TRUE(server.Create(Request("s", 4)).ok());
  std::set<std::string> ids;
  for (int i = 0; i < 4; ++i) {
    auto asked = server.Ask(AskFor("s"));
    ASSERT_TRUE(asked.ok()) << asked.status();
    ASSERT_EQ(asked->probes_size(), 1);
    const v1::Probe& probe = asked->probes(0);
    EXPECT_EQ(probe.base_version(), 0);
    EXPECT_EQ(probe.seed(), kSeed);
    EXPECT_EQ(probe.step(), 0u);
    EXPECT_EQ(probe.eps(), 0.001);
    EXPECT_TRUE(probe.two_side());
    ids.insert(probe.probe_id());
  }
  EXPECT_EQ(ids, (std::set<std::string>{"0.0", "0.1", "0.2", "0.3"}));
  EXPECT_EQ(server.Ask(AskFor("s"))->probes_size(), 0);
  ASSERT_TRUE(server.Tell(Losses("s", 0, {1})).ok());
  server.clock().Advance(std::chrono::seconds(61));
  auto asked = server.Ask(AskFor("s", 10));
  ASSERT_EQ(asked->probes_size(), 3);  // 0, 2 and 3; 1 is told
  for (const v1::Probe& probe : asked->probes()) EXPECT_NE(probe.query(), 1u);
}

TEST(ZerothOrder, AWorkerThatAsksAgainGetsItsOwnProbes) {
  Server server;
  ASSERT_TRUE(server.Create(Request("s", 2)).ok());
  ASSERT_EQ(server.Ask(AskFor("s", 2, "a"))->probes_size(), 2);
  EXPECT_EQ(server.Ask(AskFor("s", 2, "b"))->probes_size(), 0);
  EXPECT_EQ(server.Ask(AskFor("s", 2, "a"))->probes_size(), 2);
  auto late = AskFor("s");
  late.mutable_lease()->set_seconds(3601);
  EXPECT_EQ(server.Ask(late).status().code(), absl::StatusCode::kInvalidArgument);
}

struct StepCase {
  const char* name;
  int q;
  bool two_side;
  double weight_decay;
};
void PrintTo(const StepCase& c, std::ostream* out) { *out << c.name; }
class ZerothOrderSteps : public testing::TestWithParam<StepCase> {};

TEST_P(ZerothOrderSteps, EqualTheFormulaWithAndWithoutCrashes) {
  const auto& [name, q, two_side, weight_decay] = GetParam();
  for (const bool crash : {false, true}) {
    Server server;
    auto request = Request("s", q);
    auto& hyper = *request.mutable_optimizer()->mutable_hyperparameters();
    hyper["weight_decay"].set_number(weight_decay);
    if (!two_side) hyper["perturbation"].set_text("one-side");
    ASSERT_TRUE(server.Create(request).ok());
    std::vector<float> theta = kStart;
    for (int64_t step = 0; step < 6; ++step) {
      for (int64_t query = q - 1; query >= 0; --query) {  // out of order
        auto told = server.Tell(Losses("s", step, {query}));
        ASSERT_TRUE(told.ok()) << told.status();
        EXPECT_EQ(told->updated(), query == 0);
        EXPECT_EQ(told->pending(), query == 0 ? q : query);
        if (crash) server.Crash();
      }
      ReferenceStep(&theta, step, q, 0.01, weight_decay, two_side);
      if (step != 2) {
        EXPECT_EQ(*server.Parameters("s"), theta) << step;  // not asked for at 2: the next one catches up
      }
    }
    EXPECT_EQ(server.Get("s")->seq(), 6);
    auto version = server.Version("s", 3);
    EXPECT_EQ(version->kind(), "step");
    EXPECT_EQ(version->queries_size(), q);
    EXPECT_EQ(version->loss(), LossAt(2, 0, true));
  }
}
const StepCase kSteps[] = {{"one_query", 1, true, 0},
                           {"eight_queries", 8, true, 0},
                           {"one_side", 3, false, 0},
                           {"weight_decay", 2, true, 0.1}};
INSTANTIATE_TEST_SUITE_P(Steps, ZerothOrderSteps, testing::ValuesIn(kSteps),
                         [](const auto& info) { return info.param.name; });

TEST(ZerothOrder, AProbeToldTwiceCountsOnce) {
  Server server;
  ASSERT_TRUE(server.Create(Request("s", 3)).ok());
  ASSERT_EQ(server.Tell(Losses("s", 0, {0}))->pending(), 2);
  auto twice = Losses("s", 0, {0, 0, 1, 1});
  twice.mutable_losses()->mutable_results(0)->set_loss_plus(1000);  // the first result stays
  twice.mutable_losses()->mutable_results(3)->set_loss_plus(1000);
  EXPECT_EQ(server.Tell(twice)->pending(), 1);
  server.Crash();
  EXPECT_EQ(server.Tell(Losses("s", 0, {0}))->pending(), 1);
  auto done = server.Tell(Losses("s", 0, {2}));
  EXPECT_TRUE(done->updated());
  std::vector<float> theta = kStart;
  ReferenceStep(&theta, 0, 3, 0.01, 0);
  EXPECT_EQ(*server.Parameters("s"), theta);
  EXPECT_EQ(server.Get("s")->usage().evaluations(), 3);
}

struct ErrorCase {
  const char* name;
  std::function<void(v1::TellRequest*)> spoil;
  absl::StatusCode want;
  const char* message;
};
void PrintTo(const ErrorCase& c, std::ostream* out) { *out << c.name; }
const ErrorCase kErrors[] = {
    {"no_dot", [](auto* r) { r->mutable_losses()->mutable_results(0)->set_probe_id("17"); },
     absl::StatusCode::kInvalidArgument, "losses.results[0].probe_id: \"17\" is no probe"},
    {"text", [](auto* r) { r->mutable_losses()->mutable_results(0)->set_probe_id("a.b"); },
     absl::StatusCode::kInvalidArgument, "is no probe"},
    {"huge", [](auto* r) { r->mutable_losses()->mutable_results(0)->set_probe_id("99999999999999999999.1"); },
     absl::StatusCode::kInvalidArgument, "is no probe"},
    {"query", [](auto* r) { r->mutable_losses()->mutable_results(0)->set_probe_id("1.2"); },
     absl::StatusCode::kInvalidArgument, "was never handed out"},
    {"version", [](auto* r) { r->mutable_losses()->mutable_results(0)->set_probe_id("7.0"); },
     absl::StatusCode::kInvalidArgument, "was never handed out; versions are 0 to 1"},
    {"stale", [](auto* r) { r->mutable_losses()->mutable_results(0)->set_probe_id("0.0"); }, absl::StatusCode::kAborted,
     "another version than the head 1"},
    {"empty", [](auto* r) { r->mutable_losses()->clear_results(); }, absl::StatusCode::kInvalidArgument,
     "losses.results: empty"},
    {"gradients", [](auto* r) { r->mutable_gradients(); }, absl::StatusCode::kInvalidArgument, "losses: missing"},
};
class ZerothOrderErrors : public testing::TestWithParam<ErrorCase> {};
TEST_P(ZerothOrderErrors, ChangeNothing) {
  Server server;
  ASSERT_TRUE(server.Create(Request("s", 2)).ok());
  ASSERT_TRUE(server.Tell(Losses("s", 0, {0, 1})).ok());
  auto request = Losses("s", 1, {0});
  GetParam().spoil(&request);
  auto told = server.Tell(request);
  EXPECT_EQ(told.status().code(), GetParam().want) << told.status();
  EXPECT_THAT(std::string(told.status().message()), HasSubstr(GetParam().message));
  EXPECT_EQ(server.Tell(Losses("s", 1, {1}))->pending(), 1);
}
INSTANTIATE_TEST_SUITE_P(Tell, ZerothOrderErrors, testing::ValuesIn(kErrors),
                         [](const auto& info) { return info.param.name; });

TEST(ZerothOrder, StaleResultsBesideCurrentOnesAreIgnored) {
  Server server;
  ASSERT_TRUE(server.Create(Request("s", 2)).ok());
  ASSERT_TRUE(server.Tell(Losses("s", 0, {0, 1})).ok());
  auto mixed = Losses("s", 1, {0});
  *mixed.mutable_losses()->add_results() = Losses("s", 0, {1}).losses().results(0);
  EXPECT_EQ(server.Tell(mixed)->pending(), 1);
}

TEST(ZerothOrder, NanMakesASkippedVersion) {
  for (const double bad : std::vector<double>{std::nan(""), INFINITY, -INFINITY}) {
    Server server;
    ASSERT_TRUE(server.Create(Request("s", 2)).ok());
    auto request = Losses("s", 0, {0, 1});
    request.mutable_losses()->mutable_results(1)->set_loss_minus(bad);
    auto told = server.Tell(request);
    ASSERT_TRUE(told.ok()) << told.status();
    EXPECT_TRUE(told->skipped());
    EXPECT_TRUE(told->updated());
    EXPECT_EQ(told->head_version(), 1);
    server.Crash();
    EXPECT_EQ(server.Version("s", 1)->kind(), "skipped");
    EXPECT_EQ(*server.Parameters("s"), kStart);
    auto next = server.Ask(AskFor("s"));
    EXPECT_EQ(next->probes(0).step(), 1u);  // another direction
  }
}

TEST(ZerothOrder, WorkersCatchUpByReplay) {
  Server server;
  auto request = Request("s", 2);
  (*request.mutable_optimizer()->mutable_hyperparameters())["weight_decay"].set_number(0.1);
  ASSERT_TRUE(server.Create(request).ok());
  for (int64_t step = 0; step < 9; ++step) ASSERT_TRUE(server.Tell(Losses("s", step, All(2))).ok());
  for (const bool crashed : {false, true}) {  // from memory, from the store
    if (crashed) server.Crash();
    for (const int64_t known : {0, 4, 8, 9}) {
      auto ask = AskFor("s");
      ask.set_known_version(known);
      auto asked = server.Ask(ask);
      ASSERT_TRUE(asked.ok());
      EXPECT_FALSE(asked->resync());
      ASSERT_EQ(asked->replay_size(), 9 - known);
      std::vector<float> theta = *server.Parameters("s", known);
      for (const v1::ReplayStep& step : asked->replay()) {
        for (int i = 0; i < 6; ++i) {
          const float decayed = step.weight_decay_rate() * theta[i];
          theta[i] -= decayed;
        }
        for (const v1::ReplayQuery& term : step.queries()) {
          zo::AddScaledNormal({asked->seed(), term.step(), term.query()}, 0, 0, -term.coefficient(), {theta.data(), 6});
          zo::AddScaledNormal({asked->seed(), term.step(), term.query()}, 1, 0, -term.coefficient(),
                              {theta.data() + 6, 3});
        }
      }
      EXPECT_EQ(theta, *server.Parameters("s"));
    }
  }
}

TEST(ZerothOrder, RollbackGrowsABranchAndOthersResync) {
  Server server;
  ASSERT_TRUE(server.Create(Request("s", 1)).ok());
  std::vector<std::vector<float>> values = {kStart};
  for (int64_t step = 0; step < 5; ++step) {
    ASSERT_TRUE(server.Tell(Losses("s", step, {0})).ok());
    values.push_back(*server.Parameters("s"));
  }
  ASSERT_TRUE(server.Rollback("s", 2).ok());
  EXPECT_EQ(*server.Parameters("s"), values[2]);
  ASSERT_TRUE(server.Tell(Losses("s", 2, {0})).ok());  // version 6 from 2
  ASSERT_TRUE(server.Tell(Losses("s", 6, {0})).ok());  // version 7: direction 6, used by nobody before
  std::vector<float> theta = values[2];
  ReferenceStep(&theta, 2, 1, 0.01, 0);
  ReferenceStep(&theta, 6, 1, 0.01, 0);
  for (const bool crashed : {false, true}) {
    if (crashed) server.Crash();
    EXPECT_EQ(*server.Parameters("s"), theta);
    EXPECT_EQ(*server.Parameters("s", 5), values[5]);
    auto ask = AskFor("s");
    ask.set_known_version(1);
    auto asked = server.Ask(ask);
    ASSERT_EQ(asked->replay_size(), 3);
    EXPECT_EQ(asked->replay(0).version(), 2);
    EXPECT_EQ(asked->replay(1).version(), 6);
    EXPECT_EQ(asked->replay(2).version(), 7);
    for (const int64_t gone : {3, 5, 8}) {
      ask.set_known_version(gone);
      asked = server.Ask(ask);
      EXPECT_TRUE(asked->resync()) << gone;
      EXPECT_EQ(asked->replay_size(), 0);
    }
  }
}

TEST(ZerothOrder, RollbackStartsTheStepAnew) {
  Server server;
  ASSERT_TRUE(server.Create(Request("s", 2)).ok());
  ASSERT_TRUE(server.Tell(Losses("s", 0, {0, 1})).ok());
  ASSERT_TRUE(server.Tell(Losses("s", 1, {0})).ok());
  ASSERT_TRUE(server.Rollback("s", 0).ok());
  for (const bool crashed : {false, true}) {
    if (crashed) server.Crash();
    server.clock().Advance(std::chrono::hours(1));
    EXPECT_EQ(server.Ask(AskFor("s", 9))->probes_size(), 2);
  }
}

TEST(ZerothOrder, ReplayIsCutAndGoesOn) {
  Server server;
  ASSERT_TRUE(server.Create(Request("s", 1, /*values=*/false)).ok());
  const int64_t steps = ZerothOrder::kReplaySteps + 500;
  for (int64_t step = 0; step < steps; ++step) ASSERT_TRUE(server.Tell(Losses("s", step, {0})).ok());
  for (const bool crashed : {false, true}) {
    if (crashed) server.Crash();
    int64_t known = 0, calls = 0;
    while (known < steps) {
      auto ask = AskFor("s");
      ask.set_known_version(known);
      auto asked = server.Ask(ask);
      ASSERT_TRUE(asked.ok()) << asked.status();
      ASSERT_GT(asked->replay_size(), 0);
      for (const v1::ReplayStep& step : asked->replay()) ASSERT_EQ(step.version(), ++known);
      ++calls;
    }
    EXPECT_EQ(calls, 2);
  }
}

TEST(ZerothOrder, PointsAreThePerturbedParameters) {
  Server server;
  ASSERT_TRUE(server.Create(Request("s", 1)).ok());
  ASSERT_TRUE(server.Tell(Losses("s", 0, {0})).ok());
  auto ask = AskFor("s");
  ask.set_with_point(true);
  auto asked = server.Ask(ask);
  ASSERT_TRUE(asked.ok()) << asked.status();
  const auto theta = *server.Parameters("s");
  std::vector<float> z(3);
  zo::FillNormalScalar({kSeed, 1, 0}, 1, 0, z);
  for (const bool plus : {true, false}) {
    const v1::Tensor& b = plus ? asked->probes(0).plus(1) : asked->probes(0).minus(1);
    std::vector<float> got(3);
    std::memcpy(got.data(), b.data().data(), 12);
    for (int i = 0; i < 3; ++i) {
      const float moved = (plus ? 0.001f : -0.001f) * z[i];
      EXPECT_EQ(got[i], theta[6 + i] + moved);
    }
  }
}

TEST(ZerothOrder, LayoutOnlySessionsHoldNothing) {
  Server server;
  v1::CreateSessionRequest request = Request("big", 1, /*values=*/false);
  request.mutable_layout()->clear_tensors();
  for (int i = 0; i < 400; ++i)  // 400 tensors of 2500 x 4096: 4.1e9 parameters
    SpecToProto({"layer" + std::to_string(i), optim::DType::kBF16, {2500, 4096}},
                request.mutable_layout()->add_tensors());
  auto created = server.Create(request);
  ASSERT_TRUE(created.ok()) << created.status();
  EXPECT_FALSE(created->has_values());
  size_t wire = 0;
  for (int64_t step = 0; step < 50; ++step) {
    auto ask = AskFor("big");
    ask.set_known_version(step);
    auto asked = server.Ask(ask);
    ASSERT_TRUE(asked.ok());
    ASSERT_EQ(asked->probes_size(), 1);
    auto tell = Losses("big", step, {0});
    auto told = server.Tell(tell);
    ASSERT_TRUE(told.ok());
    wire = std::max(wire, ask.ByteSizeLong() + asked->ByteSizeLong() + tell.ByteSizeLong() + told->ByteSizeLong());
  }
  EXPECT_LT(wire, 1024u);
  std::cout << "bytes a step: " << wire << "\n";
  EXPECT_EQ(server.Parameters("big").status().code(), absl::StatusCode::kFailedPrecondition);
  auto ask = AskFor("big");
  ask.set_with_point(true);
  EXPECT_EQ(server.Ask(ask).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_LT(server.engine().ResidentBytes(), 1 << 20);
}

TEST(ZerothOrder, ResidueIsRefused) {
  Server server;
  auto request = Request("s", 1);
  (*request.mutable_optimizer()->mutable_hyperparameters())["residue"].set_text("mezo");
  EXPECT_EQ(server.Create(request).status().code(), absl::StatusCode::kUnimplemented);
}

TEST(ZerothOrder, SignUsesTheSignOfTheProjectedGradient) {
  Server server;
  auto request = Request("s", 1);
  request.mutable_optimizer()->set_name("zo-sgd-sign");
  ASSERT_TRUE(server.Create(request).ok());
  ASSERT_TRUE(server.Tell(Losses("s", 0, {0})).ok());
  EXPECT_EQ(std::abs(server.Version("s", 1)->queries(0).coefficient()), 0.01f);
}

TEST(ZerothOrder, ForksStartFromTheVersion) {
  Server server;
  ASSERT_TRUE(server.Create(Request("s", 1)).ok());
  for (int64_t step = 0; step < 4; ++step) ASSERT_TRUE(server.Tell(Losses("s", step, {0})).ok());
  ASSERT_TRUE(server.Fork("s", 3, "f").ok());
  EXPECT_EQ(*server.Parameters("f"), *server.Parameters("s", 3));
  std::vector<float> theta = *server.Parameters("f");
  ASSERT_TRUE(server.Tell(Losses("f", 0, {0})).ok());
  ReferenceStep(&theta, 0, 1, 0.01, 0, true, 3);  // the direction that "s" drew at version 3
  server.Crash();
  EXPECT_EQ(*server.Parameters("f"), theta);
}

TEST(ZerothOrder, WaitingAskIsAnsweredByTheNextStep) {
  Server server;
  ASSERT_TRUE(server.Create(Request("s", 1)).ok());
  ASSERT_EQ(server.Ask(AskFor("s"))->probes_size(), 1);
  auto ask = AskFor("s");
  ask.mutable_wait()->set_seconds(600);
  absl::StatusOr<v1::AskResponse> asked = absl::UnknownError("");
  std::thread waiting([&] { asked = server.Ask(ask); });
  ASSERT_TRUE(server.Tell(Losses("s", 0, {0})).ok());
  waiting.join();
  ASSERT_TRUE(asked.ok());
  ASSERT_EQ(asked->probes_size(), 1);
  EXPECT_EQ(asked->probes(0).base_version(), 1);
}

TEST(ZerothOrder, ManyWaitingAsksLeaveNothingThatHoldsADrain) {
  Server server;
  ASSERT_TRUE(server.Create(Request("s", 1)).ok());
  ASSERT_EQ(server.Ask(AskFor("s"))->probes_size(), 1);
  auto ask = AskFor("s");
  ask.mutable_wait()->set_seconds(10);
  for (int round = 0; round < 2; ++round) {
    std::vector<std::future<absl::StatusOr<v1::AskResponse>>> waiting;
    for (int i = 0; i < 3; ++i) {
      auto answer = std::make_shared<std::promise<absl::StatusOr<v1::AskResponse>>>();
      waiting.push_back(answer->get_future());
      server.engine().Ask(server.caller(), ask, [answer](auto asked) { answer->set_value(std::move(asked)); });
    }
    ASSERT_TRUE(server.Get("s").ok());  // the asks before it have joined the queue
    server.clock().Advance(std::chrono::seconds(11));
    for (auto& answer : waiting) {
      const absl::StatusOr<v1::AskResponse> asked = answer.get();
      ASSERT_TRUE(asked.ok()) << asked.status();
      EXPECT_EQ(asked->probes_size(), 0);
    }
  }
  server.engine().Drain();
}

TEST(ZerothOrder, SixteenWorkersLoseNothing) {
  Server server;
  ASSERT_TRUE(server.Create(Request("s", 4)).ok());
  std::atomic<int64_t> updates{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 16; ++t) {
    threads.emplace_back([&, t] {
      while (updates < 60) {
        auto ask = AskFor("s");
        ask.mutable_lease()->set_seconds(t % 3);  // some leases end at once: probes are told twice
        auto asked = server.Ask(ask);
        ASSERT_TRUE(asked.ok()) << asked.status();
        for (const v1::Probe& probe : asked->probes()) {
          auto told = server.Tell(Losses("s", probe.base_version(), {probe.query()}));
          if (told.ok() && told->updated()) ++updates;
          if (!told.ok()) {
            ASSERT_EQ(told.status().code(), absl::StatusCode::kAborted) << told.status();
          }
        }
        server.clock().Advance(std::chrono::milliseconds(10));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  auto session = server.Get("s");
  EXPECT_EQ(session->seq(), updates);
  std::vector<float> theta = kStart;
  for (int64_t step = 0; step < session->seq(); ++step) ReferenceStep(&theta, step, 4, 0.01, 0);
  EXPECT_EQ(*server.Parameters("s"), theta);
  server.Crash();
  EXPECT_EQ(server.Get("s")->seq(), session->seq());
  EXPECT_EQ(*server.Parameters("s"), theta);
}

TEST(VersionTree, PathsOverJumps) {
  VersionTree tree;
  for (int64_t n = 1; n <= 5; ++n) EXPECT_FALSE(tree.Add(n, n - 1));
  EXPECT_TRUE(tree.Add(6, 2));
  EXPECT_FALSE(tree.Add(7, 6));
  EXPECT_TRUE(tree.Add(8, 4));
  struct Case {
    int64_t from, stop;
    std::vector<int64_t> want;
  };
  for (const Case& c :
       {Case{7, -1, {7, 6, 2, 1, 0}}, Case{7, 2, {7, 6}}, Case{7, 1, {7, 6, 2}}, Case{8, 3, {8, 4}}, Case{8, 4, {8}},
        Case{5, 0, {5, 4, 3, 2, 1}}, Case{7, 6, {7}}, Case{7, 7, {}}, Case{3, -1, {3, 2, 1, 0}}}) {
    std::vector<int64_t> got;
    for (const auto& run : tree.Path(c.from, c.stop))
      for (int64_t n = run.last; n >= run.first; --n) got.push_back(n);
    EXPECT_EQ(got, c.want) << c.from << " above " << c.stop;
  }
  for (int64_t version = 0; version <= 8; ++version) {
    std::set<int64_t> ancestors;
    for (int64_t at = version; at >= 0; at = tree.Parent(at)) ancestors.insert(at);
    for (int64_t other = 0; other <= 9; ++other)
      EXPECT_EQ(tree.IsAncestor(other, version), ancestors.contains(other)) << other << " of " << version;
  }
}

}  // namespace
}  // namespace optod::engine

// Block-wise and sparse sessions: the server and a worker that has only the wire hold the same bytes, blocks take turns,
// and nothing of it is lost in a crash, a rollback or a state file.
#include <cmath>

#include "numeric_testing.h"
#include "optim/zo/replay.h"
#include "optim/zo/support.h"
#include "server/engine/state_file.h"
#include "server/engine/zeroth_order.h"

namespace optod::engine {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kSeed = 5;
const zo::ZoLayout kLayout({{"emb", 4}, {"layers.0.w", 6}, {"layers.0.b", 2, false}, {"layers.1.w", 6}});
std::vector<float> Start() {
  std::vector<float> out;
  for (int i = 0; i < 18; ++i) out.push_back(0.5f + 0.25f * static_cast<float>(i % 7));
  return out;
}
double Loss(std::span<const float> theta) {
  double sum = 0;
  for (size_t i = 0; i < theta.size(); ++i) sum += 0.5 * static_cast<double>(i % 3 + 1) * theta[i] * theta[i];
  return sum;
}

struct Variant {
  const char* name;
  const char* optimizer;
  int queries;
  std::map<std::string, std::string> text;
  std::map<std::string, double> number;
  int probes;   // of a step
  int changed;  // elements that one step changes at most, 18 = all
};
void PrintTo(const Variant& v, std::ostream* out) { *out << v.name; }
const char* const kBlocks = "emb;layers.0.;layers.1.";
const Variant kVariants[] = {
    {"coordinate", "zo-sgd", 1, {{"blocks", kBlocks}}, {}, 1, 8},
    {"coordinate_queries", "zo-sgd", 3, {{"blocks", kBlocks}}, {{"weight_decay", 0.1}}, 3, 8},
    {"coordinate_momentum", "zo-sgd-mmt", 2, {{"blocks", kBlocks}}, {{"weight_decay", 0.1}}, 2, 8},
    {"coordinate_adam", "zo-adam", 1, {{"blocks", "each"}}, {}, 1, 6},
    {"joint", "zo-sgd", 1, {{"blocks", kBlocks}, {"block_schedule", "joint"}}, {}, 3, 18},
    {"joint_adam", "zo-adam", 2, {{"blocks", kBlocks}, {"block_schedule", "joint"}}, {{"weight_decay", 0.1}}, 6, 18},
    {"joint_sign_paper", "zo-sgd-sign", 1, {{"blocks", "each"}, {"block_schedule", "joint"}, {"sign", "paper"}}, {}, 4, 18},
    {"sparse", "zo-sgd", 2, {}, {{"mask_ratio", 0.5}, {"mask_every", 2}}, 2, 18},
    {"sparse_published", "zo-sgd", 1, {{"mask_law", "normal"}}, {{"mask_ratio", 0.2}}, 1, 18},
    {"sparse_ratios_blocks", "zo-sgd", 1, {{"blocks", kBlocks}, {"mask_ratios", "0,0.5,0,1"}}, {}, 1, 8},
};

v1::CreateSessionRequest Request(const Variant& v, const std::string& id) {
  v1::CreateSessionRequest request;
  request.set_session_id(id);
  request.mutable_optimizer()->set_name(v.optimizer);
  request.mutable_optimizer()->set_seed(kSeed);
  auto& hyper = *request.mutable_optimizer()->mutable_hyperparameters();
  hyper["lr"].set_number(0.02);
  hyper["queries"].set_number(v.queries);
  for (const auto& [name, value] : v.text) hyper[name].set_text(value);
  for (const auto& [name, value] : v.number) hyper[name].set_number(value);
  const std::vector<float> start = Start();
  for (size_t t = 0; t < kLayout.tensors(); ++t) {
    const auto first = start.begin() + static_cast<int64_t>(kLayout.offset(t));
    const auto size = static_cast<int64_t>(kLayout.tensor(t).size);
    *request.add_initial() = TensorOf(kLayout.tensor(t).name, {size}, {first, first + size});
    *request.mutable_layout()->add_tensors() = request.initial(static_cast<int>(t)).spec();
  }
  request.mutable_layout()->mutable_tensors(2)->set_no_decay(true);
  return request;
}

/// A worker by the wire alone.
class Worker {
 public:
  Worker(const Variant& v, Server* server, std::string session) : server_(server), session_(std::move(session)) {
    zo::ZoValues values = {{"queries", static_cast<double>(v.queries)}, {"lr", 0.02}};
    for (const auto& [name, value] : v.text) values[name] = value;
    for (const auto& [name, value] : v.number) values[name] = value;
    hyper_ = *zo::ZoHyperFor(v.optimizer, values);
    layout_ = *zo::Arrange(kLayout, hyper_);
    state_ = zo::InitialState(layout_, hyper_);
  }
  /// One version; returns the probes told. `spoil`: one loss is NaN.
  int Step(bool spoil = false) {
    v1::AskRequest ask;
    ask.set_session(session_);
    ask.set_count(100);
    ask.set_known_version(version_);
    const auto asked = server_->Ask(ask);
    EXPECT_TRUE(asked.ok()) << asked.status();
    Follow(*asked);
    v1::TellRequest tell;
    tell.set_session(session_);
    for (const v1::Probe& probe : asked->probes()) {
      v1::ProbeResult* result = tell.mutable_losses()->add_results();
      result->set_probe_id(probe.probe_id());
      const auto loss = [&](float sign) {
        std::vector<float> moved = theta_;
        zo::ShiftAlong(layout_, hyper_, {probe.seed(), probe.step(), probe.query()}, sign * static_cast<float>(probe.eps()), moved);
        return Loss(moved);
      };
      result->set_loss_plus(spoil ? NAN : loss(1));
      result->set_loss_minus(loss(-1));
    }
    const auto told = server_->Tell(tell);
    EXPECT_TRUE(told.ok() && told->updated()) << told.status();
    ask.set_count(1);
    ask.mutable_lease();  // 0 s: the replay is what is wanted
    const auto after = server_->Ask(ask);
    EXPECT_TRUE(after.ok());
    Follow(*after);
    return asked->probes_size();
  }
  const std::vector<float>& theta() const { return theta_; }
  const zo::ZoState<float>& state() const { return state_; }

 private:
  void Follow(const v1::AskResponse& answer) {
    for (const v1::ReplayStep& step : answer.replay()) {
      if (step.version() <= version_) continue;
      zo::UpdateScalars update{{}, step.weight_decay_rate(), {}};
      for (const auto& term : step.queries()) update.terms.push_back({term.step(), term.query(), term.coefficient()});
      if (step.has_rule())
        update.rule = {step.rule().t(), step.rule().lr(), step.rule().weight_decay(), step.rule().bias1(), step.rule().bias2()};
      EXPECT_TRUE(zo::ApplyUpdate(layout_, hyper_, kSeed, update, theta_, &state_).ok());
      version_ = step.version();
    }
  }
  Server* server_;
  std::string session_;
  zo::ZoHyper hyper_;
  zo::ZoLayout layout_;
  zo::ZoState<float> state_;
  std::vector<float> theta_ = Start();
  int64_t version_ = 0;
};

class ZerothOrderVariants : public testing::TestWithParam<Variant> {};
INSTANTIATE_TEST_SUITE_P(All, ZerothOrderVariants, testing::ValuesIn(kVariants), [](const auto& info) { return std::string(info.param.name); });

TEST_P(ZerothOrderVariants, ServerAndWorkerHoldTheSameBytesAndDescend) {
  Server server;
  ASSERT_TRUE(server.Create(Request(GetParam(), "s")).ok());
  Worker worker(GetParam(), &server, "s");
  for (int step = 0; step < 12; ++step) {
    const std::vector<float> before = worker.theta();
    EXPECT_EQ(worker.Step(), GetParam().probes);
    int changed = 0;
    for (size_t i = 0; i < before.size(); ++i) changed += before[i] != worker.theta()[i];
    EXPECT_LE(changed, GetParam().changed) << step;
    EXPECT_GT(changed, GetParam().number.contains("mask_ratio") || GetParam().text.contains("mask_ratios") ? -1 : 0) << step;
    if (step == 5) server.Crash();
    if (step % 4 == 3) {
      EXPECT_EQ(*server.Parameters("s"), worker.theta()) << step;
    }
  }
  EXPECT_LT(Loss(worker.theta()), Loss(Start()));
}

TEST_P(ZerothOrderVariants, PointsOfTheServerAreThoseOfTheWorker) {
  Server server;
  ASSERT_TRUE(server.Create(Request(GetParam(), "s")).ok());
  Worker worker(GetParam(), &server, "s");
  worker.Step();
  v1::AskRequest ask;
  ask.set_session("s");
  ask.set_count(100);
  ask.set_with_point(true);
  const auto asked = server.Ask(ask);
  ASSERT_TRUE(asked.ok()) << asked.status();
  zo::ZoValues values = {{"queries", static_cast<double>(GetParam().queries)}};
  for (const auto& [name, value] : GetParam().text) values[name] = value;
  for (const auto& [name, value] : GetParam().number) values[name] = value;
  const zo::ZoHyper hyper = *zo::ZoHyperFor(GetParam().optimizer, values);
  const zo::ZoLayout layout = *zo::Arrange(kLayout, hyper);
  for (const v1::Probe& probe : asked->probes()) {
    std::vector<float> plus = worker.theta();
    zo::ShiftAlong(layout, hyper, {probe.seed(), probe.step(), probe.query()}, static_cast<float>(probe.eps()), plus);
    std::string sent, want(reinterpret_cast<const char*>(plus.data()), plus.size() * 4);
    for (const v1::Tensor& tensor : probe.plus()) sent += tensor.data();
    EXPECT_EQ(sent, want) << probe.probe_id();
  }
}

TEST_P(ZerothOrderVariants, GoesOnFromAStateFileAndAFork) {
  Server server;
  ASSERT_TRUE(server.Create(Request(GetParam(), "s")).ok());
  Worker worker(GetParam(), &server, "s");
  for (int step = 0; step < 4; ++step) worker.Step();
  ASSERT_TRUE(server.Fork("s", 4, "f").ok());
  v1::ExportStateRequest request;
  request.set_session("s");
  const auto file = Await<StateFile>([&](auto done) { ExportState(server.engine(), server.caller(), request, std::move(done)); });
  ASSERT_TRUE(file.ok()) << file.status();
  v1::ImportStateHeader header;
  header.set_session_id("i");
  const auto session = Await<v1::Session>(
      [&](auto done) { ImportState(server.engine(), server.caller(), header, *EncodeStateFile(*file), "", std::move(done)); });
  ASSERT_TRUE(session.ok()) << session.status();
  for (int step = 0; step < 4; ++step) {
    for (const char* name : {"s", "f", "i"}) {
      v1::AskRequest ask;
      ask.set_session(name);
      ask.set_count(100);
      ask.set_with_point(true);
      const auto asked = server.Ask(ask);
      ASSERT_TRUE(asked.ok()) << asked.status();
      v1::TellRequest tell;
      tell.set_session(name);
      for (const v1::Probe& probe : asked->probes()) {
        const auto loss = [](const auto& point) {
          std::vector<float> theta;
          for (const v1::Tensor& tensor : point) {
            const size_t at = theta.size();
            theta.resize(at + tensor.data().size() / 4);
            std::memcpy(theta.data() + at, tensor.data().data(), tensor.data().size());
          }
          return Loss(theta);
        };
        v1::ProbeResult* result = tell.mutable_losses()->add_results();
        result->set_probe_id(probe.probe_id());
        result->set_loss_plus(loss(probe.plus()));
        result->set_loss_minus(loss(probe.minus()));
      }
      ASSERT_TRUE(server.Tell(tell).ok());
    }
  }
  EXPECT_EQ(*server.Parameters("i"), *server.Parameters("s"));
  EXPECT_EQ(*server.Parameters("f"), *server.Parameters("s"));
  EXPECT_EQ(server.State("i"), server.State("s"));
}

TEST(ZerothOrderBlocks, ASkippedStepLeavesTheTurnWhereItWas) {
  const Variant v = kVariants[0];
  Server server;
  ASSERT_TRUE(server.Create(Request(v, "s")).ok());
  Worker worker(v, &server, "s");
  worker.Step();
  worker.Step(/*spoil=*/true);
  worker.Step();
  std::vector<uint32_t> queries, steps;
  for (int64_t version = 1; version <= 3; ++version) {
    const auto made = server.Version("s", version);
    ASSERT_TRUE(made.ok()) << made.status();
    for (const auto& query : made->queries()) {
      queries.push_back(query.query());
      steps.push_back(query.step());
    }
  }
  EXPECT_EQ(queries, (std::vector<uint32_t>{0, 1}));  // block 1 is tried again, with another direction
  EXPECT_EQ(steps, (std::vector<uint32_t>{0, 2}));
}

TEST(ZerothOrderBlocks, WhatDoesNotFitTheLayoutIsRefused) {
  Server server;
  struct Case {
    std::map<std::string, std::string> text;
    const char* message;
  };
  for (const Case& c : {Case{{{"blocks", "emb"}}, "no prefix matches tensor \"layers.0.w\""}, Case{{{"mask_ratios", "1"}}, "1 numbers; the layout has 4"}}) {
    const auto refused = server.Create(Request({"", "zo-sgd", 1, c.text, {}, 0, 0}, "s"));
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr(c.message));
  }
  const auto refused = server.Create(Request({"", "zo-sgd-cons", 1, {{"blocks", "each"}}, {}, 0, 0}, "s"));
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("blocks"));
}

}  // namespace
}  // namespace optod::engine

// Every zeroth-order rule through the engine: steps, replay, moments, crash, rollback and fork against optim/zo's own
// optimizer, which runs at a worker that has everything.
#include <cmath>
#include <iostream>

#include "numeric_testing.h"
#include "optim/zo/replay.h"
#include "optim/zo/zo_optimizer.h"
#include "server/engine/zeroth_order.h"

namespace optod::engine {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kSeed = 7;
constexpr double kLr = 0.02;
const std::vector<float> kStart = {1, 2, -3, 4, 0.5f, 6, -1, 0.25f, 2};
const zo::ZoLayout kLayout({{"w", 6, true}, {"b", 3, false}});

struct RuleCase {
  const char* label;
  const char* optimizer;
  int queries;
  double weight_decay;
  const char* key = "";
  const char* choice = "";
};
void PrintTo(const RuleCase& c, std::ostream* out) { *out << c.label; }

const RuleCase kRules[] = {
    {"sgd", "zo-sgd", 2, 0.1},
    {"sign_code", "zo-sgd-sign", 2, 0.1},
    {"sign_paper", "zo-sgd-sign", 3, 0.1, "sign", "paper"},
    {"momentum", "zo-sgd-mmt", 1, 0},
    {"momentum_queries_decay", "zo-sgd-mmt", 3, 0.2},
    {"momentum_one_side", "zo-sgd-mmt", 2, 0, "perturbation", "one-side"},
    {"adam", "zo-adam", 1, 0},
    {"adam_queries_decay", "zo-adam", 4, 0.2},
    {"conservative", "zo-sgd-cons", 1, 0},
    {"conservative_queries_decay", "zo-sgd-cons", 3, 0.3},
    {"conservative_one_side", "zo-sgd-cons", 2, 0, "perturbation", "one-side"},
    {"forward", "forward-grad", 2, 0.1},
};

/// The objective: a bowl with a ripple, whose gradient is known.
double Loss(std::span<const float> theta) {
  double sum = 0;
  for (size_t i = 0; i < theta.size(); ++i)
    sum += 0.5 * static_cast<double>(i + 1) * theta[i] * theta[i] + std::sin(3.0 * theta[i]);
  return sum;
}
double Derivative(std::span<const float> theta, std::span<const float> z) {
  double sum = 0;
  for (size_t i = 0; i < theta.size(); ++i)
    sum += (static_cast<double>(i + 1) * theta[i] + 3 * std::cos(3.0 * theta[i])) * z[i];
  return sum;
}

v1::CreateSessionRequest Request(const RuleCase& c, const std::string& id, bool values = true) {
  v1::CreateSessionRequest request;
  request.set_session_id(id);
  v1::OptimizerSpec& optimizer = *request.mutable_optimizer();
  optimizer.set_name(c.optimizer);
  optimizer.set_seed(kSeed);
  auto& hyper = *optimizer.mutable_hyperparameters();
  hyper["lr"].set_number(kLr);
  hyper["queries"].set_number(c.queries);
  hyper["weight_decay"].set_number(c.weight_decay);
  if (*c.key != 0) hyper[c.key].set_text(c.choice);
  optimizer.mutable_schedule()->set_kind(v1::Schedule::LINEAR);
  optimizer.mutable_schedule()->set_total_steps(20);
  const std::vector<float> w(kStart.begin(), kStart.begin() + 6), b(kStart.begin() + 6, kStart.end());
  for (const v1::Tensor& tensor : {TensorOf("w", {2, 3}, w), TensorOf("b", {3}, b)}) {
    *request.mutable_layout()->add_tensors() = tensor.spec();
    if (values) *request.add_initial() = tensor;
  }
  request.mutable_layout()->mutable_tensors(1)->set_no_decay(true);
  return request;
}

zo::ZoHyper HyperFor(const RuleCase& c) {
  zo::ZoValues values = {
      {"lr", kLr}, {"queries", static_cast<double>(c.queries)}, {"weight_decay", c.weight_decay}};
  if (*c.key != 0) values[c.key] = std::string(c.choice);
  return *zo::ZoHyperFor(c.optimizer, values);
}

/// The optimizer that has everything: a run of optim/zo beside the session.
class Reference {
 public:
  explicit Reference(const RuleCase& c) : hyper_(HyperFor(c)), optimizer_(kLayout, hyper_) {}
  /// The step from version `base`, the `number`-th of the branch.
  void Step(int64_t base, int64_t number) {
    optimizer_.update().set_lr(kLr * (1.0 - static_cast<double>(number) / 20));
    const zo::StreamDirection<float> z(kSeed, static_cast<uint32_t>(base), kLayout);
    if (hyper_.rule == zo::Rule::kForwardGrad) {
      optimizer_.StepForwardGrad(theta_, z, [](auto theta, auto v) { return zo::Jvp{Loss(theta), Derivative(theta, v)}; });
    } else {
      optimizer_.StepByRule(theta_, z, Loss);
    }
  }
  const std::vector<float>& theta() const { return theta_; }
  const zo::ZoState<float>& state() const { return optimizer_.update().state(); }

 private:
  zo::ZoHyper hyper_;
  zo::ZoOptimizer<float> optimizer_;
  std::vector<float> theta_ = kStart;
};

/// A worker by the wire alone: follows replay, evaluates what probes ask for.
class Worker {
 public:
  Worker(const RuleCase& c, Server* server, std::string session)
      : hyper_(HyperFor(c)), server_(server), session_(std::move(session)), state_(zo::InitialState(kLayout, hyper_)) {}

  absl::StatusOr<v1::AskResponse> Follow(int count) {
    v1::AskRequest ask;
    ask.set_session(session_);
    ask.set_count(count);
    ask.set_worker("w");
    ask.set_known_version(version_);
    auto asked = server_->Ask(ask);
    if (!asked.ok()) return asked;
    EXPECT_FALSE(asked->resync());
    for (const v1::ReplayStep& step : asked->replay()) {
      zo::UpdateScalars update{{}, step.weight_decay_rate(), {}};
      for (const auto& term : step.queries()) update.terms.push_back({term.step(), term.query(), term.coefficient()});
      if (step.has_rule())
        update.rule = {step.rule().t(), step.rule().lr(), step.rule().weight_decay(), step.rule().bias1(), step.rule().bias2()};
      EXPECT_TRUE(zo::ApplyUpdate(kLayout, hyper_, kSeed, update, theta_, &state_).ok());
      version_ = step.version();
    }
    return asked;
  }
  std::vector<float> Moved(const zo::UpdateScalars& update) const {
    std::vector<float> out = theta_;
    EXPECT_TRUE(zo::ApplyUpdate(kLayout, {}, kSeed, update, out, nullptr).ok());
    return out;
  }
  v1::ProbeResult Evaluate(const v1::Probe& probe) const {
    v1::ProbeResult result;
    result.set_probe_id(probe.probe_id());
    if (probe.kind() == v1::Probe::DERIVATIVE) {
      const zo::StreamDirection<float> source(probe.seed(), probe.step(), kLayout);
      std::vector<float> z(theta_.size());
      source.Fill(static_cast<int>(probe.query()), 0, z);
      result.set_loss(Loss(theta_));
      result.set_jvp(Derivative(theta_, z));
      return result;
    }
    zo::UpdateScalars up{{{probe.step(), probe.query(), static_cast<float>(-probe.eps())}}, 0, {}}, down;
    if (probe.kind() == v1::Probe::CANDIDATES) {
      up = {{}, probe.weight_decay_rate(), {}};
      for (const auto& term : probe.terms()) up.terms.push_back({term.step(), term.query(), term.coefficient()});
      result.set_loss(Loss(theta_));
    }
    down = up;
    down.decay_rate = -down.decay_rate;
    for (zo::Term& term : down.terms) term.coefficient = -term.coefficient;
    result.set_loss_plus(Loss(Moved(up)));
    const bool at_theta = probe.kind() == v1::Probe::KIND_UNSPECIFIED && !probe.two_side();
    result.set_loss_minus(at_theta ? Loss(theta_) : Loss(Moved(down)));
    return result;
  }
  /// One step of the session; `spoil` makes one of the losses NaN.
  void Step(bool crash_between = false, bool spoil = false) {
    for (bool updated = false; !updated;) {
      auto asked = Follow(1);
      ASSERT_TRUE(asked.ok()) << asked.status();
      ASSERT_EQ(asked->probes_size(), 1) << "version " << version_;
      v1::TellRequest tell;
      tell.set_session(session_);
      *tell.mutable_losses()->add_results() = Evaluate(asked->probes(0));
      if (spoil) {
        tell.mutable_losses()->mutable_results(0)->set_loss_plus(NAN);
        tell.mutable_losses()->mutable_results(0)->set_jvp(INFINITY);
        spoil = false;
      }
      auto told = server_->Tell(tell);
      ASSERT_TRUE(told.ok()) << told.status();
      updated = told->updated();
      if (crash_between) server_->Crash();
    }
    ASSERT_TRUE(Follow(0).ok());
  }
  const std::vector<float>& theta() const { return theta_; }
  int64_t version() const { return version_; }
  const zo::ZoState<float>& state() const { return state_; }

 private:
  zo::ZoHyper hyper_;
  Server* server_;
  std::string session_;
  zo::ZoState<float> state_;
  std::vector<float> theta_ = kStart;
  int64_t version_ = 0;
};

std::vector<float> Moments(Server* server, const std::string& session, const std::string& prefix) {
  auto state = server->State(session);
  const std::string bytes = state[prefix + "/w"] + state[prefix + "/b"];
  std::vector<float> out(bytes.size() / sizeof(float));
  if (!bytes.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

class ZerothOrderRules : public testing::TestWithParam<RuleCase> {};
INSTANTIATE_TEST_SUITE_P(Rules, ZerothOrderRules, testing::ValuesIn(kRules),
                         [](const auto& info) { return info.param.label; });

TEST_P(ZerothOrderRules, WorkerServerAndOptimizerHoldTheSameBytes) {
  for (const bool crash : {false, true}) {
    Server server;
    ASSERT_TRUE(server.Create(Request(GetParam(), "s")).ok());
    Reference reference(GetParam());
    Worker worker(GetParam(), &server, "s");
    for (int64_t step = 0; step < 8; ++step) {
      worker.Step(crash);
      reference.Step(step, step + 1);
      EXPECT_EQ(worker.theta(), reference.theta()) << step;
      if (step % 3 != 1) {
        EXPECT_EQ(*server.Parameters("s"), reference.theta()) << step;
      }
      EXPECT_EQ(Moments(&server, "s", "m"), reference.state().m);
      EXPECT_EQ(Moments(&server, "s", "v"), reference.state().v);
    }
    EXPECT_NE(reference.theta(), kStart);
  }
}

TEST_P(ZerothOrderRules, ASkippedStepChangesNeitherParametersNorMoments) {
  Server server;
  ASSERT_TRUE(server.Create(Request(GetParam(), "s")).ok());
  Reference reference(GetParam());
  Worker worker(GetParam(), &server, "s");
  for (int64_t step = 0; step < 5; ++step) {
    worker.Step(false, /*spoil=*/step == 2);
    if (step != 2) reference.Step(step, step + 1);
    EXPECT_EQ(server.Version("s", step + 1)->kind(), step == 2 ? "skipped" : "step");
  }
  EXPECT_EQ(worker.theta(), reference.theta());
  server.Crash();
  EXPECT_EQ(*server.Parameters("s"), reference.theta());
  EXPECT_EQ(Moments(&server, "s", "m"), reference.state().m);
  Worker late(GetParam(), &server, "s");
  ASSERT_TRUE(late.Follow(0).ok());
  EXPECT_EQ(late.theta(), reference.theta());
  EXPECT_EQ(late.state().m, reference.state().m);
}

TEST_P(ZerothOrderRules, RollbackAndForkGoOnFromTheMoments) {
  Server server;
  ASSERT_TRUE(server.Create(Request(GetParam(), "s")).ok());
  Reference reference(GetParam());
  {
    Worker worker(GetParam(), &server, "s");
    for (int64_t step = 0; step < 6; ++step) worker.Step();
  }
  for (int64_t step = 0; step < 3; ++step) reference.Step(step, step + 1);
  ASSERT_TRUE(server.Fork("s", 3, "f").ok());
  ASSERT_TRUE(server.Rollback("s", 3).ok());
  for (const bool crash : {false, true}) {
    if (crash) server.Crash();
    for (const char* session : {"s", "f"}) {
      EXPECT_EQ(*server.Parameters(session), reference.theta()) << session;
      EXPECT_EQ(Moments(&server, session, "m"), reference.state().m) << session;
      EXPECT_EQ(Moments(&server, session, "v"), reference.state().v) << session;
    }
  }
  Worker worker(GetParam(), &server, "s");
  ASSERT_TRUE(worker.Follow(0).ok());
  worker.Step();  // version 7 from 3
  worker.Step();
  reference.Step(3, 4);
  reference.Step(7, 5);
  EXPECT_EQ(*server.Parameters("s"), reference.theta());
  EXPECT_EQ(worker.theta(), reference.theta());
}

TEST_P(ZerothOrderRules, ColdMomentsWouldDiffer) {
  const zo::ZoHyper hyper = HyperFor(GetParam());
  if (hyper.base != zo::Base::kAdam && hyper.momentum == 0) GTEST_SKIP() << "no moments";
  Reference reference(GetParam());
  for (int64_t step = 0; step < 4; ++step) reference.Step(step, step + 1);
  std::vector<float> warm = reference.theta(), cold = warm;
  zo::ZoState<float> state = reference.state(), zero = zo::InitialState(kLayout, hyper);
  zo::UpdateScalars update{{{4, 0, 0.5f}}, 0, zo::RuleScalarsFor<float>(hyper, kLr, 5)};
  ASSERT_TRUE(zo::ApplyUpdate(kLayout, hyper, kSeed, update, warm, &state).ok());
  ASSERT_TRUE(zo::ApplyUpdate(kLayout, hyper, kSeed, update, cold, &zero).ok());
  EXPECT_NE(warm, cold);
}

TEST_P(ZerothOrderRules, PointsAreWhatAWorkerWouldForm) {
  Server server;
  ASSERT_TRUE(server.Create(Request(GetParam(), "s")).ok());
  Worker worker(GetParam(), &server, "s");
  worker.Step();
  const int probes = GetParam().queries + (std::string(GetParam().optimizer) == "zo-sgd-cons" ? 1 : 0);
  for (int i = 0; i < probes; ++i) {
    v1::AskRequest ask;
    ask.set_session("s");
    ask.set_worker("w");
    ask.set_with_point(true);
    auto asked = server.Ask(ask);
    ASSERT_TRUE(asked.ok()) << asked.status();
    const v1::Probe& probe = asked->probes(0);
    const auto flat = [](const auto& tensors) {
      std::vector<float> out(9);
      EXPECT_EQ(tensors.size(), 2);
      std::memcpy(out.data(), tensors.Get(0).data().data(), 24);
      std::memcpy(out.data() + 6, tensors.Get(1).data().data(), 12);
      return out;
    };
    const v1::ProbeResult want = worker.Evaluate(probe);
    v1::TellRequest tell;
    tell.set_session("s");
    *tell.mutable_losses()->add_results() = want;
    if (probe.kind() == v1::Probe::DERIVATIVE) {
      EXPECT_EQ(Loss(flat(probe.plus())), want.loss());
      EXPECT_EQ(Derivative(flat(probe.plus()), flat(probe.direction())), want.jvp());
    } else {
      EXPECT_EQ(Loss(flat(probe.plus())), want.loss_plus());
      EXPECT_EQ(Loss(flat(probe.minus())), want.loss_minus());
      if (probe.kind() == v1::Probe::CANDIDATES) {
        EXPECT_EQ(Loss(flat(probe.stay())), want.loss());
      }
    }
    ASSERT_TRUE(server.Tell(tell).ok());
  }
}

TEST(ZerothOrderConservative, CandidatesComeLastAndTheLossNeverRises) {
  Server server;
  const RuleCase c = kRules[8];
  ASSERT_TRUE(server.Create(Request(c, "s")).ok());
  Worker worker(c, &server, "s");
  double last = Loss(kStart);
  std::set<std::string> chosen;
  for (int64_t step = 0; step < 19; ++step) {
    worker.Step();
    EXPECT_LE(Loss(worker.theta()), last) << step;
    last = Loss(worker.theta());
    chosen.insert(server.Version("s", step + 1)->note());
  }
  EXPECT_TRUE(chosen.contains("descent"));
  EXPECT_EQ(server.Get("s")->usage().evaluations(), 19 * 2);
}

TEST(ZerothOrderConservative, ACandidateThatIsNotFiniteIsNotTaken) {
  for (const char* bad : {"descent", "ascent", "both"}) {
    Server server;
    ASSERT_TRUE(server.Create(Request(kRules[8], "s")).ok());
    Worker worker(kRules[8], &server, "s");
    v1::TellRequest tell;
    tell.set_session("s");
    *tell.mutable_losses()->add_results() = worker.Evaluate(worker.Follow(1)->probes(0));
    ASSERT_TRUE(server.Tell(tell).ok());
    const v1::Probe probe = worker.Follow(1)->probes(0);
    ASSERT_EQ(probe.kind(), v1::Probe::CANDIDATES);
    v1::ProbeResult* result = tell.mutable_losses()->mutable_results(0);
    *result = worker.Evaluate(probe);
    result->set_loss_plus(result->loss() - 1);
    result->set_loss_minus(result->loss() - 1);
    if (std::string(bad) != "ascent") result->set_loss_plus(NAN);
    if (std::string(bad) != "descent") result->set_loss_minus(NAN);
    auto told = server.Tell(tell);
    ASSERT_TRUE(told.ok()) << told.status();
    EXPECT_FALSE(told->skipped());
    EXPECT_EQ(server.Version("s", 1)->note(), std::string(bad) == "descent"  ? "ascent"
                                              : std::string(bad) == "ascent" ? "descent"
                                                                             : "stay");
    if (std::string(bad) == "both") {
      EXPECT_EQ(*server.Parameters("s"), kStart);
    }
  }
}

struct MissingCase {
  const char* label;
  int rule;
  const char* message;
};
TEST(ZerothOrderErrors, WhatAProbeNeedsIsNamed) {
  for (const MissingCase& c : {MissingCase{"jvp", 11, "losses.results[0].jvp: missing"},
                               MissingCase{"loss", 8, "losses.results[0].loss: missing"},
                               MissingCase{"early", 9, "was never handed out"}}) {
    Server server;
    ASSERT_TRUE(server.Create(Request(kRules[c.rule], "s")).ok());
    Worker worker(kRules[c.rule], &server, "s");
    v1::TellRequest tell;
    tell.set_session("s");
    v1::ProbeResult* result = tell.mutable_losses()->add_results();
    *result = worker.Evaluate(worker.Follow(1)->probes(0));
    if (c.rule == 8) {
      ASSERT_TRUE(server.Tell(tell).ok());
      *result = worker.Evaluate(worker.Follow(1)->probes(0));
    }
    result->clear_jvp();
    result->clear_loss();
    if (c.rule == 9) result->set_probe_id("0.3");  // the candidates, before their directions are told
    auto told = server.Tell(tell);
    EXPECT_EQ(told.status().code(), absl::StatusCode::kInvalidArgument) << c.label;
    EXPECT_THAT(std::string(told.status().message()), HasSubstr(c.message));
  }
}

TEST(ZerothOrderFork, MomentsThatLiveAtTheWorkersCannotBeForked) {
  Server server;
  ASSERT_TRUE(server.Create(Request(kRules[3], "s", /*values=*/false)).ok());
  ASSERT_TRUE(server.Fork("s", 0, "start").ok());
  Worker worker(kRules[3], &server, "s");
  worker.Step();
  auto fork = server.Fork("s", 1, "f");
  EXPECT_EQ(fork.status().code(), absl::StatusCode::kFailedPrecondition) << fork.status();
  EXPECT_THAT(std::string(fork.status().message()), HasSubstr("live at the workers"));
}

}  // namespace
}  // namespace optod::engine

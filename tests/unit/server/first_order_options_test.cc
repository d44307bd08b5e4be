// What an OptimizerSpec may ask of a first-order session: every rule of the table with crash and reload, parameter
// groups, schedules, clipping, the guard against NaN and infinity, and the memory report.
#include <cmath>

#include "numeric_testing.h"
#include "optim/rules/groups.h"
#include "server/engine/first_order.h"
#include "server/engine/snapshot.h"

namespace optod::engine {
namespace {

using ::testing::HasSubstr;

const std::vector<optim::TensorSpec> kLayout = {{"fc1.weight", optim::DType::kF32, {6, 5}},
                                                {"fc1.bias", optim::DType::kF32, {6}},
                                                {"lm_head.weight", optim::DType::kF32, {3, 6}}};

float Wave(int64_t a, int64_t b) { return 0.3f * std::sin(0.7f * static_cast<float>(a) + 1.3f * static_cast<float>(b)); }

std::vector<float> Numbers(int64_t step, size_t tensor) {
  std::vector<float> out(static_cast<size_t>(kLayout[tensor].elements()));
  for (size_t i = 0; i < out.size(); ++i) out[i] = Wave(step * 5 + static_cast<int64_t>(tensor), static_cast<int64_t>(i));
  return out;
}

v1::CreateSessionRequest Request(const std::string& id, const std::string& optimizer) {
  v1::CreateSessionRequest request;
  request.set_session_id(id);
  request.mutable_optimizer()->set_name(optimizer);
  request.mutable_optimizer()->set_seed(3);
  for (size_t i = 0; i < kLayout.size(); ++i) {
    *request.add_initial() = TensorOf(kLayout[i].name, kLayout[i].shape, Numbers(-1, i));
    *request.mutable_layout()->add_tensors() = request.initial(static_cast<int>(i)).spec();
  }
  return request;
}

v1::TellRequest Tell(const std::string& id, int64_t base, int64_t step) {
  v1::TellRequest request;
  request.set_session(id);
  v1::GradientTell& tell = *request.mutable_gradients();
  tell.set_base_version(base);
  tell.set_loss(2.0 - 0.1 * static_cast<double>(step));
  for (size_t i = 0; i < kLayout.size(); ++i) {
    *tell.add_gradients() = TensorOf(kLayout[i].name, kLayout[i].shape, Numbers(step, i));
    *tell.add_extra() = TensorOf("hessian_z/" + kLayout[i].name, kLayout[i].shape, Numbers(step + 100, i));
  }
  const std::vector<float> rows5 = {0.5f, -0.25f, 1, 0.1f * static_cast<float>(step), -1}, rows6 = {0.1f, 0.2f, -0.3f, 0.4f, 0, 0.05f};
  *tell.add_extra() = TensorOf("act/fc1", {1, 5}, rows5);
  *tell.add_extra() = TensorOf("pgrad/fc1", {1, 6}, rows6);
  return request;
}

std::vector<std::string> Rules() {
  std::vector<std::string> names;
  for (const optim::RuleInfo& info : optim::AllRules())
    if (info.family == optim::Family::kFirstOrder) names.push_back(info.name);
  return names;
}

class EveryRule : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Rules, EveryRule, testing::ValuesIn(Rules()), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

// Uninterrupted equals resumed, bit for bit; parameters with a fresh state (a cold start) do not.
TEST_P(EveryRule, ResumesBitForBitAndNotFromCold) {
  Server live, crashed, cold;
  for (Server* server : {&live, &crashed}) {
    auto request = Request("s", GetParam());
    request.mutable_durability()->set_snapshot_every(3);
    ASSERT_TRUE(server->Create(request).ok());
  }
  for (int64_t step = 0; step < 5; ++step) {
    ASSERT_TRUE(live.Tell(Tell("s", step, step)).ok());
    auto told = crashed.Tell(Tell("s", step, step));
    ASSERT_TRUE(told.ok()) << told.status();
    crashed.Crash();
  }
  auto fresh = Request("s", GetParam());
  const std::vector<float> values = *live.Parameters("s");
  size_t at = 0;
  for (int i = 0; i < fresh.initial_size(); ++i) {
    const size_t n = static_cast<size_t>(kLayout[static_cast<size_t>(i)].elements());
    *fresh.mutable_initial(i) = TensorOf(kLayout[static_cast<size_t>(i)].name, kLayout[static_cast<size_t>(i)].shape,
                                         std::vector<float>(values.begin() + at, values.begin() + at + n));
    at += n;
  }
  ASSERT_TRUE(cold.Create(fresh).ok());
  for (int64_t step = 5; step < 8; ++step) {
    ASSERT_TRUE(live.Tell(Tell("s", step, step)).ok());
    ASSERT_TRUE(crashed.Tell(Tell("s", step, step)).ok());
    ASSERT_TRUE(cold.Tell(Tell("s", step - 5, step)).ok());
  }
  EXPECT_EQ(*crashed.Parameters("s"), *live.Parameters("s"));
  EXPECT_EQ(crashed.State("s"), live.State("s"));
  if (GetParam() == "sgd" || GetParam() == "galore") return;  // no state; a projection that is not due yet
  EXPECT_NE(*cold.Parameters("s"), *live.Parameters("s"));
}

TEST_P(EveryRule, ReportsTheBytesOfItsState) {
  Server server;
  ASSERT_TRUE(server.Create(Request("s", GetParam())).ok());
  ASSERT_TRUE(server.Tell(Tell("s", 0, 0)).ok());
  auto report = server.Memory("s");
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->resident());
  EXPECT_EQ(report->parameter_bytes(), 4u * (30 + 6 + 18));
  EXPECT_EQ(report->gradient_bytes(), report->parameter_bytes());
  uint64_t sum = report->shared_state_bytes(), state = 0;
  for (const v1::TensorMemory& tensor : report->tensors()) sum += tensor.state_bytes();
  for (const auto& [name, bytes] : server.State("s")) state += bytes.size();
  EXPECT_EQ(report->state_bytes(), state);
  EXPECT_EQ(sum, state);
  ASSERT_EQ(report->tensors_size(), 3);
  EXPECT_EQ(report->tensors(1).name(), "fc1.bias");
  EXPECT_EQ(report->tensors(1).parameter_bytes(), 24u);
  // A buffer that serves one tensor after another counts with each and is as large as the neediest wants.
  uint64_t most = 0, all = 0;
  for (const v1::TensorMemory& tensor : report->tensors()) {
    most = std::max<uint64_t>(most, tensor.transient_bytes());
    all += tensor.transient_bytes();
  }
  EXPECT_LE(most, report->transient_bytes());
  EXPECT_LE(report->transient_bytes(), all);
  EXPECT_LE(report->shared_transient_bytes(), report->transient_bytes());
  if (GetParam() == "adamw") {
    EXPECT_EQ(report->tensors(0).state_bytes(), 2u * 120 + 8);
    EXPECT_EQ(report->transient_bytes(), 0u);
  }
  if (GetParam() == "muon") {  // two matrices and two products with the transpose, of [6, 5]; packed operands
    EXPECT_GE(report->tensors(0).transient_bytes(), 2u * 120 + 2 * 100);
    EXPECT_EQ(report->tensors(1).transient_bytes(), 0u);
  }
  if (GetParam() == "lamb") {
    EXPECT_EQ(report->shared_transient_bytes(), 0u);
  }
}

TEST_P(EveryRule, SkipsAStepThatIsNotFinite) {
  for (const bool crash : {false, true}) {
    Server server;
    auto request = Request("s", GetParam());
    request.mutable_optimizer()->set_non_finite(v1::SKIP);
    ASSERT_TRUE(server.Create(request).ok());
    ASSERT_TRUE(server.Tell(Tell("s", 0, 0)).ok());
    const auto before = *server.Parameters("s");
    const auto state = server.State("s");
    auto bad = Tell("s", 1, 1);
    std::vector<float> values = Numbers(1, 1);
    values[2] = INFINITY;
    *bad.mutable_gradients()->mutable_gradients(1) = TensorOf("fc1.bias", {6}, values);
    auto told = server.Tell(bad);
    ASSERT_TRUE(told.ok()) << told.status();
    EXPECT_TRUE(told->skipped());
    EXPECT_TRUE(told->updated());
    EXPECT_EQ(told->head_version(), 2);
    EXPECT_EQ(server.Version("s", 2)->kind(), "skipped");
    if (crash) server.Crash();
    EXPECT_EQ(*server.Parameters("s"), before);
    EXPECT_EQ(server.State("s"), state);
    ASSERT_TRUE(server.Tell(Tell("s", 2, 2)).ok());
    if (crash) server.Crash();
    EXPECT_NE(*server.Parameters("s"), before);
    EXPECT_EQ(server.Get("s")->seq(), 3);
    EXPECT_EQ(*server.Parameters("s", 2), before);
  }
}

// Through the bytes of a safetensors file and back: the state is the same, and the rule goes on as if nothing had been.
TEST_P(EveryRule, StateGoesThroughASafetensorsFile) {
  const Layout layout(Request("s", GetParam()).layout());
  auto live = optim::MakeRule(GetParam(), {}, kLayout, 3), loaded = optim::MakeRule(GetParam(), {}, kLayout, 3);
  ASSERT_TRUE(live.ok() && loaded.ok());
  std::vector<std::vector<float>> params[2];
  std::vector<float> flat;
  const auto step = [&](optim::Rule& rule, std::vector<std::vector<float>>& at, int64_t number) {
    std::vector<std::vector<float>> grads;
    std::vector<optim::OwnedTensor> extra;
    std::vector<void*> p;
    std::vector<const void*> g;
    const v1::TellRequest told = Tell("s", 0, number);
    for (const v1::Tensor& tensor : told.gradients().extra()) {
      optim::OwnedTensor& own = extra.emplace_back();
      own.spec = SpecFromProto(tensor.spec());
      own.data.resize(tensor.data().size());
      std::memcpy(own.data.data(), tensor.data().data(), own.data.size());
    }
    for (size_t i = 0; i < kLayout.size(); ++i) grads.push_back(Numbers(number, i));
    for (size_t i = 0; i < kLayout.size(); ++i) {
      p.push_back(at[i].data());
      g.push_back(grads[i].data());
    }
    optim::StepInput input;
    input.grads = g;
    input.loss = 1.5;
    for (const optim::OwnedTensor& tensor : extra) input.extra[tensor.spec.name] = &tensor;
    ASSERT_TRUE(rule.Step(p, input).ok());
  };
  for (size_t i = 0; i < kLayout.size(); ++i) params[0].push_back(Numbers(-1, i));
  for (int64_t number = 0; number < 3; ++number) step(**live, params[0], number);
  for (const auto& tensor : params[0]) flat.insert(flat.end(), tensor.begin(), tensor.end());
  auto file = EncodeSnapshot(layout, reinterpret_cast<const std::byte*>(flat.data()), (*live)->ExportState(), 3, 3);
  ASSERT_TRUE(file.ok()) << file.status();
  const std::string bytes(reinterpret_cast<const char*>((*file)->data()), (*file)->size());
  auto read = DecodeSnapshot(layout, bytes);
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_TRUE((*loaded)->ImportState(read->state).ok());
  EXPECT_EQ(std::memcmp(read->params->data(), flat.data(), flat.size() * 4), 0);
  params[1] = params[0];
  step(**live, params[0], 3);
  step(**loaded, params[1], 3);
  EXPECT_EQ(params[0], params[1]);
}

/// The rule itself beside a session: groups, and the rate that the schedule gives.
std::vector<float> Expected(const optim::Hyper& base, const std::vector<optim::ParameterGroup>& groups, const std::vector<double>& lrs) {
  auto rule = *optim::MakeGroupedRule("adamw", base, groups, kLayout, 3);
  std::vector<std::vector<float>> params;
  for (size_t i = 0; i < kLayout.size(); ++i) params.push_back(Numbers(-1, i));
  for (size_t step = 0; step < lrs.size(); ++step) {
    std::vector<std::vector<float>> grads;
    std::vector<void*> p;
    std::vector<const void*> g;
    for (size_t i = 0; i < kLayout.size(); ++i) grads.push_back(Numbers(static_cast<int64_t>(step), i));
    for (size_t i = 0; i < kLayout.size(); ++i) {
      p.push_back(params[i].data());
      g.push_back(grads[i].data());
    }
    optim::StepInput input;
    input.grads = g;
    if (lrs[step] >= 0) input.lr = lrs[step];
    EXPECT_TRUE(rule->Step(p, input).ok());
  }
  std::vector<float> out;
  for (const auto& tensor : params) out.insert(out.end(), tensor.begin(), tensor.end());
  return out;
}

TEST(ParameterGroups, HaveTheirOwnRateDecayAndOptions) {
  for (const bool crash : {false, true}) {
    Server server;
    auto request = Request("s", "adamw");
    (*request.mutable_optimizer()->mutable_hyperparameters())["lr"].set_number(0.01);
    v1::ParameterGroup* group = request.mutable_optimizer()->add_groups();
    group->add_tensors("*.bias");
    (*group->mutable_hyperparameters())["lr"].set_number(0.1);
    (*group->mutable_hyperparameters())["weight_decay"].set_number(0);
    group = request.mutable_optimizer()->add_groups();
    group->add_tensors("lm_head.*");
    (*group->mutable_hyperparameters())["amsgrad"].set_flag(true);
    ASSERT_TRUE(server.Create(request).ok());
    for (int64_t step = 0; step < 4; ++step) {
      ASSERT_TRUE(server.Tell(Tell("s", step, step)).ok());
      if (crash) server.Crash();
    }
    const std::vector<optim::ParameterGroup> groups = {{{"*.bias"}, {{"lr", 0.1}, {"weight_decay", 0.0}}},
                                                       {{"lm_head.*"}, {{"amsgrad", true}}}};
    EXPECT_EQ(*server.Parameters("s"), Expected({{"lr", 0.01}}, groups, {-1, -1, -1, -1}));
    EXPECT_NE(*server.Parameters("s"), Expected({{"lr", 0.01}}, {}, {-1, -1, -1, -1}));
  }
}

struct ScheduleCase {
  const char* name;
  v1::Schedule::Kind kind;
  int64_t warmup, total;
  double floor;
  std::vector<double> factors;  // of steps 1 ... 6
};
const ScheduleCase kSchedules[] = {
    {"constant", v1::Schedule::CONSTANT, 0, 0, 0, {1, 1, 1, 1, 1, 1}},
    {"warm_up", v1::Schedule::CONSTANT, 4, 0, 0, {0.25, 0.5, 0.75, 1, 1, 1}},
    {"linear", v1::Schedule::LINEAR, 0, 5, 0.1, {0.82, 0.64, 0.46, 0.28, 0.1, 0.1}},
    {"cosine", v1::Schedule::COSINE, 0, 4, 0, {0.8535533905932737, 0.5, 0.14644660940672627, 0, 0, 0}},
    {"cosine_warm_up", v1::Schedule::COSINE, 2, 6, 0.5, {0.5, 1, 0.9267766952966369, 0.75, 0.5732233047033631, 0.5}},
    {"inverse_sqrt", v1::Schedule::INVERSE_SQRT, 2, 0, 0, {0.5, 1, 0.816496580927726, 0.7071067811865476, 0.6324555320336759, 0.5773502691896258}},
};
class Schedules : public testing::TestWithParam<ScheduleCase> {};
INSTANTIATE_TEST_SUITE_P(Kinds, Schedules, testing::ValuesIn(kSchedules), [](const auto& info) { return std::string(info.param.name); });

TEST_P(Schedules, ScaleEveryGroup) {
  const ScheduleCase& c = GetParam();
  Server server;
  auto request = Request("s", "adamw");
  (*request.mutable_optimizer()->mutable_hyperparameters())["lr"].set_number(0.25);
  v1::Schedule& schedule = *request.mutable_optimizer()->mutable_schedule();
  schedule.set_kind(c.kind);
  schedule.set_warmup_steps(c.warmup);
  schedule.set_total_steps(c.total);
  schedule.set_floor(c.floor);
  v1::ParameterGroup* group = request.mutable_optimizer()->add_groups();
  group->add_tensors("fc1.*");
  (*group->mutable_hyperparameters())["lr"].set_number(0.5);
  ASSERT_TRUE(server.Create(request).ok());
  std::vector<double> lrs;
  for (int64_t step = 0; step < 6; ++step) {
    auto told = server.Tell(Tell("s", step, step));
    ASSERT_TRUE(told.ok()) << told.status();
    EXPECT_NEAR(told->lr(), 0.25 * c.factors[static_cast<size_t>(step)], 1e-15) << step;
    lrs.push_back(told->lr());
  }
  EXPECT_EQ(*server.Parameters("s"), Expected({{"lr", 0.25}}, {{{"fc1.*"}, {{"lr", 0.5}}}}, lrs));
}

TEST(Clipping, ByValueThenByNorm) {
  Server clipped, plain;
  auto request = Request("s", "sgd");
  (*request.mutable_optimizer()->mutable_hyperparameters())["lr"].set_number(1);
  ASSERT_TRUE(plain.Create(request).ok());
  request.mutable_optimizer()->set_clip_value(0.05);
  request.mutable_optimizer()->set_clip_norm(0.2);
  ASSERT_TRUE(clipped.Create(request).ok());
  auto told = clipped.Tell(Tell("s", 0, 0));
  ASSERT_TRUE(told.ok()) << told.status();
  double squares = 0;
  std::vector<float> limited;
  for (size_t i = 0; i < kLayout.size(); ++i) {
    for (const float g : Numbers(0, i)) {
      limited.push_back(std::min(0.05f, std::max(-0.05f, g)));
      squares += static_cast<double>(limited.back()) * limited.back();
    }
  }
  EXPECT_NEAR(told->figures().at("grad_norm"), std::sqrt(squares), 1e-12);
  ASSERT_GT(std::sqrt(squares), 0.2);
  const std::vector<float> start = *clipped.Parameters("s", 0), end = *clipped.Parameters("s");
  for (size_t i = 0; i < limited.size(); ++i)
    EXPECT_NEAR(start[i] - end[i], limited[i] * 0.2 / std::sqrt(squares), 1e-6) << i;
}

struct SpecCase {
  const char* name;
  const char* optimizer;
  std::function<void(v1::OptimizerSpec*)> change;
  const char* message;
};
TEST(Specs, BadOnesAreRefusedInWords) {
  const SpecCase cases[] = {
      {"glob", "adamw", [](auto* o) { o->add_groups()->add_tensors("*.biass"); },
       "optimizer.groups[0].tensors: nothing in the layout matches \"*.biass\""},
      {"value", "adamw",
       [](auto* o) {
         o->add_groups()->add_tensors("*");
         (*o->mutable_groups(0)->mutable_hyperparameters())["lr"].set_number(-2);
       },
       "optimizer.groups[0].hyperparameters.lr: -2 is negative"},
      {"clip_value", "adamw", [](auto* o) { o->set_clip_value(-1); }, "optimizer.clip_value: -1"},
      {"clip_nan", "adamw", [](auto* o) { o->set_clip_value(NAN); }, "optimizer.clip_value: nan"},
  };
  for (const SpecCase& c : cases) {
    Server server;
    auto request = Request("s", c.optimizer);
    c.change(request.mutable_optimizer());
    auto created = server.Create(request);
    EXPECT_EQ(created.status().code(), absl::StatusCode::kInvalidArgument) << c.name;
    EXPECT_THAT(std::string(created.status().message()), HasSubstr(c.message));
  }
}

TEST(NonFinite, IsRefusedUnlessAskedOtherwise) {
  Server server;
  ASSERT_TRUE(server.Create(Request("s", "adamw")).ok());
  auto bad = Tell("s", 0, 0);
  std::vector<float> values = Numbers(0, 1);
  values[2] = NAN;
  *bad.mutable_gradients()->mutable_gradients(1) = TensorOf("fc1.bias", {6}, values);
  auto told = server.Tell(bad);
  EXPECT_EQ(told.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(told.status().message()), HasSubstr("grads.fc1.bias: element 2 is NaN"));
  EXPECT_EQ(server.Get("s")->head_version(), 0);
}

}  // namespace
}  // namespace optod::engine

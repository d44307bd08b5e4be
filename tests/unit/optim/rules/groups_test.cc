// Parameter groups against one rule a group, and stochastic rounding of bfloat16 against its law.
#include "optim/rules/groups.h"

#include <cmath>

#include "optim/rules/half.h"
#include "optim/zo/stream.h"
#include "run.h"

namespace optod::optim {
namespace {

using namespace testing;

const std::vector<TensorSpec> kLayout = {{"fc1.weight", DType::kF32, {6, 5}},
                                         {"fc1.bias", DType::kF32, {6}},
                                         {"fc2.weight", DType::kF32, {3, 6}},
                                         {"fc2.bias", DType::kF32, {3}}};

std::vector<OwnedTensor> Pick(const std::vector<OwnedTensor>& all, const std::vector<size_t>& which) {
  std::vector<OwnedTensor> out;
  for (const size_t i : which) out.push_back(all[i]);
  return out;
}

TEST(Groups, EqualOneRuleAGroupBitForBit) {
  for (const RuleInfo& info : AllRules()) {
    if (info.family != Family::kFirstOrder) continue;
    const bool layered = info.name == "kfac" || info.name == "mkor" || info.name == "mkor-h";
    // fc2 has a rate and a decay of its own; layers stay together.
    std::vector<ParameterGroup> groups = {{{"fc2.*"}, {{"lr", 0.02}}}};
    if (!layered) groups[0].tensors = {"*.bias", "nothing"};
    const std::vector<size_t> first = layered ? std::vector<size_t>{2, 3} : std::vector<size_t>{1, 3};
    const std::vector<size_t> rest = layered ? std::vector<size_t>{0, 1} : std::vector<size_t>{0, 2};
    const Hyper base = {{"lr", 0.01}};
    auto grouped = MakeGroupedRule(info.name, base, groups, kLayout, 7);
    ASSERT_TRUE(grouped.ok()) << info.name << grouped.status();
    std::unique_ptr<Rule> parts[2];
    for (int k = 0; k < 2; ++k) {
      std::vector<TensorSpec> own;
      for (const size_t i : k == 0 ? first : rest) own.push_back(kLayout[i]);
      auto rule = MakeRule(info.name, k == 0 ? Hyper{{"lr", 0.02}} : base, own, 7 + k * 0x9E3779B97F4A7C15u);
      ASSERT_TRUE(rule.ok());
      parts[k] = *std::move(rule);
    }
    Random random(3);
    std::vector<OwnedTensor> params = RandomParams(kLayout, random), a = Pick(params, first), b = Pick(params, rest);
    for (int step = 0; step < 4; ++step) {
      StepData data = RandomStep(info, kLayout, random);
      if (step >= 2) data.lr = 0.005;  // a schedule: half the base rate
      ASSERT_TRUE(TakeStep(**grouped, params, data).ok()) << info.name;
      for (int k = 0; k < 2; ++k) {
        StepData own = data;
        own.grads.clear();
        for (const size_t i : k == 0 ? first : rest) own.grads.push_back(data.grads[i]);
        if (k == 0 && own.lr) own.lr = 0.01;
        ASSERT_TRUE(TakeStep(*parts[k], k == 0 ? a : b, own).ok()) << info.name;
      }
    }
    EXPECT_TRUE(Same(Pick(params, first), a)) << info.name;
    EXPECT_TRUE(Same(Pick(params, rest), b)) << info.name;

    // State: sorted, named apart, and enough to go on from.
    const std::vector<OwnedTensor> state = (*grouped)->ExportState();
    for (size_t i = 1; i < state.size(); ++i) EXPECT_LT(state[i - 1].spec.name, state[i].spec.name);
    size_t bytes = 0;
    const std::vector<TensorSpec> specs = (*grouped)->StateSpecs();
    ASSERT_EQ(specs.size(), state.size());
    for (size_t i = 0; i < state.size(); ++i) {
      EXPECT_EQ(specs[i].name, state[i].spec.name);
      bytes += state[i].data.size();
    }
    EXPECT_EQ((*grouped)->StateBytes(), bytes);
    auto resumed = MakeGroupedRule(info.name, base, groups, kLayout, 7);
    ASSERT_TRUE((*resumed)->ImportState(state).ok()) << info.name;
    std::vector<OwnedTensor> more = params;
    const StepData data = RandomStep(info, kLayout, random);
    ASSERT_TRUE(TakeStep(**grouped, params, data).ok());
    ASSERT_TRUE(TakeStep(**resumed, more, data).ok());
    EXPECT_TRUE(Same(params, more)) << info.name;
  }
}

TEST(Groups, ABadGradientInAnyGroupChangesNothing) {
  auto rule = MakeGroupedRule("adamw", {}, std::vector<ParameterGroup>{{{"*.bias"}, {{"lr", 0.1}}}}, kLayout, 1);
  ASSERT_TRUE(rule.ok());
  Random random(4);
  std::vector<OwnedTensor> params = RandomParams(kLayout, random);
  const std::vector<OwnedTensor> before = params, state = (*rule)->ExportState();
  StepData data = RandomStep(**FindRule("adamw"), kLayout, random);
  const float nan = NAN;
  std::memcpy(data.grads[2]->data.data() + 8, &nan, 4);  // fc2.weight: the last group to step
  const auto report = TakeStep(**rule, params, data);
  EXPECT_EQ(report.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(report.status().message()).find("grads.fc2.weight: element 2 is NaN"), std::string::npos);
  EXPECT_TRUE(report.status().GetPayload(kNotFinitePayload).has_value());
  EXPECT_TRUE(Same(params, before));
  EXPECT_TRUE(Same((*rule)->ExportState(), state));
}

struct BadGroup {
  const char* name;
  ParameterGroup group;
  const char* message;
};
TEST(Groups, ErrorsNameTheGroup) {
  const BadGroup cases[] = {
      {"typo", {{"*.biass"}, {}}, "groups[0].tensors: nothing in the layout matches \"*.biass\""},
      {"empty", {{}, {}}, "groups[0].tensors: nothing in the layout matches an empty list"},
      {"range", {{"*"}, {{"lr", -1.0}}}, "groups[0].hyperparameters.lr: -1 is negative"},
      {"unknown", {{"*"}, {{"wight_decay", 0.0}}}, "groups[0].hyperparameters.wight_decay: unknown"}};
  for (const BadGroup& c : cases) {
    const auto rule = MakeGroupedRule("adamw", {}, std::vector{c.group}, kLayout, 1);
    EXPECT_EQ(rule.status().code(), absl::StatusCode::kInvalidArgument) << c.name;
    EXPECT_NE(std::string(rule.status().message()).find(c.message), std::string::npos) << rule.status();
  }
}

TEST(Groups, TheFirstMatchCounts) {
  const std::vector<ParameterGroup> groups = {{{"fc2.bias"}, {}}, {{"*.bias", "fc1.*"}, {}}};
  EXPECT_EQ(*AssignGroups(groups, kLayout), (std::vector<size_t>{1, 1, 2, 0}));
}

TEST(StochasticRounding, IsTheFormulaOnTheSeededStream) {
  const std::vector<TensorSpec> layout = {{"a", DType::kBF16, {3000}}, {"b", DType::kBF16, {71, 37}}};
  Random random(6);
  for (const char* name : {"sgd", "adamw", "adafactor", "galore", "scale"}) {
    const Hyper lr = {{"lr", 1e-3}};
    Hyper on = lr;
    on["stochastic_rounding"] = true;
    std::vector<TensorSpec> wide = layout;
    for (TensorSpec& spec : wide) spec.dtype = DType::kF32;
    auto rounded = MakeRule(name, on, layout, 21), exact = MakeRule(name, lr, wide, 21);
    ASSERT_TRUE(rounded.ok() && exact.ok()) << name;
    std::vector<OwnedTensor> p16 = RandomParams(layout, random), p32;
    for (size_t i = 0; i < layout.size(); ++i) p32.push_back(MakeTensor(wide[i].name, DType::kF32, wide[i].shape, Values(p16[i])));
    StepData data, data32;
    for (size_t i = 0; i < layout.size(); ++i) {
      data.grads.emplace_back(MakeTensor(layout[i].name, DType::kBF16, layout[i].shape, random.Normals(layout[i].elements())));
      data32.grads.emplace_back(MakeTensor(layout[i].name, DType::kF32, layout[i].shape, Values(*data.grads[i])));
    }
    ASSERT_TRUE(TakeStep(**rounded, p16, data).ok());
    ASSERT_TRUE(TakeStep(**exact, p32, data32).ok());
    for (uint32_t t = 0; t < layout.size(); ++t) {
      std::vector<uint32_t> words(static_cast<size_t>(layout[t].elements()));
      zo::FillBits({21, 1, 0xFFFFFFFFu}, t, 0, words);
      for (size_t i = 0; i < words.size(); ++i) {
        float value = 0;
        uint16_t got = 0;
        std::memcpy(&value, p32[t].data.data() + 4 * i, 4);
        std::memcpy(&got, p16[t].data.data() + 2 * i, 2);
        ASSERT_EQ(got, half::ToBf16Stochastic(value, words[i])) << name << " tensor " << t << " element " << i;
      }
    }
  }
}

// A step far below half a unit in the last place is lost by rounding to nearest; at random it is kept on average.
TEST(StochasticRounding, KeepsSmallSteps) {
  const std::vector<TensorSpec> layout = {{"w", DType::kBF16, {20000}}};
  for (const bool stochastic : {false, true}) {
    auto rule = MakeRule("sgd", {{"lr", 1e-4}, {"stochastic_rounding", stochastic}}, layout, 5);
    std::vector<OwnedTensor> params = {MakeTensor("w", DType::kBF16, {20000}, std::vector<double>(20000, 1.0))};
    StepData data;
    data.grads.emplace_back(MakeTensor("w", DType::kBF16, {20000}, std::vector<double>(20000, -1.0)));
    for (int step = 0; step < 50; ++step) ASSERT_TRUE(TakeStep(**rule, params, data).ok());
    double mean = 0;
    for (const double x : Values(params[0])) mean += x / 20000;
    // 50 steps of 1e-4; each element goes up by 2^-7 with probability 1e-4 * 2^7: standard error of the mean 4.4e-5.
    EXPECT_NEAR(mean, stochastic ? 1.005 : 1.0, stochastic ? 2.5e-4 : 1e-9) << stochastic;
  }
}

TEST(StochasticRounding, NeverMakesANumberOfNan) {
  EXPECT_TRUE(std::isnan(half::FromBf16(half::ToBf16Stochastic(NAN, 0xffffu))));
  EXPECT_EQ(half::FromBf16(half::ToBf16Stochastic(INFINITY, 0xffffu)), INFINITY);
  EXPECT_EQ(half::ToBf16Stochastic(half::FromBf16(0x3f81), 0xffffu), 0x3f81) << "a bfloat16 stays";
}

}  // namespace
}  // namespace optod::optim

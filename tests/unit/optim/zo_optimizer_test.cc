// Properties of the step procedures that golden files do not show: bit equality of equivalent runs, skipped steps,
// resume.
#include "optim/zo/zo_optimizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "optim/zo/deferred.h"
#include "optim/zo/mask.h"

namespace optod::zo {
namespace {

constexpr uint64_t kSeed = 1234;

// Tensors of awkward sizes, one larger than a chunk; the second takes no weight decay.
ZoLayout TestLayout() { return ZoLayout({{"w", 3001}, {"bias", 7, false}, {"head", 50}}); }

template <class T>
std::vector<T> Start(size_t n) {
  std::vector<T> theta(n);
  for (size_t i = 0; i < n; ++i) theta[i] = static_cast<T>(std::sin(0.37 * static_cast<double>(i)));
  return theta;
}

// A bowl with different curvatures, smooth but not quadratic; accumulated in double.
template <class T>
double Bowl(std::span<const T> theta) {
  double sum = 0;
  for (size_t i = 0; i < theta.size(); ++i) {
    const double x = static_cast<double>(theta[i]) - 0.2;
    sum += (1.0 + static_cast<double>(i % 5)) * x * x + 0.1 * std::cos(3 * x);
  }
  return sum / static_cast<double>(theta.size());
}

template <class T>
StreamDirection<T> At(uint32_t step) {
  return StreamDirection<T>(kSeed, step, TestLayout());
}

struct RunCase {
  const char* name;
  ZoHyper hyper;
};

const RunCase kRuns[] = {
    {"zo_sgd", {.lr = 1e-2}},
    {"zo_sgd_mezo_residue", {.residue = Residue::kMezo, .lr = 1e-2}},
    {"zo_sgd_one_sided_q3", {.sides = Sides::kOne, .lr = 1e-2, .queries = 3}},
    {"zo_sgd_decay", {.lr = 1e-2, .weight_decay = 0.1}},
    {"zo_sgd_mmt", {.lr = 1e-3, .momentum = 0.9}},
    {"zo_sgd_cons", {.rule = Rule::kConservative, .lr = 1e-2}},
    {"zo_sgd_sign_element", {.sign = Sign::kElement, .lr = 1e-3, .queries = 2}},
    {"zo_sgd_sign_scalar", {.sign = Sign::kScalar, .lr = 1e-3}},
    {"zo_adam", {.base = Base::kAdam, .lr = 1e-3, .queries = 2, .weight_decay = 0.01}},
};

class ZoRunTest : public testing::TestWithParam<RunCase> {};
INSTANTIATE_TEST_SUITE_P(Rules, ZoRunTest, testing::ValuesIn(kRuns),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(ZoRunTest, ResumeIsBitExact) {
  ZoOptimizer<float> one(TestLayout(), GetParam().hyper), first(TestLayout(), GetParam().hyper),
      second(TestLayout(), GetParam().hyper);
  auto theta_one = Start<float>(TestLayout().size()), theta_two = theta_one;
  for (uint32_t step = 0; step < 12; ++step) one.StepByRule(theta_one, At<float>(step), Bowl<float>);
  for (uint32_t step = 0; step < 5; ++step) first.StepByRule(theta_two, At<float>(step), Bowl<float>);
  ASSERT_TRUE(second.update().set_state(first.update().state()).ok());
  for (uint32_t step = 5; step < 12; ++step) second.StepByRule(theta_two, At<float>(step), Bowl<float>);
  EXPECT_EQ(theta_one, theta_two);
  EXPECT_EQ(one.update().state().m, second.update().state().m);
  EXPECT_EQ(one.update().state().v, second.update().state().v);
}

TEST_P(ZoRunTest, NanLossSkipsTheStep) {
  for (int bad_call : {0, 1}) {
    ZoOptimizer<double> optimizer(TestLayout(), GetParam().hyper);
    auto theta = Start<double>(TestLayout().size());
    optimizer.StepByRule(theta, At<double>(0), Bowl<double>);
    const auto before = theta;
    const ZoState<double> state = optimizer.update().state();
    int call = GetParam().hyper.rule == Rule::kConservative ? -1 : 0;  // cons evaluates theta first
    const StepResult result = optimizer.StepByRule(theta, At<double>(1), [&](std::span<const double> t) {
      return call++ == bad_call ? std::numeric_limits<double>::quiet_NaN() : Bowl<double>(t);
    });
    EXPECT_TRUE(result.skipped);
    EXPECT_THAT(result.reason, testing::StartsWith(bad_call == 0 ? "loss_plus[0] is nan" : "loss_"));
    EXPECT_EQ(optimizer.update().state().counts, state.counts);
    EXPECT_EQ(optimizer.update().state().m, state.m);
    if (GetParam().hyper.residue == Residue::kNone) {
      EXPECT_EQ(theta, before);
    } else {
      EXPECT_THAT(theta, testing::Pointwise(testing::DoubleNear(1e-15), before));
    }
  }
}

TEST_P(ZoRunTest, FloatFollowsDouble) {
  ZoOptimizer<float> narrow(TestLayout(), GetParam().hyper);
  ZoOptimizer<double> wide(TestLayout(), GetParam().hyper);
  auto theta = Start<float>(TestLayout().size());
  auto reference = std::vector<double>(theta.begin(), theta.end());
  const StepResult a = narrow.StepByRule(theta, At<float>(0), Bowl<float>);
  const StepResult b = wide.StepByRule(reference, At<double>(0), Bowl<double>);
  EXPECT_NEAR(a.projected_grad[0], b.projected_grad[0], 1e-4) << "float32 points, eps 1e-3";
  for (size_t i = 0; i < theta.size(); ++i) EXPECT_NEAR(theta[i], reference[i], 2e-5) << i;
}

TEST(ZoReplayTest, CoefficientsRebuildARun) {
  const ZoLayout layout = TestLayout();
  const ZoHyper hyper{.lr = 3e-2, .queries = 2, .weight_decay = 0.05};
  ZoOptimizer<float> optimizer(layout, hyper);
  auto live = Start<float>(layout.size()), replayed = live;
  for (uint32_t step = 0; step < 25; ++step) {
    const StepResult result = optimizer.Step(live, At<float>(step), Bowl<float>);
    const auto projected = ProjectLosses(hyper, result.loss_plus, result.loss_minus);
    ASSERT_TRUE(projected.ok() && projected->usable);
    for (size_t tensor = 0; tensor < layout.tensors(); ++tensor) {
      const auto part = std::span(replayed).subspan(layout.offset(tensor), layout.tensor(tensor).size);
      if (layout.tensor(tensor).decay) DecayInPlace(static_cast<float>(hyper.lr * hyper.weight_decay), part);
      for (uint32_t query = 0; query < 2; ++query) {
        AddScaledNormal({kSeed, step, query}, static_cast<uint32_t>(tensor), 0, -projected->coefficients[query], part);
      }
    }
  }
  EXPECT_EQ(live, replayed);
  EXPECT_NE(live, Start<float>(layout.size()));
}

TEST(ZoResidueTest, NoneLeavesThetaAlone) {
  auto theta = Start<float>(TestLayout().size());
  const auto before = theta;
  Estimator<float> estimator(TestLayout(), {.queries = 4});
  estimator.Run(theta, At<float>(3), Bowl<float>, TestLayout().All());
  EXPECT_EQ(theta, before);
}

TEST(ZoResidueTest, MezoLeavesOnlyRounding) {
  auto theta = Start<float>(TestLayout().size());
  const auto before = theta;
  Estimator<float> estimator(TestLayout(), {.residue = Residue::kMezo});
  estimator.Run(theta, At<float>(3), Bowl<float>, TestLayout().All());
  EXPECT_NE(theta, before);
  EXPECT_THAT(theta, testing::Pointwise(testing::FloatNear(2e-7f), before));
}

TEST(ZoOneSidedTest, SharesTheUnperturbedLoss) {
  for (const auto& [residue, want] : {std::pair{Residue::kNone, 6}, std::pair{Residue::kMezo, 10}}) {
    int calls = 0;
    auto theta = Start<double>(TestLayout().size());
    Estimator<double> estimator(TestLayout(), {.sides = Sides::kOne, .residue = residue, .queries = 5});
    estimator.Run(
        theta, At<double>(0), [&](std::span<const double> t) { return ++calls, Bowl<double>(t); }, TestLayout().All());
    EXPECT_EQ(calls, want);
  }
}

struct DeferredCase {
  const char* name;
  ZoHyper hyper;
};

class ZoDeferredTest : public testing::TestWithParam<DeferredCase> {};

const DeferredCase kDeferred[] = {
    {"sgd", {.lr = 1e-2}},
    {"sgd_mezo_residue", {.residue = Residue::kMezo, .lr = 1e-2}},
    {"decay", {.lr = 1e-2, .weight_decay = 0.1}},
    {"momentum", {.lr = 1e-3, .momentum = 0.9}},
    {"adam", {.base = Base::kAdam, .lr = 1e-3}},
};
INSTANTIATE_TEST_SUITE_P(Rules, ZoDeferredTest, testing::ValuesIn(kDeferred),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(ZoDeferredTest, EqualsResidentAfterFlush) {
  const ZoLayout layout = TestLayout();
  ZoOptimizer<float> resident(layout, GetParam().hyper);
  auto deferred = DeferredUpdate<float>::Create(layout, GetParam().hyper);
  ASSERT_TRUE(deferred.ok());
  auto theta = Start<float>(layout.size()), streamed = theta;
  std::vector<float> plus(theta.size()), minus(theta.size());
  for (uint32_t step = 0; step < 20; ++step) {
    const double lr = GetParam().hyper.lr / (1.0 + step);  // a schedule: the pending update must keep its own step's lr
    resident.update().set_lr(lr);
    deferred->update().set_lr(lr);
    const StepResult result = resident.Step(theta, At<float>(step), Bowl<float>);
    deferred->BeginStep(std::make_shared<StreamDirection<float>>(kSeed, step, layout));
    const std::vector<size_t> orders[2][2] = {{{0}, {1, 2}}, {{2, 1}, {0}}};
    for (const std::vector<size_t>& block : orders[step % 2]) deferred->Block(block, streamed, plus, minus);
    const double loss_plus = Bowl<float>(plus), loss_minus = Bowl<float>(minus);
    EXPECT_EQ(loss_plus, result.loss_plus[0]);
    EXPECT_EQ(loss_minus, result.loss_minus[0]);
    EXPECT_TRUE(deferred->EndStep(loss_plus, loss_minus).usable);
    EXPECT_NE(streamed, theta) << "the update is still pending";
  }
  deferred->Flush(streamed);
  EXPECT_EQ(streamed, theta);
  EXPECT_FALSE(deferred->pending());
}

TEST(ZoDeferredLimitsTest, Refuses) {
  EXPECT_THAT(DeferredUpdate<float>::Create(TestLayout(), {.queries = 2}).status().ToString(),
              testing::HasSubstr("queries: 2"));
  EXPECT_THAT(DeferredUpdate<float>::Create(TestLayout(), {.sides = Sides::kOne}).status().ToString(),
              testing::HasSubstr("one-sided"));
}

TEST(ZoDeferredLimitsTest, NanLeavesNothingPending) {
  auto deferred = DeferredUpdate<float>::Create(TestLayout(), {});
  auto theta = Start<float>(TestLayout().size()), before = theta, plus = theta, minus = theta;
  deferred->BeginStep(std::make_shared<StreamDirection<float>>(kSeed, 0, TestLayout()));
  deferred->Block(TestLayout().All(), theta, plus, minus);
  EXPECT_FALSE(deferred->EndStep(NAN, 1.0).usable);
  deferred->Flush(theta);
  EXPECT_EQ(theta, before);
}

TEST(ZoBlockwiseTest, OneBlockOfEverythingIsPlain) {
  const ZoHyper hyper{.lr = 1e-2, .momentum = 0.5};
  for (BlockSchedule schedule : {BlockSchedule::kCoordinate, BlockSchedule::kJoint}) {
    ZoOptimizer<double> plain(TestLayout(), hyper), blockwise(TestLayout(), hyper);
    auto a = Start<double>(TestLayout().size()), b = a;
    const std::vector<std::vector<size_t>> blocks = {TestLayout().All()};
    for (uint32_t step = 0; step < 5; ++step) {
      plain.Step(a, At<double>(step), Bowl<double>);
      blockwise.StepBlockwise(b, At<double>(step), Bowl<double>, blocks, schedule);
    }
    EXPECT_EQ(a, b);
  }
}

TEST(ZoDataParallelTest, ShardsEqualTheWholeBatch) {
  const ZoHyper hyper{.lr = 1e-2, .queries = 2};
  ZoOptimizer<double> one(TestLayout(), hyper), many(TestLayout(), hyper);
  auto a = Start<double>(TestLayout().size()), b = a;
  std::vector<LossFn<double>> shards;
  for (double tilt : {-0.3, 0.1, 0.2, 0.4}) {
    shards.push_back([tilt](std::span<const double> t) { return Bowl<double>(t) + tilt * t[0] + tilt * t[9] * t[9]; });
  }
  const LossFn<double> mean = [&](std::span<const double> t) {
    return std::accumulate(shards.begin(), shards.end(), 0.0, [&](double sum, auto& shard) { return sum + shard(t); }) /
           4;
  };
  for (uint32_t step = 0; step < 10; ++step) {
    one.Step(a, At<double>(step), mean);
    many.StepDataParallel(b, At<double>(step), shards);
  }
  EXPECT_THAT(b, testing::Pointwise(testing::DoubleNear(1e-12), a));
}

TEST(ZoHybridTest, FirstOrderPartTakesTheGradient) {
  ZoOptimizer<double> optimizer(TestLayout(), {.lr = 0.1});
  auto theta = Start<double>(TestLayout().size());
  const auto before = theta;
  const auto gradient = [](std::span<const double>, std::span<double> grad) {
    std::fill(grad.begin(), grad.end(), 2.0);
  };
  const std::vector<size_t> zo_tensors = {0};
  optimizer.StepHybrid(theta, At<double>(0), Bowl<double>, gradient, zo_tensors);
  EXPECT_NE(theta[0], before[0] - 0.2);
  for (size_t i = TestLayout().offset(1); i < theta.size(); ++i) EXPECT_DOUBLE_EQ(theta[i], before[i] - 0.2);
}

TEST(ZoHybridTest, NanGradientSkips) {
  ZoOptimizer<double> optimizer(TestLayout(), {.lr = 0.1});
  auto theta = Start<double>(TestLayout().size());
  const auto before = theta;
  const auto gradient = [](std::span<const double>, std::span<double> grad) { grad[3003] = NAN; };
  const std::vector<size_t> zo_tensors = {0};
  const StepResult result = optimizer.StepHybrid(theta, At<double>(0), Bowl<double>, gradient, zo_tensors);
  EXPECT_TRUE(result.skipped);
  EXPECT_EQ(result.reason, "gradient of bias is not finite");
  EXPECT_EQ(theta, before);
}

TEST(ZoForwardGradTest, UsesJvpTimesDirection) {
  const ZoLayout layout = TestLayout();
  ZoOptimizer<double> optimizer(layout, {.rule = Rule::kForwardGrad, .lr = 0.5});
  auto theta = Start<double>(layout.size());
  const auto before = theta;
  std::vector<double> v(layout.size());
  At<double>(4).Fill(0, 0, v);
  const StepResult result = optimizer.StepForwardGrad(theta, At<double>(4), [](auto, auto) { return Jvp{7.0, 3.0}; });
  EXPECT_EQ(result.loss, 7.0);
  for (size_t i = 0; i < theta.size(); ++i) EXPECT_DOUBLE_EQ(theta[i], before[i] - 1.5 * v[i]);
  const StepResult bad = optimizer.StepForwardGrad(theta, At<double>(5), [](auto, auto) { return Jvp{7.0, NAN}; });
  EXPECT_TRUE(bad.skipped);
}

TEST(ZoStateTest, WrongSizesChangeNothing) {
  ZoUpdate<float> update(TestLayout(), {.momentum = 0.9});
  EXPECT_THAT(update.set_state({.m = {1}, .v = {}, .counts = {0, 0, 0}}).ToString(),
              testing::HasSubstr("state.m: 1 elements; must be 3058"));
  EXPECT_THAT(update.set_state({.m = std::vector<float>(3058), .v = {1}, .counts = {0, 0, 0}}).ToString(),
              testing::HasSubstr("state.v"));
  EXPECT_THAT(update.set_state({.m = std::vector<float>(3058), .v = {}, .counts = {0}}).ToString(),
              testing::HasSubstr("state.t: 1 counts"));
  EXPECT_EQ(update.StateBytes(), 3058 * sizeof(float) + 3 * sizeof(int64_t));
}

TEST(ZoMaskTest, FractionsAreThoseOfTheLaw) {
  constexpr size_t n = 1'000'000;
  std::vector<uint8_t> mask(n);
  for (double ratio : {0.0, 0.1, 0.3, 0.5, 0.9, 1.0}) {
    for (MaskLaw law : {MaskLaw::kUniform, MaskLaw::kNormal}) {
      ASSERT_TRUE(FillMask({77, 1, 0}, 3, 0, ratio, law, mask).ok());
      const double want = law == MaskLaw::kUniform ? ratio : 0.5 * std::erfc(-ratio / std::sqrt(2.0));
      const double got = static_cast<double>(std::accumulate(mask.begin(), mask.end(), size_t{0})) / n;
      EXPECT_NEAR(got, want, 4 * std::sqrt(want * (1 - want) / n) + 1e-12) << ratio;
    }
  }
  EXPECT_FALSE(FillMask({}, 0, 0, -0.1, MaskLaw::kUniform, mask).ok());
  EXPECT_FALSE(FillMask({}, 0, 0, NAN, MaskLaw::kUniform, mask).ok());
}

TEST(ZoMaskTest, GlobalRatiosFollowTheThreshold) {
  const ZoLayout layout({{"small", 1000}, {"large", 3000}});
  std::vector<float> theta(4000);
  for (size_t i = 0; i < 1000; ++i) theta[i] = -0.001f * static_cast<float>(i + 1);
  for (size_t i = 0; i < 3000; ++i) theta[1000 + i] = 10.0f + static_cast<float>(i);
  const auto ratios = GlobalMaskRatios(layout, theta, 0.5, {1, 0, 0});
  ASSERT_TRUE(ratios.ok());
  EXPECT_EQ((*ratios)[0], 1.0);
  EXPECT_NEAR((*ratios)[1], 1.0 / 3.0, 1e-3);
  EXPECT_FALSE(GlobalMaskRatios(layout, {}, 0.5, {1, 0, 0}).ok());
}

TEST(ZoMaskTest, MaskedElementsKeepTheirBytes) {
  const ZoLayout layout = TestLayout();
  auto mask = std::make_shared<BitMask>(layout.size());
  std::vector<uint8_t> bytes(layout.size());
  ASSERT_TRUE(FillMask({5, 0, 0}, 0, 0, 0.5, MaskLaw::kUniform, bytes).ok());
  mask->Set(0, bytes);
  EXPECT_EQ(mask->Count(), static_cast<size_t>(std::accumulate(bytes.begin(), bytes.end(), 0)));
  auto inner = std::make_shared<StreamDirection<float>>(kSeed, 0, layout);
  for (Residue residue : {Residue::kNone, Residue::kMezo}) {
    ZoOptimizer<float> optimizer(layout, {.residue = residue, .lr = 1e-2, .queries = 2});
    auto theta = Start<float>(layout.size());
    const auto before = theta;
    optimizer.Step(theta, MaskedDirection<float>(inner, mask), Bowl<float>);
    size_t moved = 0;
    for (size_t i = 0; i < theta.size(); ++i) {
      if ((*mask)[i]) {
        EXPECT_EQ(theta[i], before[i]) << i;
      }
      moved += theta[i] != before[i];
    }
    EXPECT_GT(moved, layout.size() / 3);
  }
}

}  // namespace
}  // namespace optod::zo

// Every optimizer of the family reaches a lower loss on problems whose optimum is known. Fixed seeds; no timing.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "optim/zo/zo_optimizer.h"

namespace optod::zo {
namespace {

constexpr size_t kDim = 50;
constexpr double kCondition = 10;

// Eigenvalues 1 .. 10; minimum 0 at 0.
double Eigenvalue(size_t i) { return 1 + (kCondition - 1) * static_cast<double>(i) / (kDim - 1); }

double Quadratic(std::span<const double> t) {
  double sum = 0;
  for (size_t i = 0; i < t.size(); ++i) sum += 0.5 * Eigenvalue(i) * t[i] * t[i];
  return sum;
}

ZoLayout Layout() { return ZoLayout({{"theta", kDim}}); }

// Gap after `steps` over gap before.
double RemainingGap(const ZoHyper& hyper, uint64_t seed, uint32_t steps) {
  ZoOptimizer<double> optimizer(Layout(), hyper);
  std::vector<double> theta(kDim, 1.0);
  const double start = Quadratic(theta);
  for (uint32_t step = 0; step < steps; ++step) {
    const StreamDirection<double> z(seed, step, Layout());
    if (hyper.rule == Rule::kForwardGrad) {
      optimizer.StepForwardGrad(theta, z, [](std::span<const double> t, std::span<const double> v) {
        double slope = 0;
        for (size_t i = 0; i < t.size(); ++i) slope += Eigenvalue(i) * t[i] * v[i];
        return Jvp{Quadratic(t), slope};
      });
    } else {
      optimizer.StepByRule(theta, z, Quadratic);
    }
  }
  return Quadratic(theta) / start;
}

TEST(ZoConvergenceTest, SgdContractsAtTheGuaranteedRate) {
  // Strongly convex, L = 10: E gap_{t+1} <= (1 - 1 / (kappa (d + 2))) E gap_t for lr = 1 / (L (d + 2)).
  const double d2 = static_cast<double>(kDim) + 2;
  constexpr uint32_t kSteps = 1000;
  double mean = 0;
  for (uint64_t seed = 0; seed < 20; ++seed)
    mean += RemainingGap({.lr = 1 / (kCondition * d2), .eps = 1e-4}, seed, kSteps) / 20;
  EXPECT_LT(mean, std::pow(1 - 1 / (kCondition * d2), kSteps));
  EXPECT_GT(mean, 1e-6) << "faster than the method can be: the loss must be wrong";
}

struct BudgetCase {
  const char* name;
  ZoHyper hyper;
  uint32_t steps;
};

const double kLr = 1 / (kCondition * (static_cast<double>(kDim) + 2));
const BudgetCase kBudgets[] = {
    {"zo_sgd", {.lr = kLr, .eps = 1e-4}, 1500},
    {"zo_sgd_one_sided", {.sides = Sides::kOne, .lr = kLr, .eps = 1e-5}, 1500},
    {"zo_sgd_q16", {.lr = 8 * kLr, .eps = 1e-4, .queries = 16}, 150},
    {"zo_sgd_mmt", {.lr = 0.1 * kLr, .eps = 1e-4, .momentum = 0.9}, 1500},
    {"zo_sgd_cons", {.rule = Rule::kConservative, .lr = 2 * kLr, .eps = 1e-4}, 1500},
    {"zo_sgd_sign_element", {.sign = Sign::kElement, .lr = 2e-3, .eps = 1e-4}, 4000},
    {"zo_sgd_sign_scalar", {.sign = Sign::kScalar, .lr = 1e-2, .eps = 1e-4}, 1500},
    {"zo_adam", {.base = Base::kAdam, .lr = 5e-3, .eps = 1e-4}, 3000},
    {"forward_grad", {.rule = Rule::kForwardGrad, .lr = kLr}, 1500},
};

class ZoBudgetTest : public testing::TestWithParam<BudgetCase> {};

TEST_P(ZoBudgetTest, ReachesATenthOfTheGap) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    EXPECT_LT(RemainingGap(GetParam().hyper, seed, GetParam().steps), 0.1) << "seed " << seed;
  }
}

INSTANTIATE_TEST_SUITE_P(Optimizers, ZoBudgetTest, testing::ValuesIn(kBudgets),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(ZoConvergenceTest, ConservativeNeverRises) {
  for (double lr : {kLr, 10 * kLr, 1000 * kLr}) {
    ZoOptimizer<double> optimizer(Layout(), {.rule = Rule::kConservative, .lr = lr});
    std::vector<double> theta(kDim, 1.0);
    double before = Quadratic(theta);
    for (uint32_t step = 0; step < 500; ++step) {
      optimizer.StepConservative(theta, StreamDirection<double>(3, step, Layout()), Quadratic);
      const double now = Quadratic(theta);
      ASSERT_LE(now, before) << "lr " << lr << " step " << step;
      before = now;
    }
  }
}

// Ten blocks of five: the median gap over 10 seeds after 60 steps, at the best rate of one grid for all.
enum class Way { kPlain, kCoordinate, kJoint, kHybrid };
double BestGap(Way way) {
  std::vector<ZoTensor> tensors;
  std::vector<std::vector<size_t>> blocks;
  for (size_t b = 0; b < 10; ++b) {
    tensors.push_back({"block" + std::to_string(b), kDim / 10});
    blocks.push_back({b});
  }
  const ZoLayout layout(tensors);
  const std::vector<size_t> shallow = {0, 1, 2, 3, 4};
  double best = 1;
  for (const double lr : {1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 0.128}) {
    std::vector<double> gaps;
    for (uint64_t seed = 0; seed < 10; ++seed) {
      ZoOptimizer<double> optimizer(layout, {.lr = lr, .eps = 1e-4});
      std::vector<double> theta(kDim, 1.0);
      const double start = Quadratic(theta);
      for (uint32_t step = 0; step < 60; ++step) {
        const StreamDirection<double> z(seed, step, layout);
        if (way == Way::kPlain) optimizer.Step(theta, z, Quadratic);
        if (way == Way::kCoordinate) optimizer.StepBlockwise(theta, z, Quadratic, blocks, BlockSchedule::kCoordinate);
        if (way == Way::kJoint) optimizer.StepBlockwise(theta, z, Quadratic, blocks, BlockSchedule::kJoint);
        if (way == Way::kHybrid)
          optimizer.StepHybrid(theta, z, Quadratic, [](std::span<const double> t, std::span<double> g) {
            for (size_t i = 0; i < t.size(); ++i) g[i] = Eigenvalue(i) * t[i];
          }, shallow);
      }
      gaps.push_back(std::isfinite(Quadratic(theta)) ? Quadratic(theta) / start : 1e300);
    }
    std::nth_element(gaps.begin(), gaps.begin() + 5, gaps.end());
    best = std::min(best, gaps[5]);
  }
  return best;
}

TEST(ZoConvergenceTest, BlockwiseAndHybridBeatPlainPerStep) {
  const double plain = BestGap(Way::kPlain), coordinate = BestGap(Way::kCoordinate), joint = BestGap(Way::kJoint), hybrid = BestGap(Way::kHybrid);
  std::printf("gap left after 60 steps: plain %.3g, block-wise coordinate %.3g, joint %.3g, hybrid %.3g\n", plain, coordinate, joint, hybrid);
  EXPECT_LT(coordinate, 0.5 * plain);
  EXPECT_LT(joint, 0.5 * plain);
  EXPECT_LT(hybrid, 0.9 * plain);
}

// 200 points of two overlapping classes in 8 dimensions, made by arithmetic.
double LogisticLoss(std::span<const float> t) {
  double sum = 0;
  for (int row = 0; row < 200; ++row) {
    const double y = row % 2 == 0 ? 1 : -1;
    double score = 0;
    for (int i = 0; i < 8; ++i) score += t[i] * (0.5 * y * (i % 3 == 0) + std::sin(12.9898 * row + 78.233 * i));
    sum += std::log1p(std::exp(-y * score));
  }
  return sum / 200;
}

TEST(ZoConvergenceTest, LogisticRegressionInFloat32) {
  const ZoLayout layout({{"w", 8}});
  ZoOptimizer<float> optimizer(layout, {.lr = 0.2, .eps = 1e-2, .queries = 4});
  std::vector<float> w(8, 0.0f);
  for (uint32_t step = 0; step < 300; ++step) optimizer.Step(w, StreamDirection<float>(8, step, layout), LogisticLoss);
  EXPECT_LT(LogisticLoss(w), 0.55) << "from ln 2 = 0.693";
}

TEST(ZoConvergenceTest, QueriesDivideTheVariance) {
  std::vector<double> variances;
  for (int q : {1, 16}) {
    double sum = 0, sum2 = 0;
    ZoOptimizer<double> optimizer(Layout(), {.lr = 1e-3, .eps = 1e-4, .queries = q});
    for (uint32_t step = 0; step < 4000; ++step) {
      std::vector<double> theta(kDim, 1.0);
      optimizer.Step(theta, StreamDirection<double>(17, step, Layout()), Quadratic);
      sum += theta[0];
      sum2 += theta[0] * theta[0];
    }
    variances.push_back(sum2 / 4000 - sum / 4000 * sum / 4000);
  }
  EXPECT_NEAR(variances[0] / variances[1], 16, 2.5);
}

}  // namespace
}  // namespace optod::zo

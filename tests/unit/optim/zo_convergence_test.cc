// Every optimizer of the family reaches a lower loss on problems whose optimum is known. Fixed seeds; no timing.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "copy_task.h"
#include "zo_problems.h"

namespace optod::zo {
namespace {

TEST(ZoConvergenceTest, SgdContractsAtTheGuaranteedRate) {
  const Contraction contraction = MeasureContraction();
  EXPECT_LT(contraction.left, contraction.guaranteed);
  EXPECT_GT(contraction.left, 1e-6) << "faster than the method can be: the loss must be wrong";
}

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
    ZoOptimizer<double> optimizer(QuadraticLayout(), {.rule = Rule::kConservative, .lr = lr});
    std::vector<double> theta(kQuadraticDim, 1.0);
    double before = Quadratic(theta);
    for (uint32_t step = 0; step < 500; ++step) {
      optimizer.StepConservative(theta, StreamDirection<double>(3, step, QuadraticLayout()), Quadratic);
      const double now = Quadratic(theta);
      ASSERT_LE(now, before) << "lr " << lr << " step " << step;
      before = now;
    }
  }
}

TEST(ZoConvergenceTest, BlockwiseAndHybridBeatPlainPerStep) {
  const double plain = BestGap(Way::kPlain), coordinate = BestGap(Way::kCoordinate), joint = BestGap(Way::kJoint), hybrid = BestGap(Way::kHybrid);
  EXPECT_LT(coordinate, 0.5 * plain);
  EXPECT_LT(joint, 0.5 * plain);
  EXPECT_LT(hybrid, 0.9 * plain);
}

TEST(ZoConvergenceTest, LogisticRegressionInFloat32) { EXPECT_LT(TrainLogistic(), 0.55) << "from ln 2 = 0.693"; }

TEST(ZoConvergenceTest, QueriesDivideTheVariance) { EXPECT_NEAR(VarianceOfOneQueryOverSixteen(), 16, 2.5); }

// Fine-tuning a transformer that half knows how to copy: at least 30 % of the loss goes, with all weights and with LoRA.
class CopyTaskTest : public testing::TestWithParam<CopyScheme> {};
TEST_P(CopyTaskTest, LosesThirtyPercentOfItsLoss) {
  const CopyRun run = TrainCopyTask(GetParam(), /*seed=*/1);
  EXPECT_LT(run.before, std::log(64.0)) << "no worse than guessing";
  EXPECT_GT(run.before, 1.0) << "there is something to learn";
  EXPECT_LT(run.after, 0.7 * run.before);
}
INSTANTIATE_TEST_SUITE_P(Schemes, CopyTaskTest, testing::ValuesIn(kCopySchemes), [](const auto& info) { return std::string(CopyName(info.param)); });

}  // namespace
}  // namespace optod::zo

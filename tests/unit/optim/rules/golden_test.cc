// The recorded trajectories, on every kernel path.
#include <gtest/gtest.h>

#include "golden_replay/optim_replay.h"
#include "optim/rules/kernels.h"

namespace optod {
namespace {

TEST(GoldenOptim, RulesFollowTheRecordedTrajectories) {
  for (std::string_view path : optim::KernelPaths()) {
    ASSERT_TRUE(optim::SelectKernels(path));
    int replayed = 0;
    for (const CaseResult& result : ReplayOptimGolden(std::string(OPTOD_GOLDEN_DIR) + "/optim")) {
      if (result.name.starts_with("fut_")) continue;
      EXPECT_TRUE(result.passed) << path << " " << result.name << ": " << result.first_difference;
      ++replayed;
    }
    EXPECT_EQ(replayed, 34);
  }
  optim::SelectKernels("");
}

TEST(GoldenOptim, AnUnreadableFolderIsAFailure) {
  const auto results = ReplayOptimGolden("/nonexistent");
  ASSERT_EQ(results.size(), 1u);
  EXPECT_FALSE(results[0].passed);
}

}  // namespace
}  // namespace optod

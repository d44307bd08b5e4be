// Every golden trajectory of tests/golden/zo, and proof that the comparison can fail.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "golden_replay/zo_replay.h"

namespace optod {
namespace {

const char* const kDir = OPTOD_GOLDEN_DIR "/zo";

std::vector<std::string> Stems() {
  std::vector<std::string> stems;
  for (const CaseResult& result : ReplayZoGolden(kDir)) stems.push_back(result.name);
  return stems;
}

class ZoGoldenTest : public testing::TestWithParam<std::string> {};

TEST_P(ZoGoldenTest, Passes) {
  const CaseResult result = ReplayZoFile(std::string(kDir) + "/" + GetParam() + ".json");
  EXPECT_TRUE(result.passed) << result.first_difference;
}

INSTANTIATE_TEST_SUITE_P(Files, ZoGoldenTest, testing::ValuesIn(Stems()), [](const auto& info) { return info.param; });

TEST(ZoGoldenFilesTest, AllThere) { EXPECT_EQ(Stems().size(), 36u); }

// A file with one number changed must fail and name that number.
struct Change {
  const char* stem;
  const char* pointer;
  const char* want;
};

class ZoGoldenChangeTest : public testing::TestWithParam<Change> {};

TEST_P(ZoGoldenChangeTest, IsSeen) {
  std::ifstream in(std::string(kDir) + "/" + GetParam().stem + ".json");
  nlohmann::json file = nlohmann::json::parse(in);
  nlohmann::json& value = file.at(nlohmann::json::json_pointer(GetParam().pointer));
  value = value.is_string() ? nlohmann::json("none of them") : nlohmann::json(value.get<double>() * 1.0001 + 1e-6);
  const std::string path = testing::TempDir() + "zo_changed_" + GetParam().stem + ".json";
  std::ofstream(path) << file;
  const CaseResult result = ReplayZoFile(path);
  std::filesystem::remove(path);
  EXPECT_FALSE(result.passed);
  EXPECT_NE(result.first_difference.find(GetParam().want), std::string::npos) << result.first_difference;
}

const Change kChanges[] = {
    {"zo_sgd_0", "/steps/2/expect/params_after/block1.bias/1", "step 2 params_after.block1.bias[1]"},
    {"zo_adam_0", "/steps/4/expect/state_after/v.block1.bias/0", "step 4 v.block1.bias[0]"},
    {"zo_sgd_mmt_1", "/steps/0/expect/state_after/m.block0.weight/0/0", "step 0 m.block0.weight[0]"},
    {"zo_sgd_q_0", "/steps/1/expect/projected_grad/3", "step 1 projected_grad[3]"},
    {"zo_sgd_cons_1", "/steps/1/expect/chosen", "step 1 chosen"},
    {"dp_seed_scalar_0", "/steps/0/expect/projected_grad_mean", "step 0 projected_grad_mean"},
    {"zo2_deferred_1", "/steps/3/expect/params_after_flush/block1.bias/0", "step 3 params_after_flush.block1.bias[0]"},
    {"forward_grad_0", "/steps/0/expect/jvp", "step 0 jvp"},
};
INSTANTIATE_TEST_SUITE_P(Figures, ZoGoldenChangeTest, testing::ValuesIn(kChanges),
                         [](const auto& info) { return std::string(info.param.stem); });

TEST(ZoGoldenFilesTest, UnreadableFileSaysWhy) {
  const CaseResult result = ReplayZoFile(testing::TempDir() + "no_such_file.json");
  EXPECT_FALSE(result.passed);
  EXPECT_FALSE(result.first_difference.empty());
}

}  // namespace
}  // namespace optod

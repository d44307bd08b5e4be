// Every trainable rule of the registry on a model, under every scheme: the loss of a fixed batch goes down.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>

#include "examples.h"
#include "optim/rules/registry.h"
#include "optim/train/learner.h"
#include "small_models.h"
#include "temp_folder.h"

namespace optod::train {
namespace {

struct Case {
  std::string rule, scheme;
};

/// Rates at which the small model learns; the rules' own defaults are for larger ones.
double RateOf(const std::string& rule, const std::string& scheme) {
  static const std::map<std::string, double> kRates = {
      {"sgd", 0.05},         {"adahessian", 0.02},  {"mkor", 0.05},    {"mkor-h", 0.05},
      {"kfac", 0.05},        {"sgd-sai", 1e-3},     {"zo-sgd", 1e-3},  {"zo-sgd-mmt", 2e-4},
      {"zo-sgd-cons", 1e-3}, {"zo-sgd-sign", 1e-3}, {"zo-adam", 2e-3}, {"forward-grad", 1e-3}};
  const auto it = kRates.find(rule);
  const double rate = it == kRates.end() ? 2e-3 : it->second;
  return scheme == "full" || scheme == "head" ? rate : 4 * rate;
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const optim::RuleInfo& info : optim::AllRules()) {
    if (info.family == optim::Family::kTrace) continue;
    for (const char* scheme : {"full", "lora", "prefix", "prompt", "head"}) cases.push_back({info.name, scheme});
  }
  return cases;
}

class EveryRule : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Registry, EveryRule, testing::ValuesIn(Cases()), [](const auto& info) {
  std::string name = info.param.rule + "_" + info.param.scheme;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST_P(EveryRule, TheLossGoesDown) {
  nn::TempFolder folder;
  nn::ModelFiles model = nn::RandomModel(nn::kSmallModels[0].config);
  auto engine = *Engine::Create(&model, {.name = GetParam().scheme, .rank = 2, .tokens = 3}, 1);
  const double lr = RateOf(GetParam().rule, GetParam().scheme);
  auto spec = ParseTrainSpec(
      R"({"model": "/m", "task": {"name": "sst2", "train": "/a", "dev": "/b"}, "seed": 3, "optimizer": {"name": ")" +
      GetParam().rule + R"(", "lr": )" + std::to_string(lr) + "}}");
  ASSERT_TRUE(spec.ok()) << spec.status();
  auto learner = MakeLearner(*spec, *engine, true, folder.path(), "");
  ASSERT_TRUE(learner.ok()) << learner.status();
  const auto examples = SomeExamples(model.config);
  const auto loss = [&] {
    return Judge(Pointers(examples), *engine->Score(engine->theta(), Pointers(examples)), true).loss;
  };
  const double before = loss();
  for (int64_t step = 0; step < 60; ++step) {
    auto outcome = (*learner)->Step(step, Pointers(examples), lr);
    ASSERT_TRUE(outcome.ok()) << outcome.status();
    ASSERT_FALSE(outcome->skipped) << outcome->reason;
  }
  EXPECT_LT(loss(), before - 0.002);
}

}  // namespace
}  // namespace optod::train

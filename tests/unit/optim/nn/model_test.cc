// The forward pass against plain double loops, for every family; texts continued with and without remembered keys.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "optim/nn/inference.h"
#include "small_models.h"
#include "temp_folder.h"

namespace optod::nn {
namespace {

class EveryFamily : public testing::TestWithParam<SmallModel> {};
std::string NameOf(const testing::TestParamInfo<SmallModel>& info) { return info.param.name; }
INSTANTIATE_TEST_SUITE_P(Models, EveryFamily, testing::ValuesIn(kSmallModels), NameOf);

double WorstError(const std::vector<float>& ours, const std::vector<std::vector<double>>& reference) {
  double error = 0, largest = 0;
  for (size_t t = 0; t < reference.size(); ++t) {
    for (size_t i = 0; i < reference[t].size(); ++i) {
      error = std::max(error, std::abs(ours[t * reference[t].size() + i] - reference[t][i]));
      largest = std::max(largest, std::abs(reference[t][i]));
    }
  }
  return error / largest;
}

TEST_P(EveryFamily, LogitsEqualTheReference) {
  const ModelFiles model = RandomModel(GetParam().config);
  auto inference = Inference::Create(model);
  ASSERT_TRUE(inference.ok()) << inference.status();
  for (const std::vector<int64_t>& ids : {std::vector<int64_t>{7}, {3, 39, 0, 5}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}}) {
    auto logits = (*inference)->Logits(ids);
    ASSERT_TRUE(logits.ok()) << logits.status();
    EXPECT_LT(WorstError(*logits, ReferenceLogits(model, ids)), 2e-6);
  }
}

TEST_P(EveryFamily, SavedFolderGivesEqualBits) {
  const ModelFiles model = RandomModel(GetParam().config);
  TempFolder folder;
  ASSERT_TRUE(SaveModel(folder.path() + "/m", model.config, model.weights).ok());
  auto loaded = LoadModel(folder.path() + "/m");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_TRUE(loaded->ignored.empty());
  const std::span<const float> a = model.weights.arena(), b = loaded->weights.arena();
  EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end()));
}

TEST_P(EveryFamily, RememberedKeysChangeNothing) {
  const ModelFiles model = RandomModel(GetParam().config);
  auto inference = *Inference::Create(model);
  std::vector<int64_t> ids = {4, 17, 9};
  auto made = inference->Generate(ids, {.max_tokens = 12});
  if (!model.config.causal()) {
    EXPECT_EQ(made.status().code(), absl::StatusCode::kUnimplemented);
    return;
  }
  ASSERT_TRUE(made.ok()) << made.status();
  for (int64_t next : *made) {
    const auto logits = ReferenceLogits(model, ids);
    const auto best = std::max_element(logits.back().begin(), logits.back().end()) - logits.back().begin();
    ASSERT_EQ(next, best) << "after " << ids.size() << " tokens";
    ids.push_back(next);
  }
  EXPECT_EQ(made->size(), 12u);
}

TEST(Inference, EndsAtTheLastPosition) {
  const ModelFiles model = RandomModel(kSmallModels[0].config);
  auto made = (*Inference::Create(model))->Generate(std::vector<int64_t>(30, 1), {.max_tokens = 100});
  ASSERT_TRUE(made.ok());
  EXPECT_EQ(made->size(), 3u);  // positions 30 and 31, and what follows them
}

TEST(Inference, DrawsRepeatWithTheirSeed) {
  const ModelFiles model = RandomModel(kSmallModels[0].config);
  auto inference = *Inference::Create(model);
  SamplingOptions options{.max_tokens = 20, .temperature = 1.0, .seed = 5};
  const auto first = *inference->Generate({1, 2}, options), again = *inference->Generate({1, 2}, options);
  options.seed = 6;
  EXPECT_EQ(first, again);
  EXPECT_NE(first, *inference->Generate({1, 2}, options));
}

TEST(Inference, RefusesBadIds) {
  const ModelFiles model = RandomModel(kSmallModels[0].config);
  auto inference = *Inference::Create(model);
  const std::pair<std::vector<int64_t>, const char*> cases[] = {{{}, "ids: the list is empty"},
                                                                {{1, -1}, "ids[1]: -1 is negative"},
                                                                {{40}, "ids[0]: 40 is not below the vocabulary's 40"},
                                                                {std::vector<int64_t>(33, 1), "33 tokens are more than the model's 32 positions"}};
  for (const auto& [ids, message] : cases) {
    const absl::Status status = inference->Logits(ids).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(message));
  }
}

}  // namespace
}  // namespace optod::nn

// Answers in the model's own words: generated with a cache and in batches against one token at a time without; judged;
// trained on their F1.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "base/fs.h"
#include "optim/train/answering.h"
#include "optim/train/trainer.h"
#include "small_models.h"
#include "temp_folder.h"

namespace optod::train {
namespace {

using nn::kSmallModels;
using nn::RandomModel;
using nn::SmallModel;
using nn::TempFolder;

using Ids = std::vector<int64_t>;
const auto kNeverEnded = [](const Ids&) { return false; };

class EveryFamilyAnswers : public testing::TestWithParam<SmallModel> {
 protected:
  EveryFamilyAnswers() : model_(RandomModel(GetParam().config)) {}

  /// The likeliest next token by scoring every token of the vocabulary after the whole text.
  int64_t Next(Engine& engine, std::span<const float> theta, const Ids& ids) {
    Example example;
    example.sequences.push_back({ids, {}});
    for (int64_t v = 0; v < model_.config.vocab; ++v)
      example.sequences[0].picks.push_back({static_cast<int64_t>(ids.size()) - 1, v, 0});
    const Example* pointer = &example;
    const std::vector<double> scores = *engine.Score(theta, {&pointer, 1});
    return std::max_element(scores.begin(), scores.end()) - scores.begin();
  }
  Ids OneByOne(Engine& engine, std::span<const float> theta, Ids ids, int64_t count) {
    Ids made;
    while (static_cast<int64_t>(made.size()) < count) {
      made.push_back(Next(engine, theta, ids));
      ids.push_back(made.back());
    }
    return made;
  }
  nn::ModelFiles model_;
};
INSTANTIATE_TEST_SUITE_P(Models, EveryFamilyAnswers, testing::ValuesIn(kSmallModels),
                         [](const auto& info) { return info.param.name; });

TEST_P(EveryFamilyAnswers, AreWhatOneTokenAtATimeGives) {
  const std::vector<Ids> prompts = {{3, 8, 1, 30, 2}, {7}, {9, 9, 4, 11, 5}, {1, 2, 3, 4, 5, 6, 7, 8, 9}};
  for (const char* scheme : {"full", "head", "lora", "prefix", "prompt"}) {
    auto engine = Engine::Create(&model_, {.name = scheme, .rank = 2, .tokens = 2}, 1);
    if (absl::IsUnimplemented(engine.status())) continue;  // GPT-2 has no LoRA
    std::vector<float> theta((*engine)->theta().begin(), (*engine)->theta().end());
    for (size_t i = 0; i < theta.size(); ++i) theta[i] += 0.05f * std::sin(static_cast<float>(i));
    const auto made = (*engine)->Continue(theta, prompts, 9, kNeverEnded);
    if (!model_.config.causal()) {
      EXPECT_EQ(made.status().code(), absl::StatusCode::kUnimplemented);
      continue;
    }
    ASSERT_TRUE(made.ok()) << made.status();
    for (size_t i = 0; i < prompts.size(); ++i)
      EXPECT_EQ((*made)[i].ids, OneByOne(**engine, theta, prompts[i], 9)) << scheme << " prompt " << i;
  }
}

TEST_P(EveryFamilyAnswers, EndWhereTheyShould) {
  auto engine = *Engine::Create(&model_, {.name = "full"}, 1);
  if (!model_.config.causal()) return;
  const auto longest = *engine->Continue(engine->theta(), {{3, 8}, {7, 2, 9}}, 100, kNeverEnded);
  for (size_t i = 0; i < 2; ++i)  // the token after the last position cannot be asked for
    EXPECT_EQ(longest[i].ids.size(), static_cast<size_t>(model_.config.max_positions) - (i == 0 ? 2 : 3) + 1);
  const auto two = *engine->Continue(engine->theta(), {{3, 8}, {7, 2, 9}}, 100, [](const Ids& ids) { return ids.size() == 2; });
  EXPECT_EQ(two[0].ids, Ids(longest[0].ids.begin(), longest[0].ids.begin() + 2));
  std::vector<float> broken(engine->theta().begin(), engine->theta().end());
  std::fill(broken.begin(), broken.end(), std::nanf(""));
  EXPECT_FALSE((*engine->Continue(broken, {{3, 8}}, 5, kNeverEnded))[0].finite);
  EXPECT_EQ(engine->Continue(engine->theta(), {{3, 400}}, 5, kNeverEnded).status().code(), absl::StatusCode::kInvalidArgument);
  engine->stop = [] { return true; };
  EXPECT_EQ(engine->Continue(engine->theta(), {{3}}, 5, kNeverEnded).status().code(), absl::StatusCode::kCancelled);
}

TEST(Answers, AreJudgedByTheBestOfTheRightOnes) {
  EXPECT_EQ(ScoreOf("the Broncos.", {"Denver Broncos", "broncos"}).f1, 1);
  EXPECT_EQ(ScoreOf("the Broncos.", {"Denver Broncos", "broncos"}).exact, 1);
  EXPECT_NEAR(ScoreOf("Denver", {"Denver Broncos"}).f1, 2.0 / 3, 1e-12);
  EXPECT_EQ(ScoreOf("Denver", {"Denver Broncos"}).exact, 0);
  EXPECT_EQ(ScoreOf("", {"Denver"}).f1, 0);
}

/// A small model, a vocabulary of letters, blank and line end, and questions whose answers are letters.
class AnswerRuns : public testing::Test {
 protected:
  AnswerRuns() {
    const nn::ModelFiles model = RandomModel(kSmallModels[1].config);
    EXPECT_TRUE(SaveModel(folder_.path() + "/m", model.config, model.weights).ok());
    std::string vocab = R"("\u0120": 26, "\u010a": 27)";
    for (int i = 0; i < 26; ++i) vocab += std::string(", \"") + static_cast<char>('a' + i) + "\": " + std::to_string(i);
    folder_.Write("m/tokenizer.json",
                  R"({"model": {"type": "BPE", "vocab": {)" + vocab +
                      R"(}, "merges": []}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}})");
    std::string rows;
    for (int i = 0; i < 8; ++i) {
      const std::string letter(1, static_cast<char>('a' + i)), next(1, static_cast<char>('k' + i % 4));
      rows += R"({"q": "x)" + letter + R"(", "a": {"text": [")" + next + next + R"(", "zz"]}})" + "\n";
    }
    folder_.Write("t.jsonl", rows);
  }
  TrainSpec Spec(const std::string& rest) {
    const std::string file = folder_.path() + "/t.jsonl";
    auto spec = ParseTrainSpec(R"({"model": ")" + folder_.path() + R"(/m", "batch": 4, "checkpoint_every": 2, "log_every": 1, "seed": 4,
      "task": {"format": "jsonl", "prompt": "{q}", "answer": "a.text", "answer_tokens": 5, "max_tokens": 20, "train": ")" +
                               file + R"(", "dev": ")" + file + R"("}, )" + rest + "}");
    EXPECT_TRUE(spec.ok()) << spec.status();
    return *spec;
  }
  struct Outcome {
    TrainResult result;
    std::vector<double> losses, f1;
  };
  Outcome Go(const TrainSpec& spec, const std::string& name, int attempt, int64_t stop_after = 1 << 20) {
    Outcome outcome;
    int64_t last = 0;
    TrainHooks hooks;
    hooks.progress = [&](int64_t step, const auto& metrics) {
      if (metrics.contains("loss")) outcome.losses.push_back(metrics.at("loss"));
      if (metrics.contains("f1/dev")) outcome.f1.push_back(metrics.at("f1/dev"));
      last = step;
    };
    hooks.stop = [&] { return last >= stop_after; };
    auto result = RunTraining(spec, folder_.path() + "/" + name, attempt, hooks);
    EXPECT_TRUE(result.ok() || absl::IsCancelled(result.status())) << result.status();
    if (result.ok()) outcome.result = *result;
    return outcome;
  }
  TempFolder folder_;
};

TEST_F(AnswerRuns, AreLearnedByGradients) {
  const Outcome run = Go(Spec(R"("steps": 150, "eval_every": 50, "optimizer": {"name": "adamw", "lr": 0.01})"), "first", 1);
  ASSERT_GE(run.f1.size(), 2u);
  EXPECT_LT(run.f1.front(), 0.3);
  EXPECT_EQ(run.f1.back(), 1) << "eight answers by heart";
  EXPECT_EQ(run.result.best_score, 1);
}

/// Minus the mean F1 is what a step minimises; a resumed run makes the same steps.
TEST_F(AnswerRuns, TheirF1IsAnObjective) {
  for (const char* method :
       {R"({"name": "zo-sgd", "lr": 0.05, "eps": 0.1})", R"({"name": "zo-sgd", "lr": 0.05, "eps": 0.1, "queries": 3})",
        R"({"name": "zo-adam", "lr": 0.01, "eps": 0.1})", R"({"name": "zo-sgd", "lr": 0.05, "eps": 0.1, "perturbation": "one-side"})",
        R"({"name": "zo-sgd-cons", "lr": 0.05, "eps": 0.1})"}) {
    const TrainSpec spec = Spec(std::string(R"("steps": 8, "objective": "f1", "sparse": {"ratio": 0.1}, "optimizer": )") + method);
    const std::string name = std::to_string(std::hash<std::string>()(method));
    const Outcome whole = Go(spec, name + "w", 1);
    ASSERT_EQ(whole.losses.size(), 8u) << method;
    EXPECT_TRUE(std::all_of(whole.losses.begin(), whole.losses.end(), [](double l) { return l <= 0 && l >= -1; }));
    Go(spec, name + "r", 1, 5);
    const Outcome rest = Go(spec, name + "r", 2);
    EXPECT_EQ(rest.result.parameters_sha256, whole.result.parameters_sha256) << method;
  }
}

}  // namespace
}  // namespace optod::train

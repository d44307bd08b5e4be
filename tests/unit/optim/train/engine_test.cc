// The sweep over the blocks against plain evaluation, gradients against differences, and whole runs: resumed, replayed
// and uninterrupted ones are the same bits.
#include "optim/train/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/fs.h"
#include "optim/train/trainer.h"
#include "small_models.h"
#include "temp_folder.h"

namespace optod::train {
namespace {

using nn::kSmallModels;
using nn::RandomModel;
using nn::SmallModel;
using nn::TempFolder;

std::vector<Example> SomeExamples(const nn::ModelConfig& config) {
  std::vector<Example> examples;
  for (int n : {5, 3, 5, 8}) {
    Sequence sequence;
    for (int i = 0; i < n; ++i) sequence.ids.push_back((7 * i + 3 * n) % config.vocab);
    sequence.picks = {{n - 1, 4, 0}, {n - 1, 9, 1}};
    examples.push_back({{sequence}, 2, n % 2});
  }
  Sequence second{{1, 2, 3, 4}, {{2, 5, 0}, {3, 6, 0}}}, third{{1, 2, 3}, {{2, 7, 1}}};
  examples.push_back({{second, third}, 2, 0});
  return examples;
}
std::vector<const Example*> Pointers(const std::vector<Example>& examples) {
  std::vector<const Example*> all;
  for (const Example& example : examples) all.push_back(&example);
  return all;
}

class EveryFamily : public testing::TestWithParam<SmallModel> {};
INSTANTIATE_TEST_SUITE_P(Models, EveryFamily, testing::ValuesIn(kSmallModels),
                         [](const auto& info) { return info.param.name; });

/// Log-probabilities straight from the reference forward pass.
TEST_P(EveryFamily, ScoresAreTheReferences) {
  nn::ModelFiles model = RandomModel(GetParam().config);
  auto engine = *Engine::Create(&model, {}, 1);
  const auto examples = SomeExamples(model.config);
  const auto scores = engine->Score(engine->theta(), Pointers(examples));
  ASSERT_TRUE(scores.ok()) << scores.status();
  size_t i = 0;
  for (const Example& example : examples) {
    for (const Sequence& sequence : example.sequences) {
      const auto logits = ReferenceLogits(model, sequence.ids);
      for (const Pick& pick : sequence.picks) {
        double sum = 0;
        for (double l : logits[static_cast<size_t>(pick.row)]) sum += std::exp(l);
        EXPECT_NEAR((*scores)[i++],
                    logits[static_cast<size_t>(pick.row)][static_cast<size_t>(pick.target)] - std::log(sum), 1e-4);
      }
    }
  }
}

TEST_P(EveryFamily, TheSweepEqualsTwoPlainEvaluations) {
  for (const char* scheme : {"full", "head"}) {
    nn::ModelFiles model = RandomModel(GetParam().config);
    auto engine = *Engine::Create(&model, {.name = scheme}, 1);
    const auto examples = SomeExamples(model.config);
    const std::vector<float> before(engine->theta().begin(), engine->theta().end());
    const zo::Direction direction{5, 2, 1};
    auto pair = engine->ScorePair(direction, 0.01f, Pointers(examples));
    ASSERT_TRUE(pair.ok()) << pair.status();
    EXPECT_TRUE(std::equal(before.begin(), before.end(), engine->theta().begin())) << "parameters changed";
    for (float sign : {1.0f, -1.0f}) {
      std::vector<float> theta = before;
      for (size_t t = 0; t < engine->layout().tensors(); ++t)
        zo::AddScaledNormal(direction, static_cast<uint32_t>(t), 0, sign * 0.01f,
                            std::span(theta).subspan(engine->layout().offset(t), engine->layout().tensor(t).size));
      const auto plain = *engine->Score(theta, Pointers(examples));
      const std::vector<double>& swept = sign > 0 ? pair->plus : pair->minus;
      ASSERT_EQ(plain.size(), swept.size());
      for (size_t i = 0; i < plain.size(); ++i) EXPECT_NEAR(plain[i], swept[i], 2e-6) << scheme << " pick " << i;
    }
  }
}

TEST_P(EveryFamily, GradientsAreTheSlopes) {
  for (const char* scheme : {"full", "head", "lora", "prefix"}) {
    nn::ModelFiles model = RandomModel(GetParam().config);
    auto made = Engine::Create(&model, {.name = scheme, .rank = 2, .tokens = 2}, 1);
    if (model.config.fused_qkv() && std::string(scheme) == "lora") {
      EXPECT_EQ(made.status().code(), absl::StatusCode::kUnimplemented);
      continue;
    }
    ASSERT_TRUE(made.ok()) << made.status();
    Engine& engine = **made;
    const auto examples = SomeExamples(model.config);
    std::vector<float> grad(engine.layout().size());
    auto objective = engine.Gradient(Pointers(examples), true, grad);
    ASSERT_TRUE(objective.ok()) << objective.status();
    // Along a random direction: one number that every element has a part in.
    std::vector<float> v(grad.size());
    zo::FillNormal({9, 0, 0}, 0, 0, v);
    double want = 0, norm = 0;
    for (size_t i = 0; i < v.size(); ++i) {
      want += double{grad[i]} * v[i];
      norm += double{grad[i]} * grad[i];
    }
    double loss[2];
    for (int side : {0, 1}) {
      std::vector<float> theta(engine.theta().begin(), engine.theta().end());
      for (size_t i = 0; i < v.size(); ++i) theta[i] += (side == 0 ? 2e-4f : -2e-4f) * v[i];
      loss[side] = Judge(Pointers(examples), *engine.Score(theta, Pointers(examples)), true).loss;
    }
    EXPECT_NEAR((loss[0] - loss[1]) / 4e-4, want, 0.02 * std::sqrt(norm) + 2e-3) << scheme;
    EXPECT_GT(norm, 0) << scheme;
  }
}

// ---- whole runs

/// A folder with a small model, a vocabulary of letters and a task, and a job on it.
class Runs : public testing::Test {
 protected:
  Runs() {
    const nn::ModelFiles model = RandomModel(kSmallModels[1].config);
    EXPECT_TRUE(SaveModel(folder_.path() + "/m", model.config, model.weights).ok());
    std::string vocab;
    for (int i = 0; i < 26; ++i)
      vocab += std::string(i == 0 ? "" : ", ") + "\"" + static_cast<char>('a' + i) + "\": " + std::to_string(i);
    folder_.Write("m/tokenizer.json",
                  R"({"model": {"type": "BPE", "vocab": {)" + vocab +
                      R"(}, "merges": []}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}})");
    std::string rows;
    for (int i = 0; i < 20; ++i)
      rows += std::string(1, static_cast<char>('a' + i)) + "bc\t" + std::to_string(i % 2) + "\n";
    folder_.Write("t.tsv", rows);
  }
  TrainSpec Spec(const std::string& optimizer, const std::string& scheme = "full") const {
    const std::string file = folder_.path() + "/t.tsv";
    auto spec = ParseTrainSpec(
        R"({"model": ")" + folder_.path() +
        R"(/m", "steps": 12, "batch": 4, "eval_every": 4, "checkpoint_every": 3, "log_every": 1, "seed": 4, "save_model": true,
      "scheme": {"name": ")" +
        scheme + R"(", "rank": 2, "tokens": 2}, "optimizer": )" + optimizer + R"(,
      "task": {"columns": ["x", "label"], "prompt": "{x}", "options": {"0": "y", "1": "z"}, "train": ")" +
        file + R"(", "dev": ")" + file + R"(", "test": ")" + file + R"("}})");
    EXPECT_TRUE(spec.ok()) << spec.status();
    return *spec;
  }
  struct Outcome {
    TrainResult result;
    std::vector<double> losses;
  };
  absl::StatusOr<Outcome> Go(const TrainSpec& spec, const std::string& name, int attempt,
                             int64_t stop_after = 1 << 20) {
    Outcome outcome;
    int64_t last = 0;
    TrainHooks hooks;
    hooks.progress = [&](int64_t step, const auto& metrics) {
      if (metrics.contains("loss")) outcome.losses.push_back(metrics.at("loss"));
      last = step;
    };
    hooks.stop = [&] { return last >= stop_after; };
    auto result = RunTraining(spec, folder_.path() + "/" + name, attempt, hooks);
    if (!result.ok() && !absl::IsCancelled(result.status())) return result.status();
    if (result.ok()) outcome.result = *result;
    return outcome;
  }
  TempFolder folder_;
};

struct RunCase {
  const char *name, *optimizer, *scheme;
};
class EveryRun : public Runs, public testing::WithParamInterface<RunCase> {};
INSTANTIATE_TEST_SUITE_P(
    Optimizers, EveryRun,
    testing::Values(RunCase{"zo_sgd", R"({"name": "zo-sgd", "lr": 1e-3})", "full"},
                    RunCase{"zo_sgd_q3", R"({"name": "zo-sgd", "lr": 1e-3, "queries": 3})", "full"},
                    RunCase{"zo_one_sided", R"({"name": "zo-sgd", "lr": 1e-3, "perturbation": "one-side"})", "full"},
                    RunCase{"zo_mmt", R"({"name": "zo-sgd-mmt", "lr": 1e-4})", "full"},
                    RunCase{"zo_cons", R"({"name": "zo-sgd-cons", "lr": 1e-3})", "full"},
                    RunCase{"zo_sign", R"({"name": "zo-sgd-sign", "lr": 1e-4})", "full"},
                    RunCase{"zo_adam", R"({"name": "zo-adam", "lr": 1e-3})", "full"},
                    RunCase{"zo_lora", R"({"name": "zo-sgd", "lr": 1e-2})", "lora"},
                    RunCase{"zo_prefix", R"({"name": "zo-sgd", "lr": 1e-2})", "prefix"},
                    RunCase{"zo_head", R"({"name": "zo-sgd", "lr": 1e-2})", "head"},
                    RunCase{"sgd", R"({"name": "sgd", "lr": 1e-2, "momentum": 0.9})", "full"},
                    RunCase{"adamw", R"({"name": "adamw", "lr": 1e-3})", "full"},
                    RunCase{"adamw_lora", R"({"name": "adamw", "lr": 1e-2})", "lora"},
                    RunCase{"scale", R"({"name": "scale", "lr": 1e-3})", "full"},
                    RunCase{"muon", R"({"name": "muon", "lr": 1e-3})", "full"}),
    [](const auto& info) { return info.param.name; });

TEST_P(EveryRun, ResumedEqualsUninterrupted) {
  const TrainSpec spec = Spec(GetParam().optimizer, GetParam().scheme);
  auto whole = Go(spec, "whole", 1);
  ASSERT_TRUE(whole.ok()) << whole.status();
  ASSERT_EQ(whole->losses.size(), 12u);
  auto first = Go(spec, "parts", 1, /*stop_after=*/5), second = Go(spec, "parts", 2, /*stop_after=*/8),
       third = Go(spec, "parts", 3);
  ASSERT_TRUE(first.ok() && second.ok() && third.ok()) << first.status() << second.status() << third.status();
  EXPECT_EQ(third->result.parameters_sha256, whole->result.parameters_sha256);
  EXPECT_EQ(third->result.best_step, whole->result.best_step);
  EXPECT_EQ(third->result.test_score, whole->result.test_score);
  const size_t n = third->losses.size();
  ASSERT_GE(n, 1u);
  EXPECT_TRUE(std::equal(third->losses.begin(), third->losses.end(), whole->losses.end() - static_cast<ptrdiff_t>(n)));
  for (const char* file : {"model.safetensors", "adapter_model.safetensors"}) {
    const auto a = PosixFs().ReadFile(folder_.path() + "/whole/result/" + file),
               b = PosixFs().ReadFile(folder_.path() + "/parts/result/" + file);
    EXPECT_EQ(a.ok(), b.ok());
    if (a.ok()) EXPECT_TRUE(*a == *b) << file << ": best versions differ";
  }
}

TEST_P(EveryRun, TheParametersMove) {
  const TrainSpec spec = Spec(GetParam().optimizer, GetParam().scheme);
  nn::ModelFiles model = *nn::LoadModel(spec.model);
  auto engine = *Engine::Create(&model, spec.scheme, spec.seed);
  const std::vector<float> before(engine->theta().begin(), engine->theta().end());
  auto run = Go(spec, "run", 1);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->result.skipped, 0);
  EXPECT_NE(run->result.parameters_sha256.size(), 0u);
  EXPECT_NE(run->losses.front(), run->losses.back());
}

TEST_F(Runs, FirstOrderLearnsTheTask) {
  TrainSpec spec = Spec(R"({"name": "adamw", "lr": 1e-2})");
  spec.steps = 60;
  auto run = Go(spec, "run", 1);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_GT(run->result.best_score, 0.9);
}

TEST_F(Runs, ThreadsDoNotChangeAReplay) {
  const TrainSpec spec = Spec(R"({"name": "zo-sgd", "lr": 1e-3})");
  auto whole = Go(spec, "whole", 1);
  ASSERT_TRUE(whole.ok());
  ASSERT_TRUE(Go(spec, "parts", 1, 11).ok());
  const int threads = zo::StreamThreads();
  zo::SetStreamThreads(3);
  auto resumed = Go(spec, "parts", 2);  // 11 steps by replay, one evaluated
  zo::SetStreamThreads(threads);
  ASSERT_TRUE(resumed.ok());
  EXPECT_EQ(resumed->result.parameters_sha256, whole->result.parameters_sha256);
}

TEST_F(Runs, ANaNLossIsSkippedAndTheRunGoesOn) {
  TrainSpec spec = Spec(R"({"name": "zo-sgd", "lr": 1e-3, "eps": 1e38})");
  auto run = Go(spec, "run", 1);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->result.skipped, 12);
}

TEST_F(Runs, ALogOfAnotherRunIsRefused) {
  ASSERT_TRUE(Go(Spec(R"({"name": "zo-sgd", "lr": 1e-3})"), "run", 1, 5).ok());
  auto other = Go(Spec(R"({"name": "zo-sgd", "lr": 1e-2})"), "run", 2);
  EXPECT_EQ(other.status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace optod::train

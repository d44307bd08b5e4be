// Whole runs: resumed, replayed and uninterrupted ones are the same bits; several workers agree on every one of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "base/fs.h"
#include "base/sha256.h"
#include "examples.h"
#include "optim/train/learner.h"
#include "optim/train/trainer.h"
#include "small_models.h"
#include "temp_folder.h"

namespace optod::train {
namespace {

using nn::kSmallModels;
using nn::RandomModel;
using nn::TempFolder;

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
    std::vector<TrainMemory> memories;  ///< told while it ran
  };
  absl::StatusOr<Outcome> Go(const TrainSpec& spec, const std::string& name, int attempt,
                             int64_t stop_after = 1 << 20, int64_t told_step = std::numeric_limits<int64_t>::max()) {
    Outcome outcome;
    int64_t last = 0;
    TrainHooks hooks;
    hooks.progress = [&](int64_t step, const auto& metrics) {
      if (metrics.contains("loss")) outcome.losses.push_back(metrics.at("loss"));
      last = step;
    };
    hooks.memory = [&](const TrainMemory& memory) { outcome.memories.push_back(memory); };
    hooks.stop = [&] { return last >= stop_after; };
    hooks.told_step = told_step;
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
/// Reports that were on the way when an attempt ended come again, those that were heard do not.
TEST_F(Runs, LossesThatNobodyHeardAreToldAgain) {
  const TrainSpec spec = Spec(R"({"name": "zo-sgd", "lr": 0.01})");
  const auto whole = Go(spec, "whole", 1);
  ASSERT_TRUE(whole.ok()) << whole.status();
  ASSERT_TRUE(Go(spec, "cut", 1, 7).ok());
  const auto rest = Go(spec, "cut", 2, 1 << 20, /*told_step=*/4);
  ASSERT_TRUE(rest.ok()) << rest.status();
  EXPECT_EQ(rest->losses, std::vector<double>(whole->losses.begin() + 4, whole->losses.end()));
}

class EveryRun : public Runs, public testing::WithParamInterface<RunCase> {};
INSTANTIATE_TEST_SUITE_P(
    Optimizers, EveryRun,
    testing::Values(
        RunCase{"zo_sgd", R"({"name": "zo-sgd", "lr": 1e-3})", "full"},
        RunCase{"zo_sgd_q3", R"({"name": "zo-sgd", "lr": 1e-3, "queries": 3})", "full"},
        RunCase{"zo_one_sided", R"({"name": "zo-sgd", "lr": 1e-3, "perturbation": "one-side"})", "full"},
        RunCase{"zo_mmt", R"({"name": "zo-sgd-mmt", "lr": 1e-4})", "full"},
        RunCase{"zo_cons", R"({"name": "zo-sgd-cons", "lr": 1e-3})", "full"},
        RunCase{"zo_sign", R"({"name": "zo-sgd-sign", "lr": 1e-4})", "full"},
        RunCase{"zo_adam", R"({"name": "zo-adam", "lr": 1e-3})", "full"},
        RunCase{"zo_lora", R"({"name": "zo-sgd", "lr": 1e-2})", "lora"},
        RunCase{"zo_prefix", R"({"name": "zo-sgd", "lr": 1e-2})", "prefix"},
        RunCase{"zo_prompt", R"({"name": "zo-sgd", "lr": 1e-2})", "prompt"},
        RunCase{"zo_head", R"({"name": "zo-sgd", "lr": 1e-2})", "head"},
        RunCase{"sgd", R"({"name": "sgd", "lr": 1e-2, "momentum": 0.9})", "full"},
        RunCase{"adamw", R"({"name": "adamw", "lr": 1e-3})", "full"},
        RunCase{"adamw_lora", R"({"name": "adamw", "lr": 1e-2})", "lora"},
        RunCase{"scale", R"({"name": "scale", "lr": 1e-3})", "full"},
        RunCase{"muon", R"({"name": "muon", "lr": 1e-3})", "full"},
        RunCase{"forward_grad", R"({"name": "forward-grad", "lr": 1e-4})", "full"},
        RunCase{"forward_grad_lora", R"({"name": "forward-grad", "lr": 1e-3, "queries": 2})", "lora"},
        RunCase{"adahessian", R"({"name": "adahessian", "lr": 1e-2, "update_each": 3})", "full"},
        RunCase{"mkor", R"({"name": "mkor", "lr": 1e-2, "inv_freq": 3})", "full"},
        RunCase{"mkor_h_lora", R"({"name": "mkor-h", "lr": 1e-2})", "lora"},
        RunCase{"kfac", R"({"name": "kfac", "lr": 1e-2})", "full"},
        RunCase{"blockwise_coordinate", R"({"name": "zo-sgd", "lr": 1e-3}, "blockwise": "mlp-attn")", "full"},
        RunCase{"blockwise_joint_adam",
                R"({"name": "zo-adam", "lr": 1e-3}, "blockwise": {"level": "linear", "schedule": "joint"})", "full"},
        RunCase{"blockwise_lora", R"({"name": "zo-sgd", "lr": 1e-2}, "blockwise": "transformer-block")", "lora"},
        RunCase{"sparse_random", R"({"name": "zo-sgd", "lr": 1e-3}, "sparse": {"ratio": 0.5, "resample": 5})", "full"},
        RunCase{"sparse_global",
                R"({"name": "zo-adam", "lr": 1e-3}, "sparse": {"ratio": 0.5, "group": "global", "law": "normal"})",
                "full"},
        RunCase{"sparse_magnitude",
                R"({"name": "zo-sgd", "lr": 1e-3}, "sparse": {"ratio": 0.5, "source": "magnitude", "resample": 4})",
                "full"},
        RunCase{"sparse_wanda", R"({"name": "zo-sgd", "lr": 1e-3}, "sparse": {"ratio": 0.5, "source": "wanda"})",
                "full"},
        RunCase{"sparse_cons", R"({"name": "zo-sgd-cons", "lr": 1e-3}, "sparse": {"ratio": 0.2})", "full"},
        RunCase{"hybrid", R"({"name": "zo-sgd", "lr": 1e-3}, "hybrid": {"blocks": 1, "lr": 1e-2})", "full"},
        RunCase{"hybrid_adam_lora", R"({"name": "zo-adam", "lr": 1e-3}, "hybrid": {"blocks": 1})", "lora"},
        RunCase{"accuracy", R"({"name": "zo-sgd", "lr": 1e-2, "eps": 1e-1}, "objective": "accuracy")", "full"},
        RunCase{"f1", R"({"name": "zo-sgd", "lr": 1e-2, "eps": 1e-1}, "objective": "f1")", "full"}),
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
  EXPECT_EQ(third->result.saved, "attempt-3/result") << "an attempt that was replaced cannot touch it";
  for (const char* file : {"model.safetensors", "adapter_model.safetensors"}) {
    const auto a = PosixFs().ReadFile(folder_.path() + "/whole/" + whole->result.saved + "/" + file),
               b = PosixFs().ReadFile(folder_.path() + "/parts/" + third->result.saved + "/" + file);
    EXPECT_EQ(a.ok(), b.ok());
    if (a.ok() && b.ok()) {
      EXPECT_TRUE(*a == *b) << file << ": best versions differ";
    }
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
  if (spec.objective == "loss") {
    EXPECT_NE(run->losses.front(), run->losses.back());
  }
  EXPECT_NE(run->result.parameters_sha256, Sha256Hex(std::as_bytes(std::span(before))));
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

struct MemoryCase {
  const char *optimizer, *scheme;
  int64_t states;     ///< numbers of state a trained one
  int64_t gradients;  ///< bytes of gradients held over bytes of trained numbers
  bool own;           ///< trains weights of the model
};

// What is counted must add up; what is measured must be there.
TEST_F(Runs, SayWhereTheirMemoryIs) {
  const int64_t model = RandomModel(kSmallModels[1].config).weights.parameters() * 4;
  for (const MemoryCase& c : {MemoryCase{R"({"name": "zo-sgd", "lr": 1e-3})", "full", 0, 0, true},
                              MemoryCase{R"({"name": "zo-adam", "lr": 1e-3})", "full", 2, 0, true},
                              MemoryCase{R"({"name": "zo-sgd-mmt", "lr": 1e-3})", "lora", 1, 0, false},
                              MemoryCase{R"({"name": "adamw", "lr": 1e-3})", "full", 2, 1, true},
                              MemoryCase{R"({"name": "adamw", "lr": 1e-3})", "lora", 2, 1, false},
                              MemoryCase{R"({"name": "sgd", "lr": 1e-3, "momentum": 0.9})", "head", 1, 1, true}}) {
    auto outcome = Go(Spec(c.optimizer, c.scheme), std::string(c.scheme) + Sha256Hex(c.optimizer).substr(0, 8), 1);
    ASSERT_TRUE(outcome.ok()) << outcome.status();
    ASSERT_FALSE(outcome->memories.empty()) << c.optimizer;
    const TrainMemory& memory = outcome->result.memory;
    int64_t parameters = 0, state = 0;
    for (const TrainMemory::Tensor& tensor : memory.tensors) {
      EXPECT_GE(tensor.state, c.states * tensor.parameters) << tensor.name;
      EXPECT_LE(tensor.state, c.states * tensor.parameters + 8) << tensor.name;  // a count of steps
      parameters += tensor.parameters;
      state += tensor.state;
    }
    EXPECT_GT(parameters, 0);
    EXPECT_EQ(memory.parameters, parameters);
    EXPECT_EQ(memory.frozen, model - (c.own ? parameters : 0)) << c.optimizer << " " << c.scheme;
    EXPECT_GE(memory.state, state);
    EXPECT_EQ(memory.gradients, c.gradients * parameters) << c.optimizer << " " << c.scheme;
    EXPECT_GT(memory.before, 0);
    EXPECT_GE(memory.peak, memory.before);
  }
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

// Fine-tuning with the parameters over memory tiers gives the losses and the bytes of the resident run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>
#include <thread>

#include "base/fs.h"
#include "base/status.h"
#include "optim/nn/checkpoint.h"
#include "optim/train/exchange.h"
#include "optim/train/tiered_model.h"
#include "optim/train/trainer.h"
#include "small_models.h"
#include "temp_folder.h"

namespace optod::train {
namespace {

using nn::kSmallModels;
using nn::TempFolder;
using testing::HasSubstr;

constexpr char kOnDisk[] = R"({"host_budget": 0, "disk": "FOLDER", "slots": 2})";
constexpr char kLazyOnDisk[] = R"({"host_budget": "20KiB", "disk": "FOLDER", "slots": 3, "write_every": 7})";
constexpr char kForwardGrad[] = R"({"name": "forward-grad", "lr": 1e-3})";
constexpr char kPlainSgd[] = R"({"name": "zo-sgd", "lr": 1e-2})";

/// A folder with a small model, a vocabulary of letters and a task.
class TieredRuns : public testing::Test {
 protected:
  void Make(const char* config) {
    const nn::ModelFiles model = nn::RandomModel(config);
    ASSERT_TRUE(SaveModel(folder_.path() + "/m", model.config, model.weights).ok());
    std::string vocab;
    for (int i = 0; i < 26; ++i)
      vocab += std::string(i == 0 ? "" : ", ") + "\"" + static_cast<char>('a' + i) + "\": " + std::to_string(i);
    folder_.Write("m/tokenizer.json",
                  R"({"model": {"type": "BPE", "vocab": {)" + vocab +
                      R"(, "<mask>": 26}, "merges": []}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}})");
    std::string rows;
    for (int i = 0; i < 20; ++i)
      rows += std::string(1, static_cast<char>('a' + i)) + "bc\t" + std::to_string(i % 2) + "\n";
    folder_.Write("t.tsv", rows);
  }
  /// `tier`: JSON with FOLDER in place of the folder; "" = resident.
  absl::StatusOr<TrainSpec> Spec(std::string optimizer, std::string tier, std::string scheme = "full",
                                 const std::string& more = "") const {
    if (scheme.find_first_of("{\"") != 0) scheme = "\"" + scheme + "\"";
    if (const size_t at = tier.find("FOLDER"); at != std::string::npos) tier.replace(at, 6, folder_.path());
    const std::string file = folder_.path() + "/t.tsv";
    return ParseTrainSpec(
        R"({"model": ")" + folder_.path() + R"(/m", "steps": 12, "batch": 4, "eval_every": 4, "checkpoint_every": 3, "log_every": 1,
      "seed": 4, "save_model": true, "schedule": "linear", "scheme": )" + scheme + R"(, "optimizer": )" + optimizer + R"(,
      "task": {"columns": ["x", "label"], "prompt": "{x}", "options": {"0": "y", "1": "z"}, "train": ")" +
        file + R"(", "dev": ")" + file + R"(", "test": ")" + file + R"("})" + (tier.empty() ? "" : R"(, "tier": )" + tier) + more + "}");
  }
  struct Outcome {
    TrainResult result;
    std::vector<double> losses;
    std::map<std::string, double> last;
  };
  absl::StatusOr<Outcome> Go(const TrainSpec& spec, const std::string& name, int attempt, int64_t stop_after = 1 << 20,
                             ScalarExchange* exchange = nullptr) {
    Outcome outcome;
    int64_t last = 0;
    TrainHooks hooks;
    hooks.exchange = exchange;
    hooks.progress = [&](int64_t step, const auto& metrics) {
      if (metrics.contains("loss")) outcome.losses.push_back(metrics.at("loss")), outcome.last = metrics;
      last = step;
    };
    hooks.stop = [&] { return last >= stop_after; };
    auto result = RunTraining(spec, folder_.path() + "/" + name, attempt, hooks);
    if (!result.ok() && !absl::IsCancelled(result.status())) return result.status();
    if (result.ok()) outcome.result = *result;
    return outcome;
  }
  std::string Saved(const std::string& name, int attempt, const std::string& file) const {
    return PosixFs().ReadFile(folder_.path() + "/" + name + "/attempt-" + std::to_string(attempt) + "/result/" + file).value_or("");
  }
  std::string ModelBytes(const std::string& name, int attempt = 1) const { return Saved(name, attempt, "model.safetensors"); }
  std::string Adapter(const std::string& name, int attempt = 1) const { return Saved(name, attempt, "adapter_model.safetensors"); }
  size_t BlockFiles() const {
    size_t count = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path()))
      count += entry.path().filename().string().starts_with("units-");
    return count;
  }
  TempFolder folder_;
};

void ExpectSame(const TrainResult& a, const TrainResult& b) {
  EXPECT_EQ(a.parameters_sha256, b.parameters_sha256);
  EXPECT_EQ(a.best_step, b.best_step);
  EXPECT_EQ(a.best_score, b.best_score);
  EXPECT_EQ(a.test_score, b.test_score);
}

struct TieredCase {
  std::string name, tier, optimizer;
};
class DiskBesideResident : public TieredRuns, public testing::WithParamInterface<nn::SmallModel> {
 protected:
  void ExpectDiskEqualsResident(const nn::SmallModel& model) {
    Make(model.config);
    const auto resident = Go(*Spec(R"({"name": "zo-sgd", "lr": 1e-3})", ""), "resident", 1);
    ASSERT_TRUE(resident.ok()) << resident.status();
    const auto tiered = Go(*Spec(R"({"name": "zo-sgd", "lr": 1e-3})", kOnDisk), "tiered", 1);
    ASSERT_TRUE(tiered.ok()) << tiered.status();
    EXPECT_EQ(tiered->losses, resident->losses);
    ExpectSame(tiered->result, resident->result);
    EXPECT_TRUE(ModelBytes("tiered") == ModelBytes("resident"));
    EXPECT_EQ(BlockFiles(), 0u) << "a finished run leaves no block file";
    EXPECT_GT(tiered->last.at("tier/read_bytes"), 0);
  }
};

class EveryFamilyTiered : public DiskBesideResident {};
INSTANTIATE_TEST_SUITE_P(Models, EveryFamilyTiered, testing::ValuesIn(kSmallModels),
                         [](const auto& info) { return info.param.name; });

TEST_P(EveryFamilyTiered, FromDiskEqualsResident) { ExpectDiskEqualsResident(GetParam()); }

/// Where the last bits depend on how the work is cut: a vocabulary of several pieces and units, the last not full; rows
/// that are no multiple of LibTorch's vectors.
class OddSizes : public DiskBesideResident {};
INSTANTIATE_TEST_SUITE_P(
    Models, OddSizes,
    testing::Values(nn::SmallModel{"tied", R"({"model_type": "llama", "vocab_size": 20001, "hidden_size": 64, "intermediate_size": 36,
      "num_hidden_layers": 1, "num_attention_heads": 4, "tie_word_embeddings": true, "max_position_embeddings": 32})"},
                    nn::SmallModel{"untied", R"({"model_type": "mistral", "vocab_size": 20001, "hidden_size": 64, "intermediate_size": 36,
      "num_hidden_layers": 1, "num_attention_heads": 4, "sliding_window": 5, "max_position_embeddings": 32})"},
                    nn::SmallModel{"odd", R"({"model_type": "llama", "vocab_size": 41, "hidden_size": 28, "intermediate_size": 35, "num_hidden_layers": 3,
      "num_attention_heads": 2, "max_position_embeddings": 32})"},
                    nn::SmallModel{"odd_gelu", R"({"model_type": "gpt2", "vocab_size": 41, "n_embd": 26, "n_inner": 35, "n_layer": 3, "n_head": 2, "n_positions": 32})"},
                    nn::SmallModel{"bias", R"({"model_type": "roberta", "vocab_size": 20001, "hidden_size": 64, "intermediate_size": 36,
      "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 34, "type_vocab_size": 2})"}),
    [](const auto& info) { return info.param.name; });

TEST_P(OddSizes, FromDiskEqualsResident) { ExpectDiskEqualsResident(GetParam()); }

class EveryTier : public TieredRuns, public testing::WithParamInterface<TieredCase> {};
INSTANTIATE_TEST_SUITE_P(
    Tiers, EveryTier,
    testing::Values(TieredCase{"one_slot", R"({"host_budget": 0, "disk": "FOLDER", "slots": 1})", R"({"name": "zo-sgd", "lr": 1e-3})"},
                    TieredCase{"mixed_lazy", R"({"host_budget": "20KiB", "disk": "FOLDER", "write_every": 5})", R"({"name": "zo-sgd", "lr": 1e-3, "weight_decay": 0.1})"},
                    TieredCase{"all_in_memory", R"({})", R"({"name": "zo-sgd", "lr": 1e-3})"},
                    TieredCase{"q3", kOnDisk, R"({"name": "zo-sgd", "lr": 1e-3, "queries": 3})"},
                    TieredCase{"mmt", kOnDisk, R"({"name": "zo-sgd-mmt", "lr": 1e-4})"},
                    TieredCase{"adam", kOnDisk, R"({"name": "zo-adam", "lr": 1e-3})"},
                    TieredCase{"sign", kOnDisk, R"({"name": "zo-sgd-sign", "lr": 1e-4})"},
                    TieredCase{"cons", kOnDisk, R"({"name": "zo-sgd-cons", "lr": 1e-2})"},
                    TieredCase{"cons_lazy_q2", R"({"host_budget": "20KiB", "disk": "FOLDER", "write_every": 5, "slots": 3})", R"({"name": "zo-sgd-cons", "lr": 1e-2, "weight_decay": 0.1, "queries": 2})"},
                    TieredCase{"cons_in_memory", R"({})", R"({"name": "zo-sgd-cons", "lr": 1e-2})"}),
    [](const auto& info) { return info.param.name; });

TEST_P(EveryTier, ResumedEqualsResident) {
  Make(kSmallModels[1].config);
  const auto resident = Go(*Spec(GetParam().optimizer, ""), "resident", 1);
  ASSERT_TRUE(resident.ok()) << resident.status();
  const auto spec = Spec(GetParam().optimizer, GetParam().tier);
  ASSERT_TRUE(spec.ok()) << spec.status();
  auto first = Go(*spec, "parts", 1, /*stop_after=*/5), second = Go(*spec, "parts", 2, /*stop_after=*/8),
       third = Go(*spec, "parts", 3);
  ASSERT_TRUE(first.ok() && second.ok() && third.ok()) << first.status() << second.status() << third.status();
  ExpectSame(third->result, resident->result);
  const auto n = static_cast<ptrdiff_t>(third->losses.size());
  ASSERT_GE(n, 1);
  EXPECT_TRUE(std::equal(third->losses.begin(), third->losses.end(), resident->losses.end() - n));
  EXPECT_TRUE(ModelBytes("parts", 3) == ModelBytes("resident"));
}

TEST_F(TieredRuns, PlansAreMadeWithoutRunning) {
  Make(kSmallModels[1].config);
  const auto plan = PlanOf(*Spec(R"({"name": "zo-sgd"})", kOnDisk), 16);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->slots, 2);
  EXPECT_GT(plan->read, 0u);
  EXPECT_GT(plan->compute_seconds, 0);
  EXPECT_GT(plan->disk_seconds, 0);
  const auto refused = PlanOf(*Spec(R"({"name": "zo-sgd"})", R"({"device_budget": "8KiB", "host_budget": 0, "disk": "FOLDER"})"), 0);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(refused.status().ToString(), HasSubstr("a perturbed copy of the largest unit"));
}

/// What is trained beside a model that is only read.
struct SchemeCase {
  std::string name, scheme, optimizer = R"({"name": "zo-sgd", "lr": 1e-2})", tier = kOnDisk;
  int model = 1;  ///< of kSmallModels
  std::string more = "";  ///< fields of the job
};
class EveryScheme : public TieredRuns, public testing::WithParamInterface<SchemeCase> {};
INSTANTIATE_TEST_SUITE_P(
    Schemes, EveryScheme,
    testing::Values(SchemeCase{"lora_llama", R"({"name": "lora", "rank": 2})"},
                    SchemeCase{"lora_opt", R"({"name": "lora", "rank": 2})", R"({"name": "zo-sgd", "lr": 1e-2, "weight_decay": 0.1})", kOnDisk, 3},
                    SchemeCase{"lora_roberta", R"({"name": "lora", "rank": 2})", R"({"name": "zo-adam", "lr": 1e-3})", kOnDisk, 5},
                    SchemeCase{"lora_one_slot", R"({"name": "lora", "rank": 2})", R"({"name": "zo-sgd", "lr": 1e-2})", R"({"host_budget": 0, "disk": "FOLDER", "slots": 1})", 0},
                    SchemeCase{"lora_one_copy", R"({"name": "lora", "rank": 2})", R"({"name": "zo-sgd", "lr": 1e-2})", R"({"host_budget": 0, "disk": "FOLDER", "fused": false})"},
                    SchemeCase{"prefix_llama", R"({"name": "prefix", "tokens": 3})", R"({"name": "zo-sgd", "lr": 1e-2, "eps": 0.1})"},
                    SchemeCase{"prefix_opt_q2", R"({"name": "prefix", "tokens": 3})", R"({"name": "zo-sgd", "lr": 1e-2, "queries": 2})", kOnDisk, 3},
                    SchemeCase{"prompt_llama", R"({"name": "prompt", "tokens": 3})"},
                    SchemeCase{"prompt_gpt2", R"({"name": "prompt", "tokens": 3})", R"({"name": "zo-sgd-mmt", "lr": 1e-2})", kOnDisk, 4},
                    SchemeCase{"head_tied", R"("head")"},
                    SchemeCase{"head_untied", R"("head")", R"({"name": "zo-sgd", "lr": 1e-2})", kOnDisk, 2},
                    SchemeCase{"head_roberta", R"("head")", R"({"name": "zo-sgd", "lr": 1e-2, "queries": 2})", kOnDisk, 5},
                    SchemeCase{"full_one_side", R"("full")", R"({"name": "zo-sgd", "lr": 1e-3, "perturbation": "one-side", "queries": 2})"},
                    SchemeCase{"full_one_side_one_copy", R"("full")", R"({"name": "zo-sgd", "lr": 1e-3, "perturbation": "one-side"})", R"({"host_budget": 0, "disk": "FOLDER", "fused": false})", 0},
                    SchemeCase{"lora_one_side", R"({"name": "lora", "rank": 2})", R"({"name": "zo-sgd", "lr": 1e-2, "perturbation": "one-side"})"},
                    SchemeCase{"cons_lora", R"({"name": "lora", "rank": 2})", R"({"name": "zo-sgd-cons", "lr": 1e-2})"},
                    SchemeCase{"cons_prompt_gpt2", R"({"name": "prompt", "tokens": 3})", R"({"name": "zo-sgd-cons", "lr": 1e-2})", kOnDisk, 4},
                    SchemeCase{"cons_head_untied", R"("head")", R"({"name": "zo-sgd-cons", "lr": 1e-2})", kOnDisk, 2},
                    SchemeCase{"cons_roberta_one_copy", R"("full")", R"({"name": "zo-sgd-cons", "lr": 1e-3})", R"({"host_budget": 0, "disk": "FOLDER", "fused": false})", 5},
                    SchemeCase{"sparse_random", R"("full")", kPlainSgd, kOnDisk, 1, R"(, "sparse": {"ratio": 0.4, "resample": 3})"},
                    SchemeCase{"sparse_normal_lazy_adam", R"("full")", R"({"name": "zo-adam", "lr": 1e-3, "queries": 2})", kLazyOnDisk, 0, R"(, "sparse": {"ratio": 0.4, "law": "normal"})"},
                    SchemeCase{"sparse_one_copy_cons", R"("full")", R"({"name": "zo-sgd-cons", "lr": 1e-2})", R"({"host_budget": 0, "disk": "FOLDER", "fused": false})", 1, R"(, "sparse": {"ratio": 0.4})"},
                    SchemeCase{"sparse_random_global", R"("full")", kPlainSgd, kLazyOnDisk, 3, R"(, "sparse": {"ratio": 0.4, "group": "global", "resample": 4})"},
                    SchemeCase{"sparse_magnitude_mmt", R"("full")", R"({"name": "zo-sgd-mmt", "lr": 1e-3})", kLazyOnDisk, 1, R"(, "sparse": {"ratio": 0.4, "source": "magnitude", "resample": 5})"},
                    SchemeCase{"sparse_magnitude_each_step", R"("full")", R"({"name": "zo-sgd", "lr": 1e-2, "weight_decay": 0.1})", kOnDisk, 4, R"(, "sparse": {"ratio": 0.4, "source": "magnitude"})"},
                    SchemeCase{"sparse_magnitude_global", R"("full")", kPlainSgd, R"({})", 5, R"(, "sparse": {"ratio": 0.4, "source": "magnitude", "group": "global", "resample": 2})"},
                    SchemeCase{"sparse_wanda", R"("full")", kPlainSgd, kLazyOnDisk, 1, R"(, "sparse": {"ratio": 0.4, "source": "wanda"})"},
                    SchemeCase{"sparse_wanda_gpt2", R"("full")", kPlainSgd, kOnDisk, 4, R"(, "sparse": {"ratio": 0.4, "source": "wanda"})"},
                    SchemeCase{"sparse_wanda_roberta", R"("full")", kPlainSgd, kOnDisk, 5, R"(, "sparse": {"ratio": 0.4, "source": "wanda"})"},
                    SchemeCase{"sparse_wanda_lora", R"({"name": "lora", "rank": 2})", kPlainSgd, kOnDisk, 1, R"(, "sparse": {"ratio": 0.4, "source": "wanda"})"},
                    SchemeCase{"sparse_magnitude_head", R"("head")", kPlainSgd, kOnDisk, 1, R"(, "sparse": {"ratio": 0.4, "source": "magnitude", "resample": 5})"},
                    SchemeCase{"sparse_random_prefix", R"({"name": "prefix", "tokens": 3})", kPlainSgd, kOnDisk, 3, R"(, "sparse": {"ratio": 0.4, "resample": 100})"},
                    SchemeCase{"blockwise_layers", R"("full")", kPlainSgd, kOnDisk, 1, R"(, "blockwise": {"level": "transformer-block"})"},
                    SchemeCase{"blockwise_layers_lazy_joint", R"("full")", kPlainSgd, kLazyOnDisk, 0, R"(, "blockwise": {"level": "transformer-block", "schedule": "joint"})"},
                    SchemeCase{"blockwise_linear_adam", R"("full")", R"({"name": "zo-adam", "lr": 1e-3})", kLazyOnDisk, 1, R"(, "blockwise": {"level": "linear"})"},
                    SchemeCase{"blockwise_linear_untied", R"("full")", kPlainSgd, kOnDisk, 2, R"(, "blockwise": {"level": "linear"})"},
                    SchemeCase{"blockwise_mlp_attn_opt", R"("full")", R"({"name": "zo-sgd-mmt", "lr": 1e-3})", kOnDisk, 3, R"(, "blockwise": {"level": "mlp-attn"})"},
                    SchemeCase{"blockwise_linear_gpt2_joint", R"("full")", kPlainSgd, R"({})", 4, R"(, "blockwise": {"level": "linear", "schedule": "joint"})"},
                    SchemeCase{"blockwise_mlp_attn_roberta", R"("full")", R"({"name": "zo-sgd", "lr": 1e-2, "weight_decay": 0.1})", kOnDisk, 5, R"(, "blockwise": {"level": "mlp-attn"})"},
                    SchemeCase{"blockwise_lora", R"({"name": "lora", "rank": 2})", kPlainSgd, kOnDisk, 1, R"(, "blockwise": {"level": "transformer-block"})"},
                    SchemeCase{"blockwise_lora_linear", R"({"name": "lora", "rank": 2})", kPlainSgd, kOnDisk, 5, R"(, "blockwise": {"level": "linear"})"},
                    SchemeCase{"blockwise_prefix", R"({"name": "prefix", "tokens": 3})", R"({"name": "zo-sgd", "lr": 1e-2, "eps": 0.1})", kOnDisk, 3, R"(, "blockwise": {"level": "transformer-block"})"},
                    SchemeCase{"blockwise_prompt", R"({"name": "prompt", "tokens": 3})", kPlainSgd, kOnDisk, 1, R"(, "blockwise": {"level": "linear"})"},
                    SchemeCase{"blockwise_head_untied", R"("head")", kPlainSgd, kOnDisk, 2, R"(, "blockwise": {"level": "linear"})"},
                    SchemeCase{"blockwise_head_tied", R"("head")", kPlainSgd, kOnDisk, 1, R"(, "blockwise": {"level": "linear"})"},
                    SchemeCase{"blockwise_sparse", R"("full")", kPlainSgd, kLazyOnDisk, 1, R"(, "blockwise": {"level": "mlp-attn"}, "sparse": {"ratio": 0.4, "source": "magnitude", "resample": 5})"},
                    SchemeCase{"forward_grad", R"("full")", kForwardGrad, kOnDisk, 1},
                    SchemeCase{"forward_grad_q2_untied_lazy", R"("full")", R"({"name": "forward-grad", "lr": 1e-3, "queries": 2, "weight_decay": 0.1})", kLazyOnDisk, 2},
                    SchemeCase{"forward_grad_gpt2_one_copy", R"("full")", kForwardGrad, R"({"host_budget": 0, "disk": "FOLDER", "fused": false})", 4},
                    SchemeCase{"forward_grad_roberta", R"("full")", kForwardGrad, kOnDisk, 5},
                    SchemeCase{"forward_grad_opt_in_memory", R"("full")", kForwardGrad, R"({})", 3},
                    SchemeCase{"forward_grad_lora", R"({"name": "lora", "rank": 2})", kForwardGrad, kOnDisk, 1},
                    SchemeCase{"forward_grad_prefix", R"({"name": "prefix", "tokens": 3})", kForwardGrad, kOnDisk, 3},
                    SchemeCase{"forward_grad_prompt", R"({"name": "prompt", "tokens": 3})", kForwardGrad, kOnDisk, 1},
                    SchemeCase{"forward_grad_prompt_gpt2", R"({"name": "prompt", "tokens": 3})", kForwardGrad, kOnDisk, 4},
                    SchemeCase{"forward_grad_head_tied", R"("head")", kForwardGrad, kOnDisk, 1},
                    SchemeCase{"forward_grad_head_untied", R"("head")", kForwardGrad, kOnDisk, 2},
                    SchemeCase{"forward_grad_sparse", R"("full")", kForwardGrad, kLazyOnDisk, 0, R"(, "sparse": {"ratio": 0.4, "resample": 3})"},
                    SchemeCase{"full_accuracy", R"("full")", R"({"name": "zo-sgd", "lr": 1e-3, "eps": 0.1})", kOnDisk, 1, R"(, "objective": "accuracy")"}),
    [](const auto& info) { return info.param.name; });

TEST_P(EveryScheme, ResumedEqualsResident) {
  const SchemeCase& c = GetParam();
  Make(kSmallModels[c.model].config);
  const auto spec = [&](const std::string& tier) { return Spec(c.optimizer, tier, c.scheme, c.more); };
  const auto resident = Go(*spec(""), "resident", 1);
  ASSERT_TRUE(resident.ok()) << resident.status();
  ASSERT_TRUE(spec(c.tier).ok()) << spec(c.tier).status();
  const auto first = Go(*spec(c.tier), "parts", 1, /*stop_after=*/5), second = Go(*spec(c.tier), "parts", 2);
  ASSERT_TRUE(first.ok() && second.ok()) << first.status() << second.status();
  std::vector<double> losses = first->losses;
  losses.insert(losses.end(), second->losses.begin(), second->losses.end());
  EXPECT_EQ(losses, resident->losses);
  EXPECT_GT(std::set<double>(losses.begin(), losses.end()).size(), 1u);
  ExpectSame(second->result, resident->result);
  const auto files = [&](const std::string& name, int attempt) { return ModelBytes(name, attempt) + Adapter(name, attempt); };
  EXPECT_TRUE(files("parts", 2) == files("resident", 1));
  EXPECT_NE(files("resident", 1), "");
}

/// A step's bytes and what it holds beside the units are in the plan.
TEST_F(TieredRuns, PlansCountSweepsAndMasks) {
  Make(kSmallModels[1].config);
  const auto plan = [&](const std::string& optimizer, const std::string& more) {
    const auto made = PlanOf(*Spec(optimizer, kOnDisk, "full", more), 0);
    EXPECT_TRUE(made.ok()) << made.status();
    return *made;
  };
  const tier::Plan plain = plan(R"("zo-sgd")", ""), cons = plan(R"("zo-sgd-cons")", ""),
                   groups = plan(R"("zo-sgd")", R"(, "blockwise": {"level": "transformer-block"})"),
                   masks = plan(R"("zo-sgd")", R"(, "sparse": {"ratio": 0.5, "source": "magnitude"})");
  EXPECT_EQ(cons.read, 2 * plain.read);
  EXPECT_EQ(cons.written, plain.written);
  EXPECT_GT(groups.read, 2 * plain.read);
  EXPECT_EQ(groups.written, plain.written);
  EXPECT_EQ(masks.device_peak, plain.device_peak + (plain.parameters / 8 + 4095) / 4096 * 4096);
}

TEST_F(TieredRuns, WhatIsNotTrainedIsOnlyRead) {
  Make(kSmallModels[1].config);
  const auto plan = PlanOf(*Spec(R"({"name": "zo-sgd"})", kOnDisk, R"({"name": "lora", "rank": 2})"), 0);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_GT(plan->read, 0u);
  EXPECT_EQ(plan->written, 0u);
  EXPECT_EQ(plan->homes.front(), tier::Home::kDevice) << "adapters stay in memory";
}

/// Two workers of one run, each in a thread, of whom some have tiers.
struct FleetCase {
  std::string name, share, optimizer, more = "";
};
class Fleet : public TieredRuns, public testing::WithParamInterface<FleetCase> {
 protected:
  /// One a rank; rank r has tiers[r].
  std::vector<absl::StatusOr<Outcome>> GoTogether(ExchangeHub& hub, const std::string& name, const std::vector<std::string>& tiers,
                                                  int attempt = 1, std::vector<int64_t> stop_after = {1 << 20, 1 << 20}) {
    std::vector<absl::StatusOr<Outcome>> outcomes(tiers.size(), absl::InternalError("not run"));
    std::vector<std::thread> threads;
    for (size_t r = 0; r < tiers.size(); ++r) {
      threads.emplace_back([&, r] {
        const auto seat = hub.Seat(static_cast<int>(r));
        outcomes[r] = Go(OfFleet(tiers[r]), RankFolder(name, static_cast<int>(r)), attempt, stop_after[r], seat.get());
      });
    }
    for (std::thread& thread : threads) thread.join();
    return outcomes;
  }
  TrainSpec OfFleet(const std::string& tier) const {
    const FleetCase c = GetParam();
    auto spec = Spec(c.optimizer, tier, "full", R"(, "parallel": {"workers": 2, "share": ")" + c.share + R"("})" + c.more);
    EXPECT_TRUE(spec.ok()) << spec.status();
    return *spec;
  }
};
INSTANTIATE_TEST_SUITE_P(Shares, Fleet,
                         testing::Values(FleetCase{"examples", "examples", R"({"name": "zo-sgd", "lr": 1e-3, "weight_decay": 0.1})"},
                                         FleetCase{"examples_q2_adam", "examples", R"({"name": "zo-adam", "lr": 1e-3, "queries": 2})"},
                                         FleetCase{"queries", "queries", R"({"name": "zo-sgd", "lr": 1e-3})"},
                                         FleetCase{"queries_mmt", "queries", R"({"name": "zo-sgd-mmt", "lr": 1e-4})"},
                                         FleetCase{"sparse", "examples", R"({"name": "zo-sgd", "lr": 1e-3})", R"(, "sparse": {"ratio": 0.4, "source": "magnitude", "resample": 5})"}),
                         [](const auto& info) { return info.param.name; });

TEST_P(Fleet, HasTheBytesOfResidentWorkers) {
  Make(kSmallModels[1].config);
  std::vector<std::vector<absl::StatusOr<Outcome>>> fleets;
  for (const auto& [name, tiers] : {std::pair("resident", std::vector<std::string>{"", ""}), {"tiered", {kOnDisk, kLazyOnDisk}}, {"mixed", {kLazyOnDisk, ""}}}) {
    ExchangeHub hub(OfFleet("").parallel);
    fleets.push_back(GoTogether(hub, name, tiers));
    for (const auto& outcome : fleets.back()) {
      ASSERT_TRUE(outcome.ok()) << outcome.status();
      EXPECT_EQ(outcome->losses, (*fleets[0][0]).losses) << name;
      EXPECT_EQ(outcome->result.parameters_sha256, (*fleets[0][0]).result.parameters_sha256) << name;
    }
    EXPECT_EQ(hub.agreed().size(), 12u);
  }
  EXPECT_TRUE(ModelBytes("tiered") == ModelBytes("resident") && ModelBytes("tiered") != "");
  EXPECT_EQ(BlockFiles(), 0u);
}

/// One of two goes after 3 steps, the other after 8; both come again, the one from what it wrote.
TEST_P(Fleet, ALateWorkerCatchesUpByReplay) {
  Make(kSmallModels[1].config);
  ExchangeHub hub(OfFleet("").parallel);
  for (const auto& outcome : GoTogether(hub, "late", {"", kLazyOnDisk}, 1, {8, 3})) ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_EQ(hub.agreed().size(), 8u);
  const auto again = GoTogether(hub, "late", {"", kLazyOnDisk}, 2);
  for (const auto& outcome : again) {
    ASSERT_TRUE(outcome.ok()) << outcome.status();
    EXPECT_EQ(outcome->result.steps, 12);
    EXPECT_EQ(outcome->result.parameters_sha256, again[0]->result.parameters_sha256);
  }
}

struct BadTier {
  const char *tier, *optimizer, *scheme, *message;
};
TEST_F(TieredRuns, BadSpecsAreRefused) {
  for (const BadTier& c : {
           BadTier{R"({"codec": "int4"})", R"("zo-sgd")", "full", "tier.codec: \"int4\" is not one of none, bf16, fp16, fp8"},
           BadTier{R"({"host_budget": "12 parsec"})", R"("zo-sgd")", "full", "tier.host_budget: \"12 parsec\" is not a number of bytes"},
           BadTier{R"({"host_budget": -1})", R"("zo-sgd")", "full", "tier.host_budget: -1 is not a number of bytes"},
           BadTier{R"({"slot": 2})", R"("zo-sgd")", "full", "tier: unknown field \"slot\""},
           BadTier{R"({"write_every": 0})", R"("zo-sgd")", "full", "tier.write_every: 0 must be >= 1"},
           BadTier{R"({"slots": 65})", R"("zo-sgd")", "full", "tier.slots: 65 must be <= 64"},
           BadTier{R"({})", R"("adamw")", "full", "needs gradients"},
           BadTier{R"({})", R"({"name": "zo-sgd", "residue": "mezo", "perturbation": "one-side"})", "full", "optimizer.residue: \"mezo\""},
           BadTier{R"({"codec": "bf16"}, "parallel": {"workers": 2})", R"("zo-sgd")", "full", "tier.codec: \"bf16\" with parallel"},
           BadTier{R"({"codec": "fp8"}, "sparse": {"ratio": 0.2, "source": "magnitude"})", R"("zo-sgd")", "full", "tier.codec: \"fp8\" with sparse masks"},
           BadTier{R"({"fused": false}, "blockwise": {"level": "linear"})", R"("zo-sgd")", "full", "tier.fused: false with blockwise"},
           BadTier{R"({}, "hybrid": {"blocks": 1})", R"("zo-sgd")", "full", "tier: with hybrid.blocks 1"},
       })
    EXPECT_THAT(Spec(c.optimizer, c.tier, c.scheme).status().ToString(), testing::AllOf(HasSubstr("INVALID_ARGUMENT"), HasSubstr(c.message)));
}

/// What a GPU is given, done by the CPU: operations on tensors alone. Its sums have another order, so the last bits differ.
class GpuOperations : public TieredRuns, public testing::WithParamInterface<std::string> {};
INSTANTIATE_TEST_SUITE_P(Schemes, GpuOperations,
                         testing::Values("full", R"({"name": "lora", "rank": 2})", R"({"name": "prefix", "tokens": 2})",
                                         R"({"name": "prompt", "tokens": 2})", "head"),
                         [](const auto& info) { return "scheme_" + std::to_string(info.index); });
TEST_P(GpuOperations, GiveTheResidentLosses) {
  int families = 0;
  for (const nn::SmallModel& model : kSmallModels) {
    Make(model.config);
    const std::string name = Cat("run-", &model - std::begin(kSmallModels));
    const auto plain = Spec(R"({"name": "zo-sgd", "lr": 1e-3})", "", GetParam());
    auto spec = Spec(R"({"name": "zo-sgd", "lr": 1e-3})", "{}", GetParam(), R"(, "device": "cuda")");
    if (!plain.ok()) continue;  // not of this family
    ASSERT_TRUE(spec.ok()) << spec.status();
    const auto resident = Go(*plain, name + "-resident", 1);
    if (absl::IsUnimplemented(resident.status()) || absl::IsInvalidArgument(resident.status())) continue;  // nor this scheme
    ASSERT_TRUE(resident.ok()) << resident.status();
    spec->device = "rehearsal";
    const auto got = Go(*spec, name + "-there", 1);
    ASSERT_TRUE(got.ok()) << got.status();
    ASSERT_EQ(got->losses.size(), resident->losses.size());
    for (size_t step = 0; step < got->losses.size(); ++step)
      EXPECT_NEAR(got->losses[step], resident->losses[step], 1e-3 * std::abs(resident->losses[step])) << name << " step " << step;
    EXPECT_NEAR(got->losses[0], resident->losses[0], 1e-5 * std::abs(resident->losses[0])) << name;
    ++families;
  }
  EXPECT_GE(families, GetParam() == "full" ? static_cast<int>(std::size(kSmallModels)) : 3);
}

TEST_F(TieredRuns, AGpuIsAskedForWhereThereMayBeOne) {
  Make(kSmallModels[0].config);
  EXPECT_THAT(Spec(R"({"name": "zo-sgd"})", "", "full", R"(, "device": "cuda")").status().ToString(),
              HasSubstr("device: \"cuda\" without tier"));
  EXPECT_THAT(Spec(R"({"name": "zo-sgd"})", "{}", "full", R"(, "device": "tpu")").status().ToString(), HasSubstr("device: \"tpu\""));
  const auto spec = Spec(R"({"name": "zo-sgd"})", R"({"device_budget": "1MiB", "slots": 2})", "full", R"(, "device": "cuda")");
  ASSERT_TRUE(spec.ok()) << spec.status();
  const auto plan = PlanOf(*spec, 0);  // needs no GPU
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_TRUE(plan->request.separate_device);
  const absl::Status status = Go(*spec, "gpu", 1).status();
  if (!status.ok()) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(status.ToString(), HasSubstr("device: cuda"));
  }
}

}  // namespace
}  // namespace optod::train

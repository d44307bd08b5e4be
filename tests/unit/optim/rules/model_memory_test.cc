// The memory tables against the printed figures, and the counting against the rules' own state.
#include "optim/rules/model_memory.h"

#include <gtest/gtest.h>

#include "optim/rules/registry.h"

namespace optod::optim {
namespace {

const MemoryRow& Row(const std::vector<MemoryRow>& rows, const std::string& method) {
  for (const MemoryRow& row : rows)
    if (row.method == method) return row;
  ADD_FAILURE() << method;
  return rows[0];
}

TEST(ModelLayouts, HaveTheKnownParameterCounts) {
  const std::pair<const char*, uint64_t> counts[] = {
      {"llama-60m", 58'073'600},       {"llama-130m", 134'105'856},      {"llama-350m", 367'969'280},
      {"llama-1b", 1'339'082'752},     {"llama-7b", 6'738'415'616},      {"gpt2", 124'439'808},
      {"gpt2-medium", 354'823'168},    {"gpt2-large", 774'030'080},      {"gpt2-xl", 1'557'611'200},
      {"vit-s", 22'050'664},           {"vit-b", 86'567'656},            {"vit-l", 304'326'632}};
  for (const auto& [model, want] : counts) {
    uint64_t sum = 0;
    const auto layout = ModelLayout(model);
    ASSERT_TRUE(layout.ok());
    for (const TensorSpec& spec : *layout) sum += static_cast<uint64_t>(spec.elements());
    EXPECT_EQ(sum, want) << model;
  }
  EXPECT_EQ(KnownModels().size(), std::size(counts));
  EXPECT_NE(std::string(ModelLayout("llama").status().message()).find("known are llama-60m"), std::string::npos);
}

// Perplexity tables of Glentis et al. 2025: gigabytes at 2 bytes a number, three digits as recomputed.
struct Printed {
  const char* method;
  double gb[5];  // 60M, 130M, 350M, 1B, 7B; 0 = not printed
};
const Printed kPrinted[] = {
    {"sgd", {0.116, 0.268, 0.736, 2.678, 13.477}},
    {"scale", {0.149, 0.317, 0.802, 2.810, 13.740}},
    {"adam, adamw, lamb, stable-spam", {0.348, 0.805, 2.208, 8.034, 40.430}},
    {"sgd momentum, muon", {0.232, 0.536, 1.472, 5.356, 26.954}},
    {"swan", {0.247, 0.465, 0.998, 3.203, 14.526}},
    {"galore, fira", {0.280, 0.611, 1.585, 4.763, 0}},
    {"apollo", {0.273, 0.578, 0, 4.411, 16.145}},
    {"apollo-mini", {0.247, 0.465, 0.999, 3.205, 14.533}},
};
TEST(MemoryTables, AreThePrintedOnes) {
  const char* models[] = {"llama-60m", "llama-130m", "llama-350m", "llama-1b", "llama-7b"};
  for (int m = 0; m < 5; ++m) {
    const std::vector<MemoryRow> rows = MemoryTable(*ModelLayout(models[m]), {});
    for (const Printed& printed : kPrinted) {
      if (printed.gb[m] == 0) continue;
      EXPECT_NEAR(Row(rows, printed.method).Gigabytes(2), printed.gb[m], 1.6e-3) << models[m] << " " << printed.method;
    }
  }
  // The printed APOLLO figures up to 1B count a stored projection.
  EXPECT_NEAR(Row(MemoryTable(*ModelLayout("llama-60m"), {0, true}), "apollo").Gigabytes(2), 0.280, 1.1e-3);
  EXPECT_NEAR(Row(MemoryTable(*ModelLayout("llama-350m"), {256, false}), "galore, fira").Gigabytes(2), 1.389, 1.1e-3);
}

// Xu et al. 2024: AdamW minus SGD-SaI, float32: 25.15 for Llama2-7B and 5.93 for GPT-2 1.5B, which are gibibytes.
TEST(MemoryTables, SaIsSavingIsOneCopyInGibibytes) {
  const std::pair<const char*, std::pair<double, double>> savings[] = {{"llama-7b", {25.15, 0.06}}, {"gpt2-xl", {5.93, 0.14}}};
  for (const auto& [model, figure] : savings) {
    const std::vector<MemoryRow> rows = MemoryTable(*ModelLayout(model), {});
    const double saved = Row(rows, "adam, adamw, lamb, stable-spam").StateGibibytes(4) - Row(rows, "sgd-sai").StateGibibytes(4);
    EXPECT_NEAR(saved, figure.first, figure.second) << model;
  }
}

// The arithmetic is that of the rules: a small LLaMA, whose state they really hold.
TEST(MemoryTables, CountWhatTheRulesHold) {
  std::vector<TensorSpec> layout;
  const auto large = ModelLayout("llama-60m");
  ASSERT_TRUE(large.ok());
  for (TensorSpec spec : *large) {
    for (int64_t& size : spec.shape) size = size == 32000 ? 50 : size == 1376 ? 43 : 16;
    layout.push_back(spec);
  }
  const std::vector<MemoryRow> rows = MemoryTable(layout, {4, false});
  const std::pair<const char*, const char*> rules[] = {
      {"sgd", "sgd"},       {"scale", "scale"}, {"sgd-sai", "sgd-sai"}, {"adamw", "adam, adamw, lamb, stable-spam"},
      {"lamb", "adam, adamw, lamb, stable-spam"}, {"adam", "adam, adamw, lamb, stable-spam"}, {"muon", "muon (optod)"}};
  for (const auto& [rule, method] : rules) {
    const auto made = MakeRule(rule, {}, layout, 1);
    ASSERT_TRUE(made.ok()) << made.status();
    uint64_t numbers = 0, bytes = 0;
    for (const TensorSpec& spec : (*made)->StateSpecs()) {
      if (spec.dtype != DType::kI64) numbers += static_cast<uint64_t>(spec.elements());
      bytes += spec.bytes();
    }
    const uint64_t more = std::string(rule) == "sgd-sai" ? 1 : 0;  // the largest ratio of all tensors
    EXPECT_EQ(numbers, Row(rows, method).state + more) << rule;
    EXPECT_EQ((*made)->StateBytes(), bytes) << rule;
  }
}

}  // namespace
}  // namespace optod::optim

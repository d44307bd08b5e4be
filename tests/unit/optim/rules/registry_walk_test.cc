// One test walks the table: every implemented first-order row has a golden file and doc lines, round-trips its state,
// refuses NaN and wrong sizes by name, resumes bit for bit, and gives the same bits on every kernel path. A new row is
// tested before anyone writes a test for it.
#include <gmock/gmock.h>

#include <filesystem>

#include "run.h"

namespace optod::optim {
namespace {

using ::testing::HasSubstr;
using testing::MakeTensor;
using testing::Random;
using testing::RandomParams;
using testing::RandomStep;
using testing::Same;
using testing::StepData;
using testing::TakeStep;

std::vector<std::string> Names(Family family) {
  std::vector<std::string> names;
  for (const RuleInfo& info : AllRules()) {
    if (info.family == family && info.implemented) names.push_back(info.name);
  }
  return names;
}
std::string CaseName(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

// A bit of everything: two layers with and without bias, an embedding, a vector, a scalar, a rank-4 kernel, an empty
// tensor, an odd length.
std::vector<TensorSpec> Layout(DType dtype) {
  return {{"embed_tokens.weight", dtype, {7, 4}},
          {"l.0.weight", dtype, {6, 5}},
          {"l.0.bias", dtype, {6}},
          {"mlp.weight", dtype, {3, 8}},
          {"conv.weight", dtype, {2, 3, 3, 3}},
          {"norm.gain", dtype, {37}},
          {"scalar", dtype, {}},
          {"empty", dtype, {0, 4}},
          {"lm_head", dtype, {7, 4}},
          {"large.gain", dtype, {8219}}};
}

class EveryRow : public ::testing::TestWithParam<std::string> {
 protected:
  const RuleInfo& info() const { return **FindRule(GetParam()); }
  std::unique_ptr<Rule> Make(const std::vector<TensorSpec>& layout, Hyper hyper = {}) {
    auto rule = MakeRule(GetParam(), hyper, layout, 11);
    EXPECT_TRUE(rule.ok()) << rule.status();
    return std::move(rule).value();
  }
};

TEST_P(EveryRow, HasDocumentation) {
  EXPECT_FALSE(info().summary.empty());
  EXPECT_FALSE(info().state.empty());
  EXPECT_FALSE(info().source.empty());
  EXPECT_FALSE(info().tell_inputs.empty());
  for (const HyperInfo& hyper : info().hyper) {
    EXPECT_FALSE(hyper.doc.empty()) << hyper.name;
    EXPECT_TRUE(CheckHyper(info(), {{hyper.name, hyper.default_value}}).ok()) << hyper.name;
  }
  // The 8-bit variant has no recorded trajectory; kernels_test pins its code, reference_test its arithmetic.
  if (info().golden.empty()) {
    EXPECT_EQ(info().name, "adamw-8bit");
  } else {
    EXPECT_TRUE(std::filesystem::exists(std::string(OPTOD_GOLDEN_DIR) + "/optim/" + info().golden + ".json"))
        << info().golden;
  }
}

TEST_P(EveryRow, ResumesBitForBit) {
  for (DType dtype : {DType::kF32, DType::kF64, DType::kF16, DType::kBF16}) {
    SCOPED_TRACE(std::string(DTypeName(dtype)));
    const auto layout = Layout(dtype);
    Random random(5);
    std::vector<OwnedTensor> straight = RandomParams(layout, random);
    std::vector<StepData> steps;
    for (int t = 0; t < 6; ++t) steps.push_back(RandomStep(info(), layout, random, t == 0 ? 0 : 0.1));
    auto rule = Make(layout);
    for (int t = 0; t < 3; ++t) ASSERT_TRUE(TakeStep(*rule, straight, steps[t]).ok());
    std::vector<OwnedTensor> resumed = straight, cold = straight;
    const std::vector<OwnedTensor> saved = rule->ExportState();
    for (int t = 3; t < 6; ++t) ASSERT_TRUE(TakeStep(*rule, straight, steps[t]).ok());

    auto again = Make(layout);
    ASSERT_TRUE(again->ImportState(saved).ok());
    EXPECT_TRUE(Same(again->ExportState(), saved));
    for (int t = 3; t < 6; ++t) ASSERT_TRUE(TakeStep(*again, resumed, steps[t]).ok());
    EXPECT_TRUE(Same(straight, resumed));
    EXPECT_TRUE(Same(rule->ExportState(), again->ExportState()));

    auto fresh = Make(layout);
    for (int t = 3; t < 6; ++t) ASSERT_TRUE(TakeStep(*fresh, cold, steps[t]).ok());
    const bool stateless = info().name == "sgd";  // without momentum
    EXPECT_EQ(Same(straight, cold), stateless);
  }
}

TEST_P(EveryRow, WeightDecaySkipsMarkedTensors) {
  const bool decays = std::any_of(info().hyper.begin(), info().hyper.end(),
                                  [](const HyperInfo& hyper) { return hyper.name == "weight_decay"; });
  for (DType dtype : {DType::kF32, DType::kF64, DType::kBF16}) {
    std::vector<std::vector<OwnedTensor>> results;
    for (const auto& [weight_decay, marked] : {std::pair(0.25, true), std::pair(0.0, false), std::pair(0.25, false)}) {
      std::vector<TensorSpec> layout = Layout(dtype);
      for (TensorSpec& spec : layout) spec.no_decay = marked;
      Random random(8);
      std::vector<OwnedTensor> params = RandomParams(layout, random);
      auto rule = Make(layout, decays ? Hyper{{"weight_decay", weight_decay}} : Hyper{});
      for (int t = 0; t < 3; ++t) ASSERT_TRUE(TakeStep(*rule, params, RandomStep(info(), layout, random)).ok());
      results.push_back(std::move(params));
    }
    EXPECT_TRUE(Same(results[0], results[1])) << DTypeName(dtype);
    EXPECT_EQ(Same(results[1], results[2]), !decays) << DTypeName(dtype);
  }
}

TEST_P(EveryRow, GivesTheSameBitsOnEveryPath) {
  for (DType dtype : {DType::kF32, DType::kF64, DType::kBF16, DType::kF16}) {
    std::vector<std::vector<OwnedTensor>> results;
    for (std::string_view path : KernelPaths()) {
      ASSERT_TRUE(SelectKernels(path));
      const auto layout = Layout(dtype);
      Random random(6);
      std::vector<OwnedTensor> params = RandomParams(layout, random);
      auto rule = Make(layout);
      for (int t = 0; t < 4; ++t) ASSERT_TRUE(TakeStep(*rule, params, RandomStep(info(), layout, random)).ok());
      results.push_back(params);
      for (OwnedTensor& state : rule->ExportState()) results.back().push_back(std::move(state));
    }
    SelectKernels("");
    for (const auto& result : results) EXPECT_TRUE(Same(result, results[0])) << DTypeName(dtype);
  }
}

TEST_P(EveryRow, RefusesNanAndInfinityAndChangesNothing) {
  for (DType dtype : {DType::kF32, DType::kF64, DType::kF16, DType::kBF16}) {
    for (double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
      const auto layout = Layout(dtype);
      Random random(7);
      std::vector<OwnedTensor> params = RandomParams(layout, random);
      auto rule = Make(layout);
      ASSERT_TRUE(TakeStep(*rule, params, RandomStep(info(), layout, random)).ok());
      const std::vector<OwnedTensor> before = params, state = rule->ExportState();
      StepData step = RandomStep(info(), layout, random);
      std::vector<double> values = testing::Values(*step.grads[5]);
      values[33] = bad;
      step.grads[5] = MakeTensor("norm.gain", dtype, {37}, values);
      const absl::Status status = TakeStep(*rule, params, step).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(status.message()), HasSubstr("grads.norm.gain: element 33 is"));
      EXPECT_TRUE(Same(params, before));
      EXPECT_TRUE(Same(rule->ExportState(), state));
    }
  }
}

TEST_P(EveryRow, RefusesWrongCounts) {
  const auto layout = Layout(DType::kF32);
  Random random(8);
  std::vector<OwnedTensor> params = RandomParams(layout, random);
  auto rule = Make(layout);
  StepData step = RandomStep(info(), layout, random);
  step.grads.pop_back();
  EXPECT_THAT(std::string(TakeStep(*rule, params, step).status().message()),
              HasSubstr("grads: 9 tensors given; the layout has 10"));
  step = RandomStep(info(), layout, random);
  params.pop_back();
  EXPECT_THAT(std::string(TakeStep(*rule, params, step).status().message()), HasSubstr("parameters: 9 tensors given"));
}

TEST_P(EveryRow, RefusesMissingAndMisshapenInputs) {
  const auto layout = Layout(DType::kF32);
  Random random(9);
  for (const StepData whole = RandomStep(info(), layout, random); const OwnedTensor& extra : whole.extra) {
    if (extra.spec.elements() == 0 || extra.spec.name.find("embed") != std::string::npos) continue;
    std::vector<OwnedTensor> params = RandomParams(layout, random);
    auto rule = Make(layout);
    const auto state = rule->ExportState();
    StepData missing = whole, misshapen = whole;
    std::erase_if(missing.extra, [&](const OwnedTensor& tensor) { return tensor.spec.name == extra.spec.name; });
    for (OwnedTensor& tensor : misshapen.extra) {
      if (tensor.spec.name == extra.spec.name)
        tensor = MakeTensor(extra.spec.name, DType::kF32, {1, 2, 3}, std::vector<double>(6));
    }
    const absl::Status absent = TakeStep(*rule, params, missing).status(),
                       wrong = TakeStep(*rule, params, misshapen).status();
    EXPECT_EQ(absent.code(), absl::StatusCode::kFailedPrecondition) << absent;
    EXPECT_THAT(std::string(absent.message()), HasSubstr(extra.spec.name + ": missing"));
    EXPECT_EQ(wrong.code(), absl::StatusCode::kInvalidArgument) << wrong;
    EXPECT_THAT(std::string(wrong.message()), HasSubstr(extra.spec.name + ": its shape"));
    EXPECT_TRUE(Same(rule->ExportState(), state));
  }
}

TEST_P(EveryRow, RefusesStateThatDoesNotFit) {
  const auto layout = Layout(DType::kF32);
  auto rule = Make(layout);
  const std::vector<OwnedTensor> good = rule->ExportState();
  ASSERT_FALSE(good.empty());
  const std::string name = good[0].spec.name;
  std::vector<OwnedTensor> missing(good.begin() + 1, good.end()), dtype = good, shape = good, unknown = good,
                                                                  twice = good;
  dtype[0].spec.dtype = DType::kF8E4M3;
  shape[0].spec.shape.push_back(1);
  unknown.push_back(MakeTensor("nobody/knows", DType::kF32, {1}, {0}));
  twice.push_back(good[0]);
  EXPECT_FALSE(rule->ImportState(missing).ok());
  EXPECT_FALSE(rule->ImportState(dtype).ok());
  EXPECT_FALSE(rule->ImportState(shape).ok());
  EXPECT_THAT(std::string(rule->ImportState(unknown).message()), HasSubstr("state.nobody/knows: unknown"));
  EXPECT_FALSE(rule->ImportState(twice).ok());
  EXPECT_TRUE(Same(rule->ExportState(), good));
}

TEST_P(EveryRow, LeavesTensorsWithoutGradientAlone) {
  const auto layout = Layout(DType::kF32);
  Random random(10);
  std::vector<OwnedTensor> params = RandomParams(layout, random);
  auto rule = Make(layout);
  ASSERT_TRUE(TakeStep(*rule, params, RandomStep(info(), layout, random)).ok());
  const std::vector<OwnedTensor> before = params;
  StepData step = RandomStep(info(), layout, random);
  for (auto& grad : step.grads) grad.reset();
  ASSERT_TRUE(TakeStep(*rule, params, step).ok());
  EXPECT_TRUE(Same(params, before));
}

TEST_P(EveryRow, TakesFloat32GradientsOfSixteenBitParameters) {
  const auto layout = Layout(DType::kBF16);
  Random random(12);
  std::vector<OwnedTensor> narrow = RandomParams(layout, random), wide = narrow;
  auto a = Make(layout), b = Make(layout);
  const StepData step = RandomStep(info(), layout, random);
  ASSERT_TRUE(TakeStep(*a, narrow, step).ok());
  std::vector<OwnedTensor> grads;
  std::vector<const void*> pointers;
  std::vector<void*> params;
  for (const auto& grad : step.grads)
    grads.push_back(MakeTensor(grad->spec.name, DType::kF32, grad->spec.shape, testing::Values(*grad)));
  for (const auto& grad : grads) pointers.push_back(grad.data.data());
  for (auto& tensor : wide) params.push_back(tensor.data.data());
  StepInput input;
  input.grads = pointers;
  input.grad_dtype = DType::kF32;
  input.loss = step.loss;
  for (const OwnedTensor& tensor : step.extra) input.extra[tensor.spec.name] = &tensor;
  ASSERT_TRUE(b->Step(params, input).ok());
  EXPECT_TRUE(Same(narrow, wide));
}

INSTANTIATE_TEST_SUITE_P(Rules, EveryRow, ::testing::ValuesIn(Names(Family::kFirstOrder)), CaseName);

TEST(Registry, HoldsEveryNameSorted) {
  std::vector<std::string> names;
  for (const RuleInfo& info : AllRules()) names.push_back(info.name);
  EXPECT_TRUE(std::is_sorted(names.begin(), names.end()));
  EXPECT_THAT(names, ::testing::UnorderedElementsAre(
                         "sgd", "adam", "adamw", "adamw-8bit", "lamb", "adafactor", "muon", "galore", "fira", "apollo",
                         "apollo-mini", "kfac", "adahessian", "mkor", "mkor-h", "scale", "sgd-sai", "zo-sgd",
                         "zo-sgd-mmt", "zo-sgd-cons", "zo-sgd-sign", "zo-adam", "forward-grad", "optoprime",
                         "optoprime-v2", "optoprime-multi", "opro", "textgrad"));
}

TEST(Registry, OtherFamiliesAreDocumentedAndRefuseGradients) {
  for (Family family : {Family::kZerothOrder, Family::kTrace}) {
    for (const std::string& name : Names(family)) {
      const RuleInfo& info = **FindRule(name);
      EXPECT_FALSE(info.summary.empty() || info.source.empty() || info.hyper.empty()) << name;
      EXPECT_TRUE(info.golden.empty() ||
                  std::filesystem::exists(std::string(OPTOD_GOLDEN_DIR) + "/zo/" + info.golden + ".json"))
          << name;
      for (const HyperInfo& hyper : info.hyper)
        EXPECT_TRUE(CheckHyper(info, {{hyper.name, hyper.default_value}}).ok()) << hyper.name;
      EXPECT_EQ(MakeRule(name, {}, {}, 0).status().code(), absl::StatusCode::kUnimplemented);
    }
  }
}

}  // namespace
}  // namespace optod::optim

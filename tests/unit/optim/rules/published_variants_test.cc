// What the papers state of their variants, checked against the statement itself: several Hessian samples are their mean
// in every spatial average of AdaHessian; MKOR's exact rule keeps an inverse; SCALE with tied embeddings holds no
// momentum; a caller that vouches for its gradients gets the same step.
#include <gtest/gtest.h>

#include <cmath>

#include "run.h"

namespace optod::optim::testing {
namespace {

const OwnedTensor* Find(const std::vector<OwnedTensor>& state, const std::string& name) {
  for (const OwnedTensor& tensor : state)
    if (tensor.spec.name == name) return &tensor;
  return nullptr;
}

struct AverageCase {
  const char* name;
  Hyper hyper;
  std::vector<std::vector<int64_t>> shapes;
};
const AverageCase kAverages[] = {
    {"image", {{"variant", std::string("image")}}, {{5}, {3, 4}, {2, 3, 3, 2}}},
    {"block_natural", {{"variant", std::string("block")}}, {{5}, {3, 4}, {2, 3, 4}, {2, 3, 3, 2}}},
    {"block_of_four", {{"variant", std::string("block")}, {"block", 4.0}}, {{8}, {3, 4}, {2, 3, 4}}},
    {"fairseq", {{"variant", std::string("fairseq")}, {"block", 4.0}}, {{5}, {3, 4}}},
    {"lazy", {{"variant", std::string("lazy")}, {"average_conv_kernel", true}}, {{5}, {3, 4}, {2, 3, 3, 2}}},
    {"lazy_refreshed_at_times", {{"variant", std::string("lazy")}, {"update_each", 2.0}}, {{5}, {3, 4}}},
};
class Averages : public ::testing::TestWithParam<AverageCase> {};
INSTANTIATE_TEST_SUITE_P(AdaHessian, Averages, ::testing::ValuesIn(kAverages),
                         [](const auto& info) { return std::string(info.param.name); });

// Signed mean over samples first, then absolute values, then the spatial mean.
TEST_P(Averages, TakeTheMeanOfSeveralSamplesFirst) {
  constexpr int64_t kSamples = 3;
  const RuleInfo& info = **FindRule("adahessian");
  std::vector<TensorSpec> layout;
  for (size_t i = 0; i < GetParam().shapes.size(); ++i)
    layout.push_back({"p" + std::to_string(i), DType::kF64, GetParam().shapes[i]});
  Random random(11);
  std::vector<OwnedTensor> many = RandomParams(layout, random), one = many;
  auto with_many = MakeRule("adahessian", GetParam().hyper, layout, 0), with_one = MakeRule("adahessian", GetParam().hyper, layout, 0);
  ASSERT_TRUE(with_many.ok() && with_one.ok()) << with_many.status();
  for (int step = 0; step < 3; ++step) {
    StepData mean = RandomStep(info, layout, random), samples = mean;
    for (size_t i = 0; i < layout.size(); ++i) {
      const int64_t n = layout[i].elements();
      const std::vector<double> values = random.Normals(kSamples * n);
      std::vector<double> average(static_cast<size_t>(n));
      for (size_t e = 0; e < values.size(); ++e) average[e % static_cast<size_t>(n)] += values[e] / kSamples;
      std::vector<int64_t> shape = layout[i].shape;
      mean.extra[i] = MakeTensor("hessian_z/" + layout[i].name, DType::kF64, shape, average);
      shape.insert(shape.begin(), kSamples);
      samples.extra[i] = MakeTensor("hessian_z/" + layout[i].name, DType::kF64, shape, values);
    }
    ASSERT_TRUE(TakeStep(**with_many, many, samples).ok());
    ASSERT_TRUE(TakeStep(**with_one, one, mean).ok());
  }
  for (size_t i = 0; i < layout.size(); ++i) {
    const auto x = Values(many[i]), y = Values(one[i]);
    for (size_t e = 0; e < x.size(); ++e) EXPECT_NEAR(x[e], y[e], 1e-10 * (1 + std::abs(y[e]))) << layout[i].name << "[" << e << "]";
  }
}

// K = (gamma K^^-1 + (1 - gamma) v v')^-1: the factor that K inverts is followed beside it, K times it is the identity.
TEST(Mkor, ExactRuleKeepsTheInverseOfItsFactor) {
  constexpr int64_t kIn = 7, kOut = 5;
  constexpr double kGamma = 0.9;
  const std::vector<TensorSpec> layout = {{"l.weight", DType::kF64, {kOut, kIn}}};
  const Hyper hyper = {{"rule", std::string("exact")}, {"inv_freq", 1.0}, {"gamma", kGamma}, {"threshold", 1e6}, {"clipping", 0.0}};
  auto rule = MakeRule("mkor", hyper, layout, 0);
  ASSERT_TRUE(rule.ok()) << rule.status();
  Random random(12);
  std::vector<OwnedTensor> params = RandomParams(layout, random);
  const std::pair<const char*, int64_t> factors[] = {{"A_inv/l", kIn}, {"G_inv/l", kOut}};
  std::vector<std::vector<double>> direct;
  for (const auto& [name, n] : factors) {
    direct.emplace_back(static_cast<size_t>(n * n));
    for (int64_t i = 0; i < n; ++i) direct.back()[static_cast<size_t>(i * n + i)] = 1;
  }
  for (int step = 0; step < 20; ++step) {
    StepData data = RandomStep(**FindRule("mkor"), layout, random);
    const std::vector<double> vectors[] = {random.Normals(kIn), random.Normals(kOut)};
    data.extra = {MakeTensor("act/l", DType::kF64, {kIn}, vectors[0]), MakeTensor("pgrad/l", DType::kF64, {kOut}, vectors[1])};
    ASSERT_TRUE(TakeStep(**rule, params, data).ok());
    const std::vector<OwnedTensor> state = (*rule)->ExportState();
    for (size_t f = 0; f < 2; ++f) {
      const auto n = static_cast<size_t>(factors[f].second);
      const OwnedTensor* held = Find(state, factors[f].first);
      ASSERT_NE(held, nullptr);
      const std::vector<double> inverse = Values(*held);
      std::vector<double>& factor = direct[f];
      for (size_t i = 0; i < n; ++i)
        for (size_t j = 0; j < n; ++j) factor[i * n + j] = kGamma * factor[i * n + j] + (1 - kGamma) * vectors[f][i] * vectors[f][j];
      for (size_t i = 0; i < n; ++i) {
        for (size_t j = 0; j < n; ++j) {
          double product = 0;
          for (size_t k = 0; k < n; ++k) product += inverse[i * n + k] * factor[k * n + j];
          EXPECT_NEAR(product, i == j ? 1 : 0, 1e-9) << factors[f].first << " step " << step << " " << i << " " << j;
        }
      }
    }
  }
}

// The shared matrix counts as an embedding: normalised down its columns, and the only state is Adam's of the gains.
TEST(Scale, TiedEmbeddingsHoldNoMomentum) {
  const std::vector<TensorSpec> layout = {{"model.embed_tokens.weight", DType::kF64, {6, 4}}, {"norm.gain", DType::kF64, {4}}};
  auto rule = MakeRule("scale", {{"lr", 0.1}}, layout, 0);
  ASSERT_TRUE(rule.ok()) << rule.status();
  for (const TensorSpec& spec : (*rule)->StateSpecs())
    EXPECT_TRUE(spec.name.starts_with("t/") || spec.name == "m/norm.gain" || spec.name == "v/norm.gain") << spec.name;
  Random random(13);
  std::vector<OwnedTensor> params = RandomParams(layout, random);
  for (int step = 0; step < 2; ++step) {
    const std::vector<double> before = Values(params[0]);
    const StepData data = RandomStep(**FindRule("scale"), layout, random);
    ASSERT_TRUE(TakeStep(**rule, params, data).ok());
    const std::vector<double> g = Values(*data.grads[0]), after = Values(params[0]);
    for (size_t column = 0; column < 4; ++column) {
      double squares = 0;
      for (size_t row = 0; row < 6; ++row) squares += g[row * 4 + column] * g[row * 4 + column];
      for (size_t row = 0; row < 6; ++row)
        EXPECT_NEAR(after[row * 4 + column], before[row * 4 + column] - 0.1 * g[row * 4 + column] / std::sqrt(squares / 6), 1e-12);
    }
  }
}

// StepInput::grads_finite only leaves out the look: the same bits, and nobody else notices a NaN.
TEST(Guard, ACallerMayVouchForItsGradients) {
  const std::vector<TensorSpec> layout = {{"w", DType::kF32, {300}}};
  Random random(14);
  std::vector<OwnedTensor> looked = RandomParams(layout, random), vouched = looked;
  auto a = MakeRule("adamw", {}, layout, 0), b = MakeRule("adamw", {}, layout, 0);
  ASSERT_TRUE(a.ok() && b.ok());
  std::vector<double> values = random.Normals(300);
  for (const bool bad : {false, true}) {
    if (bad) values[17] = std::nan("");
    const OwnedTensor gradient = MakeTensor("w", DType::kF32, {300}, values);
    const void* grads[] = {gradient.data.data()};
    void *p[] = {looked[0].data.data()}, *q[] = {vouched[0].data.data()};
    StepInput input;
    input.grads = grads;
    const auto status = (*a)->Step(p, input).status();
    EXPECT_EQ(status.GetPayload(kNotFinitePayload).has_value(), bad) << status;
    input.grads_finite = true;
    ASSERT_TRUE((*b)->Step(q, input).ok());
    EXPECT_EQ(Same(looked, vouched), !bad);
  }
}

}  // namespace
}  // namespace optod::optim::testing

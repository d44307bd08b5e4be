// Derivatives of the engine against each other and against differences: forward mode, reverse mode, products with the
// Hessian, what flows through linear layers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "examples.h"
#include "optim/train/engine.h"
#include "small_models.h"

namespace optod::train {
namespace {

using nn::kSmallModels;
using nn::RandomModel;

struct Case {
  std::string name, config, scheme;
  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }
};
std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const nn::SmallModel& model : kSmallModels) {
    for (const char* scheme : {"full", "head", "lora", "prefix", "prompt"}) {
      if (std::string(model.name) == "gpt2" && std::string(scheme) == "lora") continue;
      cases.push_back({std::string(model.name) + "_" + scheme, model.config, scheme});
    }
  }
  return cases;
}

class Derivatives : public testing::TestWithParam<Case> {
 protected:
  Derivatives() { Make(GetParam().config); }
  void Make(const std::string& config) {
    model_ = RandomModel(config.c_str());
    examples_ = SomeExamples(model_.config);
    engine_ = *Engine::Create(&model_, {.name = GetParam().scheme, .rank = 2, .tokens = 2}, 1);
    if (GetParam().scheme == "lora") {  // B is 0 at the start, and so would be half of all derivatives
      zo::FillNormal({3, 0, 0}, 0, 0, engine_->theta());
      for (float& x : engine_->theta()) x *= 0.1f;
    }
  }
  std::vector<float> GradientAt(bool classify, const GradientRequest& request = {}, GradientResult* result = nullptr) {
    std::vector<float> grad(engine_->layout().size());
    auto made = engine_->Gradient(Pointers(examples_), classify, request, grad);
    EXPECT_TRUE(made.ok()) << made.status();
    if (result != nullptr && made.ok()) *result = *std::move(made);
    return grad;
  }
  nn::ModelFiles model_;
  std::vector<Example> examples_;
  std::unique_ptr<Engine> engine_;
};
INSTANTIATE_TEST_SUITE_P(Models, Derivatives, testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

double Dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

/// Along a random direction: one number that every element has a part in.
TEST_P(Derivatives, GradientsAreTheSlopesOfTheLoss) {
  const std::vector<float> grad = GradientAt(true);
  std::vector<float> v(grad.size());
  zo::FillNormal({9, 0, 0}, 0, 0, v);
  const double norm = Dot(grad, grad);
  double loss[2];
  for (int side : {0, 1}) {
    std::vector<float> theta(engine_->theta().begin(), engine_->theta().end());
    for (size_t i = 0; i < v.size(); ++i) theta[i] += (side == 0 ? 2e-4f : -2e-4f) * v[i];
    loss[side] = Judge(Pointers(examples_), *engine_->Score(theta, Pointers(examples_)), true).loss;
  }
  EXPECT_NEAR((loss[0] - loss[1]) / 4e-4, Dot(grad, v), 0.02 * std::sqrt(norm) + 2e-3);
  EXPECT_GT(norm, 0);
}

TEST_P(Derivatives, ForwardModeIsTheGradientAlongTheDirection) {
  for (bool classify : {true, false}) {
    const std::vector<float> grad = GradientAt(classify);
    std::vector<float> z(grad.size());
    for (size_t t : engine_->layout().All())
      zo::FillNormal({4, 6, 1}, static_cast<uint32_t>(t), 0,
                     std::span(z).subspan(engine_->layout().offset(t), engine_->layout().tensor(t).size));
    auto slope = engine_->Slope({{4, 6, 1}, 0, nullptr, {}}, Pointers(examples_));
    ASSERT_TRUE(slope.ok()) << slope.status();
    const auto plain = *engine_->Score(engine_->theta(), Pointers(examples_));
    const Objective objective = Judge(Pointers(examples_), slope->log_probs, classify);
    double along = 0;
    for (size_t i = 0; i < plain.size(); ++i) {
      EXPECT_NEAR(slope->log_probs[i], plain[i], 1e-5);
      along += objective.gradient[i] * slope->slopes[i];
    }
    const double size = std::sqrt(Dot(grad, grad) * Dot(z, z));
    EXPECT_NEAR(along, Dot(grad, z), 2e-6 * size + 1e-5);
  }
}

/// z * Hz against the difference of two gradients along z. OPT's ReLU gives way to GELU: a difference that steps over a
/// kink is no derivative.
TEST_P(Derivatives, HessianProductsAreDifferencesOfGradients) {
  std::string config = GetParam().config;
  if (const size_t at = config.find(R"("model_type": "opt")"); at != std::string::npos)
    config.insert(at, R"("activation_function": "gelu", )");
  Make(config);
  for (bool classify : {true, false}) {
    GradientRequest request;
    request.hessian = true;
    request.signs = {2, 5, 7};
    GradientResult result;
    const std::vector<float> grad = GradientAt(classify, request, &result), plain = GradientAt(classify);
    ASSERT_EQ(result.hessian_z.size(), grad.size());
    for (size_t i = 0; i < grad.size(); ++i) ASSERT_NEAR(grad[i], plain[i], 1e-4 * (1 + std::fabs(plain[i]))) << i;
    std::vector<float> z(grad.size());
    for (size_t t : engine_->layout().All()) {
      std::vector<uint32_t> words(engine_->layout().tensor(t).size);
      zo::FillBits({2, 5, 7}, static_cast<uint32_t>(t), 0, words);
      for (size_t i = 0; i < words.size(); ++i) z[engine_->layout().offset(t) + i] = (words[i] & 1) != 0 ? 1 : -1;
    }
    const float h = 1e-3f;
    const std::vector<float> start(engine_->theta().begin(), engine_->theta().end());
    std::vector<float> two[2];
    for (int side : {0, 1}) {
      for (size_t i = 0; i < z.size(); ++i) engine_->theta()[i] = start[i] + (side == 0 ? h : -h) * z[i];
      two[side] = GradientAt(classify);
    }
    std::copy(start.begin(), start.end(), engine_->theta().begin());
    double error = 0, size = 0;
    for (size_t i = 0; i < z.size(); ++i) {
      const double want = z[i] * (double{two[0][i]} - two[1][i]) / (2 * h);
      error += (want - result.hessian_z[i]) * (want - result.hessian_z[i]);
      size += want * want;
    }
    EXPECT_LT(std::sqrt(error), 0.03 * std::sqrt(size) + 1e-3) << classify;
  }
}

/// The rows that K-FAC takes rebuild the gradient: dW = pgrad' act.
TEST_P(Derivatives, LayerStatisticsRebuildTheGradient) {
  GradientRequest request;
  request.statistics = GradientRequest::Statistics::kRows;
  GradientResult rows, means;
  const std::vector<float> grad = GradientAt(true, request, &rows);
  request.statistics = GradientRequest::Statistics::kMeans;
  request.clipping = 0.01;
  GradientAt(true, request, &means);
  size_t linear = 0;
  for (size_t t : engine_->layout().All()) {
    if (!engine_->is_linear(t)) continue;
    ++linear;
    const std::string layer = engine_->layout().tensor(t).name.substr(0, engine_->layout().tensor(t).name.size() - 7);
    ASSERT_TRUE(rows.statistics.contains("act/" + layer) && rows.statistics.contains("pgrad/" + layer)) << layer;
    const optim::OwnedTensor &act = rows.statistics["act/" + layer], &pgrad = rows.statistics["pgrad/" + layer];
    const auto* a = reinterpret_cast<const float*>(act.data.data());
    const auto* g = reinterpret_cast<const float*>(pgrad.data.data());
    const int64_t n = act.spec.shape[0], in = act.spec.shape[1], out = pgrad.spec.shape[1];
    const bool turned = engine_->stores_in_out();
    const float* dw = grad.data() + engine_->layout().offset(t);
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t i = 0; i < in; ++i) {
        double sum = 0;
        for (int64_t r = 0; r < n; ++r) sum += double{g[r * out + o]} * a[r * in + i];
        ASSERT_NEAR(sum, dw[turned ? i * out + o : o * in + i], 2e-5) << layer;
      }
    }
    const auto* mean = reinterpret_cast<const float*>(means.statistics["pgrad/" + layer].data.data());
    for (int64_t o = 0; o < out; ++o) {
      double sum = 0;
      for (int64_t r = 0; r < n; ++r) sum += std::clamp(static_cast<double>(n) * g[r * out + o], -0.01, 0.01);
      ASSERT_NEAR(mean[o], sum / static_cast<double>(n), 1e-5) << layer;
    }
  }
  EXPECT_EQ(rows.statistics.size(), 2 * linear);
  EXPECT_EQ(linear == 0, GetParam().scheme == "prefix" || GetParam().scheme == "prompt" || GetParam().scheme == "head");
}

TEST_P(Derivatives, TruncatedGradientsAreThoseOfTheUpperBlocks) {
  const std::vector<float> whole = GradientAt(true);
  GradientRequest request;
  request.first_block = 2;
  const std::vector<float> upper = GradientAt(true, request);
  for (size_t t : engine_->layout().All()) {
    for (size_t i = engine_->layout().offset(t); i < engine_->layout().offset(t + 1); ++i)
      ASSERT_EQ(upper[i], engine_->block_of(t) < 2 ? 0.0f : whole[i]) << engine_->layout().tensor(t).name;
  }
}

}  // namespace
}  // namespace optod::train

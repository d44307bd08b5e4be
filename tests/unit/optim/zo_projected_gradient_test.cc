// From losses to the scalars that travel, hyperparameter checks, layouts.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "optim/zo/projected_gradient.h"

namespace optod::zo {
namespace {

using testing::HasSubstr;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

struct ProjectCase {
  const char* name;
  Sides sides;
  Sign sign;
  std::vector<double> plus, minus, want_g;
  std::vector<float> want_coefficients;  // lr 0.5, eps 0.25
  const char* reason;                    // "" = usable
};

const ProjectCase kProjectCases[] = {
    {"two_sided", Sides::kTwo, Sign::kNone, {2}, {1}, {2}, {1}, ""},
    {"one_sided", Sides::kOne, Sign::kNone, {2}, {1}, {4}, {2}, ""},
    {"two_queries_share_lr", Sides::kTwo, Sign::kNone, {2, 1}, {1, 2}, {2, -2}, {0.5f, -0.5f}, ""},
    {"one_sided_shared_loss", Sides::kOne, Sign::kNone, {2, 3}, {1}, {4, 8}, {1, 2}, ""},
    {"scalar_sign", Sides::kTwo, Sign::kScalar, {5}, {9}, {-8}, {-0.5f}, ""},
    {"scalar_sign_of_zero", Sides::kTwo, Sign::kScalar, {3}, {3}, {0}, {0}, ""},
    {"element_sign_has_no_coefficient", Sides::kTwo, Sign::kElement, {2}, {1}, {2}, {}, ""},
    {"nan_loss", Sides::kTwo, Sign::kNone, {2, kNan}, {1, 1}, {2, kNan}, {0.5f, NAN}, "loss_plus[1] is nan"},
    {"infinite_loss", Sides::kTwo, Sign::kNone, {2}, {-kInf}, {kInf}, {INFINITY}, "loss_minus[0] is -inf"},
    {"g_overflows",
     Sides::kTwo,
     Sign::kNone,
     {1.7e308},
     {-1.7e308},
     {kInf},
     {INFINITY},
     "projected_gradient[0] is inf"},
    {"coefficient_overflows", Sides::kTwo, Sign::kNone, {1e300}, {0}, {2e300}, {INFINITY}, "coefficient[0] is inf"},
};

class ProjectLossesTest : public testing::TestWithParam<ProjectCase> {};

TEST_P(ProjectLossesTest, Gives) {
  const ProjectCase& c = GetParam();
  ZoHyper hyper{.sides = c.sides, .sign = c.sign, .lr = 0.5, .eps = 0.25, .queries = static_cast<int>(c.plus.size())};
  const auto got = ProjectLosses(hyper, c.plus, c.minus);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_THAT(got->g, testing::Pointwise(testing::NanSensitiveDoubleEq(), c.want_g));
  EXPECT_THAT(got->coefficients, testing::Pointwise(testing::NanSensitiveFloatEq(), c.want_coefficients));
  EXPECT_EQ(got->usable, std::string(c.reason).empty());
  EXPECT_EQ(got->reason, c.reason);
}

INSTANTIATE_TEST_SUITE_P(Table, ProjectLossesTest, testing::ValuesIn(kProjectCases),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(ProjectLossesTest, CoefficientIsRoundedOnce) {
  const ZoHyper hyper{.lr = 1e-6, .eps = 1e-3, .queries = 3};
  const std::vector<double> plus = {1.1, 2.2, 3.3}, minus = {1.0, 2.0, 3.0};
  const auto got = ProjectLosses(hyper, plus, minus);
  ASSERT_TRUE(got.ok());
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(got->coefficients[i], static_cast<float>(1e-6 * ((plus[i] - minus[i]) / 2e-3) / 3.0));
}

TEST(ProjectLossesTest, WrongCounts) {
  ZoHyper hyper{.queries = 3};
  const std::vector<double> one = {1}, three = {1, 2, 3};
  EXPECT_THAT(ProjectLosses(hyper, one, three).status().ToString(), HasSubstr("loss_plus: 1 values; must be 3"));
  EXPECT_THAT(ProjectLosses(hyper, three, one).status().ToString(), HasSubstr("loss_minus: 1 values; must be 3"));
  hyper.sides = Sides::kOne;
  EXPECT_TRUE(ProjectLosses(hyper, three, one).ok());
}

TEST(MeanOverWorkersTest, Averages) {
  const std::vector<std::vector<double>> workers = {{1, 10}, {2, 20}, {6, 60}};
  EXPECT_THAT(*MeanOverWorkers(workers), testing::ElementsAre(3, 30));
  EXPECT_THAT(MeanOverWorkers({}).status().ToString(), HasSubstr("workers: none"));
  const std::vector<std::vector<double>> ragged = {{1, 2}, {1}};
  EXPECT_THAT(MeanOverWorkers(ragged).status().ToString(), HasSubstr("workers[1]: 1 values; must be 2"));
}

struct ChoiceCase {
  double stay, descent, ascent;
  const char* want;
};

TEST(ChooseCandidateTest, Table) {
  const ChoiceCase cases[] = {
      {2, 1, 3, "descent"},    {2, 1, 1, "ascent"},  // ties go to ascent
      {2, 2, 3, "descent"},    {2, 3, 4, "stay"},          {2, 3, 1, "ascent"},    {2, 3, 2, "ascent"},
      {2, 1.5, 1, "ascent"},   {2, kNan, 3, "stay"},       {2, kNan, 1, "ascent"}, {2, kInf, kNan, "stay"},
      {kNan, 1, 2, "descent"}, {kNan, kNan, kNan, "stay"},
  };
  for (const ChoiceCase& c : cases) {
    EXPECT_STREQ(CandidateName(ChooseCandidate(c.stay, c.descent, c.ascent)), c.want)
        << c.stay << " " << c.descent << " " << c.ascent;
  }
}

struct HyperCase {
  const char* name;
  void (*change)(ZoHyper*);
  const char* message;
};

const HyperCase kHyperCases[] = {
    {"lr_negative", [](ZoHyper* h) { h->lr = -1; }, "hyperparameters.lr: -1"},
    {"lr_nan", [](ZoHyper* h) { h->lr = kNan; }, "hyperparameters.lr: nan"},
    {"eps_zero", [](ZoHyper* h) { h->eps = 0; }, "hyperparameters.eps: 0"},
    {"queries_zero", [](ZoHyper* h) { h->queries = 0; }, "hyperparameters.queries: 0"},
    {"momentum_one", [](ZoHyper* h) { h->momentum = 1; }, "hyperparameters.momentum: 1"},
    {"beta1_negative", [](ZoHyper* h) { h->beta1 = -0.1; }, "hyperparameters.beta1: -0.1"},
    {"beta2_one", [](ZoHyper* h) { h->beta2 = 1; }, "hyperparameters.beta2: 1"},
    {"adam_eps_zero", [](ZoHyper* h) { h->adam_eps = 0; }, "hyperparameters.adam_eps: 0"},
    {"weight_decay_negative", [](ZoHyper* h) { h->weight_decay = -1; }, "hyperparameters.weight_decay: -1"},
    {"momentum_with_adam", [](ZoHyper* h) { h->base = Base::kAdam, h->momentum = 0.5; }, "no meaning for Adam"},
    {"momentum_with_cons", [](ZoHyper* h) { h->rule = Rule::kConservative, h->momentum = 0.5; }, "plain SGD"},
};

class CheckZoHyperTest : public testing::TestWithParam<HyperCase> {};

TEST_P(CheckZoHyperTest, Refuses) {
  ZoHyper hyper;
  ASSERT_TRUE(CheckZoHyper(hyper).ok());
  GetParam().change(&hyper);
  EXPECT_EQ(CheckZoHyper(hyper).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(CheckZoHyper(hyper).message()), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(Table, CheckZoHyperTest, testing::ValuesIn(kHyperCases),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(ZoHyperForTest, RegisteredNames) {
  for (const char* name : {"zo-sgd", "zo-sgd-mmt", "zo-sgd-cons", "zo-sgd-sign", "zo-adam", "forward-grad"}) {
    ASSERT_TRUE(ZoHyperFor(name).ok()) << name;
    EXPECT_TRUE(CheckZoHyper(*ZoHyperFor(name)).ok()) << name;
  }
  EXPECT_EQ(ZoHyperFor("zo-sgd-mmt")->momentum, 0.9);
  EXPECT_EQ(ZoHyperFor("zo-sgd-sign")->sign, Sign::kScalar);
  EXPECT_EQ(ZoHyperFor("zo-adam")->base, Base::kAdam);
  EXPECT_EQ(ZoHyperFor("adamw").status().code(), absl::StatusCode::kNotFound);
}

TEST(ZoHyperForTest, ValuesReplaceDefaults) {
  const auto hyper =
      ZoHyperFor("zo-sgd-sign",
                 {{"lr", 0.5}, {"queries", 4.0}, {"sign", "paper"}, {"perturbation", "one-side"}, {"residue", "mezo"}});
  ASSERT_TRUE(hyper.ok()) << hyper.status();
  EXPECT_EQ(hyper->lr, 0.5);
  EXPECT_EQ(hyper->queries, 4);
  EXPECT_EQ(hyper->sign, Sign::kElement);
  EXPECT_EQ(hyper->sides, Sides::kOne);
  EXPECT_EQ(hyper->residue, Residue::kMezo);
  EXPECT_EQ(hyper->eps, 1e-3);
}

TEST(ZoHyperForTest, BadValues) {
  const std::pair<ZoValues, const char*> cases[] = {
      {{{"lr", -1.0}}, "hyperparameters.lr: -1"},
      {{{"lrr", 1.0}}, "hyperparameters.lrr: is unknown"},
      {{{"lr", "fast"}}, "hyperparameters.lr: is unknown, or not a choice"},
      {{{"residue", 1.0}}, "hyperparameters.residue: is unknown, or not a number"},
      {{{"residue", "some"}}, "\"some\" is not one of none, mezo"},
      {{{"queries", 1.5}}, "hyperparameters.queries: 1.5 must be a whole number"},
      {{{"queries", 1e30}}, "hyperparameters.queries: 1e+30"},
      {{{"lr", true}}, "hyperparameters.lr: no zeroth-order hyperparameter is a switch"},
      {{{"momentum", 0.9}}, "only plain SGD"},
  };
  for (const auto& [values, message] : cases) {
    const auto status = ZoHyperFor("zo-sgd-cons", values).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
}

TEST(ZoLayoutTest, OffsetsAndLookup) {
  const ZoLayout layout({{"a", 3}, {"empty", 0}, {"b", 2}});
  EXPECT_EQ(layout.size(), 5u);
  EXPECT_EQ(layout.offset(2), 3u);
  EXPECT_EQ(layout.TensorAt(2), 0u);
  EXPECT_EQ(layout.TensorAt(3), 2u) << "an empty tensor holds no position";
  EXPECT_THAT(layout.All(), testing::ElementsAre(0, 1, 2));
}

TEST(DecaysByNameTest, MezoRule) {
  EXPECT_TRUE(DecaysByName("model.layers.0.fc1.weight"));
  for (const char* name : {"fc1.bias", "final_layer_norm.weight", "input_layernorm.weight"})
    EXPECT_FALSE(DecaysByName(name)) << name;
}

}  // namespace
}  // namespace optod::zo

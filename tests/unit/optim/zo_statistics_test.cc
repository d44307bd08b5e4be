// Laws of the stream and of the estimator. Seeds are fixed, so every test is deterministic; bounds are in standard
// errors (4 to 5) or p values.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <numeric>
#include <tuple>

#include "optim/zo/mask.h"
#include "zo_laws.h"

namespace optod::zo {
namespace {

TEST(OracleTest, BetaCdfKnownValues) {
  EXPECT_NEAR(BetaCdf(1, 1, 0.3), 0.3, 1e-12);
  EXPECT_NEAR(BetaCdf(2, 3, 0.4), 0.5248, 1e-12);
  EXPECT_NEAR(BetaCdf(0.5, 0.5, 0.5), 0.5, 1e-12);
}

TEST(NormalMomentsTest, FirstEightAndTails) {
  constexpr size_t n = size_t{1} << 25;
  std::vector<float> z(n);
  FillNormal({kSeed, 1, 0}, 0, 0, z);
  double power[9] = {}, largest = 0;
  size_t beyond_four = 0;
  for (float value : z) {
    double p = 1;
    for (double& sum : power) sum += p, p *= value;
    largest = std::max<double>(largest, std::fabs(value));
    beyond_four += std::fabs(value) > 4;
  }
  const double moments[9] = {1, 0, 1, 0, 3, 0, 15, 0, 105},
               squares[9] = {1, 1, 3, 15, 105, 945, 10395, 135135, 2027025};
  for (int k = 1; k <= 8; ++k) {
    const double standard_error = std::sqrt((squares[k] - moments[k] * moments[k]) / n);
    EXPECT_NEAR(power[k] / n, moments[k], 4 * standard_error) << "moment " << k;
  }
  const double tail = 2 * NormalCdf(-4);
  EXPECT_NEAR(static_cast<double>(beyond_four) / n, tail, 4 * std::sqrt(tail / n));
  EXPECT_GT(largest, 5.2);
  EXPECT_LT(largest, 6.6);
}

TEST(NormalMomentsTest, KolmogorovSmirnov) {
  std::vector<float> z(2'000'000);
  FillNormal({kSeed, 2, 0}, 0, 1, z);
  EXPECT_GT(KsPValue(KsDistance({z.begin(), z.end()}, NormalCdf), z.size()), 1e-3);
}

struct Shift {
  const char* name;
  Direction direction;
  uint32_t tensor;
  uint64_t first;
};

TEST(NormalCorrelationTest, NoneAcrossAnyCoordinate) {
  constexpr size_t n = 4'000'000;
  const Shift shifts[] = {
      {"next element", {kSeed, 3, 0}, 0, 1},
      {"two on (other pair)", {kSeed, 3, 0}, 0, 2},
      {"next block", {kSeed, 3, 0}, 0, 4},
      {"next tensor", {kSeed, 3, 0}, 1, 0},
      {"next query", {kSeed, 3, 1}, 0, 0},
      {"next step", {kSeed, 4, 0}, 0, 0},
      {"next seed (worker)", {kSeed + 1, 3, 0}, 0, 0},
      {"high block", {kSeed, 3, 0}, 0, uint64_t{1} << 34},
  };
  std::vector<float> base(n), other(n);
  FillNormal({kSeed, 3, 0}, 0, 0, base);
  for (const Shift& shift : shifts) {
    FillNormal(shift.direction, shift.tensor, shift.first, other);
    double linear = 0, squared = 0, absolute = 0;
    for (size_t i = 0; i < n; ++i) {
      const double x = base[i], y = other[i];
      linear += x * y;
      squared += (x * x - 1) * (y * y - 1);
      absolute += (x * x - 1) * y;
    }
    EXPECT_LT(std::fabs(linear) / std::sqrt(n), 4) << shift.name;
    EXPECT_LT(std::fabs(squared) / std::sqrt(4.0 * n), 4) << shift.name;
    EXPECT_LT(std::fabs(absolute) / std::sqrt(2.0 * n), 4) << shift.name;
  }
}

class EstimatorLawTest : public testing::TestWithParam<std::tuple<size_t, int>> {};

TEST_P(EstimatorLawTest, MeanVarianceAndAngle) {
  const EstimatorLaw law = MeasureEstimator(std::get<0>(GetParam()), std::get<1>(GetParam()));
  EXPECT_LT(law.worst_mean, 5) << "standard errors of the worst coordinate";
  EXPECT_NEAR(law.variance_ratio, 1, 0.1);
  EXPECT_NEAR(law.norm_ratio, 1, 5 * law.norm_error);
  EXPECT_NEAR(law.cos2, law.cos2_law, law.cos2_limit);
  EXPECT_GT(law.ks_p, 1e-4);
  EXPECT_TRUE(law.Holds());
}
INSTANTIATE_TEST_SUITE_P(Sizes, EstimatorLawTest, testing::Combine(testing::ValuesIn(kLawDims), testing::ValuesIn(kLawQueries)),
                         [](const auto& info) {
                           return "d" + std::to_string(std::get<0>(info.param)) + "_q" + std::to_string(std::get<1>(info.param));
                         });

TEST(EstimatorBiasTest, TwoSidedIsExactOnAQuadratic) {
  std::vector<double> z;
  for (double eps : {1e-3, 1e-1, 1.0, 10.0}) {
    for (uint32_t step = 0; step < 50; ++step) {
      const Estimate got = EstimateAtHalf(Sides::kTwo, eps, step, 0, &z);
      const double want = ExactAlong(z, 0).slope;
      EXPECT_NEAR(got.g[0], want, 1e-9 * (1 + std::fabs(want))) << eps;
    }
  }
}

TEST(EstimatorBiasTest, OneSidedAddsHalfEpsCurvature) {
  std::vector<double> z;
  for (double eps : {1e-3, 1e-1, 1.0}) {
    for (uint32_t step = 0; step < 50; ++step) {
      const Estimate got = EstimateAtHalf(Sides::kOne, eps, step, 0, &z);
      const Along along = ExactAlong(z, 0);
      EXPECT_NEAR(got.g[0], along.slope + 0.5 * eps * along.curvature, 1e-8 * along.curvature) << eps;
    }
  }
}

TEST(EstimatorBiasTest, OneSidedExtraHasNoMeanAndAVarianceOfEpsSquared) {
  std::vector<double> means;
  const Slope variance = OneSidedVariance(&means);
  for (size_t i = 0; i < means.size(); ++i) EXPECT_LT(std::fabs(means[i]), 4 * variance.law[i]) << variance.eps[i];
  EXPECT_NEAR(variance.slope, 2, 0.02);
}

TEST(EstimatorBiasTest, TwoSidedBiasOnACubicIsQuadraticInEps) {
  const Slope bias = TwoSidedBias();
  for (size_t i = 0; i < bias.eps.size(); ++i) EXPECT_NEAR(bias.measured[i], bias.law[i], 0.1 * bias.law[i]) << bias.eps[i];
  EXPECT_NEAR(bias.slope, 2, 0.2);
}

// Sparse estimation: E ghat = M v, nothing where the mask is 1.
TEST(MaskedEstimatorTest, MeanIsTheMaskedGradient) {
  constexpr size_t d = 40;
  constexpr int kDraws = 20'000;
  std::vector<double> v(d), mean(d);
  for (size_t i = 0; i < d; ++i) v[i] = std::cos(1.7 * static_cast<double>(i)) + 0.2;
  auto mask = std::make_shared<std::vector<uint8_t>>(d);
  ASSERT_TRUE(FillMask({kSeed, 0, 0}, 0, 0, 0.3, MaskLaw::kUniform, *mask).ok());
  const auto bits = std::make_shared<BitMask>(d);
  bits->Set(0, *mask);
  double open2 = 0;
  for (size_t i = 0; i < d; ++i) open2 += (*mask)[i] ? 0 : v[i] * v[i];
  const LossFn<double> loss = [&](std::span<const double> t) { return std::inner_product(t.begin(), t.end(), v.begin(), 0.0); };
  const ZoLayout layout({{"theta", d}});
  ZoOptimizer<double> optimizer(layout, {.lr = 1, .eps = 1e-3});
  for (uint32_t draw = 0; draw < kDraws; ++draw) {
    std::vector<double> theta(d);
    optimizer.Step(theta, MaskedDirection<double>(std::make_shared<StreamDirection<double>>(kSeed, draw, layout), bits), loss);
    for (size_t i = 0; i < d; ++i) mean[i] -= theta[i] / kDraws;
  }
  for (size_t i = 0; i < d; ++i) {
    if ((*mask)[i]) {
      EXPECT_EQ(mean[i], 0) << i;
    } else {
      EXPECT_NEAR(mean[i], v[i], 5 * std::sqrt((open2 + v[i] * v[i]) / kDraws)) << i;
    }
  }
}

}  // namespace
}  // namespace optod::zo

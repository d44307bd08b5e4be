// Laws of the stream and of the estimator. Seeds are fixed, so every test is deterministic; bounds are in standard
// errors (4 to 5) or p values.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <numeric>

#include "optim/zo/mask.h"
#include "optim/zo/stream.h"
#include "optim/zo/zo_optimizer.h"

namespace optod::zo {
namespace {

constexpr uint64_t kSeed = 99;

// sup |F_n - F| of sorted or unsorted values against a distribution function.
double KsDistance(std::vector<double> values, const std::function<double(double)>& distribution) {
  std::sort(values.begin(), values.end());
  const double n = static_cast<double>(values.size());
  double distance = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double f = distribution(values[i]);
    distance = std::max({distance, f - static_cast<double>(i) / n, static_cast<double>(i + 1) / n - f});
  }
  return distance;
}

// Kolmogorov's limit law: P(distance is at least this large).
double KsPValue(double distance, size_t n) {
  const double t = distance * std::sqrt(static_cast<double>(n));
  if (t < 0.2) return 1;
  double p = 0;
  for (int k = 1; k < 100; ++k) p += (k % 2 == 1 ? 2 : -2) * std::exp(-2.0 * k * k * t * t);
  return p;
}

// Continued fraction of the regularised incomplete beta function (modified Lentz).
double BetaFraction(double a, double b, double x) {
  auto guard = [](double value) { return std::fabs(value) < 1e-300 ? 1e-300 : value; };
  double c = 1, d = 1 / guard(1 - (a + b) * x / (a + 1)), h = d;
  for (int m = 1; m < 1000; ++m) {
    const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 / guard(1 + even * d);
    c = guard(1 + even / c);
    h *= d * c;
    const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 / guard(1 + odd * d);
    c = guard(1 + odd / c);
    h *= d * c;
    if (std::fabs(d * c - 1) < 1e-14) break;
  }
  return h;
}

double BetaCdf(double a, double b, double x) {
  if (x <= 0 || x >= 1) return x <= 0 ? 0 : 1;
  const double front =
      std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) + b * std::log1p(-x));
  return x < (a + 1) / (a + b + 2) ? front * BetaFraction(a, b, x) / a : 1 - front * BetaFraction(b, a, 1 - x) / b;
}

double NormalCdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }

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

struct EstimatorCase {
  size_t d;
  int q;
};

class EstimatorLawTest : public testing::TestWithParam<EstimatorCase> {};

// f(theta) = <v, theta>: one step of lr 1 from 0 gives theta = -ghat.
TEST_P(EstimatorLawTest, MeanVarianceAndAngle) {
  const auto [d, q] = GetParam();
  constexpr int kDraws = 4000;
  std::vector<double> v(d);
  for (size_t i = 0; i < d; ++i) v[i] = std::cos(1.7 * static_cast<double>(i)) + 0.2;
  const double v2 = std::inner_product(v.begin(), v.end(), v.begin(), 0.0);
  const LossFn<double> loss = [&](std::span<const double> t) {
    return std::inner_product(t.begin(), t.end(), v.begin(), 0.0);
  };
  const ZoLayout layout({{"theta", d}});
  ZoOptimizer<double> optimizer(layout, {.lr = 1, .eps = 1e-3, .queries = q});
  std::vector<double> mean(d), second(d), cos2;
  double norm2_sum = 0, norm4_sum = 0;
  for (int draw = 0; draw < kDraws; ++draw) {
    std::vector<double> theta(d);
    optimizer.Step(theta, StreamDirection<double>(kSeed + q, draw, layout), loss);
    double along = 0, norm2 = 0;
    for (size_t i = 0; i < d; ++i) {
      mean[i] -= theta[i] / kDraws;
      second[i] += theta[i] * theta[i] / kDraws;
      along -= theta[i] * v[i];
      norm2 += theta[i] * theta[i];
    }
    cos2.push_back(along * along / (norm2 * v2));
    norm2_sum += norm2;
    norm4_sum += norm2 * norm2;
  }
  double worst_mean = 0, variance_ratio = 0;
  for (size_t i = 0; i < d; ++i) {
    const double variance = (v2 + v[i] * v[i]) / q;
    worst_mean = std::max(worst_mean, std::fabs(mean[i] - v[i]) / std::sqrt(variance / kDraws));
    variance_ratio += (second[i] - mean[i] * mean[i]) / variance / static_cast<double>(d);
  }
  EXPECT_LT(worst_mean, 5) << "standard errors of the worst coordinate";
  EXPECT_NEAR(variance_ratio, 1, 0.1);
  const double norm2 = norm2_sum / kDraws, spread = std::sqrt((norm4_sum / kDraws - norm2 * norm2) / kDraws);
  EXPECT_NEAR(norm2, v2 * (1 + (static_cast<double>(d) + 1) / q), 5 * spread);
  const double a = q / 2.0, b = (static_cast<double>(d) - 1) / 2;
  const double beta_error = std::sqrt(a * b / ((a + b) * (a + b) * (a + b + 1)) / kDraws);
  const double mean_cos2 = std::accumulate(cos2.begin(), cos2.end(), 0.0) / kDraws,
               want = q / (q + static_cast<double>(d) - 1);
  EXPECT_NEAR(mean_cos2, want, std::max(0.03 * want, 4 * beta_error));
  const double p = KsPValue(KsDistance(cos2, [&](double x) { return BetaCdf(a, b, x); }), cos2.size());
  EXPECT_GT(p, 1e-4);
  std::printf("d %zu q %d: worst coordinate %.2f standard errors, variance %.3f of the law's, |ghat|^2 %.3f, cos^2 %.5f (law %.5f), KS p %.3f\n",
              d, q, worst_mean, variance_ratio, norm2 / (v2 * (1 + (static_cast<double>(d) + 1) / q)), mean_cos2, want, p);
}

const EstimatorCase kEstimatorCases[] = {{10, 1},   {10, 4},   {10, 16},  {10, 64},  {100, 1},   {100, 4},
                                         {100, 16}, {100, 64}, {1000, 1}, {1000, 4}, {1000, 16}, {1000, 64}};
INSTANTIATE_TEST_SUITE_P(Sizes, EstimatorLawTest, testing::ValuesIn(kEstimatorCases), [](const auto& info) {
  return "d" + std::to_string(info.param.d) + "_q" + std::to_string(info.param.q);
});

constexpr size_t kDim = 40;

double Curvature(size_t i) { return 1.0 + static_cast<double>(i % 7); }

// 0.5 sum h_i t_i^2 and cubic sum c t_i^3 (c = 0: quadratic).
double Polynomial(std::span<const double> t, double cubic) {
  double sum = 0;
  for (size_t i = 0; i < t.size(); ++i) sum += 0.5 * Curvature(i) * t[i] * t[i] + cubic * t[i] * t[i] * t[i];
  return sum;
}

// <grad, z> at theta = 0.5, and z'Hz, for direction `step`.
struct Along {
  double slope = 0, curvature = 0;
};
Along ExactAlong(std::span<const double> z, double cubic) {
  Along along;
  for (size_t i = 0; i < z.size(); ++i) {
    along.slope += (0.5 * Curvature(i) + 3 * cubic * 0.25) * z[i];
    along.curvature += Curvature(i) * z[i] * z[i];
  }
  return along;
}

Estimate EstimateAtHalf(Sides sides, double eps, uint32_t step, double cubic, std::vector<double>* z) {
  const ZoLayout layout({{"theta", kDim}});
  const StreamDirection<double> direction(kSeed, step, layout);
  z->resize(kDim);
  direction.Fill(0, 0, *z);
  std::vector<double> theta(kDim, 0.5);
  Estimator<double> estimator(layout, {.sides = sides, .eps = eps});
  return estimator.Run(
      theta, direction, [&](std::span<const double> t) { return Polynomial(t, cubic); }, layout.All());
}

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

// The extra term of one side: (eps/2) z'Hz z has mean 0 (odd in z) and a variance that grows with eps^2. The same z for
// every eps; the two-sided estimate is exact here, so the difference of the two is the extra term alone.
TEST(EstimatorBiasTest, OneSidedExtraHasNoMeanAndAVarianceOfEpsSquared) {
  constexpr int kDraws = 4000;
  std::vector<double> log_eps, log_variance;
  for (double eps : {1e-3, 1e-2, 1e-1}) {
    double sum = 0, squares = 0;
    std::vector<double> z;
    for (uint32_t step = 0; step < kDraws; ++step) {
      const double extra = EstimateAtHalf(Sides::kOne, eps, step, 0, &z).g[0] - EstimateAtHalf(Sides::kTwo, eps, step, 0, &z).g[0];
      sum += extra * z[0];
      squares += extra * z[0] * extra * z[0];
    }
    const double variance = squares / kDraws;
    EXPECT_LT(std::fabs(sum / kDraws), 4 * std::sqrt(variance / kDraws)) << eps;
    log_eps.push_back(std::log10(eps));
    log_variance.push_back(std::log10(variance));
  }
  EXPECT_NEAR((log_variance[2] - log_variance[0]) / (log_eps[2] - log_eps[0]), 2, 0.02);
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

// On a cubic E[ghat - g_exact z] = 3 c eps^2 per coordinate; the same z for every eps, so that only the bias is left.
TEST(EstimatorBiasTest, TwoSidedBiasOnACubicIsQuadraticInEps) {
  constexpr double kCubic = 0.7;
  constexpr int kDraws = 4000;
  std::vector<double> log_eps, log_bias;
  for (double eps : {1e-1, 1e-2, 1e-3}) {
    double bias = 0;
    std::vector<double> z;
    for (uint32_t step = 0; step < kDraws; ++step) {
      const double excess = EstimateAtHalf(Sides::kTwo, eps, step, kCubic, &z).g[0] - ExactAlong(z, kCubic).slope;
      bias += excess * std::accumulate(z.begin(), z.end(), 0.0) / (kDraws * static_cast<double>(kDim));
    }
    EXPECT_NEAR(bias, 3 * kCubic * eps * eps, 0.1 * 3 * kCubic * eps * eps);
    log_eps.push_back(std::log10(eps));
    log_bias.push_back(std::log10(std::fabs(bias)));
  }
  EXPECT_NEAR((log_bias[0] - log_bias[2]) / (log_eps[0] - log_eps[2]), 2, 0.2);
}

}  // namespace
}  // namespace optod::zo

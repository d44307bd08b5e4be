#pragma once
/// The laws of the zeroth-order estimator, measured: for the tests, which hold them to their limits, and for the bench
/// zo_laws, which prints them. Sources: the estimator of MeZO (Malladi et al. 2023) with Gaussian z and f of known
/// gradient v; then ghat = (1/q) sum <v, z_k> z_k. Seeds are fixed: every figure is the same on every machine.

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "optim/zo/stream.h"
#include "optim/zo/zo_optimizer.h"

namespace optod::zo {

inline constexpr uint64_t kSeed = 99;

// sup |F_n - F| of sorted or unsorted values against a distribution function.
inline double KsDistance(std::vector<double> values, const std::function<double(double)>& distribution) {
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
inline double KsPValue(double distance, size_t n) {
  const double t = distance * std::sqrt(static_cast<double>(n));
  if (t < 0.2) return 1;
  double p = 0;
  for (int k = 1; k < 100; ++k) p += (k % 2 == 1 ? 2 : -2) * std::exp(-2.0 * k * k * t * t);
  return p;
}

// Continued fraction of the regularised incomplete beta function (modified Lentz).
inline double BetaFraction(double a, double b, double x) {
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

inline double BetaCdf(double a, double b, double x) {
  if (x <= 0 || x >= 1) return x <= 0 ? 0 : 1;
  const double front =
      std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) + b * std::log1p(-x));
  return x < (a + 1) / (a + b + 2) ? front * BetaFraction(a, b, x) / a : 1 - front * BetaFraction(b, a, 1 - x) / b;
}

inline double NormalCdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }

/// What 4000 draws of ghat say, beside the law. f(theta) = <v, theta>: one step of rate 1 from 0 gives theta = -ghat.
struct EstimatorLaw {
  size_t d = 0;
  int q = 0;
  double worst_mean = 0;      ///< |mean ghat_i - v_i| in standard errors, the worst coordinate's; at most 5
  double variance_ratio = 0;  ///< mean over i of Var ghat_i over (|v|^2 + v_i^2) / q; within 0.1 of 1
  double norm_ratio = 0, norm_error = 0;  ///< E |ghat|^2 over |v|^2 (1 + (d + 1) / q), and its standard error; within 5
  double cos2 = 0, cos2_law = 0, cos2_limit = 0;  ///< mean cos^2(ghat, v), q / (q + d - 1), and how far it may be off
  double ks_p = 0;            ///< Kolmogorov-Smirnov of cos^2 against Beta(q/2, (d-1)/2); above 1e-4
  bool Holds() const {
    return worst_mean < 5 && std::fabs(variance_ratio - 1) < 0.1 && std::fabs(norm_ratio - 1) < 5 * norm_error &&
           std::fabs(cos2 - cos2_law) < cos2_limit && ks_p > 1e-4;
  }
};
inline constexpr size_t kLawDims[] = {10, 100, 1000};
inline constexpr int kLawQueries[] = {1, 4, 16, 64};

inline EstimatorLaw MeasureEstimator(size_t d, int q) {
  constexpr int kDraws = 4000;
  EstimatorLaw out;
  out.d = d;
  out.q = q;
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
    optimizer.Step(theta, StreamDirection<double>(kSeed + static_cast<uint64_t>(q), static_cast<uint32_t>(draw), layout), loss);
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
  for (size_t i = 0; i < d; ++i) {
    const double variance = (v2 + v[i] * v[i]) / q;
    out.worst_mean = std::max(out.worst_mean, std::fabs(mean[i] - v[i]) / std::sqrt(variance / kDraws));
    out.variance_ratio += (second[i] - mean[i] * mean[i]) / variance / static_cast<double>(d);
  }
  const double dims = static_cast<double>(d), norm2 = norm2_sum / kDraws, norm_law = v2 * (1 + (dims + 1) / q);
  out.norm_ratio = norm2 / norm_law;
  out.norm_error = std::sqrt((norm4_sum / kDraws - norm2 * norm2) / kDraws) / norm_law;
  const double a = q / 2.0, b = (dims - 1) / 2;
  out.cos2 = std::accumulate(cos2.begin(), cos2.end(), 0.0) / kDraws;
  out.cos2_law = q / (q + dims - 1);
  out.cos2_limit = std::max(0.03 * out.cos2_law, 4 * std::sqrt(a * b / ((a + b) * (a + b) * (a + b + 1)) / kDraws));
  out.ks_p = KsPValue(KsDistance(cos2, [&](double x) { return BetaCdf(a, b, x); }), cos2.size());
  return out;
}

// ---- bias: one side on a quadratic, two sides on a cubic

inline constexpr size_t kDim = 40;

inline double Curvature(size_t i) { return 1.0 + static_cast<double>(i % 7); }

// 0.5 sum h_i t_i^2 and cubic sum c t_i^3 (c = 0: quadratic).
inline double Polynomial(std::span<const double> t, double cubic) {
  double sum = 0;
  for (size_t i = 0; i < t.size(); ++i) sum += 0.5 * Curvature(i) * t[i] * t[i] + cubic * t[i] * t[i] * t[i];
  return sum;
}

// <grad, z> at theta = 0.5, and z'Hz, for direction `step`.
struct Along {
  double slope = 0, curvature = 0;
};
inline Along ExactAlong(std::span<const double> z, double cubic) {
  Along along;
  for (size_t i = 0; i < z.size(); ++i) {
    along.slope += (0.5 * Curvature(i) + 3 * cubic * 0.25) * z[i];
    along.curvature += Curvature(i) * z[i] * z[i];
  }
  return along;
}

inline Estimate EstimateAtHalf(Sides sides, double eps, uint32_t step, double cubic, std::vector<double>* z) {
  const ZoLayout layout({{"theta", kDim}});
  const StreamDirection<double> direction(kSeed, step, layout);
  z->resize(kDim);
  direction.Fill(0, 0, *z);
  std::vector<double> theta(kDim, 0.5);
  Estimator<double> estimator(layout, {.sides = sides, .eps = eps});
  return estimator.Run(
      theta, direction, [&](std::span<const double> t) { return Polynomial(t, cubic); }, layout.All());
}

/// A slope over decades of eps, and what each eps gave beside what it should.
struct Slope {
  std::vector<double> eps, measured, law;
  double slope = 0;  ///< of log10 measured over log10 eps
  void Fit() {
    slope = (std::log10(std::fabs(measured.back())) - std::log10(std::fabs(measured.front()))) /
            (std::log10(eps.back()) - std::log10(eps.front()));
  }
};
inline constexpr int kBiasDraws = 4000;

/// Variance of the first coordinate of the extra term of one side, (eps/2) z'Hz z: it has mean 0 (odd in z) and a
/// variance that grows with eps^2. The same z for every eps; the two-sided estimate is exact on a quadratic, so that the
/// difference of the two is the extra term alone. `law`: the standard error of its mean; `means`: what that was.
inline Slope OneSidedVariance(std::vector<double>* means) {
  Slope out;
  for (const double eps : {1e-3, 1e-2, 1e-1}) {
    double sum = 0, squares = 0;
    std::vector<double> z;
    for (uint32_t step = 0; step < kBiasDraws; ++step) {
      const double extra = EstimateAtHalf(Sides::kOne, eps, step, 0, &z).g[0] - EstimateAtHalf(Sides::kTwo, eps, step, 0, &z).g[0];
      sum += extra * z[0];
      squares += extra * z[0] * extra * z[0];
    }
    out.eps.push_back(eps);
    out.measured.push_back(squares / kBiasDraws);
    out.law.push_back(std::sqrt(squares / kBiasDraws / kBiasDraws));
    means->push_back(sum / kBiasDraws);
  }
  out.Fit();
  return out;
}

/// On a cubic of coefficient c, E[ghat - <grad, z> z] = 3 c eps^2 in every coordinate; the same z for every eps, so that
/// only the bias is left.
inline Slope TwoSidedBias() {
  constexpr double kCubic = 0.7;
  Slope out;
  for (const double eps : {1e-1, 1e-2, 1e-3}) {
    double bias = 0;
    std::vector<double> z;
    for (uint32_t step = 0; step < kBiasDraws; ++step) {
      const double excess = EstimateAtHalf(Sides::kTwo, eps, step, kCubic, &z).g[0] - ExactAlong(z, kCubic).slope;
      bias += excess * std::accumulate(z.begin(), z.end(), 0.0) / (kBiasDraws * static_cast<double>(kDim));
    }
    out.eps.push_back(eps);
    out.measured.push_back(bias);
    out.law.push_back(3 * kCubic * eps * eps);
  }
  out.Fit();
  return out;
}

}  // namespace optod::zo

#pragma once
/// Problems with a known optimum, and how far every optimizer of the zeroth-order family comes on them: for the tests,
/// which hold the results to their limits, and for the bench zo_laws, which prints them. Fixed seeds; no timing.

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "optim/zo/zo_optimizer.h"

namespace optod::zo {

inline constexpr size_t kQuadraticDim = 50;
inline constexpr double kCondition = 10;

/// Eigenvalues 1 .. 10; minimum 0 at 0.
inline double Eigenvalue(size_t i) { return 1 + (kCondition - 1) * static_cast<double>(i) / (kQuadraticDim - 1); }

inline double Quadratic(std::span<const double> t) {
  double sum = 0;
  for (size_t i = 0; i < t.size(); ++i) sum += 0.5 * Eigenvalue(i) * t[i] * t[i];
  return sum;
}

inline ZoLayout QuadraticLayout() { return ZoLayout({{"theta", kQuadraticDim}}); }

/// Gap after `steps` over gap before.
inline double RemainingGap(const ZoHyper& hyper, uint64_t seed, uint32_t steps) {
  ZoOptimizer<double> optimizer(QuadraticLayout(), hyper);
  std::vector<double> theta(kQuadraticDim, 1.0);
  const double start = Quadratic(theta);
  for (uint32_t step = 0; step < steps; ++step) {
    const StreamDirection<double> z(seed, step, QuadraticLayout());
    if (hyper.rule == Rule::kForwardGrad) {
      optimizer.StepForwardGrad(theta, z, [](std::span<const double> t, std::span<const double> v) {
        double slope = 0;
        for (size_t i = 0; i < t.size(); ++i) slope += Eigenvalue(i) * t[i] * v[i];
        return Jvp{Quadratic(t), slope};
      });
    } else {
      optimizer.StepByRule(theta, z, Quadratic);
    }
  }
  return Quadratic(theta) / start;
}

/// Strongly convex, L = 10: E gap_{t+1} <= (1 - 1 / (kappa (d + 2))) E gap_t for lr = 1 / (L (d + 2)) (Nesterov and Spokoiny
/// 2017). The mean gap left after kContractionSteps over 20 seeds, and the guarantee.
inline constexpr uint32_t kContractionSteps = 1000;
struct Contraction {
  double left = 0, guaranteed = 0;
};
inline Contraction MeasureContraction() {
  const double d2 = static_cast<double>(kQuadraticDim) + 2;
  Contraction out;
  for (uint64_t seed = 0; seed < 20; ++seed)
    out.left += RemainingGap({.lr = 1 / (kCondition * d2), .eps = 1e-4}, seed, kContractionSteps) / 20;
  out.guaranteed = std::pow(1 - 1 / (kCondition * d2), kContractionSteps);
  return out;
}

struct BudgetCase {
  const char* name;
  ZoHyper hyper;
  uint32_t steps;
};

inline const double kLr = 1 / (kCondition * (static_cast<double>(kQuadraticDim) + 2));
inline const BudgetCase kBudgets[] = {
    {"zo_sgd", {.lr = kLr, .eps = 1e-4}, 1500},
    {"zo_sgd_one_sided", {.sides = Sides::kOne, .lr = kLr, .eps = 1e-5}, 1500},
    {"zo_sgd_q16", {.lr = 8 * kLr, .eps = 1e-4, .queries = 16}, 150},
    {"zo_sgd_mmt", {.lr = 0.1 * kLr, .eps = 1e-4, .momentum = 0.9}, 1500},
    {"zo_sgd_cons", {.rule = Rule::kConservative, .lr = 2 * kLr, .eps = 1e-4}, 1500},
    {"zo_sgd_sign_element", {.sign = Sign::kElement, .lr = 2e-3, .eps = 1e-4}, 4000},
    {"zo_sgd_sign_scalar", {.sign = Sign::kScalar, .lr = 1e-2, .eps = 1e-4}, 1500},
    {"zo_adam", {.base = Base::kAdam, .lr = 5e-3, .eps = 1e-4}, 3000},
    {"forward_grad", {.rule = Rule::kForwardGrad, .lr = kLr}, 1500},
};


/// Ten blocks of five: the median gap over 10 seeds after 60 steps, at the best rate of one grid for all.
enum class Way { kPlain, kCoordinate, kJoint, kHybrid };
inline double BestGap(Way way) {
  std::vector<ZoTensor> tensors;
  std::vector<std::vector<size_t>> blocks;
  for (size_t b = 0; b < 10; ++b) {
    tensors.push_back({"block" + std::to_string(b), kQuadraticDim / 10});
    blocks.push_back({b});
  }
  const ZoLayout layout(tensors);
  const std::vector<size_t> shallow = {0, 1, 2, 3, 4};
  double best = 1;
  for (const double lr : {1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 0.128}) {
    std::vector<double> gaps;
    for (uint64_t seed = 0; seed < 10; ++seed) {
      ZoOptimizer<double> optimizer(layout, {.lr = lr, .eps = 1e-4});
      std::vector<double> theta(kQuadraticDim, 1.0);
      const double start = Quadratic(theta);
      for (uint32_t step = 0; step < 60; ++step) {
        const StreamDirection<double> z(seed, step, layout);
        if (way == Way::kPlain) optimizer.Step(theta, z, Quadratic);
        if (way == Way::kCoordinate) optimizer.StepBlockwise(theta, z, Quadratic, blocks, BlockSchedule::kCoordinate);
        if (way == Way::kJoint) optimizer.StepBlockwise(theta, z, Quadratic, blocks, BlockSchedule::kJoint);
        if (way == Way::kHybrid)
          optimizer.StepHybrid(theta, z, Quadratic, [](std::span<const double> t, std::span<double> g) {
            for (size_t i = 0; i < t.size(); ++i) g[i] = Eigenvalue(i) * t[i];
          }, shallow);
      }
      gaps.push_back(std::isfinite(Quadratic(theta)) ? Quadratic(theta) / start : 1e300);
    }
    std::nth_element(gaps.begin(), gaps.begin() + 5, gaps.end());
    best = std::min(best, gaps[5]);
  }
  return best;
}

/// 200 points of two overlapping classes in 8 dimensions, made by arithmetic.
inline double LogisticLoss(std::span<const float> t) {
  double sum = 0;
  for (int row = 0; row < 200; ++row) {
    const double y = row % 2 == 0 ? 1 : -1;
    double score = 0;
    for (int i = 0; i < 8; ++i) score += t[i] * (0.5 * y * (i % 3 == 0) + std::sin(12.9898 * row + 78.233 * i));
    sum += std::log1p(std::exp(-y * score));
  }
  return sum / 200;
}

/// Loss after 300 steps of four queries in float32, from ln 2.
inline double TrainLogistic() {
  const ZoLayout layout({{"w", 8}});
  ZoOptimizer<float> optimizer(layout, {.lr = 0.2, .eps = 1e-2, .queries = 4});
  std::vector<float> w(8, 0.0f);
  for (uint32_t step = 0; step < 300; ++step) optimizer.Step(w, StreamDirection<float>(8, step, layout), LogisticLoss);
  return LogisticLoss(w);
}

/// Variance of the update of q = 1 over that of q = 16: 16.
inline double VarianceOfOneQueryOverSixteen() {
  std::vector<double> variances;
  for (const int q : {1, 16}) {
    double sum = 0, sum2 = 0;
    ZoOptimizer<double> optimizer(QuadraticLayout(), {.lr = 1e-3, .eps = 1e-4, .queries = q});
    for (uint32_t step = 0; step < 4000; ++step) {
      std::vector<double> theta(kQuadraticDim, 1.0);
      optimizer.Step(theta, StreamDirection<double>(17, step, QuadraticLayout()), Quadratic);
      sum += theta[0];
      sum2 += theta[0] * theta[0];
    }
    variances.push_back(sum2 / 4000 - sum / 4000 * sum / 4000);
  }
  return variances[0] / variances[1];
}

}  // namespace optod::zo

// The sample-order estimator: the identity order gives the reference back to the bit, the error of a swap falls with
// the learning rate as theory says, bad input is refused in words, and the recorded runs replay.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "golden_replay/logistic.h"
#include "golden_replay/optim_replay.h"
#include "optim/order/sample_order.h"

namespace optod::optim {
namespace {

using Vector = std::vector<double>;

constexpr int kBatches = 8;
constexpr size_t kParams = 3;

// Numbers in [-1, 1) from a small congruential generator, the same on every machine.
std::vector<LogisticBatch> Batches() {
  uint32_t state = 12345;
  const auto next = [&state] {
    state = state * 1664525u + 1013904223u;
    return (state >> 16) / 32768.0 - 1.0;
  };
  std::vector<LogisticBatch> batches(kBatches);
  for (LogisticBatch& batch : batches) {
    for (int row = 0; row < 5; ++row) {
      for (size_t i = 0; i < kParams; ++i) batch.x.push_back(next());
      batch.y.push_back(next() > 0.0 ? 1.0 : 0.0);
    }
  }
  return batches;
}

std::vector<int> Identity() {
  std::vector<int> order(kBatches);
  std::iota(order.begin(), order.end(), 0);
  return order;
}

// The obvious training loop: textbook SGD or Adam, one batch a position.
std::vector<Vector> Train(const OrderReference& hyper, double lr, const std::vector<int>& order) {
  const auto batches = Batches();
  Vector theta = {0.25, -0.5, 0.125}, m(kParams, 0.0), v(kParams, 0.0);
  std::vector<Vector> run = {theta};
  for (int t = 0; t < kBatches; ++t) {
    const Vector g = batches[order[t]].Gradient(theta);
    for (size_t i = 0; i < kParams; ++i) {
      m[i] = hyper.beta1 * m[i] + (1 - hyper.beta1) * g[i];
      v[i] = hyper.beta2 * v[i] + (1 - hyper.beta2) * g[i] * g[i];
      const double m_hat = m[i] / (1 - std::pow(hyper.beta1, t + 1)), v_hat = v[i] / (1 - std::pow(hyper.beta2, t + 1));
      theta[i] -= lr * (hyper.rule == OrderRule::kSgd ? g[i] : m_hat / (std::sqrt(v_hat) + hyper.eps));
    }
    run.push_back(theta);
  }
  return run;
}

OrderReference Reference(OrderRule rule, double lr, bool diagonal = false) {
  OrderReference reference;
  reference.rule = rule;
  reference.eps = 1e-3;
  reference.lr.assign(kBatches, lr);
  reference.trajectory = Train(reference, lr, Identity());
  reference.terms.resize(kBatches);
  for (int t = 0; t < kBatches; ++t) {
    const Vector& theta = reference.trajectory[t];
    for (const LogisticBatch& batch : Batches()) {
      const Vector hessian = batch.Hessian(theta);
      reference.terms[t].push_back({batch.Gradient(theta), diagonal ? Diagonal(hessian, kParams) : hessian});
    }
  }
  return reference;
}

double FinalError(const OrderReference& reference, const std::vector<int>& order, EstimateOptions options) {
  const auto estimate = EstimateOrder(reference, order, options);
  EXPECT_TRUE(estimate.ok()) << estimate.status();
  if (!estimate.ok()) return std::numeric_limits<double>::quiet_NaN();
  const Vector truth = Train(reference, reference.lr[0], order).back();
  double sum = 0.0;
  for (size_t i = 0; i < kParams; ++i) sum += std::pow(estimate->parameters.back()[i] - truth[i], 2);
  return std::sqrt(sum);
}

TEST(SampleOrder, IdentityGivesTheReferenceToTheBit) {
  for (const OrderRule rule : {OrderRule::kSgd, OrderRule::kAdam}) {
    for (const OrderMoments moments : {OrderMoments::kReference, OrderMoments::kReplay}) {
      for (const bool first_order : {true, false}) {
        for (const bool diagonal : {true, false}) {
          OrderReference reference = Reference(rule, 0.3, diagonal);
          reference.trajectory[2] = {-0.0, 1.0 / 3.0, static_cast<float>(0.1)};  // as another precision would leave it
          const auto estimate = EstimateOrder(reference, Identity(), {first_order, moments});
          ASSERT_TRUE(estimate.ok()) << estimate.status();
          ASSERT_EQ(estimate->parameters.size(), reference.trajectory.size());
          for (size_t t = 0; t < reference.trajectory.size(); ++t) {
            ASSERT_EQ(estimate->parameters[t].size(), kParams);
            EXPECT_EQ(0, std::memcmp(estimate->parameters[t].data(), reference.trajectory[t].data(), kParams * 8)) << t;
          }
        }
      }
    }
  }
}

// Swapping batches 0 and 1: the zeroth order errs by lr^2 (the missing lr H d, d of size lr), the first order by lr^3.
TEST(SampleOrder, ErrorOfAnAdjacentSwapScalesWithTheLearningRate) {
  std::vector<int> order = Identity();
  std::swap(order[0], order[1]);
  for (double lr = 0.02; lr > 0.002; lr /= 2) {
    const OrderReference coarse = Reference(OrderRule::kSgd, lr), fine = Reference(OrderRule::kSgd, lr / 2);
    const double zeroth =
        FinalError(coarse, order, {.first_order = false}) / FinalError(fine, order, {.first_order = false});
    const double first = FinalError(coarse, order, {}) / FinalError(fine, order, {});
    EXPECT_NEAR(std::log2(zeroth), 2.0, 0.1) << lr;
    EXPECT_NEAR(std::log2(first), 3.0, 0.1) << lr;
  }
}

TEST(SampleOrder, FirstOrderCutsTheErrorOfAReversedOrder) {
  std::vector<int> order = Identity();
  std::reverse(order.begin(), order.end());
  for (const auto& [rule, lr] : {std::pair{OrderRule::kSgd, 0.3}, std::pair{OrderRule::kAdam, 0.01}}) {
    const OrderReference reference = Reference(rule, lr);
    const double zeroth = FinalError(reference, order, {.first_order = false});
    EXPECT_LT(FinalError(reference, order, {}), 0.1 * zeroth);
  }
}

TEST(SampleOrder, MomentsDoNotMatterToSgd) {
  const OrderReference reference = Reference(OrderRule::kSgd, 0.3);
  const std::vector<int> order = {3, 1, 4, 0, 5, 7, 2, 6};
  const auto replay = EstimateOrder(reference, order, {true, OrderMoments::kReplay});
  const auto held = EstimateOrder(reference, order, {true, OrderMoments::kReference});
  ASSERT_TRUE(replay.ok() && held.ok());
  for (int t = 0; t <= kBatches; ++t) {
    for (size_t i = 0; i < kParams; ++i) EXPECT_NEAR(replay->parameters[t][i], held->parameters[t][i], 1e-14);
  }
}

// The slope against a central difference of the direction in one gradient entry.
TEST(SampleOrder, SlopeIsTheDerivativeOfTheDirection) {
  OrderReference reference = Reference(OrderRule::kAdam, 0.05);
  for (const int t : {0, 3, 7}) {
    const auto term = ReferenceUpdate(reference, t, 2);
    ASSERT_TRUE(term.ok()) << term.status();
    for (size_t i = 0; i < kParams; ++i) {
      OrderReference up = reference, down = reference;
      up.terms[t][2].gradient[i] += 1e-6;
      down.terms[t][2].gradient[i] -= 1e-6;
      const double slope = (ReferenceUpdate(up, t, 2)->direction[i] - ReferenceUpdate(down, t, 2)->direction[i]) / 2e-6;
      EXPECT_NEAR(term->slope[i], slope, 1e-5 * std::abs(slope) + 1e-6);
    }
  }
  EXPECT_EQ(ReferenceUpdate(reference, 8, 0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReferenceUpdate(reference, 0, -1).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(SampleOrder, TermsOutsideTheOrderMayBeMissing) {
  OrderReference reference = Reference(OrderRule::kAdam, 0.05);
  const std::vector<int> order = {3, 1, 4, 0, 5, 7, 2, 6};
  const auto full = EstimateOrder(reference, order);
  for (int t = 0; t < kBatches; ++t) {
    for (int l = 0; l < kBatches; ++l) {
      if (l != t && l != order[t]) reference.terms[t][l] = {};
    }
  }
  const auto sparse = EstimateOrder(reference, order);
  ASSERT_TRUE(full.ok() && sparse.ok());
  EXPECT_EQ(full->parameters, sparse->parameters);
}

struct BadCase {
  const char* name;
  std::vector<int> order;
  void (*spoil)(OrderReference&);
  absl::StatusCode want;
  const char* message;
};

void Nothing(OrderReference&) {}
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kMissing = absl::StatusCode::kFailedPrecondition;

class SampleOrderRefuses : public testing::TestWithParam<BadCase> {};

TEST_P(SampleOrderRefuses, InWords) {
  OrderReference reference = Reference(OrderRule::kAdam, 0.05);
  GetParam().spoil(reference);
  const absl::Status status = EstimateOrder(reference, GetParam().order).status();
  EXPECT_EQ(status.code(), GetParam().want);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(GetParam().message));
}

const std::vector<int> kGood = {1, 0, 2, 3, 4, 5, 6, 7};

INSTANTIATE_TEST_SUITE_P(
    All, SampleOrderRefuses,
    testing::Values(
        BadCase{"twice", {0, 1, 7, 7, 4, 5, 6, 2}, Nothing, kInvalid, "order[3]: 7 stands twice"},
        BadCase{"too_large", {0, 1, 2, 8, 4, 5, 6, 7}, Nothing, kInvalid, "order[3]: 8 is no batch; must be in 0..7"},
        BadCase{"negative", {-1, 1, 2, 3, 4, 5, 6, 7}, Nothing, kInvalid, "order[0]: -1 is no batch"},
        BadCase{"short", {0, 1, 2}, Nothing, kInvalid, "order: 3 batches; must be 8"},
        BadCase{"gradient_missing", kGood, [](OrderReference& r) { r.terms[0][1].gradient.clear(); }, kMissing,
                "terms[0][1].gradient: missing"},
        BadCase{"own_gradient_missing", kGood, [](OrderReference& r) { r.terms[1][1].gradient.clear(); }, kMissing,
                "terms[1][1].gradient: missing"},
        BadCase{"curvature_missing", kGood, [](OrderReference& r) { r.terms[1][0].curvature.clear(); }, kMissing,
                "terms[1][0].curvature: missing"},
        BadCase{"gradient_size", kGood, [](OrderReference& r) { r.terms[0][1].gradient.push_back(0); }, kInvalid,
                "terms[0][1].gradient: 4 numbers; must be 3"},
        BadCase{"curvature_size", kGood, [](OrderReference& r) { r.terms[0][1].curvature.resize(5); }, kInvalid,
                "terms[0][1].curvature: 5 numbers; must be 3 (diagonal) or 9 (matrix)"},
        BadCase{"curvature_nan", kGood,
                [](OrderReference& r) { r.terms[0][1].curvature[4] = std::numeric_limits<double>::quiet_NaN(); },
                kInvalid, "terms[0][1].curvature[4]: nan is not finite"},
        BadCase{"trajectory_short", kGood, [](OrderReference& r) { r.trajectory.pop_back(); }, kInvalid,
                "trajectory: 8 vectors; must be 9"},
        BadCase{"trajectory_ragged", kGood, [](OrderReference& r) { r.trajectory[4].pop_back(); }, kInvalid,
                "trajectory[4]: 2 numbers; must be 3"},
        BadCase{"row_short", kGood, [](OrderReference& r) { r.terms[5].pop_back(); }, kInvalid,
                "terms[5]: 7 batches; must be 8"},
        BadCase{"lr_short", kGood, [](OrderReference& r) { r.lr.pop_back(); }, kInvalid, "lr: 7 numbers; must be 8"},
        BadCase{"lr_negative", kGood, [](OrderReference& r) { r.lr[2] = -1; }, kInvalid, "lr[2]: -1 is negative"},
        BadCase{"beta1", kGood, [](OrderReference& r) { r.beta1 = 1; }, kInvalid, "beta1: 1; must be in [0, 1)"},
        BadCase{"beta2", kGood, [](OrderReference& r) { r.beta2 = -0.5; }, kInvalid, "beta2: -0.5; must be in [0, 1)"},
        BadCase{"eps", kGood, [](OrderReference& r) { r.eps = 0; }, kInvalid, "eps: 0; must be > 0"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(SampleOrder, GoldenFilesReplay) {
  for (const char* name :
       {"fut_sgd_full", "fut_adam_full", "fut_adam_diag", "fut_adam_replay_full", "fut_adam_replay_diag"}) {
    const CaseResult result = ReplayOptimFile(std::string(OPTOD_GOLDEN_DIR) + "/optim/" + name + ".json");
    EXPECT_TRUE(result.passed) << name << ": " << result.first_difference;
  }
}

}  // namespace
}  // namespace optod::optim

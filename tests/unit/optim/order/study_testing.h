#pragma once
/// What the tests of the sample-order studies share: a directory of their own, the usual problem, medians.

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/random_id.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "optim/order/builtin_models.h"
#include "optim/order/orders.h"
#include "optim/order/study.h"

namespace optod::order {

#define ASSERT_OK(expr)                              \
  do {                                               \
    const absl::Status status_ = (expr);             \
    ASSERT_TRUE(status_.ok()) << status_.ToString(); \
  } while (false)

class StudyTest : public testing::Test {
 protected:
  StudyTest() : root_(testing::TempDir() + "/optod-order-" + RandomId()) {}
  ~StudyTest() override { std::filesystem::remove_all(root_); }

  std::string NewDirectory() { return root_ + "/" + std::to_string(next_++); }

  std::unique_ptr<Study> Make(const StudyOptions& options, std::shared_ptr<const Model> model) {
    auto study = Study::Create(PosixFs(), NewDirectory(), options, std::move(model));
    EXPECT_TRUE(study.ok()) << study.status();
    return study.ok() ? *std::move(study) : nullptr;
  }
  /// Recorded and filled.
  std::unique_ptr<Study> Filled(const StudyOptions& options, std::shared_ptr<const Model> model) {
    std::unique_ptr<Study> study = Make(options, std::move(model));
    if (study != nullptr) {
      const absl::Status status = study->Precompute();
      EXPECT_TRUE(status.ok()) << status;
    }
    return study;
  }

  const std::string root_;
  int next_ = 0;
};

/// Spec 9.5 (a): logistic regression, 20 features, batches of 16.
inline std::shared_ptr<const Model> LogisticProblem(int batches, uint64_t seed,
                                                    Precision precision = Precision::kFloat64) {
  auto data = MakeSynthetic({.batches = batches, .seed = seed});
  auto model = MakeLogistic(*std::move(data), {.precision = precision, .seed = seed});
  return *std::move(model);
}

/// Batches of different kinds, so that their order matters.
inline std::shared_ptr<const Model> MlpProblem(int batches, uint64_t seed, Precision precision = Precision::kFloat64) {
  auto data = MakeSynthetic({.features = 6,
                             .classes = 3,
                             .batches = batches,
                             .rows = 12,
                             .evaluation_rows = 128,
                             .drift = 0.7,
                             .ragged = true,
                             .seed = seed});
  auto model = MakeTanhMlp(*std::move(data), 8, {.precision = precision, .initial_scale = 0.3, .seed = seed});
  return *std::move(model);
}

inline std::vector<Order> RandomOrders(int count, int batches, uint64_t seed) {
  CounterRandom random(seed, 77);
  std::vector<Order> orders;
  for (int i = 0; i < count; ++i) orders.push_back(random.Permutation(batches));
  return orders;
}

inline double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

inline double Distance(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum);
}

/// Unless the text names them: curvature diag as the paper defines it, no probe runs.
inline StudyOptions Options(std::string text) {
  if (text.find("curvature=") == std::string::npos) text += "\ncurvature=diag";
  if (text.find("probe_runs=") == std::string::npos && text.find("=multisecant") == std::string::npos)
    text += "\nprobe_runs=0";
  auto options = ParseStudyOptions(text);
  EXPECT_TRUE(options.ok()) << options.status();
  return options.ok() ? *options : StudyOptions{};
}

}  // namespace optod::order

// Estimates from probe runs: what they must reproduce, what they cost, that they are resumed and never worse than none.
#include <cstring>
#include <filesystem>

#include "optim/order/probe_runs.h"
#include "study_testing.h"

namespace optod::order {
namespace {

using testing::HasSubstr;

struct Shape {
  const char* name;
  int runs, batches, epochs;
};
class ProbeOrdersOf : public testing::TestWithParam<Shape> {};

TEST_P(ProbeOrdersOf, ArePermutationsThatStartDifferently) {
  const auto [name, runs, batches, epochs] = GetParam();
  const std::vector<Order> orders = ProbeOrders(runs, batches, epochs, 7);
  ASSERT_EQ(orders.size(), static_cast<size_t>(runs));
  std::vector<int> first(batches, 0);
  for (const Order& order : orders) {
    EXPECT_TRUE(Expand(order, batches, epochs).ok());
    ++first[order[0]];
  }
  const auto [least, most] = std::minmax_element(first.begin(), first.end());
  EXPECT_LE(*most - *least, 1);
  EXPECT_EQ(orders, ProbeOrders(runs, batches, epochs, 7));
  if (runs > 0 && batches > 4) {
    EXPECT_NE(orders, ProbeOrders(runs, batches, epochs, 8));
  }
}
INSTANTIATE_TEST_SUITE_P(Shapes, ProbeOrdersOf,
                         testing::Values(Shape{"none", 0, 5, 1}, Shape{"one", 1, 6, 1}, Shape{"some", 4, 16, 1},
                                         Shape{"uneven", 5, 7, 2}, Shape{"all", 6, 6, 3}, Shape{"more", 9, 6, 1},
                                         Shape{"single_batch", 3, 1, 2}),
                         [](const auto& info) { return std::string(info.param.name); });

const char* const kOfProbes[] = {
    "optimizer=adam\nlr=0.02\ncurvature=multisecant",
    "optimizer=sgd\nmomentum=0.9\nlr=0.05\ncurvature=multisecant\nweight_decay=0.1\nepochs=2",
    "optimizer=adamw\nweight_decay=0.1\nlr=0.02\ncurvature=diag\nprobe_runs=3",
    "optimizer=adam\nlr=0.02\ncurvature=secant\nsecond_order=true\nprobe_runs=2",
    "optimizer=adam\nlr=0.02\ncurvature=span\nprobe_runs=4\nstorage=fp16",
};

TEST_F(StudyTest, WithProbeRunsTheIdentityIsTheReferenceToTheBit) {
  for (const char* text : kOfProbes) {
    for (const Precision precision : {Precision::kFloat64, Precision::kFloat32}) {
      const auto study = Filled(Options(text), MlpProblem(5, 3, precision));
      ASSERT_NE(study, nullptr);
      EXPECT_TRUE(study->complete());
      for (const Moments moments : {Moments::kReplay, Moments::kReference}) {
        const auto path = study->Path(Identity(5), {.moments = moments});
        ASSERT_TRUE(path.ok()) << path.status();
        for (int t = 0; t <= study->positions(); ++t) {
          const std::vector<double> want = study->trajectory().Row(t);
          EXPECT_EQ(0, std::memcmp((*path)[t].data(), want.data(), want.size() * sizeof(double))) << text << t;
        }
      }
    }
  }
}

// Groups of orders share passes over the probe runs; what an order gets depends on itself alone.
TEST_F(StudyTest, WithProbeRunsOneOrderAndManyAgreeToTheBit) {
  for (const char* text : kOfProbes) {
    const auto study = Filled(Options(std::string(text) + "\nthreads=2"), MlpProblem(5, 3));
    ASSERT_NE(study, nullptr);
    const std::vector<Order> orders = RandomOrders(37, 5, 4);
    const auto together = study->Estimate(orders);
    ASSERT_TRUE(together.ok()) << together.status();
    for (const size_t i : {size_t{0}, size_t{17}, size_t{36}}) {
      EXPECT_EQ((*together)[i], (*study->Estimate(std::span(orders).subspan(i, 1)))[0]) << text;
      EXPECT_EQ((*together)[i], study->Path(orders[i])->back()) << text;
    }
  }
}

// The order of a probe run deviates as that run did, and its gradients are known there: the estimate is the training.
TEST_F(StudyTest, TheOrderOfAProbeRunIsEstimatedAsItWasTrained) {
  for (const char* optimizer : {"adam\nlr=0.02", "sgd\nmomentum=0.9\nlr=0.05"}) {
    const auto study = Filled(Options(std::string("optimizer=") + optimizer +
                                      "\ncurvature=multisecant\nprobe_runs=3\nprobe_ridge=1e-13\nseed=5"),
                              MlpProblem(6, 3));
    ASSERT_NE(study, nullptr);
    for (const Order& order : ProbeOrders(3, 6, 1, 5)) {
      const std::vector<double> trained = study->Retrain(order)->parameters;
      const std::vector<double> reference = study->trajectory().Row(study->positions());
      EXPECT_LT(Distance((*study->Estimate(std::span(&order, 1)))[0], trained), 1e-4 * Distance(reference, trained));
    }
  }
}

// A network: the paper's plain secants err more than no curvature at all; with probe runs no curvature does.
TEST_F(StudyTest, WithProbeRunsEveryCurvatureBeatsTheZerothOrder) {
  const auto model = MlpProblem(8, 1);
  const auto orders = RandomOrders(20, 8, 2);
  std::vector<std::vector<double>> trained;
  for (const char* curvature : {"multisecant", "diag", "secant", "span"}) {
    const auto study =
        Filled(Options(std::string("optimizer=adam\nlr=0.03\nprobe_runs=8\ncurvature=") + curvature), model);
    ASSERT_NE(study, nullptr);
    if (trained.empty()) {
      for (const Order& order : orders) trained.push_back(study->Retrain(order)->parameters);
    }
    const auto first = study->Estimate(orders), zeroth = study->Estimate(orders, {.expansion = 0});
    ASSERT_TRUE(first.ok() && zeroth.ok()) << first.status();
    std::vector<double> error, error0;
    for (size_t i = 0; i < orders.size(); ++i) {
      error.push_back(Distance((*first)[i], trained[i]));
      error0.push_back(Distance((*zeroth)[i], trained[i]));
    }
    EXPECT_LT(Median(error), 0.8 * Median(error0)) << curvature;
    const auto trust = study->Trust();
    if (std::string(curvature) == "multisecant") {
      EXPECT_EQ(trust.status().code(), absl::StatusCode::kFailedPrecondition);
    } else {
      ASSERT_TRUE(trust.ok()) << trust.status();
      EXPECT_TRUE(*trust >= 0.0 && *trust <= 1.0) << *trust;
    }
  }
}

// Values: what the probe runs show that estimates are off by is taken off; the identity keeps the reference's value.
TEST_F(StudyTest, CalibratedValuesAreCloserThanWhatEitherGuessGives) {
  for (const char* more : {"curvature=multisecant", "curvature=secant"}) {
    const auto study = Filled(Options(std::string("optimizer=adam\nlr=0.03\nprobe_runs=8\n") + more), MlpProblem(8, 1));
    ASSERT_NE(study, nullptr);
    const auto orders = RandomOrders(20, 8, 3);
    const std::vector<Metric> metrics(orders.size());
    const auto trained = study->RetrainedLosses(orders, metrics);
    const auto values = study->Losses(orders, {}),
               plain = study->Losses(orders, {}, LossMode::kForward, {.calibrate = false});
    const auto calibration = study->Calibrate({});
    ASSERT_TRUE(trained.ok() && values.ok() && plain.ok() && calibration.ok()) << values.status();
    EXPECT_EQ(calibration->runs, 8);
    EXPECT_TRUE(calibration->slope >= 0.0 && calibration->slope <= 1.0) << calibration->slope;
    EXPECT_EQ(*plain, *study->LossesOfEach(orders, metrics));
    std::vector<double> gap, reference, mean;
    for (size_t i = 0; i < orders.size(); ++i) {
      gap.push_back(std::abs((*values)[i] - (*trained)[i]));
      reference.push_back(std::abs(calibration->reference - (*trained)[i]));
      mean.push_back(std::abs(calibration->mean - (*trained)[i]));
    }
    EXPECT_LT(Median(gap), Median(reference)) << more;
    EXPECT_LT(Median(gap), Median(mean)) << more;
    const Order identity = Identity(8);
    EXPECT_EQ((*study->Losses(std::span(&identity, 1), {}))[0], calibration->reference);
  }
}

TEST_F(StudyTest, FewProbeRunsCalibrateNothing) {
  for (const char* text : {"curvature=diag", "curvature=hvp", "curvature=multisecant\nprobe_runs=3"}) {
    const auto study = Filled(Options(std::string("optimizer=adam\nlr=0.02\n") + text), MlpProblem(5, 1));
    const auto orders = RandomOrders(3, 5, 3);
    EXPECT_EQ(study->Calibrate({})->runs, 0);
    EXPECT_EQ(*study->Losses(orders, {}), *study->Losses(orders, {}, LossMode::kForward, {.calibrate = false}));
  }
}

TEST_F(StudyTest, AStoppedFillOfProbeRunsGoesOnToTheSameFiles) {
  for (const char* more : {"", "\nsegment_bytes=1", "\nstorage=sketch-sign\nsketch_ratio=2"}) {
    const StudyOptions options =
        Options(std::string("optimizer=adam\nlr=0.02\ncurvature=multisecant\nthreads=1") + more);
    const auto model = MlpProblem(4, 2);
    const auto whole = Filled(options, model);
    ASSERT_NE(whole, nullptr);
    const std::string directory = NewDirectory();
    auto study = *Study::Create(PosixFs(), directory, options, model);
    const int64_t terms = int64_t{study->positions()} * study->batches(), all = terms + study->PositionsOfProbes();
    for (const int64_t at : {terms + 1, terms + 6, all - 1}) {
      std::stop_source stop;
      const absl::Status stopped = study->Precompute({[&](int64_t done, int64_t total, double) {
                                                        EXPECT_EQ(total, all);
                                                        if (done >= at) stop.request_stop();
                                                      },
                                                      stop.get_token()});
      if (stopped.ok()) break;  // one file held the rest
      EXPECT_EQ(stopped.code(), absl::StatusCode::kCancelled);
      const Order order = {3, 2, 1, 0};
      EXPECT_THAT(std::string(study->Estimate(std::span(&order, 1)).status().message()),
                  HasSubstr("files are there; precompute first"));
      study = *Study::Open(PosixFs(), directory, model, &options);
    }
    ASSERT_OK(study->Precompute());
    const auto orders = RandomOrders(5, 4, 1);
    EXPECT_EQ(*study->Estimate(orders), *whole->Estimate(orders)) << more;
  }
}

TEST_F(StudyTest, ProbeRunsAreCountedAndBudgeted) {
  const auto model = MlpProblem(6, 1);
  const auto cost = [&](const std::string& text) { return *Make(Options(text), model)->PredictCost(); };
  const Cost plain = cost("curvature=span"), exact = cost("curvature=span\nprobe_runs=4");
  EXPECT_EQ(exact.gradients - plain.gradients, 4 * 6);
  EXPECT_GT(exact.terms_bytes - plain.terms_bytes, int64_t{2 * 4 * 6 * 8} * static_cast<int64_t>(model->size()));
  EXPECT_EQ(cost("storage=fp16\ncurvature=multisecant").gradients, 36 + 2 * 6 * 6);
  const auto small = Filled(Options("curvature=multisecant\nmemory_budget=4096"), model);
  const Order order = {5, 4, 3, 2, 1, 0};
  const absl::Status refused = small->Estimate(std::span(&order, 1)).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("memory_budget: 4096 bytes, half of it for probe runs"));
}

// Files of a study from before probe runs: opened as what they are, the plain definitions.
TEST_F(StudyTest, AStudyWithoutTheOptionHasNoProbeRuns) {
  const auto model = MlpProblem(4, 1);
  const std::string directory = NewDirectory();
  {
    auto study = *Study::Create(PosixFs(), directory, Options("optimizer=adam\nlr=0.02\ncurvature=diag"), model);
    ASSERT_OK(study->Precompute());
  }
  EXPECT_FALSE(std::filesystem::exists(directory + "/runs"));
  std::string text = *PosixFs().ReadFile(directory + "/study.txt");
  EXPECT_THAT(text, HasSubstr("\nprobe_runs=0\n"));
}

}  // namespace
}  // namespace optod::order

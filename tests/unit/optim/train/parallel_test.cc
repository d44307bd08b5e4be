// Several workers on one run, each with parameters of its own: equal bytes after every step, those of one worker up to
// rounding, and of a worker that comes late.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <thread>

#include "base/fs.h"
#include "examples.h"
#include "optim/train/learner.h"
#include "small_models.h"
#include "temp_folder.h"

namespace optod::train {
namespace {

constexpr int64_t kSteps = 8;

TrainSpec Spec(int workers, const std::string& share, const std::string& optimizer) {
  auto spec =
      ParseTrainSpec(R"({"model": "/m", "task": {"name": "sst2", "train": "/a", "dev": "/b"}, "seed": 5, "batch": 4,
    "optimizer": )" + optimizer +
                     R"(, "parallel": {"workers": )" + std::to_string(workers) + R"(, "share": ")" + share + "\"}}");
  EXPECT_TRUE(spec.ok()) << spec.status();
  return *spec;
}

/// A worker: model, engine, learner and folder.
class Worker {
 public:
  /// From the initial parameters and the log of earlier calls to step `until`.
  absl::Status Run(const TrainSpec& spec, std::unique_ptr<ScalarExchange> seat, int64_t until) {
    model_ = nn::RandomModel(nn::kSmallModels[1].config);
    engine_ = *Engine::Create(&model_, {}, 1);
    examples_ = SomeExamples(model_.config);
    examples_.pop_back();
    losses_.clear();
    auto learner = MakeLearner(spec, *engine_, true, folder_.path(), "", seat.get());
    if (!learner.ok()) return learner.status();
    joined_at_ = (*learner)->done();
    for (int64_t step = (*learner)->done(); step < until; ++step) {
      auto outcome = (*learner)->Step(step, Pointers(examples_), 1e-3);
      if (!outcome.ok()) return outcome.status();
      losses_.push_back(outcome->loss);
    }
    return (*learner)->Checkpoint();
  }
  std::vector<float> theta() const { return {engine_->theta().begin(), engine_->theta().end()}; }
  std::string log() const { return *PosixFs().ReadFile(folder_.path() + "/replay.log"); }
  const std::vector<double>& losses() const { return losses_; }
  int64_t joined_at() const { return joined_at_; }

 private:
  nn::TempFolder folder_;
  nn::ModelFiles model_;
  std::unique_ptr<Engine> engine_;
  std::vector<Example> examples_;
  std::vector<double> losses_;
  int64_t joined_at_ = 0;
};

struct Case {
  const char *name, *share, *optimizer;
  int workers;
};
class Parallel : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(
    Shares, Parallel,
    testing::Values(Case{"examples_2", "examples", R"({"name": "zo-sgd", "lr": 1e-3, "weight_decay": 0.1})", 2},
                    Case{"examples_4", "examples", R"({"name": "zo-sgd", "lr": 1e-3})", 4},
                    Case{"examples_q3", "examples", R"({"name": "zo-sgd", "lr": 1e-3, "queries": 3})", 2},
                    Case{"examples_adam", "examples", R"({"name": "zo-adam", "lr": 1e-3})", 2},
                    Case{"queries_3", "queries", R"({"name": "zo-sgd", "lr": 1e-3})", 3},
                    Case{"queries_mmt", "queries", R"({"name": "zo-sgd-mmt", "lr": 1e-4})", 2}),
    [](const auto& info) { return info.param.name; });

TEST_P(Parallel, AllHaveTheBytesOfTheAgreedLogAndTheValuesOfOneWorker) {
  const TrainSpec spec = Spec(GetParam().workers, GetParam().share, GetParam().optimizer);
  ExchangeHub hub(spec.parallel);
  std::vector<Worker> workers(static_cast<size_t>(GetParam().workers));
  std::vector<absl::Status> status(workers.size());
  std::vector<std::thread> threads;
  for (size_t w = 0; w < workers.size(); ++w)
    threads.emplace_back([&, w] { status[w] = workers[w].Run(spec, hub.Seat(static_cast<int>(w)), kSteps); });
  for (std::thread& thread : threads) thread.join();
  for (size_t w = 0; w < workers.size(); ++w) {
    ASSERT_TRUE(status[w].ok()) << status[w];
    EXPECT_EQ(workers[w].theta(), workers[0].theta()) << w;
    EXPECT_EQ(workers[w].log(), workers[0].log()) << w;
  }
  // One worker that does all of it. Losses are means of float32 sums taken in another order: 1e-5 of g, 1e-6 of theta.
  TrainSpec alone = spec;
  alone.parallel.workers = 1;
  if (spec.parallel.share == "queries") alone.hyper["queries"] = static_cast<double>(GetParam().workers);
  Worker one;
  ASSERT_TRUE(one.Run(alone, nullptr, kSteps).ok());
  const std::vector<float> want = one.theta(), got = workers[0].theta();
  for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-4 * (1 + std::fabs(want[i]))) << i;
  for (size_t s = 0; s < one.losses().size() && spec.parallel.share == "examples"; ++s)
    EXPECT_NEAR(workers[0].losses()[s], one.losses()[s], 1e-3);
}

/// One of two goes after 3 steps; the other goes on; a third takes its seat from nothing, replays, and joins.
TEST(Parallel, ALateWorkerCatchesUpByReplay) {
  const TrainSpec spec = Spec(2, "examples", R"({"name": "zo-sgd", "lr": 1e-3})");
  ExchangeHub hub(spec.parallel);
  Worker steady, gone, late;
  absl::Status first, second, third;
  std::thread a([&] { first = steady.Run(spec, hub.Seat(0), 5); });
  std::thread b([&] { second = gone.Run(spec, hub.Seat(1), 3); });
  a.join();
  b.join();
  ASSERT_TRUE(first.ok() && second.ok()) << first << second;
  EXPECT_EQ(hub.agreed().size(), 5u);
  std::thread c([&] { first = steady.Run(spec, hub.Seat(0), kSteps); });
  std::thread d([&] { third = late.Run(spec, hub.Seat(1), kSteps); });
  c.join();
  d.join();
  ASSERT_TRUE(first.ok() && third.ok()) << first << third;
  EXPECT_GE(late.joined_at(), 5);
  EXPECT_EQ(hub.agreed().size(), static_cast<size_t>(kSteps));
  EXPECT_EQ(late.theta(), steady.theta());
  EXPECT_EQ(late.log(), steady.log());
}

TEST(Parallel, NeedsAWayToTheOthers) {
  Worker worker;
  EXPECT_EQ(worker.Run(Spec(2, "examples", R"({"name": "zo-sgd"})"), nullptr, 1).code(),
            absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace optod::train

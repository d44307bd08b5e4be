// The queue: jobs of several workers.
#include "job_queue_testing.h"

namespace optod::jobs {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kTwo[] = R"(, "parallel": {"workers": 2})";

TEST_F(QueueTest, AJobOfTwoWorkersRunsWhenBothAreThereAndSucceedsWhenBothHave) {
  ASSERT_TRUE(Submit("a", kTwo).ok());
  EXPECT_EQ(Show("a").placement().workers(), 2);
  queue_->Tick();
  ASSERT_EQ(launcher_.started.size(), 2u);
  EXPECT_THAT(launcher_.started[1].spec.argv, testing::Contains("--rank"));
  EXPECT_EQ(launcher_.Token(0), launcher_.Token(1));
  FakeChannel channels[2], third;
  ASSERT_TRUE(Attach("a", 0, &channels[1], 1, 1).ok());
  EXPECT_EQ(Show("a").state(), Job::SCHEDULED);
  EXPECT_EQ(Attach("a", 0, &third, 1, 1).status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(Attach("a", 0, &third, 1, 2).status().code(), absl::StatusCode::kInvalidArgument);
  auto task = Attach("a", 0, &channels[0], 1, 0);
  ASSERT_TRUE(task.ok()) << task.status();
  EXPECT_EQ(task->workers(), 2);
  EXPECT_EQ(Show("a").state(), Job::RUNNING);
  v1::WorkerMessage join, progress;
  join.mutable_join();
  progress.mutable_progress()->set_step(7);
  for (FakeChannel& channel : channels) ASSERT_TRUE(queue_->OnMessage(&channel, join).ok());
  for (const FakeChannel& channel : channels) {
    ASSERT_EQ(channel.sent.size(), 1u);
    EXPECT_TRUE(channel.sent[0].has_joined());
  }
  ASSERT_TRUE(queue_->OnMessage(&channels[1], progress).ok());
  EXPECT_EQ(Show("a").step(), 0) << "rank 0 speaks for all";
  Done(&channels[1], absl::StatusCode::kOk);
  launcher_.started[1].on_exit({0, 0});
  EXPECT_EQ(Show("a").state(), Job::RUNNING);
  Silence(29);
  Done(&channels[0], absl::StatusCode::kOk);
  EXPECT_EQ(Show("a").state(), Job::SUCCEEDED);
  EXPECT_EQ(Show("a").result_json(), "{\"best_score\": 1}");
}

TEST_F(QueueTest, TheEndOfOneWorkerEndsTheAttemptOfAll) {
  ASSERT_TRUE(Submit("a", kTwo).ok());
  queue_->Tick();
  FakeChannel channels[2], late;
  for (int r : {0, 1}) ASSERT_TRUE(Attach("a", 0, &channels[r], 1, r).ok());
  queue_->Detach(&channels[1]);
  launcher_.started[1].on_exit({-1, SIGKILL});
  EXPECT_EQ(Show("a").state(), Job::QUEUED);
  EXPECT_THAT(Show("a").reason(), HasSubstr("worker of attempt 1 (rank 1) killed by signal 9"));
  EXPECT_TRUE(launcher_.started[0].killed);
  EXPECT_EQ(queue_->OnMessage(&channels[0], Beat()).code(), absl::StatusCode::kAborted);
  launcher_.started[0].on_exit({-1, SIGKILL});
  queue_->Tick();
  ASSERT_EQ(launcher_.started.size(), 4u);
  EXPECT_EQ(Attach("a", 0, &late, 1, 0).status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(Attach("a", 0, &late, 2, 0).status().code(), absl::StatusCode::kUnauthenticated);
  for (int r : {0, 1}) EXPECT_TRUE(Attach("a", 2, &channels[r], 2, r).ok());
}

TEST_F(QueueTest, ASilentRankIsNamedAndAllAreKilled) {
  ASSERT_TRUE(Submit("a", kTwo).ok());
  queue_->Tick();
  FakeChannel channels[2];
  for (int r : {0, 1}) ASSERT_TRUE(Attach("a", 0, &channels[r], 1, r).ok());
  for (int i = 0; i < 2; ++i) {
    Silence(16);
    (void)queue_->OnMessage(&channels[0], Beat());
  }
  for (const auto& started : launcher_.started) EXPECT_TRUE(started.killed);
  launcher_.started[0].on_exit({-1, SIGKILL});
  EXPECT_THAT(Show("a").reason(), HasSubstr("(rank 1) said nothing for 31 s"));
}

TEST_F(QueueTest, WhatIsWrongBetweenTheWorkersFailsTheJob) {
  const auto result = [](const char* hash) {
    v1::WorkerMessage done;
    done.mutable_done()->set_result_json(std::string(R"({"parameters_sha256": ")") + hash + "\"}");
    return done;
  };
  v1::WorkerMessage early;
  early.mutable_exchange();
  v1::WorkerMessage wrong;
  wrong.mutable_done()->set_code(static_cast<int>(absl::StatusCode::kInvalidArgument));
  wrong.mutable_done()->set_message("task.train: no rows");
  const std::tuple<const char*, std::vector<v1::WorkerMessage>, const char*> cases[] = {
      {"bytes", {result("aa"), result("bb")}, "parameters of rank 1 (bb) differ from rank 0's (aa)"},
      {"order", {Beat(), early}, "exchange: rank 1 tells step 0; step -1 is under way"},
      {"input", {Beat(), wrong}, "task.train: no rows"}};
  size_t launched = 0;
  for (const auto& [id, said, reason] : cases) {
    ASSERT_TRUE(Submit(id, kTwo).ok());
    queue_->Tick();
    FakeChannel channels[2];
    for (int r : {0, 1}) ASSERT_TRUE(Attach(id, launched, &channels[r], 1, r).ok());
    for (size_t r : {0, 1}) (void)queue_->OnMessage(&channels[r], said[r]);
    EXPECT_EQ(Show(id).state(), Job::FAILED);
    EXPECT_EQ(Show(id).reason(), reason);
    for (size_t r : {0, 1}) EXPECT_TRUE(launcher_.started[launched + r].killed) << "nothing is left of it";
    launched += 2;
  }
}

TEST_F(QueueTest, CancelReachesAllWorkers) {
  ASSERT_TRUE(Submit("a", kTwo).ok());
  queue_->Tick();
  FakeChannel channels[2];
  for (int r : {0, 1}) ASSERT_TRUE(Attach("a", 0, &channels[r], 1, r).ok());
  ASSERT_TRUE(queue_->Cancel("u", "a").ok());
  for (const FakeChannel& channel : channels) EXPECT_TRUE(channel.sent.at(0).has_stop());
  Done(&channels[1], absl::StatusCode::kCancelled);
  EXPECT_EQ(Show("a").state(), Job::CANCELLED);
}

TEST_F(QueueTest, AWorkerThatCannotStartFailsTheJob) {
  launcher_.fail = absl::NotFoundError("worker: cannot be started: No such file or directory");
  ASSERT_TRUE(Submit("a").ok());
  queue_->Tick();
  EXPECT_EQ(Show("a").state(), Job::FAILED);
}

}  // namespace
}  // namespace optod::jobs

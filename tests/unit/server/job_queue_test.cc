// The queue: order, attempts, fencing, limits, what survives a restart.
#include "job_queue_testing.h"

namespace optod::jobs {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST_F(QueueTest, EveryAttemptIsToldOnceWithItsWallTime) {
  std::vector<std::pair<std::string, int64_t>> told;
  options_.on_attempt_end = [&](const std::string& user, int64_t wall_ms) { told.emplace_back(user, wall_ms); };
  Restart();
  ASSERT_TRUE(Submit("a").ok());
  queue_->Tick();
  clock_.Advance(std::chrono::seconds(3));
  launcher_.started[0].on_exit({-1, SIGKILL});  // dies without a word
  queue_->Tick();
  FakeChannel channel;
  ASSERT_TRUE(Attach("a", 1, &channel, 2).ok());
  clock_.Advance(std::chrono::seconds(5));
  Done(&channel, absl::StatusCode::kOk);
  clock_.Advance(std::chrono::seconds(7));
  launcher_.started[1].on_exit({0, 0});
  EXPECT_EQ(told, (std::vector<std::pair<std::string, int64_t>>{{"u", 3000}, {"u", 5000}}));
}

TEST_F(QueueTest, AJobRunsFromSubmitToSuccess) {
  auto job = Submit("a");
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->state(), Job::QUEUED);
  EXPECT_EQ(job->total_steps(), 10);
  queue_->Tick();
  EXPECT_EQ(Show("a").state(), Job::SCHEDULED);
  EXPECT_THAT(launcher_.started[0].spec.argv, ElementsAre("/bin/optod-worker", "attach", "--server", "unix:/s", "--job",
                                                          "users/u/jobs/a", "--attempt", "1"));
  FakeChannel channel;
  auto task = Attach("a", 0, &channel);
  ASSERT_TRUE(task.ok()) << task.status();
  EXPECT_THAT(task->folder(), HasSubstr("/jobs/u/a/work"));
  v1::WorkerMessage progress;
  progress.mutable_progress()->set_step(4);
  (*progress.mutable_progress()->mutable_metrics())["loss"] = 0.5;
  EXPECT_TRUE(queue_->OnMessage(&channel, progress).ok());
  EXPECT_EQ(Show("a").state(), Job::RUNNING);
  EXPECT_EQ(Show("a").progress(), 0.4);
  EXPECT_EQ(Show("a").metrics().at("loss"), 0.5);
  Done(&channel, absl::StatusCode::kOk);
  launcher_.started[0].on_exit({0, 0});
  EXPECT_EQ(Show("a").state(), Job::SUCCEEDED);
  EXPECT_EQ(Show("a").result_json(), "{\"best_score\": 1}");
  bool ended = false;
  auto events = queue_->Events("u", "a", 0, 100, &ended);
  EXPECT_TRUE(ended);
  EXPECT_EQ(events->size(), 5u);  // queued, scheduled, running, progress, succeeded
}

// Memory is said by GetJob alone: a model has hundreds of tensors. A new attempt starts without it.
TEST_F(QueueTest, MemoryIsOfTheNewestAttemptAndNotInListsAndEvents) {
  ASSERT_TRUE(Submit("a").ok());
  queue_->Tick();
  FakeChannel channel;
  ASSERT_TRUE(Attach("a", 0, &channel).ok());
  v1::WorkerMessage memory, progress;
  memory.mutable_memory()->set_peak_bytes(77);
  memory.mutable_memory()->add_tensors()->set_name("w");
  progress.mutable_progress()->set_step(4);
  ASSERT_TRUE(queue_->OnMessage(&channel, memory).ok());
  ASSERT_TRUE(queue_->OnMessage(&channel, progress).ok());
  EXPECT_EQ(Show("a").memory().peak_bytes(), 77u);
  EXPECT_EQ(Show("a").memory().tensors(0).name(), "w");
  EXPECT_FALSE(queue_->List("u").at(0).has_memory());
  bool ended = false;
  const std::vector<v1::JobEvent> events = *queue_->Events("u", "a", 0, 100, &ended);
  EXPECT_FALSE(events.empty());
  for (const v1::JobEvent& event : events) EXPECT_FALSE(event.job().has_memory());
  queue_->Detach(&channel);
  launcher_.started[0].on_exit({-1, SIGKILL});
  queue_->Tick();
  ASSERT_EQ(Show("a").attempt(), 2);
  EXPECT_FALSE(Show("a").has_memory());
}

TEST_F(QueueTest, OrderIsPriorityThenFairnessThenAge) {
  ASSERT_TRUE(Submit("old").ok());
  ASSERT_TRUE(Submit("other", "", "v").ok());
  ASSERT_TRUE(Submit("urgent", R"(, "priority": 5)").ok());
  EXPECT_EQ(Show("urgent").queue_position(), 1);
  options_.max_workers = 2;
  Restart();
  queue_->Tick();
  EXPECT_THAT(Launched(), ElementsAre("urgent", "other"));  // u has one running already
}

TEST_F(QueueTest, OneWorkerAtATime) {
  ASSERT_TRUE(Submit("a").ok() && Submit("b").ok());
  queue_->Tick();
  queue_->Tick();
  EXPECT_THAT(Launched(), ElementsAre("a"));
  FakeChannel channel;
  ASSERT_TRUE(Attach("a", 0, &channel).ok());
  Done(&channel, absl::StatusCode::kOk);
  queue_->Tick();
  EXPECT_THAT(Launched(), ElementsAre("a", "b"));
}

TEST_F(QueueTest, AnErrorOfTheWorkerHasTheLastWord) {
  ASSERT_TRUE(Submit("a").ok());
  queue_->Tick();
  FakeChannel channel;
  ASSERT_TRUE(Attach("a", 0, &channel).ok());
  Done(&channel, absl::StatusCode::kInvalidArgument, "task.train: line 2: label \"x\" is not one of 0, 1");
  EXPECT_EQ(Show("a").state(), Job::FAILED);
  EXPECT_EQ(Show("a").reason(), "task.train: line 2: label \"x\" is not one of 0, 1");
}

TEST_F(QueueTest, ADeadWorkerIsReplacedAndTheOldOneFencedOff) {
  ASSERT_TRUE(Submit("a").ok());
  queue_->Tick();
  FakeChannel first;
  ASSERT_TRUE(Attach("a", 0, &first).ok());
  queue_->Detach(&first);
  launcher_.started[0].on_exit({-1, SIGKILL});
  EXPECT_EQ(Show("a").state(), Job::QUEUED);
  EXPECT_THAT(Show("a").reason(), HasSubstr("killed by signal 9 (Killed)"));
  queue_->Tick();
  ASSERT_EQ(launcher_.started.size(), 2u);
  FakeChannel late, second;
  EXPECT_EQ(Attach("a", 0, &late, 1).status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(Attach("a", 0, &late, 2).status().code(), absl::StatusCode::kUnauthenticated);
  auto task = Attach("a", 1, &second, 2);
  ASSERT_TRUE(task.ok()) << task.status();
  EXPECT_EQ(task->attempt(), 2);
}

TEST_F(QueueTest, ThreeCrashesAreEnough) {
  ASSERT_TRUE(Submit("a").ok());
  for (size_t i = 0; i < 3; ++i) {
    queue_->Tick();
    ASSERT_EQ(launcher_.started.size(), i + 1);
    launcher_.started[i].on_exit({-1, SIGSEGV});
  }
  EXPECT_EQ(Show("a").state(), Job::FAILED);
  EXPECT_THAT(Show("a").reason(), HasSubstr("3 attempts ended so"));
  auto resumed = queue_->Resume("u", "a");
  ASSERT_TRUE(resumed.ok());
  EXPECT_EQ(resumed->state(), Job::QUEUED);
  queue_->Tick();
  EXPECT_EQ(Show("a").attempt(), 4);
}

TEST_F(QueueTest, ASilentWorkerIsKilledAndReplaced) {
  ASSERT_TRUE(Submit("a").ok());
  queue_->Tick();
  FakeChannel channel;
  ASSERT_TRUE(Attach("a", 0, &channel).ok());
  Silence(29);
  EXPECT_TRUE(queue_->OnMessage(&channel, Beat()).ok());
  Silence(29);
  EXPECT_FALSE(launcher_.started[0].killed);
  Silence(2);
  EXPECT_TRUE(launcher_.started[0].killed);
  launcher_.started[0].on_exit({-1, SIGKILL});
  EXPECT_EQ(Show("a").state(), Job::QUEUED);
  EXPECT_THAT(Show("a").reason(), HasSubstr("said nothing for 31 s"));
}

TEST_F(QueueTest, WhatAReplacedWorkerStillSaysDoesNotCount) {
  ASSERT_TRUE(Submit("a").ok());
  queue_->Tick();
  FakeChannel old, now;
  ASSERT_TRUE(Attach("a", 0, &old).ok());
  Silence(31);
  launcher_.started[0].on_exit({-1, SIGKILL});
  queue_->Tick();
  ASSERT_TRUE(Attach("a", 1, &now, 2).ok());
  v1::WorkerMessage progress, checkpoint, done;
  progress.mutable_progress()->set_step(9);
  checkpoint.mutable_checkpoint()->set_step(9);
  done.mutable_done()->set_result_json("{}");
  for (const v1::WorkerMessage& late : {progress, checkpoint, done, Beat()})
    EXPECT_EQ(queue_->OnMessage(&old, late).code(), absl::StatusCode::kAborted);
  queue_->Detach(&old);  // its stream ends: the new one's must not
  EXPECT_EQ(Show("a").state(), Job::RUNNING);
  EXPECT_EQ(Show("a").step(), 0);
  EXPECT_EQ(Show("a").checkpoint_step(), 0);
  EXPECT_TRUE(queue_->OnMessage(&now, progress).ok());
  EXPECT_EQ(Show("a").step(), 9);
}

TEST_F(QueueTest, AWorkerThatDoesNotEvenDieIsFencedOff) {
  ASSERT_TRUE(Submit("a").ok());
  queue_->Tick();
  FakeChannel old;
  ASSERT_TRUE(Attach("a", 0, &old).ok());
  Silence(31);
  EXPECT_TRUE(launcher_.started[0].killed);
  Silence(9);
  EXPECT_EQ(launcher_.started.size(), 1u);
  Silence(2);  // no exit was reported
  ASSERT_EQ(launcher_.started.size(), 2u);
  EXPECT_EQ(queue_->OnMessage(&old, Beat()).code(), absl::StatusCode::kAborted);
  launcher_.started[0].on_exit({-1, SIGKILL});  // at last
  EXPECT_EQ(Show("a").state(), Job::SCHEDULED);
  EXPECT_EQ(Show("a").attempt(), 2);
}

TEST_F(QueueTest, TimeInWhichTheServerStoodStillIsNoSilence) {
  ASSERT_TRUE(Submit("a").ok());
  queue_->Tick();
  FakeChannel channel;
  ASSERT_TRUE(Attach("a", 0, &channel).ok());
  Silence(20);
  clock_.Advance(std::chrono::hours(8));
  queue_->Tick();
  Silence(9);
  EXPECT_FALSE(launcher_.started[0].killed);
  Silence(2);
  EXPECT_TRUE(launcher_.started[0].killed);
}

TEST_F(QueueTest, ACopyShowsWhatHadEndedAndGoesOnWithTheRest) {
  options_.max_workers = 2;
  Restart();
  ASSERT_TRUE(Submit("done").ok());
  queue_->Tick();
  FakeChannel first, second;
  auto task = Attach("done", 0, &first);
  ASSERT_TRUE(task.ok());
  std::filesystem::create_directories(task->folder() + "/attempt-1");
  ASSERT_TRUE(PosixFs().WriteFileAtomic(task->folder() + "/attempt-1/replay.log", BytesOf("steps")).ok());
  Done(&first, absl::StatusCode::kOk);
  ASSERT_TRUE(Submit("runs").ok() && Submit("waits", R"(, "after": "runs")").ok());
  queue_->Tick();
  ASSERT_TRUE(Attach("runs", 1, &second).ok());

  auto copied = queue_->CopyTo(root_ + "/copy/jobs");
  ASSERT_TRUE(copied.ok()) << copied.status();
  EXPECT_EQ(copied->jobs, 3);
  JobQueue restored(options_, JobFiles(PosixFs(), root_ + "/copy/jobs"), launcher_, clock_);
  ASSERT_TRUE(restored.Load().ok());
  EXPECT_EQ(restored.Get("u", "done")->state(), Job::SUCCEEDED);
  EXPECT_EQ(restored.Get("u", "done")->result_json(), "{\"best_score\": 1}");
  EXPECT_EQ(PosixFs().ReadFile(root_ + "/copy/jobs/u/done/work/attempt-1/replay.log").value_or(""), "steps");
  EXPECT_EQ(restored.Get("u", "runs")->state(), Job::QUEUED);
  EXPECT_EQ(restored.Get("u", "waits")->state(), Job::QUEUED);
  bool ended = false;
  EXPECT_GE(restored.Events("u", "done", 0, 100, &ended)->size(), 3u);
  EXPECT_TRUE(ended);
}

TEST_F(QueueTest, WallLimit) {
  ASSERT_TRUE(Submit("a", R"(, "limits": {"wall": "1m", "memory": "2GiB", "cpus": 1})").ok());
  queue_->Tick();
  EXPECT_THAT(launcher_.started[0].spec.environment, testing::Contains(testing::Pair("OPTOD_WORKER_MEMORY", "2147483648")));
  FakeChannel channel;
  ASSERT_TRUE(Attach("a", 0, &channel).ok());
  for (int i = 0; i < 3; ++i) {
    clock_.Advance(std::chrono::seconds(21));
    EXPECT_TRUE(queue_->OnMessage(&channel, Beat()).ok());
  }
  queue_->Tick();
  EXPECT_TRUE(launcher_.started[0].killed);
  launcher_.started[0].on_exit({-1, SIGKILL});
  EXPECT_EQ(Show("a").state(), Job::FAILED);
  EXPECT_EQ(Show("a").reason(), "limits.wall: 60 s are over");
}

TEST_F(QueueTest, AWorkerThatDiesBeforeItBeginsSaysSo) {
  ASSERT_TRUE(Submit("a").ok());
  queue_->Tick();
  launcher_.started[0].on_exit({-1, SIGABRT});
  EXPECT_THAT(Show("a").reason(), HasSubstr("before it began"));
}

TEST_F(QueueTest, CancelBeforeAndDuring) {
  ASSERT_TRUE(Submit("a").ok() && Submit("b").ok());
  EXPECT_EQ(queue_->Cancel("u", "b")->state(), Job::CANCELLED);
  queue_->Tick();
  FakeChannel channel;
  ASSERT_TRUE(Attach("a", 0, &channel).ok());
  ASSERT_TRUE(queue_->Cancel("u", "a").ok());
  ASSERT_EQ(channel.sent.size(), 1u);
  EXPECT_TRUE(channel.sent[0].has_stop());
  Done(&channel, absl::StatusCode::kCancelled);
  EXPECT_EQ(Show("a").state(), Job::CANCELLED);
  EXPECT_EQ(queue_->Cancel("u", "a")->state(), Job::CANCELLED);  // again: nothing happens
}

TEST_F(QueueTest, AWorkerThatDoesNotStopIsKilled) {
  ASSERT_TRUE(Submit("a").ok());
  queue_->Tick();
  FakeChannel channel;
  ASSERT_TRUE(Attach("a", 0, &channel).ok());
  ASSERT_TRUE(queue_->Cancel("u", "a").ok());
  clock_.Advance(std::chrono::seconds(11));
  queue_->Tick();
  EXPECT_TRUE(launcher_.started[0].killed);
  launcher_.started[0].on_exit({-1, SIGKILL});
  EXPECT_EQ(Show("a").state(), Job::CANCELLED);
}

TEST_F(QueueTest, ARestartQueuesWhatWasUnderWay) {
  ASSERT_TRUE(Submit("a").ok() && Submit("b").ok());
  queue_->Tick();
  FakeChannel channel;
  ASSERT_TRUE(Attach("a", 0, &channel).ok());
  Restart();
  EXPECT_EQ(Show("a").state(), Job::QUEUED);
  EXPECT_THAT(Show("a").reason(), HasSubstr("the server was restarted"));
  EXPECT_EQ(Show("b").state(), Job::QUEUED);
  FakeChannel late;
  EXPECT_EQ(Attach("a", 0, &late).status().code(), absl::StatusCode::kAborted);
  queue_->Tick();
  EXPECT_EQ(Show("a").attempt(), 2);
  bool ended;
  EXPECT_GE(queue_->Events("u", "a", 0, 100, &ended)->size(), 5u);  // those of before, too
}

TEST_F(QueueTest, ShutdownStopsWorkersAndKeepsTheirJobs) {
  ASSERT_TRUE(Submit("a").ok());
  queue_->Tick();
  FakeChannel channel;
  ASSERT_TRUE(Attach("a", 0, &channel).ok());
  queue_->Shutdown(100);
  ASSERT_EQ(channel.sent.size(), 1u);
  EXPECT_TRUE(launcher_.started[0].killed);
  EXPECT_EQ(Show("a").state(), Job::QUEUED);
  EXPECT_EQ(Submit("b").status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(QueueTest, JobsAfterOthers) {
  ASSERT_TRUE(Submit("a").ok());
  ASSERT_TRUE(Submit("b", R"(, "after": ["a"], "priority": 9)").ok());
  EXPECT_EQ(Submit("c", R"(, "after": ["x"])").status().message(), "after: no job x");
  queue_->Tick();
  EXPECT_THAT(Launched(), ElementsAre("a"));
  FakeChannel channel;
  ASSERT_TRUE(Attach("a", 0, &channel).ok());
  Done(&channel, absl::StatusCode::kInternal, "no");
  queue_->Tick();
  EXPECT_EQ(Show("b").state(), Job::FAILED);
  EXPECT_EQ(Show("b").reason(), "job a, which comes before, did not succeed");
}

TEST_F(QueueTest, ARetryGetsTheSameJob) {
  v1::CreateJobRequest request;
  request.set_request_id("r");
  request.mutable_job()->set_spec_json(std::string(kSpec) + "}");
  const std::string name = queue_->Create("u", request)->name();
  EXPECT_EQ(queue_->Create("u", request)->name(), name);
  Restart();
  EXPECT_EQ(queue_->Create("u", request)->name(), name);
  request.set_job_id("other");
  EXPECT_EQ(queue_->Create("u", request).status().code(), absl::StatusCode::kAborted);
}

TEST_F(QueueTest, RefusesWhatCannotRun) {
  const std::pair<const char*, const char*> cases[] = {
      {R"(, "priority": 101)", "priority: 101 must lie in -100 to 100"},
      {R"(, "limits": {"memory": "lots"})", "limits.memory: \"lots\" is not a size"},
      {R"(, "limits": {"wall": "soon"})", "limits.wall: \"soon\" is not a time"},
      {R"(, "limits": {"gpus": 1})", "limits: unknown field \"gpus\""},
      {R"(, "batch": 0)", "batch: 0 must be >= 1"},
      {R"(, "batch": 16, "parallel": {"workers": 16})", "parallel.workers: 16 is over the 8 processes"},
      {R"(, "batch": 16, "parallel": {"workers": 3})", "parallel.workers: 3 does not divide batch 16"}};
  for (const auto& [more, message] : cases)
    EXPECT_THAT(std::string(Submit("a", more).status().message()), HasSubstr(message));
  EXPECT_EQ(Submit("Bad").status().code(), absl::StatusCode::kInvalidArgument);
  options_.file_roots = {"/elsewhere"};
  Restart();
  EXPECT_EQ(Submit("a").status().code(), absl::StatusCode::kPermissionDenied);
  options_.worker = "";
  Restart();
  EXPECT_EQ(PayloadOf(Submit("a").status(), kReasonUrl), "NO_WORKER");
}

TEST_F(QueueTest, RefusesAPlacementThatTheJobWouldNotGet) {
  const std::pair<std::function<void(Job*)>, const char*> cases[] = {
      {[](Job* job) { job->mutable_placement()->set_backend("cuda"); }, "job.placement.backend: \"cuda\" is not part"},
      {[](Job* job) { job->mutable_placement()->set_engine("slurm"); }, "job.placement.engine: \"slurm\" is not part"},
      {[](Job* job) { job->mutable_placement()->set_gpus(1); }, "job.placement.gpus: 1; jobs of this release run on CPUs"},
      {[](Job* job) { job->mutable_placement()->set_partition("p"); }, "job.placement.partition: \"p\"; there are none"},
      {[](Job* job) { job->mutable_placement()->set_cpus(4); }, "job.placement.cpus: 4 is not the job file's limits.cpus (2)"},
      {[](Job* job) { job->mutable_placement()->set_workers(4); }, "job.placement.workers: 4 is not the job file's parallel.workers (1)"},
      {[](Job* job) { job->mutable_budget()->set_max_steps(4); }, "job.budget: jobs have limits.wall"}};
  for (const auto& [change, message] : cases) {
    v1::CreateJobRequest request;
    request.mutable_job()->set_spec_json(kSpec + std::string(R"(, "limits": {"cpus": 2}})"));
    change(request.mutable_job());
    EXPECT_THAT(std::string(queue_->Create("u", request).status().message()), HasSubstr(message));
  }
}

/// A new attempt is told which losses were heard: those of its log after them are lost else.
TEST_F(QueueTest, AnAttemptLearnsUpToWhichStepLossesWereHeard) {
  ASSERT_TRUE(Submit("a").ok());
  queue_->Tick();
  FakeChannel channel;
  auto task = Attach("a", 0, &channel);
  ASSERT_TRUE(task.ok()) << task.status();
  EXPECT_EQ(task->told_step(), 0);
  for (const auto& [step, name] : {std::pair(3, "loss"), {4, "loss/dev"}}) {
    v1::WorkerMessage message;
    message.mutable_progress()->set_step(step);
    (*message.mutable_progress()->mutable_metrics())[name] = 0.5;
    ASSERT_TRUE(queue_->OnMessage(&channel, message).ok());
  }
  Restart();  // events are on disk
  queue_->Tick();
  task = Attach("a", launcher_.started.size() - 1, &channel, 2);
  ASSERT_TRUE(task.ok()) << task.status();
  EXPECT_EQ(task->told_step(), 3);
}

}  // namespace
}  // namespace optod::jobs

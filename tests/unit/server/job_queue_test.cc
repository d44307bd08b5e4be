// The queue with a launcher and a clock of its own: order, attempts, fencing, limits, several workers, what survives a
// restart.
#include "server/jobs/job_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>

#include "base/reason.h"

namespace optod::jobs {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using v1::Job;

constexpr char kSpec[] =
    R"({"kind": "finetune", "model": "/data/m", "steps": 10, "optimizer": {"name": "zo-sgd", "lr": 1e-6},
  "task": {"name": "sst2", "train": "/data/a", "dev": "/data/b"})";

class FakeLauncher final : public Launcher {
 public:
  struct Started {
    LaunchSpec spec;
    std::function<void(ExitStatus)> on_exit;
    bool killed = false;
  };
  absl::StatusOr<int64_t> Launch(const LaunchSpec& spec, std::function<void(ExitStatus)> on_exit) override {
    if (!fail.ok()) return fail;
    started.push_back({spec, std::move(on_exit)});
    return static_cast<int64_t>(started.size());
  }
  void Kill(int64_t handle) override { started[static_cast<size_t>(handle) - 1].killed = true; }
  std::string Token(size_t i) const {
    for (const auto& [name, value] : started[i].spec.environment) {
      if (name == "OPTOD_WORKER_TOKEN") return value;
    }
    return "";
  }
  std::vector<Started> started;
  absl::Status fail;
};

class FakeChannel final : public WorkerChannel {
 public:
  void Send(const v1::ServerMessage& message) override { sent.push_back(message); }
  std::vector<v1::ServerMessage> sent;
};

class QueueTest : public testing::Test {
 protected:
  QueueTest() {
    std::string name = (std::filesystem::temp_directory_path() / "optod-jobs-XXXXXX").string();
    root_ = mkdtemp(name.data());
    options_.worker = "/bin/optod-worker";
    Restart();
  }
  ~QueueTest() override { std::filesystem::remove_all(root_); }
  void Restart() {
    queue_.reset();
    queue_ = std::make_unique<JobQueue>(options_, JobFiles(PosixFs(), root_ + "/jobs"), launcher_, clock_);
    ASSERT_TRUE(queue_->Load().ok());
    queue_->Start("unix:/s");
  }
  absl::StatusOr<Job> Submit(const std::string& id, const std::string& more = "", const std::string& user = "u") {
    clock_.Advance(std::chrono::milliseconds(1));
    v1::CreateJobRequest request;
    request.set_job_id(id);
    request.mutable_job()->set_spec_json(kSpec + more + "}");
    return queue_->Create(user, request);
  }
  Job Show(const std::string& id, const std::string& user = "u") { return *queue_->Get(user, id); }
  absl::StatusOr<v1::WorkerTask> Attach(const std::string& id, size_t started, FakeChannel* channel, int attempt = 1,
                                        int rank = 0) {
    v1::WorkerHello hello;
    hello.set_job("users/u/jobs/" + id);
    hello.set_attempt(attempt);
    hello.set_token(launcher_.Token(started));
    hello.set_rank(rank);
    return queue_->Attach(hello, channel);
  }
  void Done(FakeChannel* channel, absl::StatusCode code, const std::string& message = "") {
    v1::WorkerMessage done;
    done.mutable_done()->set_code(static_cast<int>(code));
    done.mutable_done()->set_message(message);
    done.mutable_done()->set_result_json("{\"best_score\": 1}");
    (void)queue_->OnMessage(channel, done);
    queue_->Detach(channel);
  }
  static v1::WorkerMessage Beat() {
    v1::WorkerMessage beat;
    beat.mutable_heartbeat();
    return beat;
  }
  /// Seconds with a tick each, in which no worker says anything.
  void Silence(int seconds) {
    for (int i = 0; i < seconds; ++i) {
      clock_.Advance(std::chrono::seconds(1));
      queue_->Tick();
    }
  }
  std::vector<std::string> Launched() const {
    std::vector<std::string> names;
    for (const auto& s : launcher_.started) names.push_back(s.spec.argv[5].substr(s.spec.argv[5].rfind('/') + 1));
    return names;
  }

  std::string root_;
  QueueOptions options_;
  FakeLauncher launcher_;
  FakeClock clock_;
  std::unique_ptr<JobQueue> queue_;
};

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
  for (const v1::JobEvent& event : *queue_->Events("u", "a", 0, 100, &ended)) EXPECT_FALSE(event.job().has_memory());
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
  EXPECT_EQ(launcher_.started[0].spec.memory_bytes, int64_t{2} << 30);
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

TEST_F(QueueTest, AWorkerThatDiesBeforeItBeginsSaysWhatMayBeWrong) {
  ASSERT_TRUE(Submit("a", R"(, "limits": {"memory": "24MiB"})").ok());
  queue_->Tick();
  launcher_.started[0].on_exit({-1, SIGABRT});
  EXPECT_THAT(Show("a").reason(),
              HasSubstr("before it began (limits.memory: 24 MiB may be too little for the program itself)"));
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

// ---- several workers

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

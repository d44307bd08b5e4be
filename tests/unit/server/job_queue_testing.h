#pragma once
/// A queue with a launcher and a clock of its own.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>

#include "base/reason.h"
#include "server/jobs/job_queue.h"

namespace optod::jobs {

using v1::Job;

inline constexpr char kSpec[] =
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

}  // namespace optod::jobs

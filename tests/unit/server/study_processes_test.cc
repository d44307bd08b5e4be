// Processes that answer questions about studies, with a launcher that serves in this process: started once, again after
// any end, the longest idle one gives way, a busy one never, and every end is said.
#include "server/services/study_processes.h"

#include <grpcpp/grpcpp.h>

#include <csignal>
#include <deque>
#include <filesystem>
#include <fstream>

#include "base/random_id.h"
#include "base/reason.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace optod::services {
namespace {

using testing::HasSubstr;

/// Answers GetStudy with its own name.
class Answers final : public v1::OrderService::Service {
 public:
  explicit Answers(std::string name) : name_(std::move(name)) {}
  grpc::Status GetStudy(grpc::ServerContext*, const v1::GetStudyRequest*, v1::OrderStudy* response) override {
    response->set_study(name_);
    return grpc::Status::OK;
  }

 private:
  const std::string name_;
};

class FakeLauncher final : public jobs::Launcher {
 public:
  struct Started {
    jobs::LaunchSpec spec;
    std::function<void(jobs::ExitStatus)> on_exit;
    std::unique_ptr<Answers> answers;
    std::unique_ptr<grpc::Server> server;
    bool killed = false;
  };

  absl::StatusOr<int64_t> Launch(const jobs::LaunchSpec& spec, std::function<void(jobs::ExitStatus)> on_exit) override {
    if (!refused.ok()) return refused;
    Started& s = started.emplace_back();
    s.spec = spec;
    s.on_exit = std::move(on_exit);
    if (!words.empty()) {
      std::ofstream(spec.log_path) << "some library says hello\noptod-worker: " << words << "\n";
      s.on_exit({1, 0});
      return static_cast<int64_t>(started.size());
    }
    s.answers = std::make_unique<Answers>(spec.argv[7]);
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + spec.argv[5], grpc::InsecureServerCredentials());
    builder.RegisterService(s.answers.get());
    s.server = builder.BuildAndStart();
    return static_cast<int64_t>(started.size());
  }
  void Kill(int64_t handle) override { End(static_cast<size_t>(handle - 1), {-1, SIGKILL}); }
  void End(size_t number, jobs::ExitStatus exit) {
    Started& s = started[number];
    if (s.killed) return;
    s.killed = true;
    s.server.reset();
    s.on_exit(exit);
  }

  absl::Status refused;
  std::string words;  // said by every process before it ends at its start; "" = it serves
  std::deque<Started> started;
};

class StudyProcessesTest : public testing::Test {
 protected:
  StudyProcessesTest() : root_("/tmp/optod-sp-" + RandomId().substr(0, 8)) {
    std::filesystem::create_directories(root_);
    options_.worker = "/bin/optod-worker";
    options_.socket_root = root_;
    options_.most = 2;
    processes_ = std::make_unique<StudyProcesses>(options_, launcher_);
  }
  ~StudyProcessesTest() override {
    processes_.reset();
    std::filesystem::remove_all(root_);
  }
  absl::StatusOr<StudyLease> Acquire(const std::string& name) { return processes_->Acquire(name, root_, 0); }
  /// Who answers, or why nobody does.
  static std::string Ask(StudyLease& lease) {
    grpc::ClientContext context;
    v1::OrderStudy study;
    const absl::Status status = lease.Explain(lease->stub->GetStudy(&context, {}, &study));
    return status.ok() ? study.study() : std::string(status.message());
  }

  const std::string root_;
  StudyProcessOptions options_;
  FakeLauncher launcher_;
  std::unique_ptr<StudyProcesses> processes_;
};

TEST_F(StudyProcessesTest, OneProcessAStudyInAPrivateFolder) {
  for (int i = 0; i < 3; ++i) {
    auto lease = Acquire("users/u/jobs/a");
    ASSERT_TRUE(lease.ok()) << lease.status();
    EXPECT_EQ(Ask(*lease), "users/u/jobs/a");
  }
  ASSERT_EQ(launcher_.started.size(), 1u);
  const auto& argv = launcher_.started[0].spec.argv;
  EXPECT_THAT(argv, testing::ElementsAre("/bin/optod-worker", "order-serve", "--folder", root_, "--socket", testing::_,
                                         "--name", "users/u/jobs/a", "--idle-seconds", "300"));
  const auto folder = std::filesystem::path(argv[5]).parent_path();
  EXPECT_EQ(std::filesystem::status(folder).permissions(), std::filesystem::perms::owner_all);
}

TEST_F(StudyProcessesTest, AnEndIsSaidAndTheNextQuestionStartsAnother) {
  for (const auto& [exit, how] :
       {std::pair{jobs::ExitStatus{-1, SIGKILL}, "killed by signal 9"},
        std::pair{jobs::ExitStatus{3, 0}, "ended with code 3"}, std::pair{jobs::ExitStatus{0, 0}, "(idle)"}}) {
    auto lease = Acquire("a");
    ASSERT_TRUE(lease.ok()) << lease.status();
    launcher_.End(launcher_.started.size() - 1, exit);
    EXPECT_THAT(Ask(*lease), testing::AllOf(HasSubstr("study: its process is gone"), HasSubstr(how)));
    EXPECT_EQ((*lease)->EndedByItself(), exit.signal == 0 && exit.code == 0);
  }
  EXPECT_EQ(launcher_.started.size(), 3u);
}

TEST_F(StudyProcessesTest, TheLongestIdleGivesWayABusyOneDoesNot) {
  ASSERT_TRUE(Acquire("a").ok());
  ASSERT_TRUE(Acquire("b").ok());
  ASSERT_TRUE(Acquire("a").ok());
  ASSERT_TRUE(Acquire("c").ok());  // b was asked longest ago
  EXPECT_FALSE(launcher_.started[0].killed);
  EXPECT_TRUE(launcher_.started[1].killed);
  auto busy_a = Acquire("a"), busy_c = Acquire("c");
  ASSERT_TRUE(busy_a.ok() && busy_c.ok());
  const auto refused = Acquire("b");
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("2 other studies are being asked"));
  EXPECT_EQ(Ask(*busy_a), "a");
}

TEST_F(StudyProcessesTest, WhatItSaysAtItsStartIsTheAnswer) {
  launcher_.words = "model: no such file";
  const auto failed = Acquire("a");
  EXPECT_EQ(failed.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(failed.status().message(), "study: model: no such file");
  launcher_.words.clear();
  EXPECT_TRUE(Acquire("a").ok());
  launcher_.refused = absl::NotFoundError("worker: cannot be started");
  EXPECT_EQ(Acquire("b").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(StudyProcessesTest, StopEndsAllAndStartsNoMore) {
  auto lease = Acquire("a");
  ASSERT_TRUE(lease.ok());
  processes_->Stop();
  EXPECT_TRUE(launcher_.started[0].killed);
  const auto refused = Acquire("a");
  EXPECT_TRUE(absl::IsUnavailable(refused.status()));
  EXPECT_EQ(PayloadOf(refused.status(), kReasonUrl), "DRAINING");
}

}  // namespace
}  // namespace optod::services

// The local launcher with real processes.
#include <gtest/gtest.h>
#include <signal.h>

#include <condition_variable>
#include <filesystem>
#include <mutex>

#include "base/fs.h"
#include "server/jobs/launcher.h"

namespace optod::jobs {
namespace {

struct Waiter {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  ExitStatus exit;
  std::function<void(ExitStatus)> Callback() {
    return [this](ExitStatus e) {
      std::lock_guard lock(mutex);
      exit = e;
      done = true;
      changed.notify_all();
    };
  }
  ExitStatus Wait() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [this] { return done; });
    return exit;
  }
};

class LocalLauncherTest : public testing::Test {
 protected:
  LocalLauncherTest() {
    std::string name = (std::filesystem::temp_directory_path() / "optod-launcher-XXXXXX").string();
    root_ = mkdtemp(name.data());
  }
  ~LocalLauncherTest() override { std::filesystem::remove_all(root_); }
  std::string root_;
};

TEST_F(LocalLauncherTest, CodesOutputAndEnvironment) {
  auto launcher = MakeLocalLauncher();
  Waiter waiter;
  ASSERT_TRUE(launcher
                  ->Launch({{"/bin/sh", "-c", "echo $X; echo err >&2; exit 3"}, {{"X", "hello"}}, root_ + "/log"},
                           waiter.Callback())
                  .ok());
  EXPECT_EQ(waiter.Wait().code, 3);
  EXPECT_EQ(*PosixFs().ReadFile(root_ + "/log"), "hello\nerr\n");
}

TEST_F(LocalLauncherTest, KillTakesTheWholeGroup) {
  auto launcher = MakeLocalLauncher();
  Waiter waiter;
  auto handle =
      launcher->Launch({{"/bin/sh", "-c", "sleep 1000 & sleep 1000"}, {{"PATH", "/bin:/usr/bin"}}, root_ + "/log"},
                       waiter.Callback());
  ASSERT_TRUE(handle.ok());
  launcher->Kill(*handle);
  EXPECT_EQ(waiter.Wait().signal, SIGKILL);
}

TEST_F(LocalLauncherTest, NoSuchProgram) {
  auto launcher = MakeLocalLauncher();
  auto handle = launcher->Launch({{"/no/such/program"}, {}, root_ + "/log"}, [](ExitStatus) {});
  EXPECT_EQ(handle.status().code(), absl::StatusCode::kNotFound);
}

TEST_F(LocalLauncherTest, ItsEndEndsTheProcesses) {
  Waiter waiter;
  {
    auto launcher = MakeLocalLauncher();
    ASSERT_TRUE(launcher
                    ->Launch({{"/bin/sh", "-c", "sleep 1000"}, {{"PATH", "/bin:/usr/bin"}}, root_ + "/log"},
                             waiter.Callback())
                    .ok());
  }
  EXPECT_TRUE(waiter.done);
}

}  // namespace
}  // namespace optod::jobs

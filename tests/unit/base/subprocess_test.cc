#include "base/subprocess.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <thread>

#include "gtest/gtest.h"

namespace optod {
namespace {

using std::chrono::milliseconds;

SubprocessResult RunOk(SubprocessOptions options) {
  auto result = RunSubprocess(options);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *result : SubprocessResult{};
}

SubprocessOptions Shell(const std::string& script) {
  SubprocessOptions options;
  options.argv = {"sh", "-c", script};
  return options;
}

/// Whether a process is there and is no zombie.
bool Runs(pid_t pid) {
  std::ifstream status("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  return std::getline(status, line) && line.substr(line.rfind(')') + 2, 1) != "Z";
}

/// Returns when a killed process is gone (the kernel closes its pipes a moment before); never, when nobody killed it.
void AwaitEnd(pid_t pid) {
  while (Runs(pid)) std::this_thread::yield();
}

void ExpectNoChildLeft() {
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD);
}

TEST(Subprocess, OutputErrorExitCode) {
  const auto result = RunOk(Shell("echo out; echo err >&2; exit 7"));
  EXPECT_EQ(result.out, "out\n");
  EXPECT_EQ(result.err, "err\n");
  EXPECT_EQ(result.exit_code, 7);
  EXPECT_EQ(result.signal, 0);
  EXPECT_FALSE(result.timed_out || result.cancelled);
  ExpectNoChildLeft();
}

TEST(Subprocess, SignalIsReported) {
  const auto result = RunOk(Shell("kill -SEGV $$"));
  EXPECT_EQ(result.signal, SIGSEGV);
  EXPECT_EQ(result.exit_code, -1);
}

TEST(Subprocess, StdinLargerThanAPipe) {
  auto options = Shell("cat");
  options.stdin_data = std::string(1 << 20, 'x');
  options.max_output_bytes = 2 << 20;
  EXPECT_EQ(RunOk(options).out, options.stdin_data);
}

TEST(Subprocess, ChildThatDoesNotReadItsInput) {
  auto options = Shell("exec <&-; echo done");
  options.stdin_data = std::string(1 << 20, 'x');  // would raise SIGPIPE
  EXPECT_EQ(RunOk(options).out, "done\n");
}

TEST(Subprocess, FloodIsDrainedCountedAndCut) {
  auto options = Shell("head -c 3000000 /dev/zero; echo last >&2");
  options.max_output_bytes = 1'000;
  const auto result = RunOk(options);
  EXPECT_EQ(result.out.size(), 1'000u);
  EXPECT_EQ(result.out_bytes, 3'000'000u);
  EXPECT_EQ(result.err, "last\n");
  EXPECT_EQ(result.exit_code, 0);
}

TEST(Subprocess, TimeoutKillsTheWholeGroup) {
  auto options = Shell("sleep 1000 & echo $!; wait");
  options.timeout = milliseconds(200);
  const auto result = RunOk(options);
  EXPECT_TRUE(result.timed_out);
  EXPECT_EQ(result.signal, SIGKILL);
  EXPECT_GE(result.wall, options.timeout);
  AwaitEnd(std::stoi(result.out));
  ExpectNoChildLeft();
}

TEST(Subprocess, IgnoringTermDoesNotHelp) {
  auto options = Shell("trap '' TERM INT HUP; while :; do :; done");
  options.timeout = milliseconds(100);
  EXPECT_TRUE(RunOk(options).timed_out);
}

TEST(Subprocess, BackgroundChildrenEndWithTheirParent) {
  const auto result = RunOk(Shell("sleep 1000 & echo $!"));  // the sleeper holds the pipe open
  EXPECT_EQ(result.exit_code, 0);
  AwaitEnd(std::stoi(result.out));
}

TEST(Subprocess, CancelBeforeAndWhileRunning) {
  std::atomic<bool> cancelled{true};
  auto options = Shell("sleep 1000");
  options.cancelled = &cancelled;
  EXPECT_TRUE(RunOk(options).cancelled);

  cancelled = false;
  std::thread canceller([&] { cancelled = true; });
  const auto result = RunOk(options);
  canceller.join();
  EXPECT_TRUE(result.cancelled);
  EXPECT_FALSE(result.timed_out);
  ExpectNoChildLeft();
}

TEST(Subprocess, EnvironmentAndDirectory) {
  setenv("OPTOD_TEST_OUTER", "outer", 1);
  auto options = Shell("echo $OPTOD_TEST_OUTER-$OPTOD_TEST_INNER; pwd");
  options.environment = {{"OPTOD_TEST_INNER", "inner"}};
  options.working_directory = "/";
  EXPECT_EQ(RunOk(options).out, "outer-inner\n/\n");
  options.inherit_environment = false;
  EXPECT_EQ(RunOk(options).out, "-inner\n/\n");
  unsetenv("OPTOD_TEST_OUTER");
}

TEST(Subprocess, PathOfTheChildIsSearched) {
  SubprocessOptions options;
  options.argv = {"echo", "found"};
  options.environment = {{"PATH", "/nowhere:/bin"}};
  EXPECT_EQ(RunOk(options).out, "found\n");
  options.environment = {{"PATH", "/nowhere"}};
  EXPECT_EQ(RunSubprocess(options).status().code(), absl::StatusCode::kNotFound);
}

TEST(Subprocess, NoDescriptorIsInherited) {
  const int leaky = dup(1);  // without close-on-exec
  const auto result = RunOk(Shell("ls /proc/self/fd | wc -l"));
  close(leaky);
  EXPECT_EQ(std::stoi(result.out), 4) << "0, 1, 2 and the directory that ls reads";
}

TEST(Subprocess, SignalsAreUnblockedInTheChild) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);
  const auto result = RunOk(Shell("kill -TERM $$; echo survived"));
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  EXPECT_EQ(result.signal, SIGTERM);
  EXPECT_EQ(result.out, "");
}

TEST(Subprocess, ManyThreadsAtOnce) {
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 5; ++i) {
        auto options = Shell("cat; exit " + std::to_string(t));
        options.stdin_data = std::to_string(t);
        const auto result = RunOk(options);
        good += result.out == std::to_string(t) && result.exit_code == t;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(good, 40);
  ExpectNoChildLeft();
}

TEST(Subprocess, BadRequests) {
  const struct {
    const char* name;
    SubprocessOptions options;
    absl::StatusCode want;
  } kCases[] = {
      {"empty argv", {}, absl::StatusCode::kInvalidArgument},
      {"empty name", {.argv = {""}}, absl::StatusCode::kInvalidArgument},
      {"zero byte", {.argv = {"echo", std::string("a\0b", 3)}}, absl::StatusCode::kInvalidArgument},
      {"bad variable", {.argv = {"echo"}, .environment = {{"A=B", "c"}}}, absl::StatusCode::kInvalidArgument},
      {"bad directory", {.argv = {"echo"}, .working_directory = "/no/such"}, absl::StatusCode::kInvalidArgument},
      {"unknown", {.argv = {"optod-no-such-program"}}, absl::StatusCode::kNotFound},
      {"unknown path", {.argv = {"/no/such/program"}}, absl::StatusCode::kNotFound},
      {"a directory", {.argv = {"/usr"}}, absl::StatusCode::kNotFound},
      {"too long", {.argv = {"echo", std::string(8 << 20, 'x')}}, absl::StatusCode::kInvalidArgument},
  };
  for (const auto& test : kCases) EXPECT_EQ(RunSubprocess(test.options).status().code(), test.want) << test.name;
  ExpectNoChildLeft();
}

TEST(Subprocess, IgnoredSignalsAreNotInherited) {
  struct sigaction before, ignore{};
  ignore.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &ignore, &before);
  // The lower 31 bits: 32 and 33 belong to the C library, which leaves them as its own parent set them.
  const auto result = RunOk(Shell("sed -n 's/SigIgn:.*\\(........\\)$/\\1/p' /proc/self/status"));
  // What really matters: a writer whose reader has gone ends instead of going on for ever.
  const auto writer = RunOk(Shell("(yes; echo $? >&2) | head -n 1"));
  sigaction(SIGPIPE, &before, nullptr);
  EXPECT_EQ(std::stoul("0" + result.out, nullptr, 16) & 0x7fffffff, 0u);
  EXPECT_EQ(writer.err, "141\n");  // 128 + SIGPIPE
}

TEST(Subprocess, ResultPipeIsAStreamOfItsOwn) {
  auto options = Shell("echo out; echo answer >&3");
  options.result_pipe = true;
  const auto result = RunOk(options);
  EXPECT_EQ(result.out, "out\n");
  EXPECT_EQ(result.result, "answer\n");
}

TEST(Subprocess, InheritsOnlyWhatIsGiven) {
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);  // both without CLOEXEC
  auto options = Shell("cat <&7; ls /proc/self/fd | wc -l");
  options.inherit = {{fds[0], 7}};
  ASSERT_EQ(write(fds[1], "seven\n", 6), 6);
  close(fds[1]);
  const auto result = RunOk(options);
  close(fds[0]);
  EXPECT_EQ(result.out, "seven\n5\n");  // 0, 1, 2, 7 and the folder that ls reads
  options.inherit = {{0, 3}};
  EXPECT_EQ(RunSubprocess(options).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Subprocess, FloodEndsItWhenAsked) {
  auto options = Shell("yes");
  options.max_output_bytes = 100'000;
  options.end_at_max_output = true;
  const auto result = RunOk(options);
  EXPECT_TRUE(result.flooded);
  EXPECT_EQ(result.out.size(), 100'000u);
}

TEST(Subprocess, WatchdogEndsIt) {
  auto options = Shell("sleep 1000");
  int looks = 0;
  options.watchdog = [&](pid_t pid) { return pid > 0 && ++looks == 2; };
  EXPECT_TRUE(RunOk(options).stopped);
}

}  // namespace
}  // namespace optod

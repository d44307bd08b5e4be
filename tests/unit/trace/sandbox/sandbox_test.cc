// What ordinary programs find in the sandbox, and what the caller is told. Attacks: escape_test.cc.
#include "trace/sandbox/sandbox.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "gtest/gtest.h"

namespace optod::trace {
namespace {

const std::string kPath = "/usr/local/bin:/usr/bin:/bin";

const Sandbox& Real() {
  static const auto sandbox = Sandbox::Detect(kPath);
  return *sandbox;
}

SandboxCommand Shell(const std::string& script) {
  SandboxCommand command;
  command.argv = {"sh", "-c", script};
  return command;
}

SandboxResult RunIn(const SandboxCommand& command) {
  auto result = Real().Run(command);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *result : SandboxResult{};
}

class SandboxTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Real().features().available) GTEST_SKIP() << Real().features().reason;
  }
};

TEST_F(SandboxTest, OutputErrorsResultAndExitCode) {
  const auto result = RunIn(Shell("read x; echo out $x; echo err >&2; echo res >&3; exit 7"));
  EXPECT_EQ(result.process.exit_code, 7);
  SandboxCommand command = Shell("read x; echo out $x; echo err >&2; echo res >&3; exit 7");
  command.stdin_data = "input\n";
  const auto fed = RunIn(command);
  EXPECT_EQ(fed.process.out, "out input\n");
  EXPECT_EQ(fed.process.err, "err\n");
  EXPECT_EQ(fed.process.result, "res\n");
  EXPECT_EQ(fed.contained, "");
}

TEST_F(SandboxTest, FilesAreThereAndAreCopies) {
  SandboxCommand command = Shell("cat a/b.txt; echo changed > a/b.txt && cat a/b.txt");
  command.files = {{"a/b.txt", "first\n"}};
  EXPECT_EQ(RunIn(command).process.out, "first\nchanged\n");
  EXPECT_EQ(RunIn(command).process.out, "first\nchanged\n");  // nothing is left of the run before
}

TEST_F(SandboxTest, WorkingFolderIsReadOnly) {
  char name[] = "/tmp/optod-work-XXXXXX";
  const std::string folder = mkdtemp(name);
  std::filesystem::permissions(folder, std::filesystem::perms(0755));
  std::ofstream(folder + "/data.txt") << "host\n";
  SandboxCommand command = Shell("pwd; cat data.txt; echo x > data.txt || echo refused; echo y > /tmp/y && cat /tmp/y");
  command.working_folder = folder;
  EXPECT_EQ(RunIn(command).process.out, "/work\nhost\nrefused\ny\n");
  std::string kept;
  std::ifstream(folder + "/data.txt") >> kept;
  EXPECT_EQ(kept, "host");
  std::filesystem::remove_all(folder);
}

TEST_F(SandboxTest, EnvironmentIsEmptyButForWhatIsGiven) {
  setenv("OPTOD_LLM_KEY", "canary-of-the-environment", 1);
  SandboxCommand command = Shell("env | sort");
  command.environment = {{"K", "v=1"}};
  EXPECT_EQ(RunIn(command).process.out,
            "HOME=/tmp\nK=v=1\nLANG=C.UTF-8\nPATH=/usr/local/bin:/usr/bin:/bin\nPWD=/tmp\n");
  unsetenv("OPTOD_LLM_KEY");
}

TEST_F(SandboxTest, PythonRuns) {
  SandboxCommand command;
  command.argv = {"python3", "-I", "-c",
                  "import json,math,threading,subprocess,multiprocessing;"
                  "t=threading.Thread(target=print,args=('thread',));t.start();t.join();"
                  "print(subprocess.run(['echo','child'],capture_output=True,text=True).stdout.strip(), math.pi)"};
  const auto result = RunIn(command);
  EXPECT_EQ(result.process.out, "thread\nchild 3.141592653589793\n") << result.process.err;
}

TEST_F(SandboxTest, ProgramThatIsNotThere) {
  SandboxCommand command;
  command.argv = {"no-such-program"};
  const auto result = RunIn(command);
  EXPECT_EQ(result.process.exit_code, 127);
  EXPECT_NE(result.process.err.find("no-such-program"), std::string::npos);
}

TEST_F(SandboxTest, DeathByASignalIsAResult) {
  const auto result = RunIn(Shell("kill -SEGV $$"));
  EXPECT_EQ(result.process.exit_code, 128 + 11);
  EXPECT_EQ(result.contained, "");
}

TEST_F(SandboxTest, CancelEndsIt) {
  std::atomic<bool> cancelled{false};
  SandboxCommand command = Shell("echo begun >&3; sleep 1000");
  command.cancelled = &cancelled;
  std::thread canceller([&] { cancelled = true; });
  EXPECT_EQ(RunIn(command).contained, "cancelled");
  canceller.join();
}

TEST_F(SandboxTest, ManyAtOnce) {
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      SandboxCommand command = Shell("for i in 1 2 3 4; do sleep 0.01 & done; wait; echo done");
      command.limits.processes = 8;  // counted for each sandbox by itself
      good += RunIn(command).process.out == "done\n";
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(good, 8);
}

TEST(SandboxDetect, RefusesWithAReasonWhereThereIsNone) {
  const auto none = Sandbox::Detect("/nonexistent");
  EXPECT_FALSE(none->features().available);
  EXPECT_NE(none->features().Text().find("bwrap is not in PATH"), std::string::npos);
  const auto result = none->Run(Shell("true"));
  EXPECT_EQ(result.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(result.status().message().find("apt install bubblewrap"), std::string::npos);
}

struct BadCommand {
  const char* name;
  void (*spoil)(SandboxCommand*);
  const char* message;
};
const BadCommand kBad[] = {
    {"no_program", [](SandboxCommand* c) { c->argv.clear(); }, "sandbox.argv: names no program"},
    {"file_above",
     [](SandboxCommand* c) {
       c->files = {{"../x", ""}};
     },
     "sandbox.files[0]: the path must be relative"},
    {"file_absolute",
     [](SandboxCommand* c) {
       c->files = {{"/x", ""}};
     },
     "sandbox.files[0]: the path must be relative"},
    {"file_dot",
     [](SandboxCommand* c) {
       c->files = {{"a/./x", ""}};
     },
     "sandbox.files[0]"},
    {"too_many_files",
     [](SandboxCommand* c) {
       c->files.resize(65, {"x", ""});
     },
     "at most 64"},
    {"root_bound", [](SandboxCommand* c) { c->read_only = {"/"}; }, "sandbox.read_only[0]"},
    {"relative_bound", [](SandboxCommand* c) { c->read_only = {"usr"}; }, "sandbox.read_only[0]"},
    {"no_wall", [](SandboxCommand* c) { c->limits.wall = std::chrono::milliseconds(0); },
     "sandbox.wall: 0 is out of range"},
    {"no_memory", [](SandboxCommand* c) { c->limits.memory_bytes = -1; }, "sandbox.memory_bytes"},
    {"no_output", [](SandboxCommand* c) { c->limits.output_bytes = 0; }, "sandbox.output_bytes"},
};
class BadCommandTest : public ::testing::TestWithParam<BadCommand> {};
TEST_P(BadCommandTest, IsRefused) {
  if (!Real().features().available) GTEST_SKIP() << Real().features().reason;
  SandboxCommand command = Shell("true");
  GetParam().spoil(&command);
  const auto result = Real().Run(command);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(result.status().message()).find(GetParam().message), std::string::npos) << result.status();
}
INSTANTIATE_TEST_SUITE_P(All, BadCommandTest, ::testing::ValuesIn(kBad),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace optod::trace

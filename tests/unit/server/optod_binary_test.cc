/// The real executable: its lines, its exit codes, its signals.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/subprocess.h"

extern char** environ;

namespace optod {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::StartsWith;

const std::string kOptod = std::string(OPTOD_BIN_DIR) + "/optod";

/// A server that runs while the object lives.
class Running {
 public:
  Running(std::vector<std::string> arguments, const std::string& error_file) {
    int pipe_fds[2];
    EXPECT_EQ(pipe2(pipe_fds, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pipe_fds[1], 1);
    posix_spawn_file_actions_addopen(&actions, 2, error_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    arguments.insert(arguments.begin(), kOptod);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    EXPECT_EQ(posix_spawn(&pid_, kOptod.c_str(), &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(pipe_fds[1]);
    out_ = fdopen(pipe_fds[0], "r");
  }
  ~Running() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    fclose(out_);
  }
  std::string ReadLine() {
    std::string line;
    for (int c = fgetc(out_); c != EOF && c != '\n'; c = fgetc(out_)) line += static_cast<char>(c);
    return line;
  }
  void Signal(int signal) { kill(pid_, signal); }
  /// Exit code, or 1000 + the signal that ended it.
  int Wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }

 private:
  pid_t pid_ = -1;
  FILE* out_ = nullptr;
};

class BinaryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "optod-binary-XXXXXX").string();
    dir_ = mkdtemp(pattern.data());
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }
  std::vector<std::string> Arguments() const {
    return {"--data-dir", dir_ + "/data", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"};
  }
  SubprocessResult Run(std::vector<std::string> arguments) {
    SubprocessOptions options;
    options.argv = std::move(arguments);
    options.argv.insert(options.argv.begin(), kOptod);
    options.timeout = std::chrono::seconds(60);
    auto result = RunSubprocess(options);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : SubprocessResult{};
  }
  std::string Errors() const {
    std::stringstream text;
    text << std::ifstream(dir_ + "/err").rdbuf();
    return text.str();
  }
  std::string dir_;
};

TEST_F(BinaryTest, ReadyLineThenSigtermThenZero) {
  for (int signal : {SIGTERM, SIGINT}) {
    Running server(Arguments(), dir_ + "/err");
    EXPECT_THAT(server.ReadLine(), MatchesRegex("optod ready grpc=127\\.0\\.0\\.1:[0-9]+ http=127\\.0\\.0\\.1:[0-9]+"));
    server.Signal(signal);
    EXPECT_EQ(server.ReadLine(), "") << "nothing else on stdout";
    EXPECT_EQ(server.Wait(), 0);
    EXPECT_THAT(Errors(), HasSubstr("event=draining why=" + std::string(signal == SIGTERM ? "SIGTERM" : "SIGINT")));
    EXPECT_THAT(Errors(), HasSubstr("event=stopped"));
  }
}

TEST_F(BinaryTest, TheHolderOfADirectoryIsNamedAndADeadOneHoldsNothing) {
  {
    Running server(Arguments(), dir_ + "/err");
    std::string ready = server.ReadLine();
    std::string address = ready.substr(ready.find("grpc=") + 5, ready.find(" http=") - ready.find("grpc=") - 5);
    SubprocessResult second = Run(Arguments());
    EXPECT_EQ(second.exit_code, 1);
    EXPECT_EQ(second.out, "");
    EXPECT_THAT(second.err, HasSubstr("in use by pid "));
    EXPECT_THAT(second.err, HasSubstr(address));
    server.Signal(SIGKILL);
    EXPECT_EQ(server.Wait(), 1000 + SIGKILL);
  }
  Running next(Arguments(), dir_ + "/err");
  EXPECT_THAT(next.ReadLine(), StartsWith("optod ready "));
}

TEST_F(BinaryTest, UsageAndConfigurationEndWithTwo) {
  std::ofstream(dir_ + "/garbage.yaml") << "log-level: info\n{]\n";
  std::ofstream(dir_ + "/unknown.yaml") << "log-level: info\nlisten-on: 127.0.0.1:1\n";
  const struct {
    std::vector<std::string> arguments;
    int code;
    std::string message;
  } cases[] = {
      {{"--version"}, 0, "optod 0."},
      {{"--help"}, 0, "--data-dir"},
      {{"--listne", "x"}, 2, "optod: unknown flag --listne; did you mean --listen?\n"},
      {{"--config", dir_ + "/garbage.yaml"}, 2, "optod: " + dir_ + "/garbage.yaml:2: not YAML: "},
      {{"--config", dir_ + "/unknown.yaml"}, 2, "optod: " + dir_ + "/unknown.yaml:2: unknown key listen-on"},
      {{"--listen", "0.0.0.0:0"}, 2, "has no TLS"},
      {{"--data-dir", "/proc/nothing", "--http", "off", "--listen", "127.0.0.1:0"},
       1,
       "optod: data-dir /proc/nothing: "},
  };
  for (const auto& c : cases) {
    SubprocessResult result = Run(c.arguments);
    EXPECT_EQ(result.exit_code, c.code) << c.message;
    EXPECT_THAT(c.code == 0 ? result.out : result.err, HasSubstr(c.message));
    EXPECT_EQ(c.code == 0 ? result.err : result.out, "");
  }
}

TEST_F(BinaryTest, JsonLogIsOneObjectALine) {
  std::vector<std::string> arguments = Arguments();
  arguments.insert(arguments.end(), {"--log-format", "json"});
  Running server(arguments, dir_ + "/err");
  server.ReadLine();
  server.Signal(SIGTERM);
  EXPECT_EQ(server.Wait(), 0);
  std::stringstream lines(Errors());
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count)
    EXPECT_THAT(line, MatchesRegex("\\{\"time\":\"[^\"]+\",\"level\":\"[A-Z]+\",\"event\":.*\\}"));
  EXPECT_EQ(count, 3);
}

}  // namespace
}  // namespace optod

#include "clients/cli/optimize/private_server.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/random_id.h"
#include "base/status.h"

namespace optod::cli {
namespace {

namespace fs = std::filesystem;
using std::chrono::steady_clock;

absl::StatusOr<std::string> FindServer() {
  std::error_code error;
  const fs::path beside = fs::read_symlink("/proc/self/exe", error).parent_path() / "optod";
  if (access(beside.c_str(), X_OK) == 0) return beside.string();
  const char* path = std::getenv("PATH");
  std::istringstream folders(path ? path : "");
  for (std::string folder; std::getline(folders, folder, ':');)
    if (const fs::path candidate = fs::path(folder) / "optod"; access(candidate.c_str(), X_OK) == 0)
      return candidate.string();
  return NotFound("optod: not found beside optoctl nor in PATH");
}

}  // namespace

absl::StatusOr<std::unique_ptr<PrivateServer>> PrivateServer::Start(const PrivateServerOptions& options) {
  std::unique_ptr<PrivateServer> server(new PrivateServer);
  RETURN_IF_ERROR(server->Launch(options));
  return server;
}

absl::Status PrivateServer::Launch(const PrivateServerOptions& options) {
  ASSIGN_OR_RETURN(const std::string program, FindServer());
  std::error_code error;
  // Short, because a socket's path has at most 107 bytes.
  folder_ = (fs::temp_directory_path(error) / ("optod-" + RandomId(8))).string();
  fs::create_directories(folder_, error);
  if (error) return Internal("private server: its folder cannot be made: ", error.message());
  fs::permissions(folder_, fs::perms::owner_all, error);
  address_ = "unix:" + folder_ + "/sock";
  std::vector<std::string> arguments = {
      program,  "--data-dir", options.data_dir.empty() ? folder_ + "/data" : options.data_dir, "--listen", address_,
      "--http", "off"};
  arguments.insert(arguments.end(), options.arguments.begin(), options.arguments.end());
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const std::string log = folder_ + "/log";
  int ready[2];
  if (pipe2(ready, O_CLOEXEC) != 0) return Internal("private server: no pipe");
  pid_ = fork();
  if (pid_ < 0) {
    close(ready[0]);
    close(ready[1]);
    return Internal("private server: cannot fork");
  }
  if (pid_ == 0) {
    setpgid(0, 0);  // a Ctrl-C at the terminal is for optoctl, which then stops the server in order
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    dup2(ready[1], 1);
    const int log_fd = open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (log_fd >= 0) dup2(log_fd, 2);
    const int null_fd = open("/dev/null", O_RDONLY);
    if (null_fd >= 0) dup2(null_fd, 0);
    execv(program.c_str(), argv.data());
    _exit(127);
  }
  close(ready[1]);
  stdout_fd_ = ready[0];
  return WaitUntilReady(stdout_fd_);
}

absl::Status PrivateServer::WaitUntilReady(int stdout_fd) {
  std::string text;
  const auto deadline = steady_clock::now() + std::chrono::seconds(20);
  while (text.find("optod ready") == std::string::npos || text.find('\n') == std::string::npos) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - steady_clock::now()).count();
    pollfd poll_fd = {stdout_fd, POLLIN, 0};
    if (left <= 0) return Unavailable("private server: it does not serve after 20 s", LogTail());
    if (poll(&poll_fd, 1, static_cast<int>(left)) <= 0) continue;
    char buffer[512];
    const ssize_t n = read(stdout_fd, buffer, sizeof buffer);
    if (n <= 0) return Unavailable("private server: it did not start", LogTail());
    text.append(buffer, static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

std::string PrivateServer::LogTail() const {
  std::ifstream in(folder_ + "/log");
  std::ostringstream all;
  all << in.rdbuf();
  std::string text = all.str();
  if (text.size() > 1000) text = text.substr(text.size() - 1000);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text.empty() ? "" : ":\n" + text;
}

PrivateServer::~PrivateServer() {
  if (pid_ > 0) {
    kill(pid_, SIGTERM);
    bool ended = false;
    for (int i = 0; i < 750 && !ended; ++i) {
      ended = waitpid(pid_, nullptr, WNOHANG) == pid_;
      if (!ended) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    if (!ended) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
  }
  if (stdout_fd_ >= 0) close(stdout_fd_);
  std::error_code error;
  if (!folder_.empty()) fs::remove_all(folder_, error);
}

}  // namespace optod::cli

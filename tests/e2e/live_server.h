#pragma once
/// A real `optod` process that a test can kill: own data directory, own environment for language models, a Unix socket.

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "base/random_id.h"
#include "clients/cpp/client.h"

namespace optod {

class LiveServer {
 public:
  /// `llm_url` "" = no language model.
  explicit LiveServer(std::string llm_url) : llm_url_(std::move(llm_url)), folder_("/tmp/optod-e2e-" + RandomId(10)) {
    std::filesystem::create_directories(folder_);
    Start();
  }
  ~LiveServer() {
    Kill(SIGKILL);
    std::filesystem::remove_all(folder_);
  }

  void Start() {
    int out[2];
    if (pipe2(out, O_CLOEXEC) != 0) std::abort();
    const std::string program = std::string(OPTOD_BIN_DIR) + "/optod", listen = "unix:" + folder_ + "/s",
                      data = folder_ + "/data";
    std::vector<std::string> environment = {"OPTOD_LLM_URL=" + llm_url_, "OPTOD_LLM_MODEL=canned",
                                            std::string("PATH=") + getenv("PATH")};
    if (llm_url_.empty()) environment = {std::string("PATH=") + getenv("PATH")};
    std::vector<char*> env;
    for (std::string& e : environment) env.push_back(e.data());
    env.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(out[1], 1);
      const int log = open((folder_ + "/log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
      dup2(log, 2);
      const char* argv[] = {program.c_str(), "--data-dir", data.c_str(), "--listen",
                            listen.c_str(),  "--http",     "off",        nullptr};
      execve(program.c_str(), const_cast<char**>(argv), env.data());
      _exit(127);
    }
    close(out[1]);
    std::string line;
    char c;
    while (read(out[0], &c, 1) == 1 && c != '\n') line += c;
    close(out[0]);
    ready_ = line.rfind("optod ready", 0) == 0;
    client::ClientOptions options;
    options.address = listen;
    options.deadline = std::chrono::seconds(60);
    client_ = client::Client::Connect(options).value();
  }
  void Kill(int signal) {
    if (pid_ <= 0) return;
    kill(pid_, signal);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  void KillAndRestart() {
    Kill(SIGKILL);
    Start();
  }

  bool ready() const { return ready_; }
  client::Client& client() { return *client_; }
  std::string address() const { return "unix:" + folder_ + "/s"; }

 private:
  const std::string llm_url_, folder_;
  pid_t pid_ = -1;
  bool ready_ = false;
  std::unique_ptr<client::Client> client_;
};

}  // namespace optod

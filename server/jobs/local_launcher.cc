#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>

#include "base/status.h"
#include "server/jobs/launcher.h"

namespace optod::jobs {
namespace {

/// What the child needs, prepared before the fork: between fork and exec only async-signal-safe calls are allowed.
struct Prepared {
  std::vector<std::string> texts;
  std::vector<char*> argv, environment;
};

Prepared Prepare(const LaunchSpec& spec) {
  Prepared p;
  p.texts.reserve(spec.argv.size() + spec.environment.size());
  const auto keep = [&p](std::string text) {
    p.texts.push_back(std::move(text));
    return p.texts.back().data();
  };
  for (const std::string& argument : spec.argv) p.argv.push_back(keep(argument));
  p.argv.push_back(nullptr);
  for (const auto& [name, value] : spec.environment) p.environment.push_back(keep(name + "=" + value));
  p.environment.push_back(nullptr);
  return p;
}

[[noreturn]] void RunChild(const Prepared& p, int log, int report) {
  setpgid(0, 0);
  const int null = open("/dev/null", O_RDONLY);
  dup2(null, 0);
  dup2(log, 1);
  dup2(log, 2);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  signal(SIGPIPE, SIG_DFL);
  execve(p.argv[0], p.argv.data(), p.environment.data());
  const int error = errno;
  [[maybe_unused]] const ssize_t wrote = write(report, &error, sizeof(error));
  _exit(127);
}

class LocalLauncher final : public Launcher {
 public:
  ~LocalLauncher() override {
    {
      std::lock_guard lock(mutex_);
      for (const auto& [handle, pid] : running_) kill(-static_cast<pid_t>(pid), SIGKILL);
    }
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [this] { return waiters_ == 0; });
  }

  absl::StatusOr<int64_t> Launch(const LaunchSpec& spec, std::function<void(ExitStatus)> on_exit) override {
    const int log = open(spec.log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log < 0) return Internal("log: cannot be opened: ", std::strerror(errno));
    int report[2];
    if (pipe2(report, O_CLOEXEC) != 0) {
      close(log);
      return Internal("pipe: ", std::strerror(errno));
    }
    const Prepared prepared = Prepare(spec);
    const pid_t pid = fork();
    if (pid == 0) RunChild(prepared, log, report[1]);
    close(log);
    close(report[1]);
    if (pid < 0) {
      close(report[0]);
      return ResourceExhausted("fork: ", std::strerror(errno));
    }
    setpgid(pid, pid);  // also here: Kill may come before the child's own call
    int error = 0;
    const ssize_t got = read(report[0], &error, sizeof(error));
    close(report[0]);
    if (got == static_cast<ssize_t>(sizeof(error))) {
      waitpid(pid, nullptr, 0);
      return NotFound("worker: cannot be started: ", std::strerror(error));
    }
    return Watch(pid, std::move(on_exit));
  }

  void Kill(int64_t handle) override {
    std::lock_guard lock(mutex_);
    const auto it = running_.find(handle);
    if (it != running_.end()) kill(-static_cast<pid_t>(it->second), SIGKILL);
  }

 private:
  int64_t Watch(pid_t pid, std::function<void(ExitStatus)> on_exit) {
    std::lock_guard lock(mutex_);
    const int64_t handle = ++last_;
    running_[handle] = pid;
    ++waiters_;
    std::thread([this, handle, pid, on_exit = std::move(on_exit)] {
      int status = 0;
      siginfo_t info;
      while (waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT) != 0 && errno == EINTR) continue;
      {
        std::lock_guard lock(mutex_);  // the number stays ours until it is reaped here, so Kill hits nobody else
        kill(-pid, SIGKILL);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
        running_.erase(handle);
      }
      ExitStatus exit;
      if (WIFEXITED(status)) exit.code = WEXITSTATUS(status);
      if (WIFSIGNALED(status)) exit.signal = WTERMSIG(status);
      on_exit(exit);
      std::lock_guard lock(mutex_);
      --waiters_;
      ended_.notify_all();
    }).detach();
    return handle;
  }

  std::mutex mutex_;
  std::condition_variable ended_;
  std::map<int64_t, int64_t> running_;  // handle -> process
  int64_t last_ = 0;
  int waiters_ = 0;
};

}  // namespace

std::unique_ptr<Launcher> MakeLocalLauncher() { return std::make_unique<LocalLauncher>(); }

}  // namespace optod::jobs

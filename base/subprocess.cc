#include "base/subprocess.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <string_view>

#include "base/errno_status.h"
#include "base/posix_io.h"
#include "base/status.h"

extern char** environ;

namespace optod {
namespace {

using SteadyClock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kPollInterval{50};  // how late a cancel may be noticed
constexpr milliseconds kDrainLimit{
    1'000};  // for output after the end, when a process that left the group holds the pipe

struct Pipe {
  UniqueFd read, write;
};

absl::StatusOr<Pipe> MakePipe() {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) return Internal("run: pipe failed: ", std::strerror(errno));
  return Pipe{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

std::vector<std::string> ChildEnvironment(const SubprocessOptions& options) {
  std::map<std::string, std::string> values;
  if (options.inherit_environment) {
    for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
      const std::string_view text = *entry;
      const size_t equals = text.find('=');
      if (equals != std::string_view::npos) values[std::string(text.substr(0, equals))] = text.substr(equals + 1);
    }
  }
  for (const auto& [name, value] : options.environment) values[name] = value;
  std::vector<std::string> entries;
  for (const auto& [name, value] : values) entries.push_back(name + "=" + value);
  return entries;
}

bool IsDirectory(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

bool IsProgram(const std::string& path) { return access(path.c_str(), X_OK) == 0 && !IsDirectory(path); }

/// The file that argv[0] names: itself when it holds a slash, else the first hit in the child's PATH.
absl::StatusOr<std::string> FindProgram(const std::string& name, const std::vector<std::string>& environment) {
  if (name.find('/') != std::string::npos) return name;
  std::string path = "/usr/local/bin:/usr/bin:/bin";
  for (const std::string& entry : environment) {
    if (entry.compare(0, 5, "PATH=") == 0) path = entry.substr(5);
  }
  for (size_t at = 0; at <= path.size();) {
    const size_t end = std::min(path.find(':', at), path.size());
    const std::string directory = path.substr(at, end - at);
    const std::string candidate = (directory.empty() ? std::string(".") : directory) + "/" + name;
    if (IsProgram(candidate)) return candidate;
    at = end + 1;
  }
  return NotFound("run: no program ", name, " in PATH");
}

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (const std::string& text : strings) pointers.push_back(const_cast<char*>(text.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

/// Where the child's descriptors come from: {ours, its number}. Ours lie above every number that it gets, so that no
/// dup2 overwrites the source of a later one.
class ChildFds {
 public:
  absl::Status Add(int ours, int its) {
    constexpr int kAbove = 200;
    UniqueFd high(fcntl(ours, F_DUPFD_CLOEXEC, kAbove));
    if (!high.ok()) return Internal("run: cannot pass a descriptor: ", std::strerror(errno));
    highest_ = std::max(highest_, its);
    fds_.emplace_back(std::move(high), its);
    return absl::OkStatus();
  }

  void Apply(posix_spawn_file_actions_t* actions) const {
    std::vector<bool> used(static_cast<size_t>(highest_) + 1, false);
    for (const auto& [fd, its] : fds_) {
      posix_spawn_file_actions_adddup2(actions, fd.get(), its);
      used[static_cast<size_t>(its)] = true;
    }
    for (int fd = 0; fd <= highest_; ++fd)
      if (!used[static_cast<size_t>(fd)]) posix_spawn_file_actions_addclose(actions, fd);
    posix_spawn_file_actions_addclosefrom_np(actions, highest_ + 1);
  }

 private:
  std::vector<std::pair<UniqueFd, int>> fds_;
  int highest_ = 2;
};

/// posix_spawn: unlike fork it is safe whatever locks other threads hold, and does not copy page tables. The child gets
/// default signal handling, an empty mask, its own group, and no descriptor but those given.
absl::StatusOr<pid_t> Spawn(const SubprocessOptions& options, const std::string& program,
                            const std::vector<std::string>& environment, const ChildFds& fds) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  if (!options.working_directory.empty())
    posix_spawn_file_actions_addchdir_np(&actions, options.working_directory.c_str());
  fds.Apply(&actions);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t all, none;
  sigfillset(&all);
  sigemptyset(&none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
  const std::vector<char*> argv = Pointers(options.argv), env = Pointers(environment);
  pid_t pid = -1;
  const int error = posix_spawn(&pid, program.c_str(), &actions, &attributes, argv.data(), env.data());
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  const std::string& name = options.argv[0];
  if (error == 0) return pid;
  if (error == ENOENT) return NotFound("run: no program ", name, ", or its interpreter is missing");
  if (error == EACCES || error == ENOEXEC) return NotFound("run: ", name, " is not an executable program");
  if (error == E2BIG) return InvalidArgument("run: the arguments or the environment of ", name, " are too long");
  return Internal("run: cannot start ", name, ": ", std::strerror(error));
}

/// Keeps SIGPIPE off this thread while a child that may have closed its input is written to.
class SigpipeGuard {
 public:
  SigpipeGuard() {
    sigemptyset(&pipe_);
    sigaddset(&pipe_, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
  }
  ~SigpipeGuard() {
    const timespec now{};
    while (!sigismember(&before_, SIGPIPE) && sigtimedwait(&pipe_, nullptr, &now) == SIGPIPE) {
    }
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }

 private:
  sigset_t pipe_, before_;
};

/// One running child: its pipes are pumped until it ends; then its whole group is killed before the leader is reaped,
/// while the number of the group can belong to nobody else.
class Child {
 public:
  Child(const SubprocessOptions& options, pid_t pid, UniqueFd in, UniqueFd out, UniqueFd err, UniqueFd result)
      : options_(options),
        pid_(pid),
        in_(std::move(in)),
        out_(std::move(out)),
        err_(std::move(err)),
        answer_(std::move(result)) {
    for (const UniqueFd* fd : {&in_, &out_, &err_, &answer_})
      if (fd->ok()) fcntl(fd->get(), F_SETFL, fcntl(fd->get(), F_GETFL) | O_NONBLOCK);
    exited_ = UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  }

  SubprocessResult Run() {
    const SigpipeGuard guard;
    const auto start = SteadyClock::now();
    while (!Exited()) {
      if (options_.cancelled != nullptr && options_.cancelled->load()) result_.cancelled = true;
      if (options_.timeout.count() > 0 && SteadyClock::now() - start >= options_.timeout) result_.timed_out = true;
      if (options_.end_at_max_output) result_.flooded = Flooded();
      if (options_.watchdog && WatchDue()) result_.stopped = options_.watchdog(pid_);
      if (result_.cancelled || result_.timed_out || result_.flooded || result_.stopped) break;
      PumpOnce(NextWait(start), /*watch_exit=*/true);
    }
    kill(-pid_, SIGKILL);
    in_.Reset();
    const auto killed = SteadyClock::now();
    while ((out_.ok() || err_.ok() || answer_.ok()) && SteadyClock::now() - killed < kDrainLimit)
      PumpOnce(kPollInterval, /*watch_exit=*/false);
    Reap();
    if (options_.end_at_max_output) result_.flooded = Flooded();
    result_.wall = std::chrono::duration_cast<milliseconds>(SteadyClock::now() - start);
    return std::move(result_);
  }

 private:
  milliseconds NextWait(SteadyClock::time_point start) const {
    milliseconds wait = kPollInterval;
    if (options_.timeout.count() > 0) {
      const auto left = std::chrono::ceil<milliseconds>(start + options_.timeout - SteadyClock::now());
      wait = std::clamp(left, milliseconds{0}, wait);
    }
    // Without a pidfd (old kernels) the exit is found by asking.
    return exited_.ok() ? wait : std::min(wait, milliseconds{5});
  }

  bool Flooded() const {
    return std::max({result_.out_bytes, result_.err_bytes, result_.result_bytes}) > options_.max_output_bytes;
  }

  /// Output may wake the loop much more often than the watchdog needs to look.
  bool WatchDue() {
    const auto now = SteadyClock::now();
    if (now < next_watch_) return false;
    next_watch_ = now + kPollInterval;
    return true;
  }

  bool Exited() const {
    siginfo_t info{};
    const int rc = waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT);
    return (rc == 0 && info.si_pid == pid_) || (rc != 0 && errno == ECHILD);
  }

  void PumpOnce(milliseconds wait, bool watch_exit) {
    if (fed_ == options_.stdin_data.size()) in_.Reset();
    // poll skips negative descriptors.
    pollfd fds[5] = {{out_.get(), POLLIN, 0},
                     {err_.get(), POLLIN, 0},
                     {in_.get(), POLLOUT, 0},
                     {watch_exit ? exited_.get() : -1, POLLIN, 0},
                     {answer_.get(), POLLIN, 0}};
    if (poll(fds, 5, static_cast<int>(wait.count())) <= 0) return;
    if (fds[0].revents != 0) Drain(out_, &result_.out, &result_.out_bytes);
    if (fds[1].revents != 0) Drain(err_, &result_.err, &result_.err_bytes);
    if (fds[2].revents != 0) Feed();
    if (fds[4].revents != 0) Drain(answer_, &result_.result, &result_.result_bytes);
  }

  void Drain(UniqueFd& fd, std::string* kept, size_t* total) {
    char buffer[64 << 10];
    const ssize_t got = read(fd.get(), buffer, sizeof buffer);
    if (got > 0) {
      *total += static_cast<size_t>(got);
      kept->append(buffer, std::min(static_cast<size_t>(got), options_.max_output_bytes - kept->size()));
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
      fd.Reset();
    }
  }

  void Feed() {
    const ssize_t sent = write(in_.get(), options_.stdin_data.data() + fed_, options_.stdin_data.size() - fed_);
    if (sent > 0) {
      fed_ += static_cast<size_t>(sent);
    } else if (errno != EAGAIN && errno != EINTR) {
      in_.Reset();  // the child does not read on: its right
    }
  }

  void Reap() {
    int status = 0;
    pid_t got;
    do {
      got = waitpid(pid_, &status, 0);
    } while (got < 0 && errno == EINTR);
    if (got != pid_) return;
    if (WIFEXITED(status)) result_.exit_code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) result_.signal = WTERMSIG(status);
  }

  const SubprocessOptions& options_;
  const pid_t pid_;
  UniqueFd in_, out_, err_, answer_, exited_;
  SteadyClock::time_point next_watch_{};
  size_t fed_ = 0;
  SubprocessResult result_;
};

absl::Status Check(const SubprocessOptions& options) {
  if (options.argv.empty() || options.argv[0].empty())
    return InvalidArgument("run: argv: is empty; must name a program");
  for (const std::string& argument : options.argv) {
    if (argument.find('\0') != std::string::npos) return InvalidArgument("run: argv: an argument holds a zero byte");
  }
  for (const auto& [name, value] : options.environment) {
    if (name.empty() || name.find('=') != std::string::npos || (name + value).find('\0') != std::string::npos) {
      return InvalidArgument("run: environment: a name is empty or holds '=', or an entry holds a zero byte");
    }
  }
  if (!options.working_directory.empty() && !IsDirectory(options.working_directory)) {
    return InvalidArgument("run: working_directory: is not a directory");
  }
  for (const auto& [ours, its] : options.inherit) {
    if (ours < 0 || its < 4 || its > 99) return InvalidArgument("run: inherit: the child's numbers must be 4 to 99");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SubprocessResult> RunSubprocess(const SubprocessOptions& options) {
  RETURN_IF_ERROR(Check(options));
  const std::vector<std::string> environment = ChildEnvironment(options);
  ASSIGN_OR_RETURN(const std::string program, FindProgram(options.argv[0], environment));
  ASSIGN_OR_RETURN(Pipe in, MakePipe());
  ASSIGN_OR_RETURN(Pipe out, MakePipe());
  ASSIGN_OR_RETURN(Pipe err, MakePipe());
  Pipe result;
  if (options.result_pipe) {
    ASSIGN_OR_RETURN(result, MakePipe());
  }
  pid_t pid = -1;
  {
    ChildFds fds;
    RETURN_IF_ERROR(fds.Add(in.read.get(), 0));
    RETURN_IF_ERROR(fds.Add(out.write.get(), 1));
    RETURN_IF_ERROR(fds.Add(err.write.get(), 2));
    if (options.result_pipe) RETURN_IF_ERROR(fds.Add(result.write.get(), 3));
    for (const auto& [ours, its] : options.inherit) RETURN_IF_ERROR(fds.Add(ours, its));
    ASSIGN_OR_RETURN(pid, Spawn(options, program, environment, fds));
  }
  in.read.Reset();
  out.write.Reset();
  err.write.Reset();
  result.write.Reset();
  return Child(options, pid, std::move(in.write), std::move(out.read), std::move(err.read), std::move(result.read))
      .Run();
}

}  // namespace optod

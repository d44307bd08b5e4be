#include "trace/sandbox/sandbox.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "base/posix_io.h"
#include "base/status.h"
#include "trace/sandbox/memory_watch.h"
#include "trace/sandbox/seccomp_filter.h"

namespace optod::trace {
namespace {

constexpr int kFilterFd = 4, kStatusFd = 5, kFirstFileFd = 10;
constexpr size_t kMaxFiles = 64;
constexpr int64_t kLibrariesBytes = int64_t{256} << 20;
constexpr char kScratch[] = "/tmp", kWork[] = "/work", kNobody[] = "65534";
// Enters the groups whose files are given, then becomes the rest of the arguments: nothing can be started outside of
// them.
constexpr char kEnter[] =
    "n=$1; shift; while [ $n -gt 0 ]; do echo 0 > \"$1\" || exit 125; shift; n=$((n-1)); done; exec \"$@\"";

std::string FindIn(const std::string& path, const std::string& program) {
  std::stringstream folders(path.empty() ? "/usr/bin:/bin" : path);
  for (std::string folder; std::getline(folders, folder, ':');) {
    const std::string file = folder + "/" + program;
    if (!folder.empty() && access(file.c_str(), X_OK) == 0) return file;
  }
  return "";
}

absl::StatusOr<UniqueFd> MemoryFile(const std::string& content) {
  UniqueFd file(memfd_create("optod-sandbox", MFD_CLOEXEC));
  if (!file.ok()) return Internal("sandbox: cannot make a memory file: ", std::strerror(errno));
  RETURN_IF_ERROR(WriteAll(file.get(), std::as_bytes(std::span(content.data(), content.size())), "sandbox"));
  if (lseek(file.get(), 0, SEEK_SET) != 0) return Internal("sandbox: memory file: ", std::strerror(errno));
  return file;
}

std::string ReadFromStart(const UniqueFd& file) {
  std::string text;
  if (lseek(file.get(), 0, SEEK_SET) == 0) (void)ReadAll(file.get(), &text, "sandbox");
  return text;
}

bool IsInnerPath(const std::string& path) {
  if (path.empty() || path[0] == '/' || path.find('\0') != std::string::npos) return false;
  std::stringstream parts(path);
  for (std::string part; std::getline(parts, part, '/');)
    if (part.empty() || part == "." || part == "..") return false;
  return path.back() != '/';
}

absl::Status CheckCommand(const SandboxCommand& command) {
  RETURN_IF_ERROR(CheckLimits(command.limits));
  if (command.argv.empty() || command.argv[0].empty()) return InvalidArgument("sandbox.argv: names no program");
  if (command.files.size() > kMaxFiles)
    return InvalidArgument("sandbox.files: ", command.files.size(), " files; at most ", kMaxFiles);
  for (size_t i = 0; i < command.files.size(); ++i) {
    if (!IsInnerPath(command.files[i].first))
      return InvalidArgument("sandbox.files[", i, "]: the path must be relative, without . and .. in it");
  }
  for (size_t i = 0; i < command.read_only.size(); ++i) {
    if (command.read_only[i].empty() || command.read_only[i][0] != '/' || command.read_only[i] == "/")
      return InvalidArgument("sandbox.read_only[", i, "]: must be an absolute path and not the root");
  }
  if (!command.working_folder.empty() && (command.working_folder[0] != '/' || command.working_folder == "/"))
    return InvalidArgument("sandbox.working_folder: must be an absolute path and not the root");
  return absl::OkStatus();
}

void AddRoot(const SandboxCommand& command, std::vector<std::string>* argv) {
  const auto add = [argv](std::initializer_list<std::string> words) { argv->insert(argv->end(), words); };
  add({"--ro-bind", "/usr", "/usr"});
  for (const char* name : {"bin", "sbin", "lib", "lib32", "lib64", "libx32"}) {
    if (access(Cat("/usr/", name).c_str(), F_OK) == 0) add({"--symlink", Cat("usr/", name), Cat("/", name)});
  }
  for (const char* file : {"/etc/alternatives", "/etc/ld.so.cache"}) add({"--ro-bind-try", file, file});
  add({"--dev", "/dev", "--size", "1048576", "--tmpfs", "/dev/shm", "--remount-ro", "/dev"});
  add({"--size", Cat(command.limits.scratch_bytes), "--tmpfs", kScratch});
  for (const std::string& path : command.read_only) add({"--ro-bind", path, path});
  if (!command.working_folder.empty()) add({"--ro-bind", command.working_folder, kWork});
  add({"--chdir", command.working_folder.empty() ? kScratch : kWork});
}

void AddEnvironment(const SandboxCommand& command, std::vector<std::string>* argv) {
  std::vector<std::pair<std::string, std::string>> all = {
      {"PATH", "/usr/local/bin:/usr/bin:/bin"}, {"HOME", kScratch}, {"LANG", "C.UTF-8"}};
  all.insert(all.end(), command.environment.begin(), command.environment.end());
  for (const auto& [name, value] : all) argv->insert(argv->end(), {"--setenv", name, value});
}

void AddHardLimits(const SandboxLimits& limits, std::vector<std::string>* argv) {
  const auto add = [argv](const char* name, int64_t value) { argv->push_back(Cat("--", name, "=", value)); };
  argv->push_back("/usr/bin/prlimit");
  argv->push_back(Cat("--cpu=", limits.cpu_seconds, ":", limits.cpu_seconds + 1));  // SIGXCPU, a second later SIGKILL
  add("as", limits.memory_bytes + kLibrariesBytes);
  add("fsize", limits.scratch_bytes);
  add("nproc", limits.processes + 1);  // bwrap's own first process in the namespace
  add("nofile", limits.open_files);
  add("core", 0);
  add("msgqueue", 0);
  add("memlock", int64_t{64} << 10);
  argv->push_back("--");
}

/// bwrap says in JSON on a descriptor of its own how the program ended; only then did it begin.
bool Began(const std::string& status) { return status.find("\"exit-code\"") != std::string::npos; }

/// Waits until the first process of the namespace is dead: the kernel has then ended all others, also those that closed
/// every descriptor. bwrap names it at its start.
void AwaitNamespaceEnd(const std::string& status) {
  constexpr char kKey[] = "\"child-pid\":";
  const size_t at = status.find(kKey);
  if (at == std::string::npos) return;
  const auto pid = static_cast<pid_t>(std::atol(status.c_str() + at + sizeof kKey - 1));
  const UniqueFd process(pid > 1 ? static_cast<int>(syscall(SYS_pidfd_open, pid, 0)) : -1);
  pollfd ended{process.get(), POLLIN, 0};
  if (process.ok()) poll(&ended, 1, 5'000);
}

std::string Contained(const SandboxResult& result, const SandboxLimits& limits) {
  if (result.process.timed_out) return Cat("the wall clock of ", limits.wall.count(), " ms ran out");
  if (result.process.flooded) return Cat("it wrote more than ", limits.output_bytes, " bytes");
  if (result.out_of_memory) return Cat("it used more than ", limits.memory_bytes, " bytes of memory");
  if (result.process.cancelled) return "cancelled";
  // The shell's way of saying that a signal ended the program; bwrap passes it on.
  if (result.process.exit_code == 128 + SIGXCPU) return Cat("it used more than ", limits.cpu_seconds, " s of CPU time");
  return "";
}

}  // namespace

absl::Status CheckLimits(const SandboxLimits& limits) {
  const auto positive = [](const char* field, int64_t value, int64_t most) {
    if (value >= 1 && value <= most) return absl::OkStatus();
    return InvalidArgument("sandbox.", field, ": ", value, " is out of range; must be 1 to ", most);
  };
  RETURN_IF_ERROR(positive("wall", limits.wall.count(), 24 * 3'600'000));
  RETURN_IF_ERROR(positive("cpu_seconds", limits.cpu_seconds, 24 * 3'600));
  RETURN_IF_ERROR(positive("memory_bytes", limits.memory_bytes, int64_t{1} << 46));
  RETURN_IF_ERROR(positive("scratch_bytes", limits.scratch_bytes, int64_t{1} << 40));
  RETURN_IF_ERROR(positive("processes", limits.processes, 4096));
  RETURN_IF_ERROR(positive("open_files", limits.open_files, 65536));
  return positive("output_bytes", static_cast<int64_t>(limits.output_bytes), int64_t{64} << 20);
}

std::string SandboxFeatures::Text() const {
  if (!available) return "none: " + reason;
  return Cat(
      bwrap_version, ", seccomp list of ", SandboxFilterSize(), " calls, ",
      cgroup.version > 0 ? Cat("control groups v", cgroup.version) : Cat("rlimits and a watchdog (", cgroup.why, ")"),
      drops_user ? ", as user nobody" : "");
}

std::unique_ptr<Sandbox> Sandbox::Detect(const std::string& path, bool use_cgroups) {
  std::unique_ptr<Sandbox> sandbox(new Sandbox);
  sandbox->path_ = path;
  SandboxFeatures& found = sandbox->features_;
  const auto missing = [&](const std::string& reason) {
    found.reason = reason;
    return std::move(sandbox);
  };
  found.bwrap = FindIn(path, "bwrap");
  if (found.bwrap.empty()) return missing("bwrap is not in PATH (apt install bubblewrap)");
  if (access("/usr/bin/prlimit", X_OK) != 0) return missing("/usr/bin/prlimit is missing (apt install util-linux)");
  found.drops_user = geteuid() == 0;
  if (found.drops_user && FindIn(path, "setpriv").empty())
    return missing("setpriv is not in PATH (apt install util-linux); as root it is needed to become nobody");
  SubprocessOptions version;
  version.argv = {found.bwrap, "--version"};
  version.inherit_environment = false;
  version.timeout = std::chrono::seconds(10);
  if (auto said = RunSubprocess(version); said.ok()) found.bwrap_version = said->out.substr(0, said->out.find('\n'));
  if (use_cgroups) {
    std::stringstream groups;
    groups << std::ifstream("/proc/self/cgroup").rdbuf();
    found.cgroup = FindCgroupParents(groups.str(), "/sys/fs/cgroup");
  } else {
    found.cgroup.why = "control groups are switched off";
  }
  // The probe also tries what the filter must refuse: a sandbox without its filter is none.
  SandboxCommand probe;
  probe.argv = {"sh", "-c", "unshare -U true 2>/dev/null || echo works >&3"};
  probe.limits.wall = std::chrono::seconds(10);
  auto ran = sandbox->RunIn(probe);
  if (!ran.ok()) return missing(std::string(ran.status().message()));
  if (ran->process.result != "works\n")
    return missing("the probe failed: " + (ran->contained.empty() ? ran->process.err.substr(0, 200) : ran->contained));
  found.available = true;
  return sandbox;
}

std::vector<std::string> Sandbox::Prefix(const Cgroup* group) const {
  std::vector<std::string> argv;
  if (group != nullptr) {
    argv = {"/bin/sh", "-c", kEnter, "sh", Cat(group->entrances().size())};
    argv.insert(argv.end(), group->entrances().begin(), group->entrances().end());
  }
  if (features_.drops_user)
    argv.insert(argv.end(), {FindIn(path_, "setpriv"), "--reuid", kNobody, "--regid", kNobody, "--clear-groups", "--"});
  argv.insert(argv.end(), {features_.bwrap, "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session",
                           "--clearenv", "--uid", kNobody, "--gid", kNobody, "--hostname", "sandbox", "--seccomp",
                           Cat(kFilterFd), "--json-status-fd", Cat(kStatusFd)});
  return argv;
}

absl::StatusOr<SandboxResult> Sandbox::Run(const SandboxCommand& command) const {
  if (!features_.available)
    return FailedPrecondition("sandbox: ", features_.reason, "; code written by a model does not run without it");
  return RunIn(command);
}

absl::StatusOr<SandboxResult> Sandbox::RunIn(const SandboxCommand& command) const {
  RETURN_IF_ERROR(CheckCommand(command));
  const SandboxLimits& limits = command.limits;
  ASSIGN_OR_RETURN(const UniqueFd filter, MakeSandboxFilter());
  ASSIGN_OR_RETURN(const UniqueFd status, MemoryFile(""));
  std::unique_ptr<Cgroup> group;
  if (features_.cgroup.version > 0) {
    // bwrap's own needs on top. Where a group cannot be made after all, the watchdog bounds memory as it does without
    // groups.
    auto made = Cgroup::Make(features_.cgroup, {limits.memory_bytes + limits.scratch_bytes, limits.processes + 4});
    if (made.ok()) group = *std::move(made);
  }
  SubprocessOptions run;
  run.argv = Prefix(group.get());
  run.inherit = {{filter.get(), kFilterFd}, {status.get(), kStatusFd}};
  AddRoot(command, &run.argv);
  std::vector<UniqueFd> files;
  for (const auto& [path, content] : command.files) {
    ASSIGN_OR_RETURN(UniqueFd file, MemoryFile(content));
    const int number = kFirstFileFd + static_cast<int>(files.size());
    run.inherit.emplace_back(file.get(), number);
    run.argv.insert(run.argv.end(), {"--file", Cat(number), Cat(kScratch, "/", path)});
    files.push_back(std::move(file));
  }
  run.argv.insert(run.argv.end(), {"--remount-ro", "/"});
  AddEnvironment(command, &run.argv);
  run.argv.push_back("--");
  AddHardLimits(limits, &run.argv);
  run.argv.insert(run.argv.end(), command.argv.begin(), command.argv.end());
  run.working_directory = "/";
  run.inherit_environment = false;
  run.stdin_data = command.stdin_data;
  run.timeout = limits.wall;
  run.max_output_bytes = limits.output_bytes;
  run.end_at_max_output = true;
  run.result_pipe = true;
  run.cancelled = command.cancelled;
  run.watchdog = [&limits](pid_t pid) { return ResidentBytesOfTree(pid) > limits.memory_bytes; };
  ASSIGN_OR_RETURN(SubprocessResult process, RunSubprocess(run));
  const std::string said = ReadFromStart(status);
  AwaitNamespaceEnd(said);
  SandboxResult result;
  result.out_of_memory = process.stopped || (group != nullptr && group->OutOfMemory());
  result.process = std::move(process);
  result.contained = Contained(result, limits);
  if (result.contained.empty() && !Began(said))
    return Internal("sandbox: it could not be set up: ", result.process.err.substr(0, 300));
  return result;
}

}  // namespace optod::trace

#include "trace/sandbox/cgroup.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/random_id.h"
#include "base/status.h"

namespace optod::trace {
namespace {

bool Exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

bool WriteText(const std::string& path, const std::string& text) {
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool good = write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  close(fd);
  return good;
}

/// The path of the line whose list of controllers holds `name` ("" = version 2), or "".
std::string PathOf(const std::string& self_cgroup, const std::string& name) {
  std::istringstream lines(self_cgroup);
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool match = name.empty() ? controllers == ",," : controllers.find("," + name + ",") != std::string::npos;
    if (match) return line.substr(second + 1);
  }
  return "";
}

std::string GroupName() { return "optod-sandbox-" + RandomId(12); }

/// Whether a group in `folder` can be made and would have all of `files`.
bool CanMake(const std::string& folder, const std::vector<std::string>& files) {
  const std::string probe = folder + "/" + GroupName();
  if (mkdir(probe.c_str(), 0755) != 0) return false;
  bool good = true;
  for (const std::string& file : files) good = good && Exists(probe + "/" + file);
  rmdir(probe.c_str());
  return good;
}

int64_t CountAfter(const std::string& path, const std::string& word) {
  std::ifstream in(path);
  for (std::string key, value; in >> key >> value;)
    if (key == word) return std::atoll(value.c_str());
  return 0;
}

}  // namespace

CgroupParents FindCgroupParents(const std::string& self_cgroup, const std::string& root) {
  const std::string own = PathOf(self_cgroup, "");
  if (!own.empty() && Exists(root + "/cgroup.controllers")) {
    if (CanMake(root + own, {"memory.max", "pids.max", "cgroup.procs"})) return {2, {root + own}, ""};
    return {0, {}, "no right to make a control group with memory and pids in the group of this process"};
  }
  const std::string memory = PathOf(self_cgroup, "memory"), pids = PathOf(self_cgroup, "pids");
  if (memory.empty() || pids.empty()) return {0, {}, "no control groups with memory and pids"};
  const std::vector<std::string> folders = {root + "/memory" + memory, root + "/pids" + pids};
  if (CanMake(folders[0], {"memory.limit_in_bytes", "cgroup.procs"}) &&
      CanMake(folders[1], {"pids.max", "cgroup.procs"}))
    return {1, folders, ""};
  return {0, {}, "no right to make control groups"};
}

absl::StatusOr<std::unique_ptr<Cgroup>> Cgroup::Make(const CgroupParents& parents, const CgroupLimits& limits) {
  if (parents.version == 0) return Unavailable("cgroup: ", parents.why);
  std::unique_ptr<Cgroup> group(new Cgroup);
  const std::string name = GroupName();
  for (const std::string& parent : parents.folders) {
    const std::string folder = parent + "/" + name;
    if (mkdir(folder.c_str(), 0755) != 0) return Unavailable("cgroup: cannot make a group");
    group->folders_.push_back(folder);
    group->entrances_.push_back(folder + "/cgroup.procs");
  }
  const std::string memory = Cat(limits.memory_bytes), processes = Cat(limits.processes);
  const bool bounded = parents.version == 2 ? WriteText(group->folders_[0] + "/memory.max", memory) &&
                                                  WriteText(group->folders_[0] + "/pids.max", processes)
                                            : WriteText(group->folders_[0] + "/memory.limit_in_bytes", memory) &&
                                                  WriteText(group->folders_[1] + "/pids.max", processes);
  if (!bounded) return Unavailable("cgroup: cannot set its limits");
  if (parents.version == 2) WriteText(group->folders_[0] + "/memory.swap.max", "0");  // absent without swap accounting
  return group;
}

Cgroup::~Cgroup() {
  using namespace std::chrono_literals;
  // The kernel takes a moment to bury killed processes; a group that is not empty cannot go.
  for (const std::string& folder : folders_) {
    for (int tries = 0; rmdir(folder.c_str()) != 0 && errno == EBUSY && tries < 200; ++tries)
      std::this_thread::sleep_for(5ms);
  }
}

bool Cgroup::OutOfMemory() const {
  return CountAfter(folders_[0] + "/memory.events", "oom_kill") > 0 ||
         CountAfter(folders_[0] + "/memory.oom_control", "oom_kill") > 0;
}

}  // namespace optod::trace

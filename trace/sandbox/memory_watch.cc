#include "trace/sandbox/memory_watch.h"

#include <dirent.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

namespace optod::trace {
namespace {

constexpr size_t kMaxProcesses = 4096;

std::string Proc(pid_t pid, const std::string& file) { return "/proc/" + std::to_string(pid) + "/" + file; }

/// What every thread of the process made.
void AddChildren(pid_t pid, std::vector<pid_t>* pids) {
  const std::unique_ptr<DIR, int (*)(DIR*)> tasks(opendir(Proc(pid, "task").c_str()), &closedir);
  if (tasks == nullptr) return;
  while (const dirent* entry = readdir(tasks.get())) {
    std::ifstream children(Proc(pid, std::string("task/") + entry->d_name + "/children"));
    for (pid_t child = 0; children >> child;) pids->push_back(child);
  }
}

}  // namespace

int64_t ResidentBytesOfTree(pid_t root) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  std::vector<pid_t> pids = {root};
  int64_t pages = 0;
  for (size_t i = 0; i < pids.size() && pids.size() < kMaxProcesses; ++i) {
    const pid_t pid = pids[i];
    std::ifstream memory(Proc(pid, "statm"));
    int64_t size = 0, resident = 0, shared = 0;
    if (memory >> size >> resident >> shared) pages += resident - shared;
    AddChildren(pid, &pids);
  }
  return pages * page;
}

}  // namespace optod::trace

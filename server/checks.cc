#include "server/checks.h"

#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sstream>

#include "base/status.h"

namespace optod::server {
namespace {

using services::HealthCheck;

constexpr int64_t kMinFreeBytes = int64_t{1} << 30;
constexpr int64_t kMinOpenFiles = 1024;
constexpr double kMinCommits = 50;

std::string GiB(int64_t bytes) {
  int64_t tenths = bytes / ((int64_t{1} << 30) / 10);
  return Cat(tenths / 10, ".", tenths % 10, " GiB");
}

HealthCheck DiskSpace(const config::Config& config) {
  struct statvfs info {};
  if (statvfs(config.data_dir.c_str(), &info) != 0)
    return {"disk", false, Cat("data directory: ", std::strerror(errno))};
  int64_t free_bytes = static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
  return {"disk", free_bytes >= kMinFreeBytes,
          Cat(GiB(free_bytes), " free in the data directory; at least 1 GiB is wanted")};
}

HealthCheck OpenFiles() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  int64_t files = limit.rlim_cur == RLIM_INFINITY ? INT64_MAX : static_cast<int64_t>(limit.rlim_cur);
  return {"open-files", files >= kMinOpenFiles,
          Cat("limit ", limit.rlim_cur, "; at least ", kMinOpenFiles, " is wanted (one a client and some)")};
}

HealthCheck Durability(const config::Config& config, const Facts& facts) {
  std::string mode = config.synchronous == "full" ? "commits survive power loss"
                                                  : "commits survive a crash of the process, not always power loss";
  if (facts.commits_per_second <= 0) return {"durability", true, mode};
  return {"durability", facts.commits_per_second >= kMinCommits,
          Cat(mode, "; ", static_cast<int64_t>(facts.commits_per_second), " commits/s on this disk")};
}

HealthCheck Access(const config::Config& config) {
  bool remote = std::any_of(config.listen.begin(), config.listen.end(), [](const std::string& text) {
    auto address = config::ParseAddress(text);
    return address.ok() && !address->loopback;
  });
  std::string detail =
      config.auth == "token" ? "tokens are asked for" : "no authentication: everybody on this machine is admin";
  if (remote) detail += config.tls_cert.empty() ? "; plaintext to other machines (--insecure)" : "; TLS";
  return {"access", !remote || !config.tls_cert.empty(), detail};
}

HealthCheck Llm(const Facts& facts) {
  if (facts.llm_endpoints.empty())
    return {"llm", false, "no endpoint; set OPTOD_LLM_URL (and OPTOD_LLM_MODEL, OPTOD_LLM_KEY) or llm-secrets"};
  std::string names;
  for (const std::string& name : facts.llm_endpoints) names += (names.empty() ? "" : ", ") + name;
  return {"llm", true, "endpoints: " + names};
}

HealthCheck Sandbox(const config::Config& config, const Facts& facts) {
  const bool there = facts.sandbox.compare(0, 5, "none:") != 0;
  // With executor client or disabled the server runs nothing; what this machine could do is still worth a line.
  return {"sandbox", there || config.executor != "sandbox", Cat("executor ", config.executor, "; ", facts.sandbox)};
}

HealthCheck Memory(const config::Config& config) {
  int64_t total = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  return {"memory", config.memory_budget_bytes <= total / 10 * 9,
          Cat("memory-budget ", GiB(config.memory_budget_bytes), " of ", GiB(total), " in this machine")};
}

}  // namespace

std::vector<HealthCheck> RunChecks(const config::Config& config, const Facts& facts) {
  return {DiskSpace(config), Durability(config, facts), Memory(config), OpenFiles(), Access(config),
          Llm(facts),        Sandbox(config, facts)};
}

}  // namespace optod::server

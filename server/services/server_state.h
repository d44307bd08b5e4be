#pragma once
/// What AdminService asks the running application: facts for GetServerInfo and two actions. Implemented by App; faked
/// by a struct in tests.

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace optod::services {

/// One line of `optoctl doctor`.
struct HealthCheck {
  std::string name;
  bool ok = true;
  std::string detail;
};

struct ServerState {
  std::string version;
  std::string normal_path;                             ///< SIMD path of the random stream
  std::vector<std::pair<std::string, bool>> services;  ///< name, implemented
  std::function<std::vector<std::string>()> llm_endpoints = [] { return std::vector<std::string>{}; };
  std::function<double()> commits_per_second = [] { return 0.0; };
  std::function<int64_t()> sessions_loaded = [] { return int64_t{0}; };
  std::function<int64_t()> resident_bytes = [] { return int64_t{0}; };
  std::function<int64_t()> uptime_ms = [] { return int64_t{0}; };
  std::function<std::vector<HealthCheck>()> checks = [] { return std::vector<HealthCheck>{}; };
  /// Asks the process to drain and end; returns at once. `grace_ms` < 0 = the configured one.
  std::function<void(int64_t grace_ms)> request_drain = [](int64_t) {};
};

}  // namespace optod::services

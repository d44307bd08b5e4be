#pragma once
/// The page at `/`: what runs here, in one plain HTML document without scripts or outside assets. Pure function.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace optod::web {

struct StatusPage {
  std::string version;
  bool serving = true;
  int64_t uptime_s = 0;
  std::vector<std::string> grpc_addresses;
  bool authentication = false;
  int64_t sessions_loaded = 0;
  int64_t resident_bytes = 0;  ///< of the process
  int64_t requests_total = 0;
  double commits_per_second = 0;                       ///< of the disk, measured at start; 0 = not measured
  std::vector<std::pair<std::string, bool>> services;  ///< name, implemented
  std::vector<std::string> llm_endpoints;
};

std::string RenderStatusPage(const StatusPage& page);

/// &, <, >, " and ' replaced by entities.
std::string EscapeHtml(const std::string& text);

}  // namespace optod::web

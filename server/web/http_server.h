#pragma once
/// The HTTP port: GET of a few fixed paths for people and monitors, nothing that changes anything. Own threads (3), so
/// that it answers while gRPC is busy. Thread-safe after Start; handlers run on its threads.

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace optod::web {

struct Page {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};

class HttpServer {
 public:
  /// Binds and serves. `port` 0 picks a free one. UNAVAILABLE when the address is in use or not
  /// ours.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const std::string& host, int port,
                                                           std::map<std::string, std::function<Page()>> pages);
  /// Stops and joins.
  ~HttpServer();
  int port() const;

 private:
  struct Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace optod::web

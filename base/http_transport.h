#pragma once
/// One HTTP exchange as a dependency. The real one is libcurl (MakeCurlTransport); tests hand in a table of canned
/// answers. Thread-safe: Perform may be called from many threads at once.

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace optod {

struct HttpRequest {
  std::string method = "POST";
  std::string url;                                           ///< http:// or https://
  std::vector<std::pair<std::string, std::string>> headers;  ///< may hold secrets: never logged
  std::string body;
  std::chrono::milliseconds timeout{60'000};  ///< whole exchange; connect is capped at 10 s of it
  size_t max_response_bytes = 8u << 20;       ///< larger answers end in RESOURCE_EXHAUSTED
  /// Called with each piece of the body of a 200 as it comes (the whole is in the response all the same). False ends
  /// the exchange: CANCELLED.
  std::function<bool(std::string_view piece)> on_body{};
};

struct HttpResponse {
  int status = 0;                                            ///< 200, 429, ...
  std::vector<std::pair<std::string, std::string>> headers;  ///< names in lower case
  std::string body;
  /// Value of a header (lower-case name), or "" when absent.
  std::string Header(const std::string& name) const {
    for (const auto& [key, value] : headers)
      if (key == name) return value;
    return "";
  }
};

class HttpTransport {
 public:
  virtual ~HttpTransport() = default;
  /// Any HTTP status is a response. Errors: UNAVAILABLE (cannot connect, connection broke), DEADLINE_EXCEEDED
  /// (timeout), RESOURCE_EXHAUSTED (answer too large), INVALID_ARGUMENT (bad URL), CANCELLED (on_body said so).
  virtual absl::StatusOr<HttpResponse> Perform(const HttpRequest& request) = 0;
};

/// libcurl. Connections are kept alive and reused by whichever thread calls next. Redirects are not followed (a 3xx is
/// a response), so headers never reach another host; loopback hosts are reached without a proxy, others through the one
/// the environment names.
std::unique_ptr<HttpTransport> MakeCurlTransport();

}  // namespace optod

#pragma once
/// Numbers for Prometheus. Requests are counted by method and code as they end; everything else is asked for when
/// /metrics is read. Labels are method names, codes and endpoint names: nothing of users or requests. Thread-safe.

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace optod::web {

/// A value of a family that is asked for at every scrape, with its label ("" = none).
struct Sample {
  std::string label;
  double value = 0;
};

class Metrics {
 public:
  /// `methods`: full names ("/optod.v1.SessionService/Ask") that get a row of their own; calls of others are counted as
  /// method="other".
  explicit Metrics(const std::vector<std::string>& methods);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  void RequestStarted(std::string_view method);
  /// `code`: gRPC status code 0-16. Feeds optod_requests_total{method,code} and optod_request_seconds{method}.
  void RequestDone(std::string_view method, int code, std::chrono::nanoseconds duration);
  /// Requests ended so far, over all methods.
  int64_t RequestsTotal() const;

  /// Adds a family whose values are asked for at every scrape. `read` runs on an HTTP thread and must be quick. Before
  /// the first Text only.
  void AddGauge(std::string name, std::string help, std::function<double()> read);
  void AddCounter(std::string name, std::string help, std::function<double()> read);
  /// As AddCounter with several values that differ in one label.
  void AddCounters(std::string name, std::string help, std::string label_name,
                   std::function<std::vector<Sample>()> read);

  /// The exposition text (format 0.0.4).
  std::string Text();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Resident bytes of this process, from /proc/self/statm; 0 where that cannot be read.
int64_t ProcessResidentBytes();
/// Open file descriptors of this process; 0 where that cannot be read.
int64_t ProcessOpenFiles();

}  // namespace optod::web

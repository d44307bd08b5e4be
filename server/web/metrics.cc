#include "server/web/metrics.h"

#include <dirent.h>
#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <sstream>
#include <unordered_map>

namespace optod::web {
namespace {

constexpr std::array<const char*, 17> kCodeNames = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};

/// Seconds: 50 us (a unary hop) to 100 s (a long operation), about three a decade.
const prometheus::Histogram::BucketBoundaries kBuckets = {50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3,
                                                          50e-3, 0.1,    0.2,    0.5,    1,    2,    5,    10,    100};

/// One method's cells, found without a lock. Counters of codes that never happened are not in the exposition.
struct MethodCells {
  prometheus::Labels labels;
  prometheus::Histogram* seconds = nullptr;
  std::atomic<int64_t> running{0};
  std::array<std::atomic<prometheus::Counter*>, kCodeNames.size()> by_code{};
};

struct ReadFamily {
  std::string name, help, label_name;
  prometheus::MetricType type;
  std::function<std::vector<Sample>()> read;
};

}  // namespace

struct Metrics::Impl {
  prometheus::Registry registry;
  prometheus::Family<prometheus::Counter>* requests = nullptr;
  std::unordered_map<std::string_view, MethodCells*> by_method;  ///< never changes after construction
  std::vector<std::string> names;
  std::vector<std::unique_ptr<MethodCells>> cells;
  MethodCells* other = nullptr;
  std::atomic<int64_t> total{0};
  std::vector<ReadFamily> families;

  MethodCells& Cells(std::string_view method) {
    auto found = by_method.find(method);
    return found == by_method.end() ? *other : *found->second;
  }
};

Metrics::Metrics(const std::vector<std::string>& methods) : impl_(std::make_unique<Impl>()) {
  impl_->requests = &prometheus::BuildCounter()
                         .Name("optod_requests_total")
                         .Help("Calls ended, by method and gRPC code")
                         .Register(impl_->registry);
  auto& seconds = prometheus::BuildHistogram()
                      .Name("optod_request_seconds")
                      .Help("Time from a call's start to its end")
                      .Register(impl_->registry);
  impl_->names = methods;
  impl_->names.push_back("other");
  std::sort(impl_->names.begin(), impl_->names.end());
  impl_->names.erase(std::unique(impl_->names.begin(), impl_->names.end()), impl_->names.end());
  for (const std::string& name : impl_->names) {
    auto cells = std::make_unique<MethodCells>();
    cells->labels = {{"method", name.starts_with('/') ? name.substr(1) : name}};
    cells->seconds = &seconds.Add(cells->labels, kBuckets);
    impl_->by_method[name] = cells.get();
    impl_->cells.push_back(std::move(cells));
  }
  impl_->other = impl_->by_method["other"];
}

Metrics::~Metrics() = default;

void Metrics::RequestStarted(std::string_view method) {
  impl_->Cells(method).running.fetch_add(1, std::memory_order_relaxed);
}

void Metrics::RequestDone(std::string_view method, int code, std::chrono::nanoseconds duration) {
  MethodCells& cells = impl_->Cells(method);
  size_t index = code >= 0 && code < static_cast<int>(kCodeNames.size()) ? static_cast<size_t>(code) : 2;
  prometheus::Counter* counter = cells.by_code[index].load(std::memory_order_acquire);
  if (counter == nullptr) {
    prometheus::Labels labels = cells.labels;
    labels["code"] = kCodeNames[index];
    counter = &impl_->requests->Add(labels);  // the same counter for the same labels, whoever comes first
    cells.by_code[index].store(counter, std::memory_order_release);
  }
  counter->Increment();
  cells.seconds->Observe(std::chrono::duration<double>(duration).count());
  cells.running.fetch_sub(1, std::memory_order_relaxed);
  impl_->total.fetch_add(1, std::memory_order_relaxed);
}

int64_t Metrics::RequestsTotal() const { return impl_->total.load(std::memory_order_relaxed); }

void Metrics::AddGauge(std::string name, std::string help, std::function<double()> read) {
  impl_->families.push_back(
      {std::move(name), std::move(help), "", prometheus::MetricType::Gauge, [read = std::move(read)] {
         return std::vector<Sample>{{"", read()}};
       }});
}

void Metrics::AddCounter(std::string name, std::string help, std::function<double()> read) {
  impl_->families.push_back(
      {std::move(name), std::move(help), "", prometheus::MetricType::Counter, [read = std::move(read)] {
         return std::vector<Sample>{{"", read()}};
       }});
}

void Metrics::AddCounters(std::string name, std::string help, std::string label_name,
                          std::function<std::vector<Sample>()> read) {
  impl_->families.push_back(
      {std::move(name), std::move(help), std::move(label_name), prometheus::MetricType::Counter, std::move(read)});
}

std::string Metrics::Text() {
  std::vector<prometheus::MetricFamily> all = impl_->registry.Collect();
  // A method that was never called is left out: 50 methods of 18 empty buckets would bury what matters.
  for (prometheus::MetricFamily& family : all) {
    std::erase_if(family.metric, [&](const prometheus::ClientMetric& metric) {
      return family.type == prometheus::MetricType::Histogram && metric.histogram.sample_count == 0;
    });
  }
  prometheus::MetricFamily running{
      "optod_requests_running", "Calls that have begun and not ended", prometheus::MetricType::Gauge, {}};
  prometheus::ClientMetric running_now;
  for (const auto& cells : impl_->cells)
    running_now.gauge.value += static_cast<double>(cells->running.load(std::memory_order_relaxed));
  running.metric.push_back(running_now);
  all.push_back(running);
  for (const ReadFamily& family : impl_->families) {
    prometheus::MetricFamily out{family.name, family.help, family.type, {}};
    for (const Sample& sample : family.read()) {
      prometheus::ClientMetric metric;
      if (!family.label_name.empty()) metric.label.push_back({family.label_name, sample.label});
      (family.type == prometheus::MetricType::Gauge ? metric.gauge.value : metric.counter.value) = sample.value;
      out.metric.push_back(metric);
    }
    all.push_back(out);
  }
  std::ostringstream text;
  prometheus::TextSerializer().Serialize(text, all);
  return std::move(text).str();
}

int64_t ProcessResidentBytes() {
  FILE* file = std::fopen("/proc/self/statm", "re");
  if (file == nullptr) return 0;
  long long total = 0, resident = 0;
  int read = std::fscanf(file, "%lld %lld", &total, &resident);
  std::fclose(file);
  return read == 2 ? resident * sysconf(_SC_PAGESIZE) : 0;
}

int64_t ProcessOpenFiles() {
  DIR* directory = opendir("/proc/self/fd");
  if (directory == nullptr) return 0;
  int64_t count = 0;
  while (const dirent* entry = readdir(directory)) count += entry->d_name[0] != '.';
  closedir(directory);
  return count - 1;  // the directory itself
}

}  // namespace optod::web

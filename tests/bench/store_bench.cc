// What a step of a zo-sgd session costs the store: InsertVersion + UpdateSession + InsertRequest, an event every 100
// steps, durable (WAL, synchronous=FULL) on the disk of the working directory.
//
//   store_bench                  steps/s with groups of 1, 16, 64, 512 batches and CPU time of a step (all threads), on
//   a fresh store and beside 300 k past steps
//
// `callers` sessions each have one step under way; when it is durable the next is submitted. The writer takes at most
// `group` of them into a transaction, and as many again wait meanwhile, so that groups are full.

#include <benchmark/benchmark.h>
#include <sys/resource.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "server/store/memory_store.h"
#include "server/store/sqlite_store.h"

namespace optod::store {
namespace {

/// 16 hex digits that look random and are never the same.
std::string RequestId(int64_t session, int64_t step) {
  uint64_t x = static_cast<uint64_t>(session) * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(step);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  char text[40];
  std::snprintf(text, sizeof text, "%016llx%016llx", static_cast<unsigned long long>(x ^ (x >> 31)),
                static_cast<unsigned long long>(x));
  return text;
}

/// Sizes as the engine writes them: 40 bytes of seed and scalars, 90 of session fields, 60 of answer.
Batch ZoStep(SessionRow& session) {
  Batch batch;
  ++session.seq;
  ++session.revision;
  session.head_version = session.version_count++;
  session.update_ms = 1'700'000'000'000 + session.seq;
  VersionRow version;
  version.session_uid = session.uid;
  version.number = session.head_version;
  version.parent = version.number - 1;
  version.step = session.seq;
  version.payload = std::string(40, static_cast<char>(session.seq));
  version.create_ms = session.update_ms;
  batch.mutations.push_back(InsertVersion{std::move(version)});
  batch.mutations.push_back(UpdateSession{session});
  RequestRow request;
  request.user = session.user;
  request.method = "Tell";
  request.request_id = RequestId(session.uid, session.seq);
  request.request_sha256 = std::string(32, 'h');
  request.response = std::string(60, 'r');
  request.session_uid = session.uid;
  request.create_ms = session.update_ms;
  batch.mutations.push_back(InsertRequest{std::move(request)});
  if (session.seq % 100 == 0) {
    EventRow event;
    event.user = session.user;
    event.type = "version";
    event.resource = "users/u/sessions/s";
    event.detail_json = "{}";
    batch.mutations.push_back(AppendEvent{std::move(event)});
  }
  return batch;
}

/// Of all threads, user and system.
double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

class Callers {
 public:
  Callers(Store& store, int count) : store_(store), sessions_(static_cast<size_t>(count)) {
    for (SessionRow& session : sessions_) {
      session.uid = store.NewSessionUid();
      session.user = "u";
      session.id = "s" + std::to_string(session.uid);
      session.spec = std::string(500, 's');
      session.mutable_fields = std::string(90, 'm');
      session.version_count = 1;
      Batch batch;
      batch.mutations.push_back(InsertSession{session});
      Check(store.CommitAndWait(std::move(batch)));
    }
  }

  /// Runs `steps` more steps over all sessions; returns when all are durable.
  void Run(int64_t steps) {
    std::unique_lock lock(mutex_);
    to_submit_ = steps;
    outstanding_ = steps;
    const int64_t first = std::min<int64_t>(steps, static_cast<int64_t>(sessions_.size()));
    to_submit_ -= first;
    lock.unlock();
    for (int64_t i = 0; i < first; ++i) Submit(static_cast<size_t>(i));
    lock.lock();
    all_done_.wait(lock, [this] { return outstanding_ == 0; });
  }

 private:
  static void Check(const absl::Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
    std::exit(1);
  }

  void Submit(size_t caller) {
    store_.Commit(ZoStep(sessions_[caller]), [this, caller](absl::Status status) {
      Check(status);
      std::unique_lock lock(mutex_);
      const bool more = to_submit_ > 0;
      if (more) --to_submit_;
      if (--outstanding_ == 0) all_done_.notify_one();
      lock.unlock();
      if (more) Submit(caller);
    });
  }

  Store& store_;
  std::vector<SessionRow> sessions_;
  std::mutex mutex_;
  std::condition_variable all_done_;
  int64_t to_submit_ = 0, outstanding_ = 0;
};

void ZoSteps(benchmark::State& state) {
  const int group = static_cast<int>(state.range(0));
  const int64_t past_steps = state.range(1);
  const std::string directory = "store_bench.tmp";
  std::filesystem::remove_all(directory);
  std::filesystem::create_directory(directory);
  SqliteOptions options;
  options.path = directory + "/optod.db";
  options.max_group = group;
  auto store = OpenSqliteStore(options);
  if (!store.ok()) return state.SkipWithError(std::string(store.status().message()).c_str());
  Callers callers(**store, group == 1 ? 1 : 2 * group);
  if (past_steps > 0) Callers(**store, 1024).Run(past_steps);
  const int64_t steps = 4000 * (group == 1 ? 1 : 8);
  const double cpu_start = CpuSeconds();
  for (auto _ : state) callers.Run(steps);
  const double cpu_us = (CpuSeconds() - cpu_start) * 1e6;
  state.counters["steps/s"] =
      benchmark::Counter(static_cast<double>(steps * state.iterations()), benchmark::Counter::kIsRate);
  state.counters["cpu_us/step"] = cpu_us / static_cast<double>(steps * state.iterations());
  state.counters["disk_commits/s"] = (*store)->CommitsPerSecond();
  (*store)->Close().IgnoreError();
  std::filesystem::remove_all(directory);
}
BENCHMARK(ZoSteps)
    ->ArgNames({"group", "past_steps"})
    ->ArgsProduct({{1, 16, 64, 512}, {0, 300'000}})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime()
    ->MinTime(1.0);

// As many callers as given, groups as they come.
void ZoCallers(benchmark::State& state) {
  const std::string directory = "store_bench.tmp";
  std::filesystem::remove_all(directory);
  std::filesystem::create_directory(directory);
  SqliteOptions options;
  options.path = directory + "/optod.db";
  auto store = OpenSqliteStore(options);
  if (!store.ok()) return state.SkipWithError(std::string(store.status().message()).c_str());
  Callers callers(**store, static_cast<int>(state.range(0)));
  const int64_t steps = 64 * state.range(0);
  for (auto _ : state) callers.Run(steps);
  state.counters["steps/s"] =
      benchmark::Counter(static_cast<double>(steps * state.iterations()), benchmark::Counter::kIsRate);
  state.counters["disk_commits/s"] = (*store)->CommitsPerSecond();
  (*store)->Close().IgnoreError();
  std::filesystem::remove_all(directory);
}
BENCHMARK(ZoCallers)
    ->ArgName("callers")
    ->Arg(1)
    ->Arg(16)
    ->Arg(64)
    ->Arg(256)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

void OpenAndClose(benchmark::State& state) {
  std::filesystem::create_directory("store_bench.tmp");
  SqliteOptions options;
  options.path = "store_bench.tmp/open.db";
  for (auto _ : state) {
    auto store = OpenSqliteStore(options);
    if (!store.ok()) return state.SkipWithError(std::string(store.status().message()).c_str());
  }
  std::filesystem::remove_all("store_bench.tmp");
}
BENCHMARK(OpenAndClose)->Unit(benchmark::kMillisecond)->UseRealTime();

}  // namespace
}  // namespace optod::store

BENCHMARK_MAIN();

// optod-worker train: a job file run here and now, without a server. The same code as a job's.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

#include "base/fs.h"
#include "base/status.h"
#include "optim/nn/inference.h"
#include "optim/train/trainer.h"
#include "optim/worker/commands.h"
#include "optim/worker/guarded_training.h"
#include "optim/zo/stream.h"

namespace optod::worker {
namespace {

std::atomic<bool> g_stop{false};
void OnSignal(int) { g_stop = true; }

struct Options {
  std::string spec, folder;
  int attempt = 1;
};

/// Of every rank; 0 = all.
int ThreadsEach(const train::TrainSpec& spec) {
  if (spec.threads > 0 || spec.parallel.workers == 1) return static_cast<int>(spec.threads);
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / static_cast<int>(spec.parallel.workers));
}

/// All ranks of a parallel run as threads of this process, with a part of the threads each. Rank 0's result.
absl::StatusOr<train::TrainResult> TrainRanks(const train::TrainSpec& spec, const Options& o, const train::TrainHooks& hooks) {
  const auto workers = static_cast<size_t>(spec.parallel.workers);
  train::ExchangeHub hub(spec.parallel);
  std::atomic<bool> failed{false};
  std::vector<absl::StatusOr<train::TrainResult>> results(workers, absl::CancelledError("stopped"));
  const auto run = [&](int rank) {
    const auto seat = hub.Seat(rank);
    train::TrainHooks own = rank == 0 ? hooks : train::TrainHooks();
    own.exchange = seat.get();
    own.stop = [&] { return g_stop.load() || failed.load(); };
    nn::SetThreads(ThreadsEach(spec));
    auto& result = results[static_cast<size_t>(rank)];
    result = GuardedTraining(spec, train::RankFolder(o.folder, rank), o.attempt, own);
    if (!result.ok()) failed = true;
  };
  std::vector<std::thread> threads;
  for (size_t r = 0; r < workers; ++r) threads.emplace_back(run, static_cast<int>(r));
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) {
    if (!result.ok() && !absl::IsCancelled(result.status())) return result.status();  // the others stopped for its sake
  }
  return results[0];
}

absl::Status Train(const Options& o) {
  ASSIGN_OR_RETURN(const std::string text, PosixFs().ReadFile(o.spec));
  ASSIGN_OR_RETURN(const train::TrainSpec spec, train::ParseTrainSpec(text));
  nn::UseCachingAllocator();
  zo::SetStreamThreads(nn::SetThreads(ThreadsEach(spec)));
  std::signal(SIGINT, &OnSignal);
  std::signal(SIGTERM, &OnSignal);
  train::TrainHooks hooks;
  hooks.stop = [] { return g_stop.load(); };
  hooks.log = [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); };
  hooks.progress = [](int64_t step, const std::map<std::string, double>& metrics) {
    std::printf("{\"step\": %lld", static_cast<long long>(step));
    for (const auto& [name, value] : metrics) std::printf(", \"%s\": %.17g", name.c_str(), value);
    std::printf("}\n");
    std::fflush(stdout);
  };
  ASSIGN_OR_RETURN(const train::TrainResult result,
                   spec.parallel.workers > 1 ? TrainRanks(spec, o, hooks) : GuardedTraining(spec, o.folder, o.attempt, hooks));
  std::printf("%s\n", train::ResultJson(result).c_str());
  return absl::OkStatus();
}

}  // namespace

void AddTrainCommand(CLI::App& app, int* code) {
  auto o = std::make_shared<Options>();
  auto* command =
      app.add_subcommand("train", "runs a fine-tuning file without a server; one JSON line an event, the result last");
  command->add_option("--spec", o->spec, "the job file as JSON")->required();
  command->add_option("--folder", o->folder, "where checkpoints and results go")->required();
  command->add_option("--attempt", o->attempt, "2 and later go on where the attempt before ended")
      ->check(CLI::Range(1, 1 << 20));
  command->callback([o, code] { *code = ExitCode(Train(*o)); });
}

}  // namespace optod::worker

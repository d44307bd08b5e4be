// optod-worker bench: seconds and memory of one training step on made-up rows, for tests/bench/finetune_bench.py.
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <memory>

#include "base/status.h"
#include "optim/nn/inference.h"
#include "optim/train/engine.h"
#include "optim/train/learner.h"
#include "optim/worker/commands.h"
#include "optim/zo/stream.h"

namespace optod::worker {
namespace {

struct Options {
  std::string model, optimizer = "zo-sgd", scheme = "full";
  int64_t steps = 5, batch = 16, tokens = 32;
  int threads = 0;
};

double CpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

absl::Status Bench(const Options& o) {
  nn::UseCachingAllocator();
  zo::SetStreamThreads(nn::SetThreads(o.threads));
  ASSIGN_OR_RETURN(nn::ModelFiles model, nn::LoadModel(o.model));
  train::SchemeSpec scheme;
  scheme.name = o.scheme;
  ASSIGN_OR_RETURN(const auto engine, train::Engine::Create(&model, scheme, 1));
  std::vector<train::Example> examples;
  for (int64_t i = 0; i < o.batch; ++i) {
    train::Sequence sequence;
    for (int64_t t = 0; t < o.tokens; ++t) sequence.ids.push_back((i * 131 + t * 37) % model.config.vocab);
    sequence.picks = {{o.tokens - 1, 1 % model.config.vocab, 0}, {o.tokens - 1, 2 % model.config.vocab, 1}};
    examples.push_back({{sequence}, 2, 0});
  }
  std::vector<const train::Example*> batch;
  for (const train::Example& example : examples) batch.push_back(&example);
  std::string folder = (std::filesystem::temp_directory_path() / "optod-bench-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) return Internal("no temporary folder");
  std::unique_ptr<train::Learner> learner;
  if (o.optimizer != "none") {
    ASSIGN_OR_RETURN(
        train::TrainSpec spec,
        train::ParseTrainSpec(
            R"({"model": "/m", "task": {"name": "sst2", "train": "/a", "dev": "/b"}, "optimizer": {"name": ")" +
            o.optimizer + R"(", "lr": 1e-7}, "scheme": ")" + o.scheme + "\"}"));
    ASSIGN_OR_RETURN(learner, train::MakeLearner(spec, *engine, true, folder, ""));
  }
  std::vector<double> seconds, cpu;
  for (int64_t i = 0; i <= o.steps; ++i) {
    const auto began = std::chrono::steady_clock::now();
    const double cpu_began = CpuSeconds();
    RETURN_IF_ERROR(learner == nullptr ? engine->Score(engine->theta(), batch).status()
                                       : learner->Step(i, batch, 1e-7).status());
    if (i == 0) continue;  // the first one touches memory
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
    cpu.push_back(CpuSeconds() - cpu_began);
  }
  std::filesystem::remove_all(folder);
  std::sort(seconds.begin(), seconds.end());
  std::sort(cpu.begin(), cpu.end());
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  std::printf(
      "{\"runtime\": \"%s\", \"optimizer\": \"%s\", \"seconds\": %.4f, \"cpu_seconds\": %.4f, \"peak_mib\": %.1f}\n",
      nn::RuntimeName().c_str(), o.optimizer.c_str(), seconds[seconds.size() / 2], cpu[cpu.size() / 2],
      static_cast<double>(usage.ru_maxrss) / 1024);
  return absl::OkStatus();
}

}  // namespace

void AddBenchCommand(CLI::App& app, int* code) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("bench", "seconds and memory of training steps on made-up rows");
  command->add_option("--model", o->model, "Hugging Face folder or .gguf file")->required();
  command->add_option("--optimizer", o->optimizer, "an optimizer's name, or none: a plain forward pass");
  command->add_option("--scheme", o->scheme, "full, lora, prefix, head");
  for (auto [name, field] : {std::pair("--steps", &o->steps), {"--batch", &o->batch}, {"--tokens", &o->tokens}})
    command->add_option(name, *field)->check(CLI::Range(1, 1 << 20));
  command->add_option("--threads", o->threads, "0 = all CPUs");
  command->callback([o, code] { *code = ExitCode(Bench(*o)); });
}

}  // namespace optod::worker

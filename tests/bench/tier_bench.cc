// Fine-tuning steps with the parameters on disk beside the same steps with all of them in memory: tokens a second at 64,
// 128 and 512 tokens a step, overlap measured and predicted, memory. The losses of both must be equal bit for bit.
//
//   tier_bench --model DIR|FILE.gguf --disk DIR [--device-budget MiB=128] [--steps 3] [--write-every 1] [--tokens 64,128,512]
//
// Prints, a row a size: median seconds of a step (the first one apart), tokens a second, their ratio, the predicted and
// the measured share of the moving that computing hides.
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>

#include "base/status.h"
#include "optim/nn/inference.h"
#include "optim/train/engine.h"
#include "optim/train/tiered_learner.h"
#include "optim/zo/stream.h"

namespace {

using namespace optod;
using train::Example;

struct Options {
  std::string model, disk;
  int64_t budget_mib = 128, steps = 3, write_every = 1;
  std::vector<int64_t> tokens = {64, 128, 512};
};

/// Sequences of 32 tokens, each with two picks at its end.
std::vector<Example> SomeExamples(int64_t tokens, int64_t vocab) {
  std::vector<Example> examples;
  for (int64_t at = 0; at < tokens; at += 32) {
    train::Sequence sequence;
    for (int64_t i = 0; i < 32; ++i) sequence.ids.push_back((7919 * (at + i) + 13) % vocab);
    sequence.picks = {{31, 17 % vocab, 0}, {31, 23 % vocab, 1}};
    examples.push_back({{sequence}, 2, static_cast<int>(at / 32 % 2)});
  }
  return examples;
}

struct Timed {
  std::vector<double> losses;
  double seconds = 0;  ///< median of the steps after the first
};

absl::StatusOr<Timed> Run(train::Learner& learner, const std::vector<Example>& examples, int64_t steps) {
  std::vector<const Example*> batch;
  for (const Example& example : examples) batch.push_back(&example);
  Timed timed;
  std::vector<double> seconds;
  const int64_t first = learner.done();
  for (int64_t step = first; step < first + steps + 1; ++step) {
    const auto began = std::chrono::steady_clock::now();
    ASSIGN_OR_RETURN(const train::StepOutcome outcome, learner.Step(step, batch, 1e-6));
    if (step > first) seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
    timed.losses.push_back(outcome.loss);
  }
  std::nth_element(seconds.begin(), seconds.begin() + static_cast<ptrdiff_t>(seconds.size() / 2), seconds.end());
  timed.seconds = seconds[seconds.size() / 2];
  return timed;
}

double PeakMiB() {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

absl::Status Bench(const Options& o) {
  zo::SetStreamThreads(nn::SetThreads(0));
  train::TrainSpec spec;
  spec.model = o.model;
  spec.seed = 7;
  spec.hyper = {{"lr", 1e-6}, {"eps", 1e-3}};
  spec.tier.on = true;
  spec.tier.device_budget = o.budget_mib << 20;
  spec.tier.host_budget = 0;
  spec.tier.disk = o.disk;
  spec.tier.write_every = o.write_every;
  std::string scratch = o.disk + "/tier-bench-XXXXXX";
  if (mkdtemp(scratch.data()) == nullptr) return NotFound("--disk: no such folder");
  const std::string resident_folder = scratch + "/r", tiered_folder = scratch + "/t";
  std::vector<Timed> tiered;
  std::vector<tier::Plan> plans;
  std::vector<double> overlap;
  double tiered_peak = 0;
  {
    ASSIGN_OR_RETURN(const auto model, train::TieredModel::Open(spec, "units-bench", nullptr));
    std::filesystem::create_directories(tiered_folder);
    ASSIGN_OR_RETURN(const auto learner, train::MakeTieredLearner(spec, *model, true, tiered_folder, ""));
    std::printf("%s", tier::PlanText(model->plan()).c_str());
    for (int64_t tokens : o.tokens) {
      const auto before = model->Figures();
      ASSIGN_OR_RETURN(Timed timed, Run(*learner, SomeExamples(tokens, model->config().vocab), o.steps));
      tiered.push_back(std::move(timed));
      auto after = model->Figures();
      const auto spent = [&](const char* name) { return after.at(name) - before.at(name); };
      const double compute = spent("tier/compute_seconds");
      overlap.push_back(compute / (compute + spent("tier/waited_seconds")));
    }
    tiered_peak = PeakMiB();
    model->Discard();
  }
  for (int64_t tokens : o.tokens) {
    ASSIGN_OR_RETURN(tier::Plan plan, train::PlanOf(spec, tokens));
    plans.push_back(std::move(plan));
  }
  ASSIGN_OR_RETURN(nn::ModelFiles files, nn::LoadModel(o.model));
  ASSIGN_OR_RETURN(const auto engine, train::Engine::Create(&files, spec.scheme, spec.seed));
  std::filesystem::create_directories(resident_folder);
  ASSIGN_OR_RETURN(const auto learner, train::MakeLearner(spec, *engine, true, resident_folder, ""));
  std::printf("%8s %12s %12s %8s %10s %10s %8s\n", "tokens", "resident t/s", "tiered t/s", "ratio", "predicted", "measured", "losses");
  bool equal = true;
  for (size_t i = 0; i < o.tokens.size(); ++i) {
    ASSIGN_OR_RETURN(const Timed resident, Run(*learner, SomeExamples(o.tokens[i], files.config.vocab), o.steps));
    const bool same = resident.losses == tiered[i].losses;
    equal = equal && same;
    std::printf("%8lld %12.1f %12.1f %8.3f %10.3f %10.3f %8s\n", static_cast<long long>(o.tokens[i]),
                static_cast<double>(o.tokens[i]) / resident.seconds, static_cast<double>(o.tokens[i]) / tiered[i].seconds,
                resident.seconds / tiered[i].seconds, plans[i].rho, overlap[i], same ? "equal" : "DIFFER");
  }
  std::printf("peak RSS: %.0f MiB tiered, %.0f MiB with the resident run; model %.0f MiB, plan %.1f MiB\n", tiered_peak, PeakMiB(),
              static_cast<double>(files.weights.parameters()) * 4 / (1 << 20),
              static_cast<double>(plans[0].device_peak + plans[0].host_peak) / (1 << 20));
  std::filesystem::remove_all(scratch);
  return equal ? absl::OkStatus() : Internal("the losses of the tiered and the resident run differ");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"tiered and resident steps, side by side"};
  Options o;
  app.add_option("--model", o.model, "Hugging Face folder or .gguf file")->required();
  app.add_option("--disk", o.disk, "folder for the block file")->required();
  app.add_option("--device-budget", o.budget_mib, "MiB for slots and copies");
  app.add_option("--steps", o.steps, "timed steps a row")->check(CLI::Range(1, 1000));
  app.add_option("--write-every", o.write_every, "lazy replay")->check(CLI::Range(1, 1000));
  app.add_option("--tokens", o.tokens, "of a step")->delimiter(',');
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = Bench(o);
  if (!status.ok()) std::fprintf(stderr, "tier_bench: %s\n", std::string(status.message()).c_str());
  return status.ok() ? 0 : 1;
}

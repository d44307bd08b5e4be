// Fine-tuning steps with the parameters on disk beside the same steps with all of them in memory, in turns: tokens a
// second at 64, 128 and 512 tokens a step, overlap measured and predicted, memory. The losses of both must be equal bit
// for bit.
//
//   tier_bench --model DIR|FILE.gguf --disk DIR [--device-budget MiB=128] [--steps 5] [--row-seconds 25] [--write-every 1]
//              [--tokens 64,128,512] [--threads N]
//
// Prints, a row a size, as soon as it is measured: pairs of steps, tokens a second of both (medians), their ratio, the
// predicted and the measured share of the moving that computing hides. One pair goes before the first row, untimed.
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
using Clock = std::chrono::steady_clock;

struct Options {
  std::string model, disk;
  int64_t budget_mib = 128, steps = 5, write_every = 1;
  double row_seconds = 25;
  std::vector<int64_t> tokens = {64, 128, 512};
  int threads = 0;
};

double Since(Clock::time_point began) { return std::chrono::duration<double>(Clock::now() - began).count(); }

double PeakMiB() {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

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

train::TrainSpec SpecOf(const Options& o) {
  train::TrainSpec spec;
  spec.model = o.model;
  spec.seed = 7;
  spec.hyper = {{"lr", 1e-6}, {"eps", 1e-3}};
  spec.tier.on = true;
  spec.tier.device_budget = o.budget_mib << 20;
  spec.tier.host_budget = 0;
  spec.tier.disk = o.disk;
  spec.tier.write_every = o.write_every;
  return spec;
}

/// Both runs, step by step in turns.
class Bench {
 public:
  explicit Bench(const Options& o) : o_(o), spec_(SpecOf(o)), scratch_(o.disk + "/tier-bench-XXXXXX") {}
  ~Bench() {
    if (tiered_ != nullptr) tiered_->Discard();
    if (made_) std::filesystem::remove_all(scratch_);
  }

  absl::Status Run() {
    RETURN_IF_ERROR(Begin());
    std::printf("%8s %6s %13s %11s %7s %10s %9s %7s\n", "TOKENS", "STEPS", "RESIDENT T/S", "TIERED T/S", "RATIO", "PREDICTED", "MEASURED",
                "LOSSES");
    for (int64_t tokens : o_.tokens) RETURN_IF_ERROR(Row(tokens));
    std::printf("memory: %.0f MiB tiered, %.0f MiB with the resident run beside it; parameters %.0f MiB, plan %.1f MiB, the process alone %.0f MiB\n",
                tiered_peak_, PeakMiB(), static_cast<double>(files_.weights.parameters()) * 4 / (1 << 20),
                static_cast<double>(tiered_->plan().device_peak + tiered_->plan().host_peak) / (1 << 20), empty_peak_);
    return equal_ ? absl::OkStatus() : Internal("the losses of the tiered and the resident run differ");
  }

 private:
  struct Turn {
    double seconds = 0, loss = 0;
  };

  absl::Status Begin() {
    if (mkdtemp(scratch_.data()) == nullptr) return NotFound("--disk: no such folder");
    made_ = true;
    for (const char* name : {"/r", "/t"}) std::filesystem::create_directories(scratch_ + name);
    empty_peak_ = PeakMiB();
    ASSIGN_OR_RETURN(tiered_, train::TieredModel::Open(spec_, "units-bench", nullptr));
    ASSIGN_OR_RETURN(tiered_learner_, train::MakeTieredLearner(spec_, *tiered_, true, scratch_ + "/t", ""));
    std::printf("%s", tier::PlanText(tiered_->plan()).c_str());
    std::fflush(stdout);
    const std::vector<Example> examples = SomeExamples(*std::max_element(o_.tokens.begin(), o_.tokens.end()), tiered_->config().vocab);
    ASSIGN_OR_RETURN(const Turn tiered, Step(*tiered_learner_, examples));
    tiered_peak_ = PeakMiB();
    ASSIGN_OR_RETURN(files_, nn::LoadModel(o_.model));
    ASSIGN_OR_RETURN(engine_, train::Engine::Create(&files_, spec_.scheme, spec_.seed));
    ASSIGN_OR_RETURN(resident_learner_, train::MakeLearner(spec_, *engine_, true, scratch_ + "/r", ""));
    ASSIGN_OR_RETURN(const Turn resident, Step(*resident_learner_, examples));
    equal_ = tiered.loss == resident.loss;
    return absl::OkStatus();
  }

  static absl::StatusOr<Turn> Step(train::Learner& learner, const std::vector<Example>& examples) {
    std::vector<const Example*> batch;
    for (const Example& example : examples) batch.push_back(&example);
    const Clock::time_point began = Clock::now();
    ASSIGN_OR_RETURN(const train::StepOutcome outcome, learner.Step(learner.done(), batch, 1e-6));
    return Turn{Since(began), outcome.loss};
  }

  absl::Status Row(int64_t tokens) {
    ASSIGN_OR_RETURN(const tier::Plan plan, train::PlanOf(spec_, tokens));
    const std::vector<Example> examples = SomeExamples(tokens, files_.config.vocab);
    std::vector<double> resident, tiered;
    double compute = 0, waited = 0;
    bool same = equal_;
    const Clock::time_point began = Clock::now();
    while (resident.empty() || (static_cast<int64_t>(resident.size()) < o_.steps && Since(began) < o_.row_seconds)) {
      const auto before = tiered_->Figures();
      ASSIGN_OR_RETURN(const Turn t, Step(*tiered_learner_, examples));
      const auto after = tiered_->Figures();
      ASSIGN_OR_RETURN(const Turn r, Step(*resident_learner_, examples));
      compute += after.at("tier/compute_seconds") - before.at("tier/compute_seconds");
      waited += after.at("tier/waited_seconds") - before.at("tier/waited_seconds");
      tiered.push_back(t.seconds);
      resident.push_back(r.seconds);
      same = same && t.loss == r.loss;
    }
    equal_ = equal_ && same;
    const double n = static_cast<double>(tokens), r = Median(resident), t = Median(tiered);
    std::printf("%8.0f %6zu %13.1f %11.1f %7.3f %10.3f %9.3f %7s\n", n, resident.size(), n / r, n / t, r / t, plan.rho,
                compute / (compute + waited), same ? "equal" : "DIFFER");
    std::fflush(stdout);
    return absl::OkStatus();
  }

  const Options& o_;
  const train::TrainSpec spec_;
  std::string scratch_;
  bool made_ = false, equal_ = true;
  double empty_peak_ = 0, tiered_peak_ = 0;
  std::unique_ptr<train::TieredModel> tiered_;
  nn::ModelFiles files_;
  std::unique_ptr<train::Engine> engine_;
  std::unique_ptr<train::Learner> tiered_learner_, resident_learner_;
};

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"tiered and resident steps, side by side"};
  Options o;
  app.add_option("--model", o.model, "Hugging Face folder or .gguf file")->required();
  app.add_option("--disk", o.disk, "folder for the block file")->required();
  app.add_option("--device-budget", o.budget_mib, "MiB for slots and copies");
  app.add_option("--steps", o.steps, "timed pairs of steps a row, at most")->check(CLI::Range(1, 1000));
  app.add_option("--row-seconds", o.row_seconds, "no new pair of a row after so long")->check(CLI::NonNegativeNumber);
  app.add_option("--write-every", o.write_every, "lazy replay")->check(CLI::Range(1, 1000));
  app.add_option("--tokens", o.tokens, "of a step")->delimiter(',')->check(CLI::Range(32, 1 << 20));
  app.add_option("--threads", o.threads, "0 = all CPUs");
  CLI11_PARSE(app, argc, argv);
  nn::UseCachingAllocator();
  zo::SetStreamThreads(nn::SetThreads(o.threads));
  const absl::Status status = Bench(o).Run();
  if (!status.ok()) std::fprintf(stderr, "tier_bench: %s\n", std::string(status.message()).c_str());
  return status.ok() ? 0 : 1;
}

// optod-worker plan: what a tiered job would hold and move, without running it.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "base/fs.h"
#include "base/status.h"
#include "optim/nn/inference.h"
#include "optim/train/tiered_model.h"
#include "optim/worker/commands.h"
#include "optim/zo/stream.h"

namespace optod::worker {
namespace {

struct Options {
  std::string spec;
  int64_t tokens = 0;
  bool json = false;
};

absl::Status Plan(const Options& o) {
  ASSIGN_OR_RETURN(const std::string text, PosixFs().ReadFile(o.spec));
  ASSIGN_OR_RETURN(const train::TrainSpec spec, train::ParseTrainSpec(text));
  if (!spec.tier.on) return InvalidArgument("tier: missing; without it all parameters stay in memory");
  zo::SetStreamThreads(nn::SetThreads(static_cast<int>(spec.threads)));
  ASSIGN_OR_RETURN(const tier::Plan plan, train::PlanOf(spec, o.tokens));
  std::printf("%s%s", (o.json ? tier::PlanJson(plan) : tier::PlanText(plan)).c_str(), o.json ? "\n" : "");
  return absl::OkStatus();
}

}  // namespace

void AddPlanCommand(CLI::App& app, int* code) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("plan", "memory, traffic and speed of a job with tiers, without running it");
  command->add_option("--spec", o->spec, "the job file as JSON")->required();
  command->add_option("--tokens", o->tokens, "of a step: measures this machine and predicts times; 0 = bytes only")
      ->check(CLI::Range(0, 1 << 20));
  command->add_flag("--json", o->json, "one JSON object");
  command->callback([o, code] {
    const absl::Status status = Plan(*o);
    *code = ExitCode(status);
    if (status.code() == absl::StatusCode::kInvalidArgument) *code = 2;
  });
}

}  // namespace optod::worker

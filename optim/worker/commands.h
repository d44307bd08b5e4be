#pragma once
/// The subcommands of optod-worker. Each sets the exit code: 0 done, 1 failed, 2 usage.

#include <string>

#include "absl/status/status.h"

namespace CLI {
class App;
}

namespace optod::worker {

/// logits, generate, tokens, convert.
void AddInferenceCommands(CLI::App& app, int* code);
/// train: a job file without a server.
void AddTrainCommand(CLI::App& app, int* code);
/// plan: what a job with tiers holds and moves. Exit code 2 for a bad job file, 1 for one that does not fit.
void AddPlanCommand(CLI::App& app, int* code);
/// bench: seconds and memory of a step.
void AddBenchCommand(CLI::App& app, int* code);
/// order, order-serve: studies of the sample order.
void AddOrderCommands(CLI::App& app, int* code);
/// attach: one attempt of a job.
void AddAttachCommand(CLI::App& app, int* code);
std::string VersionText();

/// Prints "optod-worker: MESSAGE" on stderr and gives 1; 0 for ok.
int ExitCode(const absl::Status& status);

}  // namespace optod::worker

// optod-worker attach: one attempt of a job, under the server that started it.
#include <CLI/CLI.hpp>
#include <cstdlib>
#include <memory>

#include "base/status.h"
#include "optim/worker/attempt.h"
#include "optim/worker/commands.h"

namespace optod::worker {

void AddAttachCommand(CLI::App& app, int* code) {
  auto options = std::make_shared<AttemptOptions>();
  auto* command = app.add_subcommand(
      "attach", "runs one attempt of a job; started by optod, which puts the token into OPTOD_WORKER_TOKEN");
  command->add_option("--server", options->server, "HOST:PORT or unix:PATH")->required();
  command->add_option("--job", options->job, "users/U/jobs/J")->required();
  command->add_option("--attempt", options->attempt, "its number")->required();
  command->add_option("--rank", options->rank, "which of the job's workers; 0 is the first")->check(CLI::Range(0, 1 << 20));
  command->callback([options, code] {
    if (const char* token = std::getenv("OPTOD_WORKER_TOKEN"); token != nullptr) options->token = token;
    options->version = VersionText();
    *code = ExitCode(RunAttempt(*options));
  });
}

}  // namespace optod::worker

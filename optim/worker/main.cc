// optod-worker: what needs a model. Launched by optod for every attempt of a job; by hand for logits and texts.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "optim/worker/commands.h"

int main(int argc, char** argv) {
  CLI::App app{"optod-worker: runs language models for optod"};
  app.require_subcommand(1);
  app.set_version_flag("--version", optod::worker::VersionText());
  int code = 0;
  optod::worker::AddInferenceCommands(app, &code);
  optod::worker::AddTrainCommand(app, &code);
  optod::worker::AddPlanCommand(app, &code);
  optod::worker::AddAttachCommand(app, &code);
  optod::worker::AddBenchCommand(app, &code);
  optod::worker::AddOrderCommands(app, &code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int shown = app.exit(error);
    return shown == 0 ? 0 : 2;
  }
  return code;
}

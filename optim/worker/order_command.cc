// optod-worker order: a sample_order job run here and now; order-serve: answers about a recorded study.
#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <memory>

#include "base/fs.h"
#include "base/status.h"
#include "optim/worker/commands.h"
#include "optim/worker/memory_limit.h"
#include "optim/worker/sample_order.h"

namespace optod::worker {
namespace {

std::atomic<bool> g_stop{false};
void OnSignal(int) { g_stop = true; }

absl::Status Order(const std::string& path, const std::string& folder) {
  ASSIGN_OR_RETURN(const std::string text, PosixFs().ReadFile(path));
  std::signal(SIGINT, &OnSignal);
  std::signal(SIGTERM, &OnSignal);
  order::RunHooks hooks;
  hooks.stop = [] { return g_stop.load(); };
  hooks.log = [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); };
  ASSIGN_OR_RETURN(const std::string result, RunSampleOrderJob(text, folder, 0, hooks));
  std::printf("%s\n", result.c_str());
  return absl::OkStatus();
}

absl::Status Serve(const OrderServeOptions& options) {
  RETURN_IF_ERROR(TakeMemoryLimit());
  return ServeOrders(options);
}

}  // namespace

void AddOrderCommands(CLI::App& app, int* code) {
  auto spec = std::make_shared<std::string>(), folder = std::make_shared<std::string>();
  auto* run = app.add_subcommand("order", "runs a sample_order file without a server; the result is one JSON object");
  run->add_option("--spec", *spec, "the job file as JSON")->required();
  run->add_option("--folder", *folder, "where the study and the results go; an interrupted run goes on")->required();
  run->callback([spec, folder, code] { *code = ExitCode(Order(*spec, *folder)); });

  auto options = std::make_shared<OrderServeOptions>();
  auto* serve = app.add_subcommand("order-serve", "answers questions about a recorded study; started by optod");
  serve->add_option("--folder", options->folder, "work folder of the job")->required();
  serve->add_option("--socket", options->socket, "path of the Unix socket")->required();
  serve->add_option("--name", options->name, "users/U/jobs/J")->required();
  serve->add_option("--idle-seconds", options->idle_seconds, "ends after so long without a question [300]");
  serve->callback([options, code] { *code = ExitCode(Serve(*options)); });
}

}  // namespace optod::worker

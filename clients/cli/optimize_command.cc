// optoctl optimize FILE
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/fs.h"
#include "base/status.h"
#include "clients/cli/app.h"
#include "clients/cli/optimize/optimize_run.h"
#include "clients/cli/optimize/private_server.h"
#include "clients/cli/optimize/workflow_runner.h"

namespace optod::cli {
namespace {

struct Flags {
  std::string file, patch, summary, junit, cassette, cassette_mode = "auto", resume, data_dir;
  bool write = false;
  int jobs = 1;
  int64_t max_tree_mib = 256;
};

std::atomic<bool> interrupted{false};

// The first Ctrl-C ends the run in order; the second one at once.
void OnInterrupt(int number) {
  interrupted = true;
  signal(number, SIG_DFL);
}

struct Connection {
  std::unique_ptr<PrivateServer> server;  // outlives the client
  std::unique_ptr<client::Client> client;
};

// A replay needs no model, but the endpoint `default` must be defined, with the model's name that was recorded. The
// address is one where nothing listens: a request that is not on the cassette is an error anyway.
void DefineReplayEndpoint(const std::string& cassette) {
  const char* url = std::getenv("OPTOD_LLM_URL");
  if (url && *url) return;
  std::ifstream in(cassette);
  std::string line;
  std::getline(in, line);
  const auto exchange = nlohmann::json::parse(line, nullptr, false);
  const auto model = nlohmann::json::json_pointer("/request/model");
  if (!exchange.is_object() || !exchange.contains(model) || !exchange[model].is_string()) return;
  setenv("OPTOD_LLM_URL", "http://127.0.0.1:9/v1", 1);
  setenv("OPTOD_LLM_MODEL", exchange[model].get<std::string>().c_str(), 1);
}

absl::StatusOr<Connection> StartPrivate(App& app, const Flags& flags, const std::string& why) {
  PrivateServerOptions options;
  options.data_dir = flags.data_dir;
  if (!flags.cassette.empty())
    options.arguments = {"--cassette", std::filesystem::absolute(flags.cassette).string(), "--cassette-mode",
                         flags.cassette_mode};
  if (!flags.cassette.empty() && flags.cassette_mode == "replay") DefineReplayEndpoint(flags.cassette);
  Connection connection;
  auto server = PrivateServer::Start(options);
  if (!server.ok()) return FailedPrecondition(why, ": ", std::string(server.status().message()));
  connection.server = *std::move(server);
  std::fprintf(stderr, "optoctl: %s: started a private optod%s\n", why.c_str(),
               flags.data_dir.empty() ? "; its sessions are gone afterwards (--data-dir keeps them)" : "");
  client::ClientOptions client_options = app.ClientOptions();
  client_options.address = connection.server->address();
  client_options.token.clear();
  client_options.tls_ca_file.clear();
  ASSIGN_OR_RETURN(connection.client, client::Client::Connect(client_options));
  return connection;
}

absl::StatusOr<Connection> Open(App& app, const Flags& flags) {
  if (!flags.cassette.empty()) return StartPrivate(app, flags, "--cassette");
  if (!flags.data_dir.empty()) return StartPrivate(app, flags, "--data-dir");
  Connection connection;
  ASSIGN_OR_RETURN(connection.client, client::Client::Connect(app.ClientOptions()));
  const absl::Status status = connection.client->GetServerInfo({}).status();
  if (status.ok() || status.code() != absl::StatusCode::kUnavailable || app.AddressGiven()) {
    RETURN_IF_ERROR(status);
    return connection;
  }
  return StartPrivate(app, flags, "no server at " + app.ClientOptions().address);
}

absl::Status WriteText(const std::string& path, const std::string& text) {
  if (path.empty()) return absl::OkStatus();
  if (path == "-") {
    std::fputs(text.c_str(), stdout);
    return absl::OkStatus();
  }
  const absl::Status status = PosixFs().WriteFileAtomic(path, std::as_bytes(std::span(text.data(), text.size())));
  return status.ok() ? status : InvalidArgument(path, ": cannot be written");
}

std::string ScoreText(std::optional<double> score) { return score ? NumberText(*score) : "-"; }

void PrintResult(const App& app, const RunRecord& record) {
  if (app.json) {
    std::printf("%s\n", ResultJson(record).c_str());
    return;
  }
  std::printf("%s: %s -> %s   gate %s (%s)\n", record.name.c_str(), ScoreText(record.start_score).c_str(),
              ScoreText(record.best_score).c_str(), record.gate.passed ? "passed" : "failed",
              record.gate.reason.c_str());
  std::printf("stopped: %s\n%lld steps, %lld evaluations, %lld tokens, %.1f s; session %s, version %lld\n",
              record.stopped.c_str(), static_cast<long long>(record.usage.steps),
              static_cast<long long>(record.usage.evaluations),
              static_cast<long long>(record.usage.llm_prompt_tokens + record.usage.llm_completion_tokens),
              record.usage.wall_seconds, record.session.c_str(), static_cast<long long>(record.best_version));
}

// Reports and write-back; returns the exit code that they leave.
int Deliver(App& app, const Flags& flags, const OptimizeFile& file, const CandidateTree& tree,
            const RunOutcome& outcome) {
  const RunRecord& record = outcome.record;
  absl::Status written = WriteText(flags.patch, record.patch);
  written.Update(WriteText(flags.summary, SummaryMarkdown(record, file)));
  written.Update(WriteText(flags.junit, JUnitXml(record)));
  if (flags.write) {
    written.Update(tree.WriteBack(record.best_values));
    for (const std::string& name : tree.NotWritable(record.best_values))
      std::fprintf(stderr, "optoctl: parameter %s has no single line in the file and was not written back\n",
                   name.c_str());
  }
  PrintResult(app, record);
  if (!written.ok()) return app.Usage(std::string(written.message()));
  if (!outcome.fatal.ok()) return app.Fail(outcome.fatal);
  if (outcome.no_proposal) {
    std::fprintf(stderr, "optoctl: not one proposal could be made: %s\n", record.stopped.c_str());
    return kExitRefused;
  }
  return record.gate.passed ? kExitDone : kExitGateNotMet;
}

int Optimize(App& app, const Flags& flags) {
  if (!flags.cassette.empty() && !app.address.empty())
    return app.Usage("--cassette records inside a private server; it and --address exclude each other");
  if (app.json && (flags.patch == "-" || flags.summary == "-" || flags.junit == "-"))
    return app.Usage("a report on stdout and --json exclude each other");
  if (flags.cassette_mode == "replay" && !flags.cassette.empty() && !PosixFs().Exists(flags.cassette))
    return app.Usage("--cassette " + flags.cassette + ": no such file; record it first");
  auto text = PosixFs().ReadFile(flags.file);
  if (!text.ok()) return app.Usage(flags.file + ": cannot be read");
  const auto file = ParseOptimizeFile(*text, flags.file);
  if (!file.ok()) return app.Usage(std::string(file.status().message()));
  const std::filesystem::path path(flags.file);
  const std::string folder = path.has_parent_path() ? path.parent_path().string() : ".";
  TreeLimits limits;
  limits.max_bytes = flags.max_tree_mib << 20;
  const auto tree = CandidateTree::Open(folder, path.filename().string(), *text, *file, limits);
  if (!tree.ok()) return app.Usage(flags.file + ": " + std::string(tree.status().message()));
  signal(SIGINT, &OnInterrupt);
  signal(SIGTERM, &OnInterrupt);
  auto connection = Open(app, flags);
  if (connection.status().code() == absl::StatusCode::kFailedPrecondition) {
    std::fprintf(stderr, "optoctl: %s\n", std::string(connection.status().message()).c_str());
    return kExitUnreachable;
  }
  if (!connection.ok()) return app.Fail(connection.status());
  EvaluatorOptions evaluator_options;
  evaluator_options.cancelled = &interrupted;
  std::unique_ptr<WorkflowRunner> workflow;
  if (file->workflow) {
    const char* search = std::getenv("PATH");
    auto opened = WorkflowRunner::Open(*file, folder, *connection->client, search == nullptr ? "" : search);
    if (!opened.ok()) return app.Usage(flags.file + ": " + std::string(opened.status().message()));
    workflow = *std::move(opened);
    evaluator_options.workflow = workflow.get();
  }
  Evaluator evaluator(*tree, *file, evaluator_options);
  const auto progress = MakeProgress(app.json    ? ProgressStyle::kJson
                                     : isatty(2) ? ProgressStyle::kTerminal
                                                 : ProgressStyle::kQuiet);
  RunOptions options;
  options.jobs = flags.jobs;
  options.resume = flags.resume;
  options.interrupted = &interrupted;
  const RunOutcome outcome = RunOptimization(*connection->client, *file, *tree, evaluator, *progress, options);
  return Deliver(app, flags, *file, *tree, outcome);
}

}  // namespace

void AddOptimizeCommand(CLI::App& root, App& app) {
  auto* optimize = root.add_subcommand(
      "optimize", "improve parameters (files, functions, values) by a language model, judged by your command");
  auto f = std::make_shared<Flags>();
  optimize->add_option("file", f->file, "YAML file: parameters, evaluate, optimizer, budget, gate")->required();
  optimize->add_flag("--write", f->write, "put the best version into the files");
  optimize->add_option("--patch", f->patch, "write the change as a unified diff (git apply, patch -p1)");
  optimize->add_option("--summary", f->summary, "write a Markdown summary");
  optimize->add_option("--junit", f->junit, "write a JUnit XML report");
  optimize->add_option("--cassette", f->cassette,
                       "record and replay the model's traffic in this file (starts a private optod)");
  optimize->add_option("--cassette-mode", f->cassette_mode)
      ->check(CLI::IsMember({"auto", "record", "replay"}))
      ->capture_default_str();
  optimize->add_option("--resume", f->resume, "go on with this session");
  optimize->add_option("--data-dir", f->data_dir, "start a private optod on this directory and keep it");
  optimize->add_option("--jobs", f->jobs, "evaluations at once")->check(CLI::Range(1, 256))->capture_default_str();
  optimize->add_option("--max-tree-mib", f->max_tree_mib, "largest folder that is copied for an evaluation")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  optimize->callback([&app, f] { app.command = [&app, f] { return Optimize(app, *f); }; });
}

}  // namespace optod::cli

// optoctl job submit FILE | plan FILE | list | show | watch | cancel | resume | logs
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>

#include "base/fs.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "clients/cli/app.h"
#include "clients/cli/job_event.h"
#include "clients/cli/job_file.h"
#include "clients/cli/output.h"
#include "clients/cli/strict_yaml.h"

namespace optod::cli {
namespace {

/// "trained 1.0 MiB, frozen 0 B, ...; resident 50.1 MiB before the first step, 61.0 MiB at most"; "" when it is not known yet.
std::string MemoryText(const v1::JobMemory& memory) {
  if (memory.peak_bytes() == 0) return "";
  const auto text = [](uint64_t bytes) { return BytesText(static_cast<int64_t>(bytes)); };
  return Cat("trained ", text(memory.parameter_bytes()), ", frozen ", text(memory.frozen_bytes()), ", state ",
             text(memory.state_bytes()), ", gradients ", text(memory.gradient_bytes()), ", working ",
             text(memory.transient_bytes()), "; resident ", text(memory.before_bytes()), " before the first step, ",
             text(memory.peak_bytes()), " at most");
}

std::string Describe(const v1::Job& job) {
  return Fields({{"name", job.name()},
                 {"state", StateText(job)},
                 {"reason", job.reason()},
                 {"kind", job.kind()},
                 {"attempt", std::to_string(job.attempt())},
                 {"progress", Cat(static_cast<int>(job.progress() * 100), " %")},
                 {"created", TimeText(job.create_time())},
                 {"memory", MemoryText(job.memory())}});
}

int ExitOf(const v1::Job& job) {
  return job.state() == v1::Job::FAILED || job.state() == v1::Job::LOST ? kExitJobFailed : kExitDone;
}

int Submit(App& app, const std::string& path) {
  auto text = PosixFs().ReadFile(path);
  if (!text.ok()) return app.Usage(path + ": cannot be read");
  auto file = YamlMap::Parse(*text, path);
  if (!file.ok()) return app.Usage(std::string(file.status().message()));
  v1::CreateJobRequest request;
  auto spec = file->ReadJson("");
  if (spec.ok()) spec = ExpandJobPaths(*spec, [](const char* name) { return std::getenv(name); });
  if (!spec.ok()) return app.Usage(std::string(spec.status().message()));
  std::string kind;
  if (const absl::Status status = file->Read("kind", &kind); !status.ok())
    return app.Usage(std::string(status.message()));
  request.mutable_job()->set_kind(kind);
  request.mutable_job()->set_spec_json(*spec);
  RUN_OR_FAIL(client::Client * client, app.Connect());
  RUN_OR_FAIL(const v1::Job job, client->CreateJob(request));
  return app.Print(job, Describe(job));
}

/// The program beside this one plans, since it knows models; its answer and its refusals are passed on.
int Plan(App& app, const std::string& path) {
  auto text = PosixFs().ReadFile(path);
  if (!text.ok()) return app.Usage(path + ": cannot be read");
  auto file = YamlMap::Parse(*text, path);
  if (!file.ok()) return app.Usage(std::string(file.status().message()));
  auto spec = file->ReadJson("");
  if (!spec.ok()) return app.Usage(std::string(spec.status().message()));
  SubprocessOptions run;
  run.argv = {ProgramFolder() + "/optod-worker", "plan", "--spec", "/dev/stdin"};
  if (app.json) run.argv.push_back("--json");
  run.stdin_data = *spec;
  const auto result = RunSubprocess(run);
  if (!result.ok()) return app.Fail(NotFound("optod-worker: cannot be run beside optoctl; build it (it needs LibTorch)"));
  std::fputs(result->out.c_str(), stdout);
  if (result->exit_code == 0) return kExitDone;
  const std::string prefix = "optod-worker: ";
  std::string why = result->err.starts_with(prefix) ? result->err.substr(prefix.size()) : result->err;
  while (why.ends_with('\n')) why.pop_back();
  if (result->exit_code == 2) return app.Usage(why);
  return app.Fail(ResourceExhausted(why));
}

int List(App& app) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::ListJobsRequest request;
  v1::ListJobsResponse all;
  do {
    RUN_OR_FAIL(const v1::ListJobsResponse page, client->ListJobs(request));
    all.MergeFrom(page);
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  all.clear_next_page_token();
  std::vector<std::vector<std::string>> rows;
  for (const v1::Job& job : all.jobs())
    rows.push_back({ShortName(job.name()), StateText(job), job.kind(), TimeText(job.create_time())});
  return app.Print(all, Table({"JOB", "STATE", "KIND", "CREATED"}, rows));
}

int Watch(App& app, const std::string& name) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::WatchJobRequest request;
  request.set_name(name);
  int code = kExitDone;
  const absl::Status status = client->WatchJob(request, [&](const v1::JobEvent& event) {
    code = ExitOf(event.job());
    app.Print(event, EventText(event) + "\n");
    std::fflush(stdout);
    return absl::OkStatus();
  });
  return status.ok() ? code : app.Fail(status);
}

int Logs(App& app, const std::string& name) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::TailLogsRequest request;
  request.set_name(name);
  const absl::Status status = client->TailLogs(request, [&](const v1::LogChunk& chunk) {
    app.Print(chunk, chunk.data());
    std::fflush(stdout);
    return absl::OkStatus();
  });
  return status.ok() ? kExitDone : app.Fail(status);
}

template <typename Request, typename Method>
int OneJob(App& app, const std::string& name, Method method) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  Request request;
  request.set_name(name);
  RUN_OR_FAIL(const v1::Job job, (client->*method)(request, {}));
  app.Print(job, Describe(job));
  return ExitOf(job);
}

}  // namespace

void AddJobCommands(CLI::App& root, App& app) {
  auto* job = root.add_subcommand("job", "work that runs beside the server");
  job->require_subcommand(1);
  auto argument = std::make_shared<std::string>();
  const auto add = [&](const char* name, const char* help, const char* positional, auto run) {
    auto* command = job->add_subcommand(name, help);
    if (positional) command->add_option(positional, *argument)->required();
    command->callback([&app, argument, run] { app.command = [&app, argument, run] { return run(app, *argument); }; });
  };
  add("submit", "start a job from a YAML file", "file", &Submit);
  add("plan", "what a job with tiers would hold and move, without running it (exit 4 when it does not fit)", "file", &Plan);
  add("list", "all jobs", nullptr, [](App& a, const std::string&) { return List(a); });
  add("show", "one job", "job",
      [](App& a, const std::string& name) { return OneJob<v1::GetJobRequest>(a, name, &client::Client::GetJob); });
  add("watch", "follow a job until it ends (exit 5 when it failed)", "job", &Watch);
  add("cancel", "stop a job", "job", [](App& a, const std::string& name) {
    return OneJob<v1::CancelJobRequest>(a, name, &client::Client::CancelJob);
  });
  add("resume", "a new attempt from the last checkpoint", "job", [](App& a, const std::string& name) {
    return OneJob<v1::ResumeJobRequest>(a, name, &client::Client::ResumeJob);
  });
  add("logs", "the job's output", "job", &Logs);
}

}  // namespace optod::cli

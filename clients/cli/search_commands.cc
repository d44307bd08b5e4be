// optoctl search FILE | start FILE | list SESSION | show | watch | cancel | resume
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <thread>

#include "base/fs.h"
#include "base/status.h"
#include "clients/cli/app.h"
#include "clients/cli/optimize/gate.h"
#include "clients/cli/optimize/private_server.h"
#include "clients/cli/output.h"
#include "clients/cli/search_file.h"
#include "trace/workflow/workflow.h"

namespace optod::cli {
namespace {

constexpr std::chrono::milliseconds kPoll{300};

std::string StateText(const v1::Search& search) {
  std::string text = v1::Search::State_Name(search.state());
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}
std::string ScoreText(const v1::Search& search) {
  return search.has_best_score() ? NumberText(search.best_score()) : "-";
}

std::string Describe(const v1::Search& search) {
  std::vector<std::vector<std::string>> rows;
  for (const v1::SearchCandidate& c : search.candidates())
    rows.push_back({Cat(c.version()), c.has_parent() ? Cat(c.parent()) : "", Cat(c.step()),
                    c.has_mean_score() ? NumberText(c.mean_score()) : "-", Cat(c.evaluations()),
                    search.has_best_version() && c.version() == search.best_version() ? "best"
                    : c.alive()                                                       ? "kept"
                                                                                      : ""});
  const v1::Usage& usage = search.usage();
  return Fields({{"name", search.name()},
                 {"algorithm", v1::SearchSpec::Algorithm_Name(search.spec().algorithm())},
                 {"state", StateText(search)},
                 {"reason", search.reason()},
                 {"step", Cat(search.step(), " of ", search.spec().max_steps())},
                 {"evaluations", Cat(search.evaluations(), ", ", search.cached_evaluations(), " from the cache")},
                 {"best",
                  search.has_best_version() ? Cat("version ", search.best_version(), ", ", ScoreText(search)) : ""},
                 {"model", Cat(usage.llm_calls(), " calls, ", usage.llm_prompt_tokens(), " prompt and ",
                               usage.llm_completion_tokens(), " reply tokens")},
                 {"created", TimeText(search.create_time())}}) +
         (rows.empty() ? "" : "\n" + Table({"VERSION", "PARENT", "STEP", "MEAN", "EVALUATIONS", ""}, rows));
}

bool Ended(const v1::Search& search) {
  return search.state() == v1::Search::DONE || search.state() == v1::Search::STOPPED ||
         search.state() == v1::Search::PAUSED;
}

/// 5: it pauses; 1: it ended without reaching its target.
int ExitOf(const v1::Search& search) {
  if (search.state() == v1::Search::PAUSED) return kExitJobFailed;
  return search.state() == v1::Search::DONE && search.spec().has_target() && search.reason() != "target"
             ? kExitGateNotMet
             : kExitDone;
}

absl::StatusOr<v1::Search> Get(client::Client& client, const std::string& name) {
  v1::GetSearchRequest request;
  request.set_name(name);
  return client.GetSearch(request);
}

/// A line for every change until it ends or pauses.
int Follow(App& app, client::Client& client, const std::string& name) {
  std::string last;
  for (;;) {
    RUN_OR_FAIL(v1::Search search, Get(client, name));
    if (Ended(search)) {
      app.Print(search, Describe(search));
      if (search.state() == v1::Search::PAUSED)
        std::fprintf(stderr, "optoctl: %s pauses: %s; optoctl search resume %s\n", name.c_str(),
                     search.reason().c_str(), name.c_str());
      return ExitOf(search);
    }
    search.clear_candidates();
    const std::string line =
        Cat("step ", search.step(), "  ", StateText(search), "  ", search.evaluations() + search.cached_evaluations(),
            " evaluations  best ", ScoreText(search), "\n");
    if (line != last) {
      app.Print(search, line);
      std::fflush(stdout);
    }
    last = line;
    std::this_thread::sleep_for(kPoll);
  }
}

/// The file with its data set. Errors are the user's.
absl::StatusOr<SearchFile> Load(const std::string& path) {
  auto text = PosixFs().ReadFile(path);
  if (!text.ok()) return InvalidArgument(path, ": cannot be read");
  ASSIGN_OR_RETURN(SearchFile file, ParseSearchFile(*text, path));
  if (!file.spec.has_workflow()) return file;
  std::vector<std::string> rows;
  if (!file.data_file.empty()) {
    const std::string data = (std::filesystem::path(path).parent_path() / file.data_file).string();
    auto bytes = PosixFs().ReadFile(data);
    if (!bytes.ok()) return InvalidArgument(path, ": workflow.data.file: ", file.data_file, " cannot be read");
    ASSIGN_OR_RETURN(rows, trace::ParseRows(*bytes, file.data_file));
  }
  const absl::Status set = SetRows(rows, &file);
  return set.ok() ? absl::StatusOr<SearchFile>(std::move(file))
                  : InvalidArgument(path, ": ", std::string(set.message()));
}

/// The server names fields of the request; the file has them under `search` and `workflow`.
absl::Status InWordsOfTheFile(const absl::Status& status, const std::string& path) {
  std::string message(status.message());
  if (message.starts_with("spec.workflow"))
    message = message.substr(5);
  else if (message.starts_with("spec."))
    message = "search." + message.substr(5);
  else
    return status;
  return absl::Status(status.code(), path + ": " + message);
}

absl::StatusOr<v1::Search> Create(client::Client& client, const SearchFile& file, const std::string& path) {
  v1::CreateSearchRequest request;
  request.set_session(file.session);
  *request.mutable_spec() = file.spec;
  const bool own = file.session.empty();
  if (own) {
    ASSIGN_OR_RETURN(const v1::Session session, client.CreateSession(file.create));
    request.set_session(session.name());
  }
  auto search = client.CreateSearch(request);
  if (search.ok()) return search;
  if (own) {  // a refused search leaves no session behind
    v1::DeleteSessionRequest remove;
    remove.set_name(request.session());
    (void)client.DeleteSession(remove);
  }
  return InWordsOfTheFile(search.status(), path);
}

int Start(App& app, const std::string& path) {
  auto file = Load(path);
  if (!file.ok()) return app.Usage(std::string(file.status().message()));
  RUN_OR_FAIL(client::Client * client, app.Connect());
  RUN_OR_FAIL(const v1::Search search, Create(*client, *file, path));
  return app.Print(search, Describe(search));
}

/// Starts and follows it; with no server at the default address, on one that is started for it.
int Run(App& app, const std::string& path, const std::string& data_dir) {
  auto file = Load(path);
  if (!file.ok()) return app.Usage(std::string(file.status().message()));
  if (!file->spec.has_workflow())
    return app.Usage(path + ": without `workflow` programs evaluate; `optoctl search start " + path + "` starts it");
  RUN_OR_FAIL(client::Client * client, app.Connect());
  std::unique_ptr<PrivateServer> server;
  std::unique_ptr<client::Client> own;
  const bool absent = !app.AddressGiven() && absl::IsUnavailable(client->GetServerInfo({}).status());
  if (absent || !data_dir.empty()) {
    PrivateServerOptions options;
    options.data_dir = data_dir;
    options.arguments = {"--executor", "sandbox"};
    RUN_OR_FAIL(server, PrivateServer::Start(options));
    std::fprintf(stderr, "optoctl: started a private optod%s\n",
                 data_dir.empty() ? "; its sessions are gone afterwards (--data-dir keeps them)" : "");
    client::ClientOptions to = app.ClientOptions();
    to.address = server->address();
    to.token.clear();
    to.tls_ca_file.clear();
    RUN_OR_FAIL(own, client::Client::Connect(to));
    client = own.get();
  }
  RUN_OR_FAIL(const v1::Search search, Create(*client, *file, path));
  return Follow(app, *client, search.name());
}

int List(App& app, const std::string& session) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::ListSearchesRequest request;
  request.set_session(session);
  RUN_OR_FAIL(const v1::ListSearchesResponse all, client->ListSearches(request));
  std::vector<std::vector<std::string>> rows;
  for (const v1::Search& search : all.searches())
    rows.push_back({search.name(), v1::SearchSpec::Algorithm_Name(search.spec().algorithm()), StateText(search),
                    Cat(search.step()), ScoreText(search), TimeText(search.create_time())});
  return app.Print(all, Table({"SEARCH", "ALGORITHM", "STATE", "STEP", "BEST", "CREATED"}, rows));
}

int Show(App& app, const std::string& name) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  RUN_OR_FAIL(const v1::Search search, Get(*client, name));
  app.Print(search, Describe(search));
  return search.state() == v1::Search::PAUSED ? kExitJobFailed : kExitDone;
}

int Watch(App& app, const std::string& name) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  return Follow(app, *client, name);
}

int Cancel(App& app, const std::string& name) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::StopSearchRequest request;
  request.set_name(name);
  RUN_OR_FAIL(const v1::Search search, client->StopSearch(request));
  return app.Print(search, Describe(search));
}

/// Asking lets a paused search go on. What it hands out of a search that programs evaluate is free again at once.
int Resume(App& app, const std::string& name) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::AskSearchRequest request;
  request.set_name(name);
  request.mutable_lease()->set_nanos(1);
  RUN_OR_FAIL(const v1::AskSearchResponse asked, client->AskSearch(request));
  return app.Print(asked.search(), Describe(asked.search()));
}

}  // namespace

void AddSearchCommands(CLI::App& root, App& app) {
  auto* search = root.add_subcommand("search", "search over versions by a file: start it and follow it to its end");
  struct Arguments {
    std::string file, argument, data_dir;
  };
  auto given = std::make_shared<Arguments>();
  search->add_option("file", given->file, "YAML file (see clients/cli/search_file.h)");
  search->add_option("--data-dir", given->data_dir, "run on a private server that keeps its data there");
  search->require_subcommand(0, 1);
  search->callback([&app, given, search] {
    if (!search->get_subcommands().empty()) return;
    app.command = [&app, given] {
      return given->file.empty() ? app.Usage("search: give a FILE, or one of start, list, show, watch, cancel, resume")
                                 : Run(app, given->file, given->data_dir);
    };
  });
  const auto add = [&](const char* name, const char* help, const char* positional, auto run) {
    auto* command = search->add_subcommand(name, help);
    command->add_option(positional, given->argument)->required();
    command->callback([&app, given, run] { app.command = [&app, given, run] { return run(app, given->argument); }; });
  };
  add("start", "start a search and leave it to the server", "file", &Start);
  add("list", "the searches of a session", "session", &List);
  add("show", "one search with its versions", "search", &Show);
  add("watch", "follow it until it ends (exit 1: target not reached, 5: it pauses)", "search", &Watch);
  add("cancel", "end it; its best version stays", "search", &Cancel);
  add("resume", "let a paused search go on", "search", &Resume);
}

}  // namespace optod::cli

// optoctl session create | list | show | history | export | import | rollback | fork | delete
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>

#include "base/fs.h"
#include "base/status.h"
#include "clients/cli/app.h"
#include "clients/cli/optimize/gate.h"
#include "clients/cli/optimize/unified_diff.h"
#include "clients/cli/optimize/wire_values.h"
#include "clients/cli/output.h"
#include "clients/cli/session_file.h"

namespace optod::cli {
namespace {

struct CreateFlags {
  std::string file, id, optimizer, llm, direction, display_name;
  std::vector<std::string> hyper, tensors, parameters, labels;
  uint64_t seed = 0;
  int64_t steps = 0, evaluations = 0, tokens = 0;
  bool validate_only = false;
};

struct Flags {
  std::string session, output, input, id, optimizer;
  std::vector<std::string> hyper;
  std::optional<uint64_t> seed;
  int64_t version = -1, limit = 50;
  bool all = false, deleted = false, no_diff = false, branch = false, state = false, allow_non_finite = false;
};

std::string ScoreText(bool present, double score) { return present ? NumberText(score) : "-"; }

std::string Usd(double usd) {
  char text[40] = "";
  if (usd > 0) std::snprintf(text, sizeof text, ", $%.4g", usd);
  return text;
}

/// "2 calls, 350 tok, $0.01"; "-" when the model was not asked for this version.
std::string CostText(const v1::Version& v) {
  if (!v.has_cost()) return "-";
  const v1::Usage& cost = v.cost();
  return Cat(cost.llm_calls(), cost.llm_calls() == 1 ? " call, " : " calls, ",
             cost.llm_prompt_tokens() + cost.llm_completion_tokens(), " tok", Usd(cost.llm_usd()));
}

std::string LossText(double loss) {
  char text[40];
  std::snprintf(text, sizeof text, "loss %.6g", loss);
  return text;
}

std::string Lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

std::string Describe(const v1::Session& s) {
  std::string parameters;
  for (const v1::ParameterSpec& p : s.parameters())
    parameters += Cat(parameters.empty() ? "" : ", ", p.name(), " (", p.type(), ")");
  const v1::Usage& u = s.usage();
  return Fields(
      {{"name", s.name()},
       {"display name", s.display_name()},
       {"state", Lower(v1::Session::State_Name(s.state())) + (s.state_reason().empty() ? "" : ": " + s.state_reason())},
       {"optimizer", s.optimizer().name()},
       {"layout", s.layout().tensors_size() ? Cat(s.layout().tensors_size(), " tensors, ",
                                                  BytesText(static_cast<int64_t>(s.layout().total_bytes())))
                                            : ""},
       {"parameters", parameters},
       {"head", std::to_string(s.head_version())},
       {"versions", std::to_string(s.version_count())},
       {"best", s.has_best_version() ? Cat(NumberText(s.best_score()), " at version ", s.best_version()) : ""},
       {"direction", Lower(v1::Direction_Name(s.direction()))},
       {"usage", Cat(u.steps(), " steps, ", u.evaluations(), " evaluations, ", u.llm_calls(), " model calls, ",
                     u.llm_prompt_tokens() + u.llm_completion_tokens(), " tokens")},
       {"forked from", s.forked_from()},
       {"created", TimeText(s.create_time())},
       {"updated", TimeText(s.update_time())}});
}

absl::StatusOr<v1::CreateSessionRequest> RequestFromFlags(const CreateFlags& flags) {
  v1::CreateSessionRequest request;
  if (!flags.file.empty()) {
    auto text = PosixFs().ReadFile(flags.file);
    if (!text.ok()) return InvalidArgument(flags.file, ": cannot be read");
    ASSIGN_OR_RETURN(request, ParseSessionFile(*text, flags.file));
  }
  if (!flags.optimizer.empty()) request.mutable_optimizer()->set_name(flags.optimizer);
  if (request.optimizer().name().empty()) return InvalidArgument("--optimizer: missing (or give a FILE)");
  for (const std::string& hyper : flags.hyper) RETURN_IF_ERROR(ApplyHyperFlag(hyper, request.mutable_optimizer()));
  if (flags.seed) request.mutable_optimizer()->set_seed(flags.seed);
  if (!flags.llm.empty()) request.mutable_optimizer()->set_llm(flags.llm);
  for (const std::string& tensor : flags.tensors) {
    ASSIGN_OR_RETURN(*request.mutable_layout()->add_tensors(), ParseTensorFlag(tensor));
  }
  for (const std::string& parameter : flags.parameters) {
    ASSIGN_OR_RETURN(*request.add_parameters(), ParseParameterFlag(parameter));
  }
  for (const std::string& label : flags.labels) {
    const size_t equals = label.find('=');
    if (equals == std::string::npos) return InvalidArgument("--label ", label, ": must be KEY=VALUE");
    (*request.mutable_labels())[label.substr(0, equals)] = label.substr(equals + 1);
  }
  if (!flags.direction.empty()) {
    ASSIGN_OR_RETURN(const v1::Direction direction, ParseDirection(flags.direction));
    request.set_direction(direction);
  }
  if (!flags.id.empty()) request.set_session_id(flags.id);
  if (!flags.display_name.empty()) request.set_display_name(flags.display_name);
  if (flags.steps) request.mutable_budget()->set_max_steps(flags.steps);
  if (flags.evaluations) request.mutable_budget()->set_max_evaluations(flags.evaluations);
  if (flags.tokens) request.mutable_budget()->set_max_llm_tokens(flags.tokens);
  request.set_validate_only(flags.validate_only);
  return request;
}

int Create(App& app, const CreateFlags& flags) {
  const auto request = RequestFromFlags(flags);
  if (!request.ok()) return app.Usage(std::string(request.status().message()));
  RUN_OR_FAIL(client::Client * client, app.Connect());
  RUN_OR_FAIL(const v1::Session session, client->CreateSession(*request));
  return app.Print(session, Describe(session));
}

int List(App& app, const Flags& flags) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::ListSessionsRequest request;
  request.set_show_deleted(flags.deleted);
  if (flags.all) request.set_parent("users/-");
  v1::ListSessionsResponse all;
  do {
    RUN_OR_FAIL(const v1::ListSessionsResponse page, client->ListSessions(request));
    all.MergeFrom(page);
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  all.clear_next_page_token();
  std::vector<std::vector<std::string>> rows;
  for (const v1::Session& s : all.sessions())
    rows.push_back({flags.all ? s.name() : ShortName(s.name()), s.optimizer().name(),
                    Lower(v1::Session::State_Name(s.state())), std::to_string(s.head_version()),
                    ScoreText(s.has_best_score(), s.best_score()), TimeText(s.update_time()), s.display_name()});
  return app.Print(all, Table({"SESSION", "OPTIMIZER", "STATE", "HEAD", "BEST", "UPDATED", "NAME"}, rows));
}

int Show(App& app, const Flags& flags) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  if (flags.version >= 0) {
    v1::GetSessionRequest session;
    session.set_name(flags.session);
    RUN_OR_FAIL(const v1::Session found, client->GetSession(session));
    v1::GetVersionRequest request;
    request.set_name(Cat(found.name(), "/versions/", flags.version));
    RUN_OR_FAIL(const v1::Version version, client->GetVersion(request));
    std::string text = Fields({{"name", version.name()},
                               {"kind", version.kind()},
                               {"score", ScoreText(version.has_score(), version.score())},
                               {"note", version.note()}});
    for (const auto& [name, value] : std::map<std::string, v1::Value>(version.values().begin(), version.values().end()))
      text += Cat("\n", name, ":\n", ValueText(value), "\n");
    return app.Print(version, text);
  }
  v1::GetSessionRequest request;
  request.set_name(flags.session);
  RUN_OR_FAIL(const v1::Session session, client->GetSession(request));
  return app.Print(session, Describe(session));
}

// What a version changed, against its parent: only its own values are in the list, the parent's are fetched.
absl::StatusOr<std::string> ChangesOf(client::Client& client, const std::string& session, const v1::Version& version) {
  if (version.values().empty() || !version.has_parent()) return std::string();
  v1::GetVersionRequest request;
  request.set_name(Cat(session, "/versions/", version.parent()));
  ASSIGN_OR_RETURN(const v1::Version parent, client.GetVersion(request));
  std::string out;
  for (const auto& [name, value] : std::map<std::string, v1::Value>(version.values().begin(), version.values().end())) {
    const auto before = parent.values().find(name);
    const std::string old_text = before == parent.values().end() ? "" : ValueText(before->second),
                      new_text = ValueText(value);
    if (old_text == new_text) continue;
    out += Cat("    ", name, ":\n");
    std::string lines = DiffLines(old_text, new_text);
    for (size_t begin = 0; begin < lines.size();) {
      const size_t end = std::min(lines.find('\n', begin), lines.size());
      out += "      " + lines.substr(begin, end - begin) + "\n";
      begin = end + 1;
    }
  }
  return out;
}

int History(App& app, const Flags& flags) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::GetSessionRequest get;
  get.set_name(flags.session);
  RUN_OR_FAIL(const v1::Session session, client->GetSession(get));
  v1::ListVersionsRequest request;
  request.set_session(session.name());
  request.set_branch_only(flags.branch);
  v1::ListVersionsResponse all;
  do {
    request.set_page_size(static_cast<int32_t>(std::min<int64_t>(1000, flags.limit - all.versions_size())));
    RUN_OR_FAIL(const v1::ListVersionsResponse page, client->ListVersions(request));
    all.MergeFrom(page);
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty() && all.versions_size() < flags.limit);
  all.clear_next_page_token();
  if (app.json) return app.Print(all, "");
  std::printf("%-8s %-8s %-10s %-12s %-22s %s\n", "VERSION", "PARENT", "KIND", "SCORE", "COST", "NOTE");
  for (const v1::Version& v : all.versions()) {
    const bool best = session.has_best_version() && session.best_version() == v.number(),
               head = session.head_version() == v.number();
    std::string note = OneLine(v.note(), 80);
    if (note.empty() && std::isfinite(v.loss()) && v.loss() != 0) note = LossText(v.loss());
    std::printf("%-8lld %-8s %-10s %-12s %-22s %s%s%s\n", static_cast<long long>(v.number()),
                v.has_parent() ? std::to_string(v.parent()).c_str() : "-", v.kind().c_str(),
                ScoreText(v.has_score(), v.score()).c_str(), CostText(v).c_str(), head ? "[head] " : "",
                best ? "[best] " : "", note.c_str());
    if (flags.no_diff) continue;
    RUN_OR_FAIL(const std::string changes, ChangesOf(*client, session.name(), v));
    std::fputs(changes.c_str(), stdout);
  }
  const v1::Usage& u = session.usage();
  if (u.llm_calls() > 0) {
    std::printf("in all: %lld evaluations, %lld calls of the model, %lld + %lld tokens%s\n",
                static_cast<long long>(u.evaluations()), static_cast<long long>(u.llm_calls()),
                static_cast<long long>(u.llm_prompt_tokens()), static_cast<long long>(u.llm_completion_tokens()),
                Usd(u.llm_usd()).c_str());
  }
  return kExitDone;
}

int Export(App& app, const Flags& flags) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  std::ofstream file;
  const bool to_file = !flags.output.empty() && flags.output != "-";
  if (to_file) file.open(flags.output, std::ios::binary);
  if (to_file && !file) return app.Usage(flags.output + ": cannot be written");
  std::ostream& out = to_file ? file : std::cout;
  const auto write = [&](std::string_view piece) -> absl::Status {
    out.write(piece.data(), static_cast<std::streamsize>(piece.size()));
    return out ? absl::OkStatus() : ResourceExhausted("export: the output cannot be written");
  };
  const absl::Status status = flags.state ? client->ExportState(flags.session, flags.version, write)
                                          : client->ExportSession(flags.session, write);
  out.flush();
  return status.ok() ? kExitDone : app.Fail(status);
}

int Import(App& app, const Flags& flags) {
  auto bytes = PosixFs().ReadFile(flags.input);
  if (!bytes.ok()) return app.Usage(flags.input + ": cannot be read");
  v1::OptimizerSpec changed;
  for (const std::string& hyper : flags.hyper)
    if (absl::Status given = ApplyHyperFlag(hyper, &changed); !given.ok()) return app.Usage(std::string(given.message()));
  v1::ImportStateHeader header;
  header.set_session_id(flags.id);
  header.set_optimizer(flags.optimizer);
  *header.mutable_hyperparameters() = changed.hyperparameters();
  header.set_allow_non_finite(flags.allow_non_finite);
  header.set_session(flags.session);
  RUN_OR_FAIL(client::Client * client, app.Connect());
  RUN_OR_FAIL(const v1::Session session, client->ImportState(header, std::as_bytes(std::span(*bytes))));
  return app.Print(session, Describe(session));
}

int Rollback(App& app, const Flags& flags) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::RollbackRequest request;
  request.set_session(flags.session);
  request.set_version(flags.version);
  RUN_OR_FAIL(const v1::Session session, client->Rollback(request));
  return app.Print(session, Cat(session.name(), "  head ", session.head_version(), "\n"));
}

int Fork(App& app, const Flags& flags) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::ForkSessionRequest request;
  request.set_session(flags.session);
  request.set_session_id(flags.id);
  if (flags.version >= 0) request.set_version(flags.version);
  if (flags.seed) request.set_seed(*flags.seed);
  RUN_OR_FAIL(const v1::Session session, client->ForkSession(request));
  return app.Print(session, Describe(session));
}

int Delete(App& app, const Flags& flags) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::DeleteSessionRequest request;
  request.set_name(flags.session);
  RUN_OR_FAIL(const v1::Session session, client->DeleteSession(request));
  return app.Print(session,
                   Cat(session.name(), "  deleted; gone for good after ", TimeText(session.purge_time()), "\n"));
}

void AddCreate(CLI::App& parent, App& app) {
  auto* create = parent.add_subcommand("create", "a new session, from a YAML file, from flags, or both (flags win)");
  auto f = std::make_shared<CreateFlags>();
  create->add_option("file", f->file, "YAML file");
  create->add_option("--id", f->id, "id (default: the server picks one)");
  create->add_option("--optimizer", f->optimizer, "a name of `optoctl optimizers`");
  create->add_option("--set", f->hyper, "hyperparameter NAME=VALUE (repeatable)")->allow_extra_args(false);
  create->add_option("--tensor", f->tensors, "tensor NAME:DTYPE:64x10[:no-decay] (repeatable)")
      ->allow_extra_args(false);
  create->add_option("--param", f->parameters, "parameter NAME=VALUE of the trace family (repeatable)")
      ->allow_extra_args(false);
  create->add_option("--label", f->labels, "KEY=VALUE (repeatable)")->allow_extra_args(false);
  create->add_option("--seed", f->seed, "of every random draw of the session");
  create->add_option("--llm", f->llm, "the server's LLM endpoint");
  create->add_option("--direction", f->direction, "maximize or minimize scores");
  create->add_option("--display-name", f->display_name);
  create->add_option("--max-steps", f->steps)->check(CLI::PositiveNumber);
  create->add_option("--max-evaluations", f->evaluations)->check(CLI::PositiveNumber);
  create->add_option("--max-llm-tokens", f->tokens)->check(CLI::PositiveNumber);
  create->add_flag("--validate-only", f->validate_only, "check everything, create nothing");
  create->callback([&app, f] { app.command = [&app, f] { return Create(app, *f); }; });
}

}  // namespace

void AddSessionCommands(CLI::App& root, App& app) {
  auto* session = root.add_subcommand("session", "parameters and their optimizer");
  session->require_subcommand(1);
  AddCreate(*session, app);
  auto f = std::make_shared<Flags>();
  const auto add = [&](const char* name, const char* help, bool takes_session, int (*run)(App&, const Flags&)) {
    auto* command = session->add_subcommand(name, help);
    if (takes_session) command->add_option("session", f->session, "id or full name")->required();
    command->callback([&app, f, run] { app.command = [&app, f, run] { return run(app, *f); }; });
    return command;
  };
  auto* list = add("list", "all sessions, newest first", false, &List);
  list->add_flag("--all", f->all, "of all users (admins)");
  list->add_flag("--deleted", f->deleted, "deleted ones too");
  add("show", "one session, or one version of it", true, &Show)
      ->add_option("--version", f->version, "this version's values");
  auto* history = add("history", "versions with scores and what they changed", true, &History);
  history->add_option("--limit", f->limit, "versions at most")
      ->check(CLI::Range(int64_t{1}, int64_t{1'000'000}))
      ->capture_default_str();
  history->add_flag("--no-diff", f->no_diff, "only the table");
  history->add_flag("--branch", f->branch, "only the head's branch");
  auto* exported = add("export", "the whole session as JSON Lines, or its state to go on from", true, &Export);
  exported->add_option("-o,--output", f->output, "file (default: stdout)");
  auto* state = exported->add_flag("--state", f->state, "parameters, optimizer state and counters as a safetensors file");
  exported->add_option("--version", f->version, "of the state; default: the head")->check(CLI::NonNegativeNumber)->needs(state);
  auto* imported = add("import", "a new session, or one that is there, goes on from a file of `export --state`", false, &Import);
  imported->add_option("file", f->input, "safetensors file")->required();
  imported->add_option("--id", f->id, "of the new session (default: the server picks one)");
  imported->add_option("--session", f->session, "a session that takes the file as its new head, instead of a new session");
  imported->add_option("--optimizer", f->optimizer, "refuse a file of another one");
  imported->add_option("--set", f->hyper, "hyperparameter NAME=VALUE in place of the file's (repeatable)")->allow_extra_args(false);
  imported->add_flag("--allow-non-finite", f->allow_non_finite, "let NaN and Inf in");
  add("rollback", "make an older version the head", true, &Rollback)
      ->add_option("version", f->version)
      ->required()
      ->check(CLI::NonNegativeNumber);
  auto* fork = add("fork", "a new session that starts from a version of this one", true, &Fork);
  fork->add_option("--version", f->version, "default: the head");
  fork->add_option("--id", f->id, "of the new session");
  fork->add_option("--seed", f->seed, "zeroth order: of the fork's own directions (default: the source's go on)");
  add("delete", "delete (restorable for 7 days)", true, &Delete);
}

}  // namespace optod::cli

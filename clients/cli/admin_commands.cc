// optoctl user | token | usage | backup | doctor | version
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "clients/cli/app.h"
#include "clients/cli/optimize/optimize_file.h"
#include "clients/cli/output.h"

namespace optod::cli {
namespace {

struct Flags {
  std::string argument, role = "user", label, ttl, from, to;
};

std::string RoleText(v1::User::Role role) {
  return role == v1::User::VIEWER  ? "viewer"
         : role == v1::User::ADMIN ? "admin"
         : role == v1::User::USER  ? "user"
                                   : "-";
}

// users/U from U.
std::string UserName(const std::string& text) { return text.rfind("users/", 0) == 0 ? text : "users/" + text; }

int UserCreate(App& app, const Flags& flags) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::CreateUserRequest request;
  request.set_user_id(flags.argument);
  request.set_role(flags.role == "viewer"  ? v1::User::VIEWER
                   : flags.role == "admin" ? v1::User::ADMIN
                                           : v1::User::USER);
  RUN_OR_FAIL(const v1::User user, client->CreateUser(request));
  return app.Print(user, Cat(user.name(), "  ", RoleText(user.role()), "\n"));
}

int UserList(App& app, const Flags&) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::ListUsersRequest request;
  v1::ListUsersResponse all;
  do {
    RUN_OR_FAIL(const v1::ListUsersResponse page, client->ListUsers(request));
    all.MergeFrom(page);
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  all.clear_next_page_token();
  std::vector<std::vector<std::string>> rows;
  for (const v1::User& user : all.users())
    rows.push_back(
        {ShortName(user.name()), RoleText(user.role()), user.deleted() ? "deleted" : "", TimeText(user.create_time())});
  return app.Print(all, Table({"USER", "ROLE", "", "CREATED"}, rows));
}

int UserDelete(App& app, const Flags& flags) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::DeleteUserRequest request;
  request.set_name(UserName(flags.argument));
  RUN_OR_FAIL(const v1::User user, client->DeleteUser(request));
  return app.Print(user, Cat(user.name(), "  deleted, its tokens are revoked\n"));
}

int TokenCreate(App& app, const Flags& flags) {
  v1::CreateTokenRequest request;
  request.set_user(UserName(flags.argument));
  request.set_label(flags.label);
  if (!flags.ttl.empty()) {
    const auto ttl = ParseDuration(flags.ttl);
    if (!ttl.ok()) return app.Usage("--ttl: " + std::string(ttl.status().message()));
    request.mutable_ttl()->set_seconds(ttl->count() / 1000);
  }
  RUN_OR_FAIL(client::Client * client, app.Connect());
  RUN_OR_FAIL(const v1::CreateTokenResponse response, client->CreateToken(request));
  if (!app.json)
    std::fprintf(stderr, "%s: this text is shown once and kept nowhere\n", response.token().name().c_str());
  return app.Print(response, response.secret() + "\n");
}

int TokenList(App& app, const Flags& flags) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::ListTokensRequest request;
  if (!flags.argument.empty()) request.set_user(UserName(flags.argument));
  RUN_OR_FAIL(const v1::ListTokensResponse response, client->ListTokens(request));
  std::vector<std::vector<std::string>> rows;
  for (const v1::Token& token : response.tokens())
    rows.push_back({token.name(), token.revoked() ? "revoked" : "valid", TimeText(token.create_time()),
                    token.has_expire_time() ? TimeText(token.expire_time()) : "never", token.label()});
  return app.Print(response, Table({"TOKEN", "STATE", "CREATED", "EXPIRES", "LABEL"}, rows));
}

int TokenRevoke(App& app, const Flags& flags) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::RevokeTokenRequest request;
  request.set_name(flags.argument);
  RUN_OR_FAIL(const v1::Token token, client->RevokeToken(request));
  return app.Print(token, Cat(token.name(), "  revoked\n"));
}

int Backup(App& app, const Flags& flags) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::BackupRequest request;
  request.set_backup_id(flags.argument);
  RUN_OR_FAIL(const v1::Operation started, client->Backup(request));
  RUN_OR_FAIL(const v1::Operation done, client->Wait(started.name()));
  v1::BackupResult result;
  if (!done.response().UnpackTo(&result)) return app.Fail(Internal("backup: the answer is no BackupResult"));
  return app.Print(result, Fields({{"path", result.path()},
                                   {"size", BytesText(result.bytes())},
                                   {"blobs", std::to_string(result.blobs())},
                                   {"jobs", std::to_string(result.jobs())},
                                   {"integrity", result.integrity_ok() ? "ok" : "DAMAGED"}}));
}

std::string Dollars(int64_t micro_usd) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6f", static_cast<double>(micro_usd) / 1e6);
  return text;
}

std::vector<std::string> UsageCells(const std::string& day, const std::string& user, const std::string& model, const v1::ModelUsage& llm) {
  return {day, user, model, std::to_string(llm.calls()), std::to_string(llm.prompt_tokens()), std::to_string(llm.completion_tokens()),
          Dollars(llm.micro_usd()), "", ""};
}

/// A line for what a user used on a day, below it one a model; the last line is the sum.
int Usage(App& app, const Flags& flags) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::GetUsageRequest request;
  if (!flags.argument.empty()) request.set_user(UserName(flags.argument));
  request.set_from_day(flags.from);
  request.set_to_day(flags.to);
  RUN_OR_FAIL(const v1::GetUsageResponse usage, client->GetUsage(request));
  std::vector<std::vector<std::string>> rows;
  const auto add = [&](const std::string& day, const std::string& user, const v1::UsageCounts& counts) {
    rows.push_back(UsageCells(day, user, "", counts.llm()));
    rows.back()[7] = std::to_string(counts.evaluations());
    rows.back()[8] = std::to_string(counts.job_seconds());
  };
  for (const v1::DayUsage& day : usage.days()) {
    add(day.day(), ShortName(day.user()), day.total());
    for (const auto& [name, model] : std::map<std::string, v1::ModelUsage>(day.models().begin(), day.models().end()))
      rows.push_back(UsageCells("", "", name, model));
  }
  if (!rows.empty()) add("all", "", usage.total());
  return app.Print(usage, Table({"DAY", "USER", "MODEL", "CALLS", "PROMPT", "COMPLETION", "USD", "EVALUATIONS", "JOB SECONDS"}, rows));
}

struct LocalCheck {
  const char* program;
  const char* needed_for;
};
constexpr LocalCheck kPrograms[] = {{"python3", "evaluation commands and the Python client"},
                                    {"bwrap", "the sandbox for code that a model wrote"},
                                    {"dot", "optoctl graph --svg"}};

int Doctor(App& app, const Flags&) {
  nlohmann::ordered_json json;
  std::string text;
  const auto check = [&](const std::string& name, bool ok, const std::string& detail) {
    json["checks"].push_back({{"name", name}, {"ok", ok}, {"detail", detail}});
    text +=
        Cat(ok ? "ok    " : "FAIL  ", name, std::string(name.size() < 22 ? 22 - name.size() : 1, ' '), detail, "\n");
  };
  for (const LocalCheck& row : kPrograms) {
    const std::string path = FindInPath(row.program);
    check(row.program, !path.empty(), path.empty() ? Cat("not in PATH; needed for ", row.needed_for) : path);
  }
  const char* llm = std::getenv("OPTOD_LLM_URL");
  check("OPTOD_LLM_URL", llm && *llm,
        llm && *llm ? llm : "not set here: a server that optoctl starts itself has no model");
  int code = kExitDone;
  auto client = app.Connect();
  absl::StatusOr<v1::ServerInfo> info =
      client.ok() ? (*client)->GetServerInfo({}) : absl::StatusOr<v1::ServerInfo>(client.status());
  check("server", info.ok(),
        info.ok() ? Cat(app.ClientOptions().address, ", version ", info->version())
                  : Cat(app.ClientOptions().address, ": ", std::string(info.status().message())));
  if (info.ok()) {
    for (const v1::Check& row : info->checks()) check(row.name(), row.ok(), row.detail());
    for (const auto& [service, there] : std::map<std::string, bool>(info->services().begin(), info->services().end()))
      if (!there) text += Cat("-     ", service, "  not in this release\n");
  } else {
    code = ExitCodeOf(info.status());
  }
  json["reachable"] = info.ok();
  if (app.json)
    std::printf("%s\n", json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  else
    std::fputs(text.c_str(), stdout);
  return code;
}

int Version(App& app, const Flags&) {
  if (app.json)
    std::printf("{\"version\":\"%s\"}\n", OPTOD_VERSION);
  else
    std::printf("optoctl %s\n", OPTOD_VERSION);
  return kExitDone;
}

}  // namespace

void AddAdminCommands(CLI::App& root, App& app) {
  auto f = std::make_shared<Flags>();
  const auto add = [&](CLI::App* parent, const char* name, const char* help, int (*run)(App&, const Flags&)) {
    auto* command = parent->add_subcommand(name, help);
    command->callback([&app, f, run] { app.command = [&app, f, run] { return run(app, *f); }; });
    return command;
  };
  auto* user = root.add_subcommand("user", "accounts (admins)");
  user->require_subcommand(1);
  auto* create = add(user, "create", "a new account", &UserCreate);
  create->add_option("user", f->argument)->required();
  create->add_option("--role", f->role)->check(CLI::IsMember({"viewer", "user", "admin"}))->capture_default_str();
  add(user, "list", "all accounts", &UserList);
  add(user, "delete", "delete an account and revoke its tokens", &UserDelete)
      ->add_option("user", f->argument)
      ->required();
  auto* token = root.add_subcommand("token", "access tokens");
  token->require_subcommand(1);
  auto* token_create = add(token, "create", "a new token; its text is printed once", &TokenCreate);
  token_create->add_option("user", f->argument)->required();
  token_create->add_option("--label", f->label);
  token_create->add_option("--ttl", f->ttl, "how long it is valid, for example 720h (default: for ever)");
  add(token, "list", "tokens of a user", &TokenList)->add_option("user", f->argument, "default: the caller");
  add(token, "revoke", "revoke a token", &TokenRevoke)->add_option("name", f->argument, "users/U/tokens/T")->required();
  auto* usage = add(&root, "usage", "what users have used, by day (UTC) and model", &Usage);
  usage->add_option("--user", f->argument, "default: everybody for admins, else the caller");
  usage->add_option("--from", f->from, "first day, YYYY-MM-DD (default: --to)");
  usage->add_option("--to", f->to, "last day, included (default: today)");
  add(&root, "backup", "a consistent copy of the server's data", &Backup)
      ->add_option("name", f->argument, "default: the server picks one");
  add(&root, "doctor", "what works here and what is missing", &Doctor);
  add(&root, "version", "of this program", &Version);
}

}  // namespace optod::cli

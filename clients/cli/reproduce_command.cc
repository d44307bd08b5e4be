// optoctl reproduce NAME [ARGS...]: studies that this build can run again. A study is a program beside optoctl or a
// module of the Python package; it gets the server's address as OPTOD_ADDRESS. Without a server one is started for it,
// by this program or, where the server needs a language model and a cassette, by the study.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "base/status.h"
#include "clients/cli/app.h"
#include "clients/cli/nearest.h"
#include "clients/cli/optimize/private_server.h"
#include "clients/cli/output.h"

namespace optod::cli {
namespace {

struct Study {
  const char* name;
  const char* what;
  const char* program;      // beside optoctl; nullptr = Python
  const char* module;       // of the Python package; the study's name is its first argument
  bool own_server = false;  // without an address it starts the server itself
};
constexpr const char* kStudiesModule = "optod.studies";
constexpr Study kStudies[] = {
    {"digits", "logistic regression on handwritten-digit-like images: adamw by gradients, zo-sgd by losses alone",
     "optod-example-digits", nullptr},
    {"scale", "SCALE beside Adam, Muon, SGD and its ablations on a character language model", nullptr, kStudiesModule},
    {"sgd-sai", "SGD-SaI beside SGD, momentum SGD and AdamW on a character language model", nullptr, kStudiesModule},
    {"adahessian", "AdaHessian on badly scaled logistic regression and a small CNN", nullptr, kStudiesModule},
    {"mkor", "MKOR, MKOR-H and KFAC on an autoencoder; cost of factor updates by width", nullptr, kStudiesModule},
    {"trace",
     "OptoPrime, OPRO and TextGrad beside Adam on random arithmetic graphs, and on prompts for BIG-Bench Hard (needs "
     "OPTOD_DATA); starts a small local language model unless OPTOD_LLM_URL is set",
     nullptr, kStudiesModule, /*own_server=*/true},
    {"fut", "estimates of another sample order beside retraining: accuracy, time, curricula, memorisation (needs OPTOD_DATA)",
     nullptr, kStudiesModule},
    {"zo-bench",
     "zeroth- and first-order fine-tuning of a small language model: optimizers x schemes x tasks, as training jobs",
     nullptr, kStudiesModule},
    {"zo2",
     "fine-tuning with the parameters on disk beside the resident run: memory, speed, ablations, as training jobs "
     "(needs OPTOD_DATA)",
     "optod-study-zo2", nullptr},
};

// The interpreter that has the package: OPTOD_PYTHON, the environment that install-deps.sh makes, else python3.
std::string FindPython() {
  if (const char* given = std::getenv("OPTOD_PYTHON"); given && *given) return given;
  const std::string made = ProgramFolder() + "/../venv/bin/python";
  return access(made.c_str(), X_OK) == 0 ? made : FindInPath("python3");
}

absl::StatusOr<std::vector<std::string>> CommandOf(const Study& study, const App& app,
                                                   const std::vector<std::string>& more) {
  std::vector<std::string> argv;
  if (study.program) {
    argv = {ProgramFolder() + "/" + study.program};
    if (access(argv[0].c_str(), X_OK) != 0)
      return NotFound(argv[0], ": cannot be run; build the target ", study.program);
  } else {
    argv = {FindPython(), "-m", study.module, study.name};
    if (argv[0].empty())
      return NotFound("reproduce: no python3 in PATH; OPTOD_PYTHON names one with the package optod");
  }
  if (app.json) argv.push_back("--json");
  argv.insert(argv.end(), more.begin(), more.end());
  return argv;
}

pid_t child = 0;
void PassOn(int number) {
  if (child > 0) kill(child, number);
}

// Runs the study to its end; interrupts go to it.
int RunToEnd(const std::vector<std::string>& command) {
  std::vector<char*> argv;
  for (const std::string& argument : command) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  child = fork();
  if (child == 0) {
    execvp(argv[0], argv.data());
    std::fprintf(stderr, "optoctl: reproduce: %s: %s\n", argv[0], std::strerror(errno));
    _exit(127);
  }
  if (child < 0) return kExitRefused;
  signal(SIGTERM, PassOn);
  signal(SIGINT, SIG_IGN);  // a Ctrl-C at the terminal reaches the child by itself
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status)) return WEXITSTATUS(status) == 127 ? kExitUsage : WEXITSTATUS(status);
  return 128 + WTERMSIG(status);
}

int RunStudy(App& app, const Study& study, const std::vector<std::string>& more) {
  RUN_OR_FAIL(const std::vector<std::string> command, CommandOf(study, app, more));
  setenv("OPTOD_BIN_DIR", ProgramFolder().c_str(), 0);  // where a study finds `optod`
  const std::string local_model = ProgramFolder() + "/../../deploy/local-llm.sh";  // of a build in the source tree
  if (access(local_model.c_str(), X_OK) == 0) setenv("OPTOD_LOCAL_LLM", local_model.c_str(), 0);
  const bool only_help = std::ranges::any_of(more, [](const std::string& word) { return word == "-h" || word == "--help"; });
  if (only_help || (study.own_server && !app.AddressGiven())) {
    unsetenv("OPTOD_TOKEN");
    return RunToEnd(command);
  }
  client::ClientOptions options = app.ClientOptions();
  std::unique_ptr<PrivateServer> server;
  if (!app.AddressGiven()) {
    RUN_OR_FAIL(client::Client * client, app.Connect());
    if (const absl::Status status = client->GetServerInfo({}).status(); absl::IsUnavailable(status)) {
      // As many training jobs at once as there are CPUs; a study that runs none is not touched by it.
      const std::string workers = std::to_string(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
      RUN_OR_FAIL(server, PrivateServer::Start({.arguments = {"--max-workers", workers}}));
      std::fprintf(stderr, "optoctl: no server at %s: started a private optod for this study\n",
                   options.address.c_str());
      options.address = server->address();
      options.token.clear();
      unsetenv("OPTOD_TOKEN");
    }
  }
  setenv("OPTOD_ADDRESS", options.address.c_str(), 1);
  if (!options.token.empty()) setenv("OPTOD_TOKEN", options.token.c_str(), 1);
  return RunToEnd(command);
}

// All studies, and how to ask one for its options.
std::string Overview() {
  std::vector<std::vector<std::string>> rows;
  for (const Study& study : kStudies) rows.push_back({study.name, study.what});
  return Table({"STUDY", "WHAT"}, rows) +
         "\nUsage: optoctl reproduce STUDY [OPTIONS]; optoctl reproduce STUDY --help lists its options.\n";
}

int Reproduce(App& app, const std::string& name, const std::vector<std::string>& more) {
  if (name.empty()) {
    std::fputs(Overview().c_str(), more.empty() ? stderr : stdout);  // `reproduce --help` was asked, `reproduce` is short
    return more.empty() ? kExitUsage : kExitDone;
  }
  std::vector<std::string> names;
  for (const Study& study : kStudies) {
    if (name == study.name) return RunStudy(app, study, more);
    names.push_back(study.name);
  }
  std::fprintf(stderr, "optoctl: reproduce: \"%s\" is not a study of this release%s\n%s", name.c_str(),
               DidYouMean(name, names).c_str(), Overview().c_str());
  return kExitUsage;
}

}  // namespace

void AddReproduceCommand(CLI::App& root, App& app) {
  auto* reproduce = root.add_subcommand("reproduce", "run a published study again");
  auto name = std::make_shared<std::string>();
  reproduce->add_option("name", *name);
  // What follows the name is the study's own: --quick, --out, --help, ...
  reproduce->set_help_flag();
  reproduce->allow_extras()->fallthrough(false);
  reproduce->callback([&app, name, reproduce] {
    app.command = [&app, name, reproduce] { return Reproduce(app, *name, reproduce->remaining()); };
  });
}

}  // namespace optod::cli

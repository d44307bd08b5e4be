// optoctl reproduce NAME: studies that this build can run again.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "base/status.h"
#include "clients/cli/app.h"
#include "clients/cli/nearest.h"
#include "clients/cli/output.h"

namespace optod::cli {
namespace {

struct Study {
  const char* name;
  const char* what;
  const char* program;  // beside optoctl; gets the server's address as OPTOD_ADDRESS
};
constexpr Study kStudies[] = {
    {"digits", "logistic regression on handwritten-digit-like images: adamw by gradients, zo-sgd by losses alone",
     "optod-example-digits"},
    {"zo-bench", "zeroth- and first-order fine-tuning of a small language model: optimizers x schemes x tasks, as training jobs (needs OPTOD_DATA)",
     "optod-study-zo-bench"},
};

int Reproduce(App& app, const std::string& name) {
  std::vector<std::vector<std::string>> rows;
  std::vector<std::string> names;
  for (const Study& study : kStudies) {
    rows.push_back({study.name, study.what});
    names.push_back(study.name);
    if (name != study.name) continue;
    const std::string program = ProgramFolder() + "/" + study.program;
    const client::ClientOptions options = app.ClientOptions();
    setenv("OPTOD_ADDRESS", options.address.c_str(), 1);
    if (!options.token.empty()) setenv("OPTOD_TOKEN", options.token.c_str(), 1);
    const char* const argv[] = {program.c_str(), app.json ? "--json" : nullptr, nullptr};
    execv(program.c_str(), const_cast<char* const*>(argv));
    return app.Usage(program + ": cannot be run; build the target " + study.program);
  }
  std::fprintf(stderr, "optoctl: reproduce: \"%s\" is not a study of this release%s\n%s", name.c_str(),
               DidYouMean(name, names).c_str(), Table({"STUDY", "WHAT"}, rows).c_str());
  return kExitUsage;
}

}  // namespace

void AddReproduceCommand(CLI::App& root, App& app) {
  auto* reproduce = root.add_subcommand("reproduce", "run a published study again");
  auto name = std::make_shared<std::string>();
  reproduce->add_option("name", *name)->required();
  reproduce->callback([&app, name] { app.command = [&app, name] { return Reproduce(app, *name); }; });
}

}  // namespace optod::cli

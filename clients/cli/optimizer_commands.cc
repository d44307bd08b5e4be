// optoctl optimizers [NAME]
#include <CLI/CLI.hpp>
#include <cmath>

#include "base/status.h"
#include "clients/cli/app.h"
#include "clients/cli/optimize/gate.h"
#include "clients/cli/output.h"

namespace optod::cli {
namespace {

std::string HyperText(const v1::HyperValue& value) {
  switch (value.value_case()) {
    case v1::HyperValue::kNumber:
      return NumberText(value.number());
    case v1::HyperValue::kFlag:
      return value.flag() ? "true" : "false";
    case v1::HyperValue::kText:
      return "\"" + value.text() + "\"";
    case v1::HyperValue::VALUE_NOT_SET:
      break;
  }
  return "-";
}

std::string RangeText(const v1::HyperInfo& info) {
  if (info.kind() == "choice") {
    std::string out;
    for (const std::string& choice : info.choices()) out += (out.empty() ? "" : " | ") + choice;
    return out;
  }
  if (info.kind() != "float" && info.kind() != "int") return "";
  return Cat(info.min_open() ? "(" : "[", NumberText(info.min()), ", ", NumberText(info.max()),
             info.max_open() || std::isinf(info.max()) ? ")" : "]");
}

std::string Describe(const v1::OptimizerInfo& info) {
  std::string inputs;
  for (const std::string& input : info.tell_inputs()) inputs += (inputs.empty() ? "" : ", ") + input;
  std::string out = Fields({{"name", info.name()},
                            {"family", info.family()},
                            {"summary", info.summary()},
                            {"tell needs", inputs},
                            {"state", info.state()},
                            {"state bytes/param", NumberText(info.state_bytes_per_param())},
                            {"source", info.source()},
                            {"available", info.available() ? "yes" : "no (the name is reserved)"}});
  std::vector<std::vector<std::string>> rows;
  for (const v1::HyperInfo& hyper : info.hyperparameters())
    rows.push_back({hyper.name(), hyper.kind(), HyperText(hyper.default_value()), RangeText(hyper), hyper.doc()});
  return out + "\n" + Table({"HYPERPARAMETER", "KIND", "DEFAULT", "RANGE", ""}, rows);
}

int Optimizers(App& app, const std::string& name) {
  RUN_OR_FAIL(client::Client * client, app.Connect());
  v1::ListOptimizersRequest request;
  request.set_name(name);
  RUN_OR_FAIL(const v1::ListOptimizersResponse response, client->ListOptimizers(request));
  if (!name.empty() && response.optimizers_size() == 1)
    return app.Print(response.optimizers(0), Describe(response.optimizers(0)));
  std::vector<std::vector<std::string>> rows;
  for (const v1::OptimizerInfo& info : response.optimizers())
    rows.push_back({info.name(), info.family(), info.available() ? "yes" : "no",
                    NumberText(info.state_bytes_per_param()), info.summary(), info.source()});
  return app.Print(response, Table({"NAME", "FAMILY", "HERE", "B/PARAM", "SUMMARY", "SOURCE"}, rows));
}

}  // namespace

void AddOptimizerCommands(CLI::App& root, App& app) {
  auto* command = root.add_subcommand("optimizers", "the table of optimizers, or one row in full");
  auto name = std::make_shared<std::string>();
  command->add_option("name", *name, "one optimizer");
  command->callback([&app, name] { app.command = [&app, name] { return Optimizers(app, *name); }; });
}

}  // namespace optod::cli

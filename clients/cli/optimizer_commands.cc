// optoctl optimizers [NAME]
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "clients/cli/app.h"
#include "clients/cli/optimize/gate.h"
#include "clients/cli/exit_codes.h"
#include "clients/cli/output.h"
#include "optim/rules/model_memory.h"

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

struct MemoryArguments {
  std::string model;
  optim::MemoryOptions options;
};

std::string Fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.*f", digits, value);
  return text;
}

/// What training `model` holds under each method. Needs no server.
int Memory(App& app, const MemoryArguments& arguments) {
  const auto layout = optim::ModelLayout(arguments.model);
  if (!layout.ok()) return app.Usage(std::string(layout.status().message()));
  const std::vector<optim::MemoryRow> rows = optim::MemoryTable(*layout, arguments.options);
  double adamw = 0;
  for (const optim::MemoryRow& row : rows) adamw = std::max(adamw, row.StateGibibytes(4));  // two moments: the largest
  std::vector<std::vector<std::string>> table;
  nlohmann::ordered_json json = {{"model", arguments.model}, {"parameters", rows[0].parameters}};
  for (const optim::MemoryRow& row : rows) {
    table.push_back({row.method, std::to_string(row.parameters + row.state), Fixed(row.Gigabytes(2), 3),
                     Fixed(row.StateGibibytes(4), 2), Fixed(adamw - row.StateGibibytes(4), 2), row.what});
    json["methods"].push_back({{"method", row.method},
                               {"numbers", row.parameters + row.state},
                               {"state", row.state},
                               {"gb_at_2_bytes", row.Gigabytes(2)},
                               {"state_gib_float32", row.StateGibibytes(4)},
                               {"what", row.what}});
  }
  if (app.json) {
    std::cout << json.dump() << "\n";
    return kExitDone;
  }
  std::cout << arguments.model << ": " << rows[0].parameters
          << " parameters. GB: parameters and state at 2 bytes a number (1e9); GIB: state in float32 (2^30). Gradients and activations "
             "are not counted.\n"
          << Table({"METHOD", "NUMBERS HELD", "GB", "STATE GIB", "BELOW ADAMW GIB", "STATE"}, table);
  return kExitDone;
}

}  // namespace

void AddOptimizerCommands(CLI::App& root, App& app) {
  auto* command = root.add_subcommand("optimizers", "the table of optimizers, or one row in full; --memory: what a model takes");
  auto name = std::make_shared<std::string>();
  auto memory = std::make_shared<MemoryArguments>();
  command->add_option("name", *name, "one optimizer");
  command->add_option("--memory", memory->model, "a model: llama-60m ... llama-7b, gpt2 ... gpt2-xl, vit-s, vit-b, vit-l");
  command->add_option("--rank", memory->options.rank, "with --memory: of galore, fira, apollo; 0 = as in the printed tables")
      ->check(CLI::NonNegativeNumber);
  command->add_flag("--count-projection", memory->options.count_projection,
                    "with --memory: count apollo's projection as if it were stored");
  command->callback([&app, name, memory] {
    app.command = [&app, name, memory] { return memory->model.empty() ? Optimizers(app, *name) : Memory(app, *memory); };
  });
}

}  // namespace optod::cli

// optoctl order show | estimate | search | matrix | export JOB: what another order of the batches would have given. The
// job is of kind sample_order (optoctl job submit).
#include "clients/cli/order_commands.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <random>
#include <sstream>

#include "base/status.h"
#include "clients/cli/app.h"
#include "clients/cli/output.h"
#include "clients/cpp/orders.h"

namespace optod::cli {
namespace {

/// Options of every subcommand.
struct Asked {
  std::string study, order, file, method = "genetic", moments = "replay", loss = "forward";
  std::vector<int> batches, evaluations;
  int expansion = -1, random = 0, generations = 0, population = 0, spot_checks = 0;
  uint64_t seed = 0;
  bool perplexity = false, retrain = false, generalisation = false, trajectory = false, uncalibrated = false;
};

std::string Digits(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}
std::string OrderText(const v1::SampleOrder& order) {
  std::string text;
  for (const int batch : order.batches()) text += Cat(text.empty() ? "" : ",", batch);
  return text;
}

/// "3,1,0,2": numbers only; what they mean is the server's to check.
absl::StatusOr<v1::SampleOrder> ParseOrder(const std::string& text) {
  v1::SampleOrder order;
  std::istringstream in(text);
  for (std::string item; std::getline(in, item, ',');) {
    char* end = nullptr;
    const long batch = std::strtol(item.c_str(), &end, 10);
    if (item.empty() || *end != '\0' || batch < INT32_MIN || batch > INT32_MAX)
      return InvalidArgument("order: \"", item, "\" is no batch number; write 3,1,0,2");
    order.add_batches(static_cast<int>(batch));
  }
  return order;
}

v1::OrderMetric MetricOf(const Asked& asked) {
  v1::OrderMetric metric;
  metric.mutable_batches()->Assign(asked.batches.begin(), asked.batches.end());
  metric.mutable_evaluations()->Assign(asked.evaluations.begin(), asked.evaluations.end());
  metric.set_perplexity(asked.perplexity);
  return metric;
}
v1::OrderEstimateOptions OptionsOf(const Asked& asked) {
  v1::OrderEstimateOptions options;
  if (asked.expansion >= 0) options.set_expansion(asked.expansion);
  options.set_moments(asked.moments == "reference" ? v1::OrderEstimateOptions::REFERENCE
                                                   : v1::OrderEstimateOptions::REPLAY);
  options.set_uncalibrated(asked.uncalibrated);
  options.set_loss(asked.loss == "linear" ? v1::OrderEstimateOptions::LINEAR : v1::OrderEstimateOptions::FORWARD);
  return options;
}

int Show(App& app, const Asked& asked) {
  RUN_OR_FAIL(const auto client, client::OrderClient::Connect(app.ClientOptions()));
  v1::GetStudyRequest request;
  request.set_study(asked.study);
  request.set_decode_errors(true);
  RUN_OR_FAIL(const v1::OrderStudy study, client->GetStudy(request));
  std::vector<std::pair<std::string, std::string>> fields = {
      {"study", study.study()},
      {"model", study.model()},
      {"parameters", Cat(study.parameters(), " (float", study.precision_bits(), ")")},
      {"batches", Cat(study.batches(), ", ", study.positions(), " positions, ", study.evaluations(), " held-out sets")},
      {"terms",
       Cat(BytesText(study.cost().terms_bytes()), ", ", study.files_filled(), " of ", study.files(), " files")},
      {"reference loss", Digits(study.reference_loss())}};
  for (const char* key : {"optimizer", "lr", "curvature", "storage", "epochs", "probes"})
    fields.emplace_back(key, study.options().at(key));
  if (study.decode_errors_size() > 0) fields.emplace_back("decode error", Digits(study.decode_errors(0)));
  return app.Print(study, Fields(fields));
}

int One(App& app, client::OrderClient& client, const Asked& asked) {
  auto order = ParseOrder(asked.order);
  if (!order.ok()) return app.Usage(std::string(order.status().message()));
  v1::EstimateOrderRequest request;
  request.set_study(asked.study);
  *request.mutable_order() = *order;
  *request.mutable_metric() = MetricOf(asked);
  *request.mutable_options() = OptionsOf(asked);
  request.set_retrain(asked.retrain);
  RUN_OR_FAIL(const v1::OrderEstimate estimate, client.EstimateOrder(request));
  std::vector<std::pair<std::string, std::string>> fields = {{"estimated", Digits(estimate.value())},
                                                             {"reference", Digits(estimate.reference_value())},
                                                             {"distance", Digits(estimate.distance())},
                                                             {"seconds", Digits(estimate.seconds())}};
  if (estimate.has_retrained()) {
    fields.emplace_back("retrained", Digits(estimate.retrained()));
    fields.emplace_back("error / guess", Digits(estimate.error()));
    fields.emplace_back("retraining seconds", Digits(estimate.retrain_seconds()));
  }
  return app.Print(estimate, Fields(fields));
}

/// Orders of a file, one a line, or drawn.
absl::StatusOr<std::vector<v1::SampleOrder>> Orders(client::OrderClient& client, const Asked& asked) {
  std::vector<v1::SampleOrder> orders;
  if (!asked.file.empty()) {
    std::ifstream in(asked.file);
    if (!in) return NotFound(asked.file, ": cannot be read");
    for (std::string line; std::getline(in, line);) {
      if (line.empty()) continue;
      ASSIGN_OR_RETURN(orders.emplace_back(), ParseOrder(line));
    }
    return orders;
  }
  v1::GetStudyRequest request;
  request.set_study(asked.study);
  ASSIGN_OR_RETURN(const v1::OrderStudy study, client.GetStudy(request));
  std::mt19937_64 random(asked.seed);
  for (int i = 0; i < asked.random; ++i) {
    std::vector<int> order(static_cast<size_t>(study.batches()));
    for (size_t k = 0; k < order.size(); ++k) order[k] = static_cast<int>(k);
    for (size_t k = order.size(); k > 1; --k) std::swap(order[k - 1], order[random() % k]);
    orders.emplace_back().mutable_batches()->Assign(order.begin(), order.end());
  }
  return orders;
}

int Many(App& app, client::OrderClient& client, const Asked& asked) {
  constexpr size_t kPerMessage = 1024;
  RUN_OR_FAIL(const std::vector<v1::SampleOrder> orders, Orders(client, asked));
  size_t sent = 0, answered = 0;
  const absl::Status status = client.EstimateOrders(
      [&](v1::EstimateOrdersRequest* request) {
        if (sent == orders.size()) return false;
        if (sent == 0) {
          request->set_study(asked.study);
          *request->mutable_metric() = MetricOf(asked);
          *request->mutable_options() = OptionsOf(asked);
        }
        for (; sent < orders.size() && request->orders_size() < static_cast<int>(kPerMessage); ++sent)
          *request->add_orders() = orders[sent];
        return true;
      },
      [&](const v1::EstimateOrdersResponse& response) {
        std::string text;
        for (const double value : response.values())
          text += Digits(value) + "  " + OrderText(orders[answered++]) + "\n";
        app.Print(response, text);
        return absl::OkStatus();
      });
  return status.ok() ? kExitDone : app.Fail(status);
}

int Estimate(App& app, const Asked& asked) {
  if (asked.order.empty() + asked.file.empty() + (asked.random == 0) != 2)
    return app.Usage("order estimate: give one of ORDER, --file and --random");
  RUN_OR_FAIL(const auto client, client::OrderClient::Connect(app.ClientOptions()));
  return asked.order.empty() ? Many(app, *client, asked) : One(app, *client, asked);
}

int Search(App& app, const Asked& asked) {
  RUN_OR_FAIL(const auto client, client::OrderClient::Connect(app.ClientOptions()));
  v1::SearchOrdersRequest request;
  request.set_study(asked.study);
  request.set_method(asked.method == "local" ? v1::SearchOrdersRequest::LOCAL : v1::SearchOrdersRequest::GENETIC);
  request.set_generations(asked.generations);
  request.set_population(asked.population);
  request.set_seed(asked.seed);
  request.set_retrain_best(asked.retrain);
  *request.mutable_metric() = MetricOf(asked);
  *request.mutable_options() = OptionsOf(asked);
  const absl::Status status = client->SearchOrders(request, [&](const v1::SearchOrdersResponse& response) {
    const v1::SearchOrdersResult& result = response.result();
    std::string text = Cat("generation ", response.generation(), " of ", response.generations(), "\n");
    if (response.has_result()) {
      text += Fields({{"order", OrderText(result.order())},
                      {"estimated", Digits(result.estimated())},
                      {"retrained", result.has_retrained() ? Digits(result.retrained()) : ""},
                      {"estimates taken", std::to_string(result.evaluations())}});
    }
    app.Print(response, text);
    std::fflush(stdout);
    return absl::OkStatus();
  });
  return status.ok() ? kExitDone : app.Fail(status);
}

int Matrix(App& app, const Asked& asked) {
  RUN_OR_FAIL(const auto client, client::OrderClient::Connect(app.ClientOptions()));
  v1::EstimateMatrixRequest request;
  request.set_study(asked.study);
  request.set_generalisation(asked.generalisation);
  request.set_spot_checks(asked.spot_checks);
  request.set_seed(asked.seed);
  *request.mutable_metric() = MetricOf(asked);
  *request.mutable_options() = OptionsOf(asked);
  v1::EstimateMatrixResponse last;
  const absl::Status status = client->EstimateMatrix(request, [&](const v1::EstimateMatrixResponse& response) {
    last = response;
    return absl::OkStatus();
  });
  if (!status.ok()) return app.Fail(status);
  std::vector<std::string> heading = {"BATCH \\ AT"};
  for (int j = 0; j < last.batches(); ++j) heading.push_back(std::to_string(j));
  std::vector<std::vector<std::string>> rows;
  for (int i = 0; i < last.batches(); ++i) {
    rows.push_back({std::to_string(i)});
    for (int j = 0; j < last.batches(); ++j) rows.back().push_back(Digits(last.values(i * last.batches() + j)));
  }
  std::string text = Table(heading, rows);
  if (last.spots_size() > 0)
    text += Cat(last.spots_size(), " cells trained for real: correlation ", Digits(last.pearson()), ", mean error ",
                Digits(last.l1()), "\n");
  return app.Print(last, text);
}

int Export(App& app, const Asked& asked) {
  v1::ExportOrderRequest request;
  request.set_study(asked.study);
  if (!asked.order.empty()) {
    auto order = ParseOrder(asked.order);
    if (!order.ok()) return app.Usage(std::string(order.status().message()));
    *request.mutable_order() = *order;
  }
  request.set_trajectory(asked.trajectory);
  request.set_format(asked.file.ends_with(".npy") ? v1::ExportOrderRequest::NPY : v1::ExportOrderRequest::SAFETENSORS);
  *request.mutable_options() = OptionsOf(asked);
  RUN_OR_FAIL(const auto client, client::OrderClient::Connect(app.ClientOptions()));
  const std::string partial = asked.file + ".part";
  std::ofstream out(partial, std::ios::binary);
  v1::OrderChunk last;
  const absl::Status status = client->ExportOrder(request, [&](const v1::OrderChunk& chunk) -> absl::Status {
    out.write(chunk.data().data(), static_cast<std::streamsize>(chunk.data().size()));
    last = chunk;
    return out ? absl::OkStatus() : ResourceExhausted(asked.file, ": cannot be written");
  });
  out.close();
  if (!status.ok()) {
    std::remove(partial.c_str());
    return app.Fail(status);
  }
  if (std::rename(partial.c_str(), asked.file.c_str()) != 0) return app.Usage(asked.file + ": cannot be written");
  last.set_data("");
  return app.Print(last, Cat(asked.file, ": ", BytesText(last.total_bytes()), "\n"));
}

}  // namespace

void AddOrderCommands(CLI::App& root, App& app) {
  auto* group = root.add_subcommand("order", "what another order of the training batches would have given");
  group->require_subcommand(1);
  const auto add = [&](const char* name, const char* help, int (*run)(App&, const Asked&)) {
    auto asked = std::make_shared<Asked>();
    auto* command = group->add_subcommand(name, help);
    command->add_option("study", asked->study, "the sample_order job")->required();
    command->callback([&app, asked, run] { app.command = [&app, asked, run] { return run(app, *asked); }; });
    return std::pair{command, asked};
  };
  const auto measured = [](CLI::App* c, Asked& a) {
    c->add_option("--batch", a.batches, "measure on this training batch; may be repeated");
    c->add_option("--evaluation", a.evaluations, "measure on this held-out set [0]");
    c->add_flag("--perplexity", a.perplexity, "exp of the mean loss");
  };
  const auto estimated = [](CLI::App* c, Asked& a, bool loss) {
    c->add_option("--expansion", a.expansion, "0 no curvature, 1 first, 2 second order [the most that is stored]")
        ->check(CLI::Range(0, 2));
    c->add_option("--moments", a.moments, "replay or reference")->check(CLI::IsMember({"replay", "reference"}));
    if (!loss) return;
    c->add_option("--loss", a.loss, "forward or linear")->check(CLI::IsMember({"forward", "linear"}));
    c->add_flag("--uncalibrated", a.uncalibrated, "without what the study's probe runs taught");
  };
  add("show", "options, sizes, what is filled", &Show);
  {
    auto [c, a] = add("estimate", "the metric of one order (3,1,0,2), of a file's, or of random ones", &Estimate);
    c->add_option("order", a->order, "batch numbers with commas");
    c->add_option("--file", a->file, "one order a line");
    c->add_option("--random", a->random, "so many random orders")->check(CLI::Range(1, 10'000'000));
    c->add_option("--seed", a->seed, "of the random orders [0]");
    c->add_flag("--retrain", a->retrain, "also train the order for real");
    measured(c, *a);
    estimated(c, *a, true);
  }
  {
    auto [c, a] = add("search", "the order with the lowest estimate", &Search);
    c->add_option("--method", a->method, "genetic or local")->check(CLI::IsMember({"genetic", "local"}));
    c->add_option("--generations", a->generations, "[50]");
    c->add_option("--population", a->population, "[32]");
    c->add_option("--seed", a->seed, "[0]");
    c->add_flag("--retrain", a->retrain, "train the winner for real");
    measured(c, *a);
    estimated(c, *a, true);
  }
  {
    auto [c, a] = add("matrix", "batch i at position j: T x T estimates", &Matrix);
    c->add_flag("--generalisation", a->generalisation, "measured on held-out data, not on the batch itself");
    c->add_option("--spot-checks", a->spot_checks, "cells trained for real [0]");
    c->add_option("--seed", a->seed, "of their choice [0]");
    measured(c, *a);
    estimated(c, *a, false);
  }
  {
    auto [c, a] = add("export", "the estimated parameters as .safetensors or .npy", &Export);
    c->add_option("file", a->file, "where to")->required();
    c->add_option("--order", a->order, "batch numbers with commas [the reference run's own]");
    c->add_flag("--trajectory", a->trajectory, "before every position and after the last");
    estimated(c, *a, false);
  }
}

}  // namespace optod::cli

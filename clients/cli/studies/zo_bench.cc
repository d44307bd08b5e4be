// optoctl reproduce zo-bench: ZO-Bench (Zhang et al., 2024) at the size of this machine: every optimizer x scheme x
// task, several seeds, as training jobs of a server. Prints a table a task: dev score before, mean and spread of the
// best dev score, seconds a step, peak memory of the worker.
//
//   OPTOD_ADDRESS          the server
//   OPTOD_DATA             folder with sst2/ and tinyshakespeare/ (and stories260k/, the default model)
//   OPTOD_STUDY_MODEL      a Hugging Face folder or .gguf file instead
//   OPTOD_STUDY_STEPS      zeroth-order steps a run [200]; first-order runs take a tenth
//   OPTOD_STUDY_SEEDS      [3]
//   OPTOD_STUDY_OPTIMIZERS, OPTOD_STUDY_SCHEMES, OPTOD_STUDY_TASKS    comma-separated parts of the grid
//
// Every run is a job that can be watched, cancelled and resumed; a second start of the study finds the finished ones by
// their request ids.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "base/status.h"
#include "clients/cpp/client.h"

namespace {

using namespace optod;
using Json = nlohmann::ordered_json;

std::string Env(const char* name, const std::string& fallback) {
  const char* value = std::getenv(name);
  return value == nullptr || *value == '\0' ? fallback : value;
}
std::vector<std::string> List(const std::string& text) {
  std::vector<std::string> items;
  std::istringstream in(text);
  for (std::string item; std::getline(in, item, ',');) items.push_back(item);
  return items;
}

/// Learning rates after ZO-Bench's grids (sweeps), scaled to small models: one a scheme and optimizer family.
struct Rates {
  const char* scheme;
  double zo, zo_adam, first_order, eps;
};
constexpr Rates kRates[] = {{"full", 1e-4, 1e-4, 1e-3, 1e-3},
                            {"lora", 1e-2, 1e-3, 5e-3, 1e-2},
                            {"prefix", 1e-2, 1e-3, 1e-2, 1e-1},
                            {"head", 1e-4, 1e-4, 1e-3, 1e-3}};

bool IsZeroth(const std::string& optimizer) { return optimizer.starts_with("zo-"); }

Json OptimizerFor(const std::string& name, const std::string& scheme) {
  for (const Rates& r : kRates) {
    if (scheme != r.scheme) continue;
    if (!IsZeroth(name)) return {{"name", name}, {"lr", name == "sgd" ? 10 * r.first_order : r.first_order}};
    const double lr = name == "zo-adam" || name == "zo-sgd-sign" ? r.zo_adam : r.zo;
    return {{"name", name}, {"lr", name == "zo-sgd-mmt" ? lr / 10 : lr}, {"eps", r.eps}};
  }
  return {};
}

Json TaskFor(const std::string& name, const std::string& data) {
  if (name == "sst2")
    return {{"name", "sst2"},
            {"train", data + "/sst2/train.tsv"},
            {"dev", data + "/sst2/dev.tsv"},
            {"train_examples", 1000},
            {"dev_examples", 200}};
  if (name == "copa") return {{"name", "copa"}, {"train", data + "/copa/train.tsv"}, {"dev", data + "/copa/dev.tsv"}};
  return {{"name", "text"},
          {"train", data + "/tinyshakespeare/input.txt"},
          {"dev", data + "/tinyshakespeare/input.txt"},
          {"train_examples", 2000},
          {"dev_examples", 60},
          {"max_tokens", 64}};
}

struct Cell {
  std::vector<double> first, best, seconds;
  double peak = 0;
  std::string failure;
};

absl::StatusOr<Json> Wait(client::Client& client, const std::string& name) {
  while (true) {
    v1::GetJobRequest request;
    request.set_name(name);
    ASSIGN_OR_RETURN(const v1::Job job, client.GetJob(request));
    if (job.state() == v1::Job::SUCCEEDED) return Json::parse(job.result_json());
    if (job.state() == v1::Job::FAILED || job.state() == v1::Job::CANCELLED || job.state() == v1::Job::LOST)
      return absl::AbortedError(job.reason());
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }
}

double Mean(const std::vector<double>& values) {
  double sum = 0;
  for (double v : values) sum += v;
  return values.empty() ? NAN : sum / static_cast<double>(values.size());
}
double Spread(const std::vector<double>& values) {
  double square = 0;
  for (double v : values) square += (v - Mean(values)) * (v - Mean(values));
  return values.size() < 2 ? 0 : std::sqrt(square / static_cast<double>(values.size() - 1));
}

absl::Status Run(bool json) {
  const std::string data = Env("OPTOD_DATA", "");
  if (data.empty()) return InvalidArgument("OPTOD_DATA is not set: the study needs sst2 and tinyshakespeare from it");
  const std::string model = Env("OPTOD_STUDY_MODEL", data + "/stories260k");
  const int64_t steps = std::max(10, std::atoi(Env("OPTOD_STUDY_STEPS", "200").c_str()));
  const int seeds = std::max(1, std::atoi(Env("OPTOD_STUDY_SEEDS", "3").c_str()));
  const auto optimizers =
      List(Env("OPTOD_STUDY_OPTIMIZERS", "zo-sgd,zo-sgd-mmt,zo-sgd-cons,zo-sgd-sign,zo-adam,sgd,adamw"));
  const auto schemes = List(Env("OPTOD_STUDY_SCHEMES", "full,lora,prefix,head"));
  ASSIGN_OR_RETURN(const auto client, client::Client::Connect(client::OptionsFromEnv()));
  for (const std::string& task : List(Env("OPTOD_STUDY_TASKS", "sst2,text"))) {
    if (!json)
      std::printf("\n%s, %lld zeroth-order steps, %d seeds: dev %s\n%-14s %-8s %9s %18s %9s %9s\n", task.c_str(),
                  static_cast<long long>(steps), seeds, task == "text" ? "score (minus the loss a token)" : "accuracy",
                  "OPTIMIZER", "SCHEME", "BEFORE", "BEST (SPREAD)", "S/STEP", "PEAK MiB");
    for (const std::string& optimizer : optimizers) {
      for (const std::string& scheme : schemes) {
        Cell cell;
        for (int seed = 1; seed <= seeds && cell.failure.empty(); ++seed) {
          const int64_t n = IsZeroth(optimizer) ? steps : std::max<int64_t>(steps / 10, 10);
          const Json spec = {{"kind", "finetune"},
                             {"model", model},
                             {"task", TaskFor(task, data)},
                             {"scheme", scheme},
                             {"optimizer", OptimizerFor(optimizer, scheme)},
                             {"steps", n},
                             {"batch", 16},
                             {"eval_every", std::max<int64_t>(n / 4, 1)},
                             {"seed", seed}};
          v1::CreateJobRequest request;
          request.mutable_job()->set_spec_json(spec.dump());
          request.set_request_id(Cat("zo-bench/", std::hash<std::string>()(spec.dump())));
          ASSIGN_OR_RETURN(const v1::Job job, client->CreateJob(request));
          const absl::StatusOr<Json> result = Wait(*client, job.name());
          if (!result.ok()) {
            cell.failure = std::string(result.status().message());
            break;
          }
          cell.first.push_back((*result)["first_score"]);
          cell.best.push_back((*result)["best_score"]);
          cell.seconds.push_back((*result)["seconds_per_step"]);
          cell.peak = std::max(cell.peak, (*result)["peak_rss_bytes"].get<double>() / 1048576);
        }
        if (json) {
          std::printf("%s\n", Json{{"task", task},
                                   {"optimizer", optimizer},
                                   {"scheme", scheme},
                                   {"before", cell.first},
                                   {"best", cell.best},
                                   {"seconds_per_step", cell.seconds},
                                   {"peak_mib", cell.peak},
                                   {"failure", cell.failure}}
                                  .dump()
                                  .c_str());
        } else if (!cell.failure.empty()) {
          std::printf("%-14s %-8s %s\n", optimizer.c_str(), scheme.c_str(), cell.failure.c_str());
        } else {
          std::printf("%-14s %-8s %9.4f %9.4f (%.4f) %9.3f %9.0f\n", optimizer.c_str(), scheme.c_str(),
                      Mean(cell.first), Mean(cell.best), Spread(cell.best), Mean(cell.seconds), cell.peak);
        }
        std::fflush(stdout);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  const absl::Status status = Run(argc > 1 && std::string(argv[1]) == "--json");
  if (status.ok()) return 0;
  std::fprintf(stderr, "zo-bench: %s\n", std::string(status.message()).c_str());
  return absl::IsInvalidArgument(status) ? 2 : absl::IsUnavailable(status) ? 3 : 4;
}

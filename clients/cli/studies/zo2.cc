// optoctl reproduce zo2: ZO2 (Wang et al., 2025) at the size of this machine: the same zeroth-order fine-tuning job with
// all parameters in memory and with the parameters on disk, and the paper's ablations (no scheduler, one slot, no fused
// update, compressed transfer) with lazy write-back and more queries beside them. Prints a table a batch size: tokens a
// second, their ratio to the resident run, bytes a step, overlap, peak memory of the worker, and whether parameters are
// equal bit for bit; writes them as zo2.svg.
//
//   OPTOD_ADDRESS          the server
//   OPTOD_DATA             folder with tinyshakespeare/ (and stories260k/, the default model)
//   OPTOD_STUDY_MODEL      a Hugging Face folder or .gguf file instead: the study means most with a model that is larger
//                          than the budget
//   OPTOD_STUDY_DISK       folder for block files [/var/tmp]
//   OPTOD_STUDY_BUDGET     memory for slots and perturbed copies, "128MiB" [what three slots take]
//   OPTOD_STUDY_STEPS      [12]
//   OPTOD_STUDY_BATCHES    sequences of 64 tokens a step [1,2,8]
//   OPTOD_STUDY_PLOT       where the figure goes [zo2.svg]
//
// Every run is a job; a second start of the study finds the finished ones by their request ids.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "base/status.h"
#include "clients/cpp/client.h"

namespace {

using namespace optod;
using Json = nlohmann::ordered_json;

constexpr int kTokens = 64;  // of a sequence

std::string Env(const char* name, const std::string& fallback) {
  const char* value = std::getenv(name);
  return value == nullptr || *value == '\0' ? fallback : value;
}

struct Variant {
  const char *name, *what;
  Json tier;  ///< on top of budget and disk; null = resident
  int queries = 1;
  bool lossless = true;
};
std::vector<Variant> Variants() {
  return {{"resident", "all in memory", nullptr},
          {"tiered", "on disk, three slots", Json::object()},
          {"no scheduler", "moving and computing take turns", {{"overlap", false}}},
          {"one slot", "nothing to read ahead into", {{"slots", 1}}},
          {"no fusion", "update and copies in passes of their own", {{"fused", false}}},
          {"lazy 8", "written each 8th step", {{"write_every", 8}}},
          {"bf16", "half the bytes, rounded", {{"codec", "bf16"}}, 1, false},
          {"resident q=3", "three queries a step", nullptr, 3},
          {"tiered q=3", "three queries an upload", Json::object(), 3}};
}

struct Row {
  std::string name;
  double tokens_per_second = 0, ratio = 0, read = 0, written = 0, overlap = 1, peak = 0;
  std::string sha, equal = "-", failure;
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

/// Coded units pass through buffers on the host: the bytes that a plan without room for them asks for, "... MiB (N bytes),
/// the staging of 3 slots"; 0 = another refusal.
int64_t StagingIn(const absl::Status& refusal) {
  const std::string message(refusal.message());
  const size_t end = message.find(" bytes), the staging of "), begin = message.rfind('(', end);
  return end == std::string::npos || begin == std::string::npos ? 0 : std::atoll(message.c_str() + begin + 1);
}

class Study {
 public:
  absl::Status Run(bool json) {
    const std::string data = Env("OPTOD_DATA", "");
    if (data.empty()) return InvalidArgument("OPTOD_DATA is not set: the study needs tinyshakespeare from it");
    model_ = Env("OPTOD_STUDY_MODEL", data + "/stories260k");
    text_ = data + "/tinyshakespeare/input.txt";
    steps_ = std::max(2, std::atoi(Env("OPTOD_STUDY_STEPS", "12").c_str()));
    ASSIGN_OR_RETURN(client_, client::Client::Connect(client::OptionsFromEnv()));
    std::istringstream batches(Env("OPTOD_STUDY_BATCHES", "1,2,8"));
    for (std::string batch; std::getline(batches, batch, ',');)
      RETURN_IF_ERROR(Table(std::max(1, std::atoi(batch.c_str())), json));
    const std::string plot = Env("OPTOD_STUDY_PLOT", "zo2.svg");
    std::ofstream(plot) << Svg();
    if (!json) std::printf("\n%s\n", plot.c_str());
    return absl::OkStatus();
  }

 private:
  Json SpecFor(const Variant& variant, int batch) const {
    Json spec = {{"kind", "finetune"},
                 {"model", model_},
                 {"task",
                  {{"name", "text"}, {"train", text_}, {"dev", text_}, {"train_examples", 200}, {"dev_examples", 4}, {"max_tokens", kTokens}}},
                 {"scheme", "full"},
                 {"optimizer", {{"name", "zo-sgd"}, {"lr", 1e-6}, {"eps", 1e-3}, {"queries", variant.queries}}},
                 {"steps", steps_},
                 {"batch", batch},
                 {"evaluate_before", false},
                 {"seed", 1}};
    if (variant.tier.is_null()) return spec;
    spec["tier"] = variant.tier;
    spec["tier"]["host_budget"] = 0;
    spec["tier"]["disk"] = Env("OPTOD_STUDY_DISK", "/var/tmp");
    if (const std::string budget = Env("OPTOD_STUDY_BUDGET", ""); !budget.empty()) spec["tier"]["device_budget"] = budget;
    return spec;
  }

  absl::StatusOr<Json> RunJob(const Json& spec) {
    v1::CreateJobRequest request;
    request.mutable_job()->set_spec_json(spec.dump());
    request.set_request_id(Cat("zo2/", std::hash<std::string>()(spec.dump())));
    ASSIGN_OR_RETURN(const v1::Job job, client_->CreateJob(request));
    return Wait(*client_, job.name());
  }

  absl::StatusOr<Row> RunOne(const Variant& variant, int batch) {
    Json spec = SpecFor(variant, batch);
    Row row;
    row.name = variant.name;
    absl::StatusOr<Json> result = RunJob(spec);
    if (const int64_t staging = result.ok() ? 0 : StagingIn(result.status()); staging > 0) {
      spec["tier"]["host_budget"] = staging;
      result = RunJob(spec);
    }
    if (!result.ok()) {
      row.failure = std::string(result.status().message());
      return row;
    }
    row.tokens_per_second = batch * kTokens / (*result)["seconds_per_step"].get<double>();
    row.peak = (*result)["peak_rss_bytes"].get<double>() / 1048576;
    row.sha = (*result)["parameters_sha256"];
    const Json tier = result->value("tier", Json::object());
    row.read = tier.value("tier/read_bytes", 0.0) / steps_ / 1048576;
    row.written = tier.value("tier/written_bytes", 0.0) / steps_ / 1048576;
    row.overlap = tier.value("tier/overlap", 1.0);
    return row;
  }

  absl::Status Table(int batch, bool json) {
    if (!json)
      std::printf("\n%d tokens a step, %d steps\n%-14s %10s %7s %10s %10s %8s %10s %6s\n", batch * kTokens, steps_, "RUN",
                  "TOKENS/S", "RATIO", "READ MiB", "WRITE MiB", "OVERLAP", "PEAK MiB", "BYTES");
    std::vector<Row> rows;
    Row resident;
    for (const Variant& variant : Variants()) {
      ASSIGN_OR_RETURN(Row row, RunOne(variant, batch));
      if (variant.tier.is_null()) resident = row;
      if (row.failure.empty()) {
        row.ratio = row.tokens_per_second / resident.tokens_per_second;
        if (!variant.tier.is_null() && variant.lossless) row.equal = row.sha == resident.sha ? "equal" : "DIFFER";
      }
      Print(batch, row, json);
      rows.push_back(std::move(row));
    }
    tables_.emplace_back(batch * kTokens, std::move(rows));
    return absl::OkStatus();
  }

  static void Print(int batch, const Row& row, bool json) {
    if (json) {
      std::printf("%s\n", Json{{"tokens", batch * kTokens}, {"run", row.name}, {"tokens_per_second", row.tokens_per_second}, {"ratio", row.ratio},
                               {"read_mib_per_step", row.read}, {"written_mib_per_step", row.written}, {"overlap", row.overlap},
                               {"peak_mib", row.peak}, {"bytes", row.equal}, {"failure", row.failure}}
                              .dump()
                              .c_str());
    } else if (!row.failure.empty()) {
      std::printf("%-14s %s\n", row.name.c_str(), row.failure.c_str());
    } else {
      std::printf("%-14s %10.1f %7.3f %10.1f %10.1f %8.3f %10.0f %6s\n", row.name.c_str(), row.tokens_per_second, row.ratio, row.read,
                  row.written, row.overlap, row.peak, row.equal.c_str());
    }
    std::fflush(stdout);
  }

  /// Two groups of bars: tokens a second over resident, and peak memory, a bar a run of the largest batch.
  std::string Svg() const {
    std::ostringstream out;
    if (tables_.empty()) return "";
    const std::vector<Row>& rows = tables_.back().second;
    double most = 1;
    for (const Row& row : rows) most = std::max(most, row.peak);
    const int height = 28 * static_cast<int>(rows.size()) + 60;
    out << "<svg xmlns='http://www.w3.org/2000/svg' width='760' height='" << height
        << "' font-family='sans-serif' font-size='12'>\n<rect width='100%' height='100%' fill='white'/>\n"
        << "<text x='130' y='24'>tokens/s over resident, " << tables_.back().first
        << " tokens a step</text><text x='450' y='24'>peak memory, MiB</text>\n";
    int y = 40;
    for (const Row& row : rows) {
      const auto bar = [&](int x, double share, const char* colour, const std::string& label) {
        const int width = static_cast<int>(220 * std::clamp(share, 0.0, 1.2));
        out << "<rect x='" << x << "' y='" << y << "' width='" << width << "' height='18' fill='" << colour << "'/><text x='"
            << x + width + 4 << "' y='" << y + 14 << "'>" << label << "</text>\n";
      };
      char ratio[16], peak[16];
      std::snprintf(ratio, sizeof ratio, "%.2f", row.ratio);
      std::snprintf(peak, sizeof peak, "%.0f", row.peak);
      out << "<text x='120' y='" << y + 14 << "' text-anchor='end'>" << row.name << "</text>\n";
      bar(130, row.ratio, "#4477aa", ratio);
      bar(450, row.peak / most, "#cc6677", peak);
      y += 28;
    }
    return out.str() + "</svg>\n";
  }

  std::string model_, text_;
  int steps_ = 12;
  std::unique_ptr<client::Client> client_;
  std::vector<std::pair<int, std::vector<Row>>> tables_;
};

}  // namespace

int main(int argc, char** argv) {
  const absl::Status status = Study().Run(argc > 1 && std::string(argv[1]) == "--json");
  if (status.ok()) return 0;
  std::fprintf(stderr, "zo2: %s\n", std::string(status.message()).c_str());
  return absl::IsInvalidArgument(status) ? 2 : absl::IsUnavailable(status) ? 3 : 4;
}

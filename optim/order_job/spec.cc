#include "optim/order_job/spec.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "base/status.h"

namespace optod::order {
namespace {

using Json = nlohmann::ordered_json;

/// One value, by its full name.
using Take = std::function<absl::Status(const Json& value, const std::string& name)>;

template <typename T>
Take Int(T* out, int64_t min, int64_t max) {
  return [=](const Json& value, const std::string& name) -> absl::Status {
    if (!value.is_number_integer()) return InvalidArgument(name, ": not a whole number");
    const bool wide = value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX;
    if (wide || value.get<int64_t>() < min || value.get<int64_t>() > max)
      return InvalidArgument(name, ": ", value.dump(), " must be in ", min, "..", max);
    *out = static_cast<T>(value.get<int64_t>());
    return absl::OkStatus();
  };
}
Take Number(double* out, double min, double max, const char* rule) {
  return [=](const Json& value, const std::string& name) -> absl::Status {
    if (!value.is_number() || !(value.get<double>() >= min && value.get<double>() <= max))
      return InvalidArgument(name, ": ", value.dump(), " must be ", rule);
    *out = value.get<double>();
    return absl::OkStatus();
  };
}
Take Bool(bool* out) {
  return [=](const Json& value, const std::string& name) -> absl::Status {
    if (!value.is_boolean()) return InvalidArgument(name, ": not true or false");
    *out = value.get<bool>();
    return absl::OkStatus();
  };
}
Take Text(std::string* out) {
  return [=](const Json& value, const std::string& name) -> absl::Status {
    if (!value.is_string()) return InvalidArgument(name, ": not text");
    *out = value.get<std::string>();
    return absl::OkStatus();
  };
}
template <typename E>
Take Choice(E* out, std::vector<std::pair<std::string, E>> choices) {
  return [=](const Json& value, const std::string& name) -> absl::Status {
    std::string known;
    for (const auto& [word, meaning] : choices) {
      if (value.is_string() && value.get<std::string>() == word) {
        *out = meaning;
        return absl::OkStatus();
      }
      known += (known.empty() ? "" : ", ") + word;
    }
    return InvalidArgument(name, ": ", value.dump(), " is not one of ", known);
  };
}
/// Of the queue, not of the worker; checked by the server.
Take Ignore() {
  return [](const Json&, const std::string&) { return absl::OkStatus(); };
}

absl::Status Read(const Json& json, const std::string& path, const std::map<std::string, Take>& fields) {
  if (!json.is_object()) return InvalidArgument(path.empty() ? "job" : path, ": not a mapping");
  for (const auto& [key, value] : json.items()) {
    const auto field = fields.find(key);
    if (field == fields.end()) return InvalidArgument(path.empty() ? "job" : path, ": unknown field \"", key, "\"");
    if (value.is_null()) continue;
    RETURN_IF_ERROR(field->second(value, path.empty() ? key : path + "." + key));
  }
  return absl::OkStatus();
}
Take Object(std::map<std::string, Take> fields) {
  return [fields = std::move(fields)](const Json& value, const std::string& name) { return Read(value, name, fields); };
}

/// Numbers, words, switches and lists of numbers, as ParseStudyOptions takes them.
absl::StatusOr<std::string> OptionText(const Json& value, const std::string& name) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean() || value.is_number()) return value.dump();
  if (!value.is_array()) return InvalidArgument(name, ": not a number, text, switch or list of numbers");
  std::string text;
  for (const Json& item : value) {
    if (!item.is_number()) return InvalidArgument(name, ": not a list of numbers");
    text += (text.empty() ? "" : ",") + item.dump();
  }
  return text;
}

Take StudyKeys(StudyOptions* out) {
  return [=](const Json& json, const std::string& path) -> absl::Status {
    if (!json.is_object()) return InvalidArgument(path, ": not a mapping");
    std::map<std::string, std::string> values;
    for (const auto& [key, value] : json.items()) {
      ASSIGN_OR_RETURN(values[key], OptionText(value, path + "." + key));
    }
    absl::StatusOr<StudyOptions> options = ParseStudyOptions(values);
    if (!options.ok()) return InvalidArgument(path, ".", std::string(options.status().message()));
    *out = *std::move(options);
    return absl::OkStatus();
  };
}

constexpr int64_t kMany = 1'000'000'000;
const char* const kShare = "in [0, 1]";
const char* const kAtLeastZero = "a number >= 0";

Take Builtin(BuiltinSpec* b) {
  return Object({{"builtin", Choice<std::string>(&b->name, {{"logistic", "logistic"}, {"mlp", "mlp"}})},
                 {"hidden", Int(&b->hidden, 1, 1'000'000)},
                 {"features", Int(&b->data.features, 1, 10'000'000)},
                 {"classes", Int(&b->data.classes, 2, 1'000'000)},
                 {"rows", Int(&b->data.rows, 1, 1'000'000)},
                 {"evaluation_rows", Int(&b->data.evaluation_rows, 1, 10'000'000)},
                 {"drift", Number(&b->data.drift, 0.0, 1e6, kAtLeastZero)},
                 {"ragged", Bool(&b->data.ragged)},
                 {"data_seed", Int(&b->data.seed, 0, INT64_MAX)},
                 {"seed", Int(&b->start.seed, 0, INT64_MAX)},
                 {"initial_scale", Number(&b->start.initial_scale, 0.0, 1e6, kAtLeastZero)},
                 {"precision", Choice<Precision>(&b->start.precision,
                                                 {{"float32", Precision::kFloat32}, {"float64", Precision::kFloat64}})},
                 {"table", Text(&b->table)},
                 {"divide_by", Number(&b->divide_by, 1e-300, 1e300, "a number > 0")}});
}

Take SearchPart(std::optional<SearchOptions>* out) {
  return [=](const Json& json, const std::string& path) -> absl::Status {
    SearchOptions& s = out->emplace();
    return Read(json, path,
                {{"method", Choice<SearchMethod>(
                                &s.method, {{"genetic", SearchMethod::kGenetic}, {"local", SearchMethod::kLocal}})},
                 {"population", Int(&s.population, 2, 100'000)},
                 {"generations", Int(&s.generations, 1, 100'000)},
                 {"tournament", Int(&s.tournament, 1, 100'000)},
                 {"crossover", Number(&s.crossover, 0.0, 1.0, kShare)},
                 {"mutation", Number(&s.mutation, 0.0, 1.0, kShare)},
                 {"elitism", Int(&s.elitism, 0, 100'000)},
                 {"seed", Int(&s.seed, 0, INT64_MAX)},
                 {"retrain_best", Bool(&s.retrain_best)}});
  };
}

Take MatrixPart(std::optional<MatrixOptions>* out) {
  return [=](const Json& json, const std::string& path) -> absl::Status {
    MatrixOptions& m = out->emplace();
    return Read(json, path,
                {{"memorisation", Bool(&m.memorisation)},
                 {"spot_checks", Int(&m.spot_checks, 0, kMany)},
                 {"seed", Int(&m.seed, 0, INT64_MAX)}});
  };
}

Take EstimateKeys(SampleOrderSpec* spec) {
  return Object({{"random_orders", Int(&spec->estimate.random_orders, 0, 1'000'000)},
                 {"seed", Int(&spec->estimate.seed, 0, INT64_MAX)},
                 {"loss", Choice<LossMode>(&spec->estimate.loss,
                                           {{"forward", LossMode::kForward}, {"linear", LossMode::kLinear}})},
                 {"expansion", Int(&spec->estimation.expansion, 0, 2)},
                 {"calibrate", Bool(&spec->estimation.calibrate)},
                 {"moments", Choice<Moments>(&spec->estimation.moments,
                                             {{"replay", Moments::kReplay}, {"reference", Moments::kReference}})}});
}

/// Model, task and scheme mean what they mean in a fine-tuning job, and are checked by its parser.
absl::Status ReadLanguageModel(const Json& json, SampleOrderSpec* spec) {
  Json job = {{"kind", "finetune"}, {"optimizer", {{"name", "adamw"}}}};
  for (const char* key : {"model", "task", "scheme", "seed"}) {
    if (json.contains(key)) job[key] = json[key];
  }
  ASSIGN_OR_RETURN(const train::TrainSpec parsed, train::ParseTrainSpec(job.dump()));
  spec->model = parsed.model;
  spec->task = parsed.task;
  spec->scheme = parsed.scheme;
  spec->seed = parsed.seed;
  return absl::OkStatus();
}

absl::Status CheckTogether(const Json& json, const SampleOrderSpec& spec) {
  if (spec.batches == 0) return InvalidArgument("batches: missing");
  if (Positions(spec) > 100'000)
    return InvalidArgument("study.epochs: ", spec.study.epochs, " of ", spec.batches,
                           " batches are more than 100000 positions");
  if (Positions(spec) * spec.batches > 100'000'000)
    return InvalidArgument("batches: ", spec.batches, " at ", Positions(spec),
                           " positions are more than 100000000 terms");
  if (spec.builtin) {
    if (json.contains("task")) return InvalidArgument("task: belongs to a language model; this job has a built-in one");
    if (spec.builtin->name == "logistic" && spec.builtin->data.classes != 2)
      return InvalidArgument("model.classes: ", spec.builtin->data.classes, "; logistic has 2");
  }
  if (spec.search && spec.search->tournament > spec.search->population)
    return InvalidArgument("search.tournament: ", spec.search->tournament, " is over search.population");
  if (spec.search && spec.search->elitism >= spec.search->population)
    return InvalidArgument("search.elitism: ", spec.search->elitism, " is not below search.population");
  if (spec.matrix && spec.matrix->spot_checks > int64_t{spec.batches} * spec.batches)
    return InvalidArgument("matrix.spot_checks: ", spec.matrix->spot_checks, " is over the ", spec.batches, " x ",
                           spec.batches, " cells");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SampleOrderSpec> ParseSampleOrderSpec(const std::string& json_text) {
  const Json json = Json::parse(json_text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return InvalidArgument("job: not a mapping");
  if (!json.contains("model")) return InvalidArgument("model: missing");
  SampleOrderSpec spec;
  std::string kind;
  const Take builtin = [&spec](const Json& value, const std::string& name) {
    return value.is_object() ? Builtin(&spec.builtin.emplace())(value, name) : absl::OkStatus();
  };
  std::map<std::string, Take> fields = {
      {"kind", Choice<std::string>(&kind, {{"sample_order", "sample_order"}})},
      {"model", builtin},
      {"batches", Int(&spec.batches, 1, 100'000)},
      {"batch", Int(&spec.batch, 1, 1'000'000)},
      {"evaluations", Int(&spec.evaluations, 1, 1000)},
      {"threads", Int(&spec.threads, 0, 4096)},
      {"study", StudyKeys(&spec.study)},
      {"metric", Object({{"perplexity", Bool(&spec.perplexity)}})},
      {"estimate", EstimateKeys(&spec)},
      {"search", SearchPart(&spec.search)},
      {"matrix", MatrixPart(&spec.matrix)},
      {"retrain_checks", Int(&spec.retrain_checks, 0, 100'000)},
  };
  for (const char* key : {"task", "scheme", "seed", "name", "limits", "priority", "after"}) fields[key] = Ignore();
  RETURN_IF_ERROR(Read(json, "", fields));
  if (!spec.builtin) RETURN_IF_ERROR(ReadLanguageModel(json, &spec));
  RETURN_IF_ERROR(CheckTogether(json, spec));
  if (spec.threads > 0 && spec.study.threads == 0) spec.study.threads = spec.threads;
  const Metric metric = MetricOf(spec);
  if (spec.search) spec.search->metric = metric, spec.search->estimate = spec.estimation;
  if (spec.matrix) spec.matrix->metric = metric, spec.matrix->estimate = spec.estimation;
  return spec;
}

int64_t Positions(const SampleOrderSpec& spec) { return int64_t{spec.batches} * spec.study.epochs; }

int64_t TotalUnits(const SampleOrderSpec& spec) {
  int64_t units = Positions(spec) * (1 + spec.batches) + (Positions(spec) + 1) * ProbeRuns(spec.study, spec.batches);
  units += spec.estimate.random_orders + spec.retrain_checks;
  if (spec.search) units += spec.search->generations;
  if (spec.matrix) units += int64_t{spec.batches} * spec.batches;
  return units;
}

std::vector<std::string> PathsOf(const SampleOrderSpec& spec) {
  std::vector<std::string> paths;
  if (spec.builtin) {
    if (!spec.builtin->table.empty()) paths.push_back(spec.builtin->table);
    return paths;
  }
  for (const std::string& path : {spec.model, spec.task.train, spec.task.dev, spec.task.test}) {
    if (!path.empty()) paths.push_back(path);
  }
  return paths;
}

Metric MetricOf(const SampleOrderSpec& spec) {
  Metric metric;
  metric.perplexity = spec.perplexity;
  return metric;
}

}  // namespace optod::order

#include "optim/train/spec.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "optim/rules/registry.h"
#include "optim/train/presets.h"

namespace optod::train {
namespace {

using Json = nlohmann::ordered_json;

/// One object of the job file; every key must be read, the first complaint stays.
class Object {
 public:
  Object(const Json& json, std::string path) : json_(json), path_(std::move(path)) {
    if (!json.is_object()) status_ = InvalidArgument(path_.empty() ? "job" : path_, ": not a mapping");
  }
  std::string Path(const std::string& key) const { return path_.empty() ? key : path_ + "." + key; }
  const Json* Take(const std::string& key) {
    known_.push_back(key);
    if (!status_.ok() || !json_.contains(key) || json_[key].is_null()) return nullptr;
    return &json_[key];
  }
  void Int(const std::string& key, int64_t min, int64_t* out) {
    const Json* value = Take(key);
    if (value == nullptr) return;
    double number = 0;
    if (value->is_number_integer()) {
      number = value->get<double>();
    } else if (value->is_number_float() && std::nearbyint(value->get<double>()) == value->get<double>()) {
      number = value->get<double>();  // 1e3
    } else {
      return Complain(key, "not a whole number");
    }
    if (number < static_cast<double>(min) || number > 9e15)
      return Complain(key, Cat(value->dump(), " must be >= ", min));
    *out = static_cast<int64_t>(number);
  }
  void Number(const std::string& key, double* out) {
    const Json* value = Take(key);
    if (value == nullptr) return;
    if (!value->is_number() || !(value->get<double>() > 0) || !std::isfinite(value->get<double>()))
      return Complain(key, Cat(value->dump(), " must be a number > 0"));
    *out = value->get<double>();
  }
  void Bool(const std::string& key, bool* out) {
    const Json* value = Take(key);
    if (value == nullptr) return;
    if (!value->is_boolean()) return Complain(key, "not true or false");
    *out = value->get<bool>();
  }
  void Text(const std::string& key, std::string* out) {
    const Json* value = Take(key);
    if (value == nullptr) return;
    if (!value->is_string()) return Complain(key, "not text");
    *out = value->get<std::string>();
  }
  void Choice(const std::string& key, std::vector<std::string> choices, std::string* out) {
    Text(key, out);
    std::string all;
    for (const std::string& choice : choices) {
      if (choice == *out) return;
      all += (all.empty() ? "" : ", ") + choice;
    }
    Complain(key, Cat("\"", *out, "\" is not one of ", all));
  }
  void Complain(const std::string& key, const std::string& what) {
    if (status_.ok()) status_ = InvalidArgument(Path(key), ": ", what);
  }
  /// After the last Take: the status, or what was written and not known.
  absl::Status Done() {
    if (!status_.ok()) return status_;
    for (const auto& [key, value] : json_.items()) {
      if (std::find(known_.begin(), known_.end(), key) == known_.end())
        return InvalidArgument(path_.empty() ? "job" : path_, ": unknown field \"", key, "\"");
    }
    return absl::OkStatus();
  }
  absl::Status& status() { return status_; }
  bool Given(const std::string& key) const { return json_.is_object() && json_.contains(key); }
  const Json& json() const { return json_; }

 private:
  const Json& json_;
  std::string path_;
  std::vector<std::string> known_;
  absl::Status status_;
};

absl::Status ReadOptions(Object& o, TaskSpec* task) {
  const Json* value = o.Take("options");
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_object() || value->size() < 2)
    return InvalidArgument(o.Path("options"), ": not a mapping of at least two labels to options");
  task->options.clear();
  for (const auto& [label, text] : value->items()) {
    if (!text.is_string() || text.get<std::string>().empty())
      return InvalidArgument(o.Path("options"), ".", label, ": not text");
    task->options.emplace_back(label, text.get<std::string>());
  }
  return absl::OkStatus();
}

absl::Status CheckAnswer(const TaskSpec& task) {
  if (!task.options.empty()) return InvalidArgument("task.answer: not together with task.options");
  if (task.answer.stop.empty()) return InvalidArgument("task.stop: empty; a text that ends an answer");
  if (task.max_tokens < task.answer.max_tokens + 8)
    return InvalidArgument("task.answer_tokens: ", task.answer.max_tokens, " leaves fewer than 8 of task.max_tokens ",
                           task.max_tokens, " to the prompt");
  return absl::OkStatus();
}

absl::Status ReadTask(const Json& json, TaskSpec* task) {
  Object o(json, "task");
  o.Choice("name", TaskNames(), &task->name);
  if (o.status().ok()) ApplyPreset(task);
  o.Choice("format", {"tsv", "jsonl", "text"}, &task->format);
  for (auto [key, field] : {std::pair("train", &task->train),
                            {"dev", &task->dev},
                            {"test", &task->test},
                            {"prompt", &task->prompt},
                            {"label", &task->label},
                            {"answer", &task->answer.field},
                            {"stop", &task->answer.stop}})
    o.Text(key, field);
  o.Int("answer_tokens", 1, &task->answer.max_tokens);
  o.Bool("header", &task->header);
  o.Bool("classify", &task->classify);
  o.Int("train_examples", 0, &task->train_examples);
  o.Int("dev_examples", 0, &task->dev_examples);
  o.Int("test_examples", 0, &task->test_examples);
  o.Int("max_tokens", 8, &task->max_tokens);
  if (const Json* columns = o.Take("columns"); columns != nullptr) {
    if (!columns->is_array()) return InvalidArgument("task.columns: not a list of names");
    task->columns.clear();
    for (const Json& column : *columns) {
      if (!column.is_string()) return InvalidArgument("task.columns: not a list of names");
      task->columns.push_back(column.get<std::string>());
    }
  }
  RETURN_IF_ERROR(ReadOptions(o, task));
  RETURN_IF_ERROR(o.Done());
  if (task->train.empty()) return InvalidArgument("task.train: missing");
  if (task->dev.empty()) return InvalidArgument("task.dev: missing");
  if (task->format == "text") return absl::OkStatus();
  if (task->prompt.empty()) return InvalidArgument("task.prompt: missing");
  if (task->asks()) RETURN_IF_ERROR(CheckAnswer(*task));
  if (!task->asks() && task->options.size() < 2) return InvalidArgument("task.options: missing");
  if (task->format == "tsv" && !task->header && task->columns.empty())
    return InvalidArgument("task.columns: missing, and task.header is false");
  return absl::OkStatus();
}

absl::Status ReadScheme(const Json& json, SchemeSpec* scheme) {
  const Json object = json.is_string() ? Json{{"name", json.get<std::string>()}} : json;
  Object o(object, "scheme");
  o.Choice("name", {"full", "lora", "prefix", "prompt", "head"}, &scheme->name);
  if (scheme->name == "prompt") scheme->tokens = 10;
  o.Int("rank", 1, &scheme->rank);
  o.Number("alpha", &scheme->alpha);
  o.Int("tokens", 1, &scheme->tokens);
  return o.Done();
}

/// "128MiB", "2 GiB" or a number of bytes.
bool ParseBytes(const Json& value, int64_t* out) {
  if (value.is_number_integer() && value.get<int64_t>() >= 0) return *out = value.get<int64_t>(), true;
  if (!value.is_string()) return false;
  const std::string text = value.get<std::string>();
  size_t used = 0;
  int64_t number = 0;
  while (used < text.size() && text[used] >= '0' && text[used] <= '9' && number < (int64_t{1} << 40))
    number = 10 * number + (text[used++] - '0');
  const std::string unit = text.substr(std::min(text.find_first_not_of(' ', used), text.size()));
  int shift = -1;
  for (const auto& [name, bits] : {std::pair("", 0), {"B", 0}, {"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}}) {
    if (unit == name) shift = bits;
  }
  if (used == 0 || shift < 0 || number > (int64_t{1} << 60 >> shift)) return false;
  *out = number << shift;
  return true;
}

absl::Status ReadTier(const Json& json, TrainSpec* spec) {
  TierSpec& tier = spec->tier;
  tier.on = true;
  Object o(json, "tier");
  for (auto [key, field] : {std::pair("device_budget", &tier.device_budget), {"host_budget", &tier.host_budget}}) {
    const Json* value = o.Take(key);
    if (value != nullptr && !ParseBytes(*value, field))
      o.Complain(key, Cat(value->dump(), " is not a number of bytes; write 134217728 or \"128MiB\""));
  }
  o.Text("disk", &tier.disk);
  o.Int("slots", 0, &tier.slots);
  o.Choice("codec", {"none", "bf16", "fp16", "fp8"}, &tier.codec);
  o.Int("write_every", 1, &tier.write_every);
  o.Bool("overlap", &tier.overlap);
  o.Bool("fused", &tier.fused);
  RETURN_IF_ERROR(o.Done());
  if (tier.slots > 64) return InvalidArgument("tier.slots: ", tier.slots, " must be <= 64");
  if (tier.write_every > 1'000'000) return InvalidArgument("tier.write_every: ", tier.write_every, " must be <= 1000000");
  if (spec->objective != "loss" && spec->task.asks())
    return InvalidArgument("tier: objective \"", spec->objective,
                         "\" of generated answers would read all parameters once a token; train it without tier");
  if (!spec->zeroth_order)
    return InvalidArgument("tier: \"", spec->optimizer, "\" needs gradients; parameters stream for zeroth-order optimizers");
  if (spec->hybrid.blocks > 0)
    return InvalidArgument("tier: with hybrid.blocks ", spec->hybrid.blocks, ", whose layers back-propagation needs in memory; must be "
                           "without hybrid, or train without tier");
  const bool from_values = spec->sparse.ratio > 0 && (spec->sparse.source == "magnitude" || spec->sparse.group == "global");
  for (const auto& [on, with] : {std::pair(spec->parallel.workers > 1, "parallel"), {from_values, "sparse masks drawn from values"}}) {
    if (on && tier.codec != "none")
      return InvalidArgument("tier.codec: \"", tier.codec, "\" with ", with, ", where a replay would round otherwise; must be none");
  }
  if (!spec->blockwise.level.empty() && !tier.fused)
    return InvalidArgument("tier.fused: false with blockwise, whose two copies share what does not move; must be true");
  return absl::OkStatus();
}

absl::Status ReadOptimizer(const Json& json, TrainSpec* spec) {
  const Json object = json.is_string() ? Json{{"name", json.get<std::string>()}} : json;
  if (!object.is_object() || !object.contains("name") || !object["name"].is_string())
    return InvalidArgument("optimizer.name: missing");
  spec->optimizer = object["name"].get<std::string>();
  ASSIGN_OR_RETURN(const optim::RuleInfo* info, optim::FindRule(spec->optimizer));
  if (info->family == optim::Family::kTrace)
    return InvalidArgument("optimizer.name: \"", spec->optimizer, "\" reads words, not losses; jobs train tensors");
  if (!info->implemented && info->family == optim::Family::kFirstOrder)
    return Unimplemented("optimizer.name: \"", spec->optimizer, "\" is not part of this release");
  spec->zeroth_order = info->family == optim::Family::kZerothOrder;
  optim::Hyper given;
  for (const auto& [key, value] : object.items()) {
    if (key == "name") continue;
    if (value.is_boolean())
      given[key] = value.get<bool>();
    else if (value.is_number())
      given[key] = value.get<double>();
    else if (value.is_string())
      given[key] = value.get<std::string>();
    else
      return InvalidArgument("optimizer.", key, ": not a number, text or switch");
  }
  absl::StatusOr<optim::Hyper> checked = optim::CheckHyper(*info, given);
  if (!checked.ok())
    return absl::Status(checked.status().code(), "optimizer: " + std::string(checked.status().message()));
  spec->hyper = *std::move(checked);
  const auto residue = spec->hyper.find("residue");
  if (residue != spec->hyper.end() && residue->second == optim::HyperValue(std::string("mezo")))
    return InvalidArgument("optimizer.residue: \"mezo\" leaves rounding that a job's log does not repeat; must be none");
  for (const char* name : {"blocks", "mask_ratio", "mask_ratios"}) {
    const auto at = spec->hyper.find(name);
    if (at != spec->hyper.end() && at->second != optim::HyperValue(std::string()) && at->second != optim::HyperValue(0.0))
      return Unimplemented("optimizer.", name, ": jobs perturb all trained parameters together; sessions have blocks and masks");
  }
  return absl::OkStatus();
}

absl::Status ReadBlockwise(const Json& json, BlockwiseSpec* blockwise) {
  const Json object = json.is_string() ? Json{{"level", json.get<std::string>()}} : json;
  Object o(object, "blockwise");
  blockwise->level = "transformer-block";
  o.Choice("level", {"transformer-block", "mlp-attn", "linear"}, &blockwise->level);
  o.Choice("schedule", {"coordinate", "joint"}, &blockwise->schedule);
  return o.Done();
}

absl::Status ReadSparse(const Json& json, SparseSpec* sparse) {
  Object o(json, "sparse");
  o.Number("ratio", &sparse->ratio);
  o.Choice("source", {"random", "magnitude", "wanda"}, &sparse->source);
  o.Choice("group", {"layer", "global"}, &sparse->group);
  o.Choice("law", {"uniform", "normal"}, &sparse->law);
  o.Int("resample", 1, &sparse->resample);
  RETURN_IF_ERROR(o.Done());
  if (!(sparse->ratio > 0 && sparse->ratio < 1))
    return InvalidArgument("sparse.ratio: ", sparse->ratio, " must be in (0, 1)");
  if (sparse->source != "random" && sparse->law == "normal")
    return InvalidArgument("sparse.law: \"normal\" is a law of random masks; sparse.source is \"", sparse->source,
                           "\"");
  if (sparse->source == "wanda" && sparse->group == "global")
    return InvalidArgument("sparse.group: \"global\" with wanda, which compares within output rows; must be layer");
  if (sparse->source == "wanda" && o.Given("resample"))
    return InvalidArgument("sparse.resample: wanda's mask is taken once, from the first batch; leave it out");
  return absl::OkStatus();
}

absl::Status ReadHybrid(const Json& json, HybridSpec* hybrid) {
  Object o(json, "hybrid");
  o.Int("blocks", 1, &hybrid->blocks);
  o.Number("lr", &hybrid->lr);
  RETURN_IF_ERROR(o.Done());
  return hybrid->blocks > 0 ? absl::OkStatus() : InvalidArgument("hybrid.blocks: missing");
}

absl::Status ReadParallel(const Json& json, ParallelSpec* parallel) {
  Object o(json, "parallel");
  o.Int("workers", 1, &parallel->workers);
  o.Choice("share", {"examples", "queries"}, &parallel->share);
  RETURN_IF_ERROR(o.Done());
  if (parallel->workers > 1024) return InvalidArgument("parallel.workers: ", parallel->workers, " must be <= 1024");
  return absl::OkStatus();
}

std::string TextOf(const optim::Hyper& hyper, const std::string& name) {
  const auto it = hyper.find(name);
  const std::string* text = it == hyper.end() ? nullptr : std::get_if<std::string>(&it->second);
  return text == nullptr ? "" : *text;
}

/// What does not go together.
absl::Status CheckTogether(const TrainSpec& spec) {
  const bool blockwise = !spec.blockwise.level.empty(), sparse = spec.sparse.ratio > 0, hybrid = spec.hybrid.blocks > 0,
             parallel = spec.parallel.workers > 1, other = spec.objective != "loss";
  if (!spec.zeroth_order) {
    for (const auto& [on, field] : {std::pair(blockwise, "blockwise"),
                                    {sparse, "sparse"},
                                    {hybrid, "hybrid"},
                                    {other, "objective"}}) {
      if (on)
        return InvalidArgument(field, ": needs a zeroth-order optimizer; optimizer.name is \"", spec.optimizer, "\"");
    }
    if (parallel)
      return InvalidArgument("parallel: needs a zeroth-order optimizer, whose workers exchange scalars; \"", spec.optimizer,
                             "\" would have to exchange gradients, which jobs do not");
    return absl::OkStatus();
  }
  const bool two_points = spec.optimizer != "zo-sgd-cons" && spec.optimizer != "forward-grad" &&
                          TextOf(spec.hyper, "perturbation") != "one-side";
  for (const auto& [on, field] : {std::pair(blockwise, "blockwise"), {hybrid, "hybrid"}, {parallel, "parallel"}}) {
    if (on && !two_points)
      return InvalidArgument(field, ": needs two-sided estimates; not zo-sgd-cons, forward-grad or one-side");
  }
  const auto queries = spec.hyper.find("queries");
  const bool several = queries != spec.hyper.end() && queries->second != optim::HyperValue(1.0);
  if (blockwise && several) return InvalidArgument("optimizer.queries: must be 1 with blockwise, one scalar a group");
  if (parallel && several && spec.parallel.share == "queries")
    return InvalidArgument("optimizer.queries: must be 1 with parallel.share queries: every worker has one");
  if (parallel && spec.parallel.share == "examples" && spec.batch % spec.parallel.workers != 0)
    return InvalidArgument("parallel.workers: ", spec.parallel.workers, " does not divide batch ", spec.batch);
  if (hybrid && (blockwise || parallel || sparse || other))
    return InvalidArgument("hybrid: not together with blockwise, sparse, parallel or another objective than loss");
  if (parallel && spec.sparse.source == "wanda")
    return InvalidArgument("sparse.source: wanda with parallel: every worker would draw a mask of its own");
  if (blockwise && parallel) return InvalidArgument("blockwise: not together with parallel");
  if (other && spec.optimizer == "forward-grad")
    return InvalidArgument("objective: \"", spec.objective, "\" has no derivative; forward-grad needs loss");
  if (other && spec.task.format == "text")
    return InvalidArgument("objective: \"", spec.objective, "\" needs options to choose from; task.format is text");
  if (other && spec.task.asks() && blockwise)
    return InvalidArgument("objective: \"", spec.objective, "\" of generated answers: not together with blockwise");
  if (spec.objective == "accuracy" && spec.task.asks())
    return InvalidArgument("objective: \"accuracy\" needs options to choose from; generated answers have f1");
  if (hybrid && (spec.scheme.name == "prompt" || spec.scheme.name == "head"))
    return InvalidArgument("hybrid: scheme \"", spec.scheme.name, "\" trains one block; nothing to divide");
  return absl::OkStatus();
}

/// What a GPU computes of the methods: plain estimates and every update (tier/accelerator.h).
absl::Status CheckDevice(const TrainSpec& spec) {
  if (spec.device == "cpu") return absl::OkStatus();
  if (!spec.tier.on)
    return Unimplemented("device: \"", spec.device, "\" without tier; write tier: {} (without device_budget everything stays on the GPU)");
  for (const auto& [on, what] : {std::pair(spec.optimizer == "zo-sgd-cons" || spec.optimizer == "forward-grad", spec.optimizer.c_str()),
                                 {spec.sparse.ratio > 0, "sparse"},
                                 {!spec.blockwise.level.empty(), "blockwise"}}) {
    if (on) return InvalidArgument("device: \"", spec.device, "\" not together with ", what, "; must be cpu");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TrainSpec> ParseTrainSpec(const std::string& json_text) {
  const Json json = Json::parse(json_text, nullptr, /*allow_exceptions=*/false);
  TrainSpec spec;
  Object o(json, "");
  o.Choice("kind", {"finetune"}, &spec.kind);
  o.Text("model", &spec.model);
  o.Int("steps", 1, &spec.steps);
  o.Int("batch", 1, &spec.batch);
  o.Int("eval_every", 0, &spec.eval_every);
  o.Int("checkpoint_every", 1, &spec.checkpoint_every);
  o.Int("log_every", 1, &spec.log_every);
  o.Int("threads", 0, &spec.threads);
  int64_t seed = 0;
  o.Int("seed", 0, &seed);
  spec.seed = static_cast<uint64_t>(seed);
  o.Choice("schedule", {"constant", "linear"}, &spec.decay_from);
  if (const Json* clip = o.Take("clip_norm"); clip != nullptr) {
    if (!clip->is_number() || !(clip->get<double>() >= 0) || !std::isfinite(clip->get<double>()))
      return InvalidArgument("clip_norm: ", clip->dump(), " must be a number >= 0");
    spec.clip_norm = clip->get<double>();
  }
  o.Bool("save_model", &spec.save_model);
  o.Bool("evaluate_before", &spec.evaluate_before);
  o.Choice("objective", {"loss", "accuracy", "f1"}, &spec.objective);
  o.Choice("device", {"cpu", "cuda"}, &spec.device);
  const Json *blockwise = o.Take("blockwise"), *sparse = o.Take("sparse"), *hybrid = o.Take("hybrid"),
             *parallel = o.Take("parallel");
  const Json *task = o.Take("task"), *scheme = o.Take("scheme"), *optimizer = o.Take("optimizer"),
             *tier = o.Take("tier");
  // Of the queue, not of the worker; checked by the server.
  for (const char* key : {"name", "limits", "priority", "after"}) o.Take(key);
  RETURN_IF_ERROR(o.Done());
  if (spec.model.empty()) return InvalidArgument("model: missing");
  if (task == nullptr) return InvalidArgument("task: missing");
  RETURN_IF_ERROR(ReadTask(*task, &spec.task));
  if (scheme != nullptr) RETURN_IF_ERROR(ReadScheme(*scheme, &spec.scheme));
  if (optimizer == nullptr) return InvalidArgument("optimizer: missing");
  RETURN_IF_ERROR(ReadOptimizer(*optimizer, &spec));
  if (blockwise != nullptr) RETURN_IF_ERROR(ReadBlockwise(*blockwise, &spec.blockwise));
  if (sparse != nullptr) RETURN_IF_ERROR(ReadSparse(*sparse, &spec.sparse));
  if (hybrid != nullptr) RETURN_IF_ERROR(ReadHybrid(*hybrid, &spec.hybrid));
  if (parallel != nullptr) RETURN_IF_ERROR(ReadParallel(*parallel, &spec.parallel));
  RETURN_IF_ERROR(CheckTogether(spec));
  if (tier != nullptr) RETURN_IF_ERROR(ReadTier(*tier, &spec));
  RETURN_IF_ERROR(CheckDevice(spec));
  return spec;
}

std::vector<std::string> PathsOf(const TrainSpec& spec) {
  std::vector<std::string> paths = {spec.model, spec.task.train, spec.task.dev};
  if (!spec.task.test.empty()) paths.push_back(spec.task.test);
  if (!spec.tier.disk.empty()) paths.push_back(spec.tier.disk);
  return paths;
}

}  // namespace optod::train

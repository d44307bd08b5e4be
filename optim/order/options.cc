#include "optim/order/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <limits>
#include <numbers>
#include <sstream>

#include "base/status.h"

namespace optod::order {
namespace {

template <typename E>
struct Name {
  const char* name;
  E value;
};
constexpr Name<Curvature> kCurvatures[] = {{"none", Curvature::kNone}, {"hvp", Curvature::kHvp},
                                           {"diag", Curvature::kDiag}, {"secant", Curvature::kSecant},
                                           {"span", Curvature::kSpan}, {"multisecant", Curvature::kMultisecant}};
constexpr Name<Storage> kStorages[] = {{"exact", Storage::kExact},
                                       {"fp16", Storage::kFp16},
                                       {"bf16", Storage::kBf16},
                                       {"sketch-sign", Storage::kSketchSign},
                                       {"sketch-hadamard", Storage::kSketchHadamard}};
constexpr Name<Schedule> kSchedules[] = {
    {"constant", Schedule::kConstant}, {"linear", Schedule::kLinear}, {"cosine", Schedule::kCosine}};
constexpr Name<Moments> kMoments[] = {{"replay", Moments::kReplay}, {"reference", Moments::kReference}};

template <typename E, size_t N>
const char* Find(const Name<E> (&names)[N], E value) {
  for (const auto& row : names) {
    if (row.value == value) return row.name;
  }
  return "?";
}

template <typename T>
absl::Status ParseNumber(const std::string& text, T* out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) {
    return InvalidArgument("\"", text, "\" is no ", std::is_integral_v<T> ? "integer in range" : "number");
  }
  return absl::OkStatus();
}

std::string Number(double value) {
  char buffer[40];
  return {buffer, std::to_chars(buffer, buffer + sizeof buffer, value).ptr};
}

template <typename T>
std::string Join(const std::vector<T>& values) {
  std::string text;
  for (const T value : values) {
    if (!text.empty()) text += ',';
    if constexpr (std::is_integral_v<T>) {
      text += std::to_string(value);
    } else {
      text += Number(value);
    }
  }
  return text;
}

template <typename T>
absl::Status ParseList(const std::string& text, std::vector<T>* out) {
  out->clear();
  std::istringstream in(text);
  for (std::string item; std::getline(in, item, ',');) RETURN_IF_ERROR(ParseNumber(item, &out->emplace_back()));
  return absl::OkStatus();
}

struct Key {
  std::function<std::string(const StudyOptions&)> get;
  std::function<absl::Status(const std::string&, StudyOptions&)> set;
};

/// A field that is reached through `at`, of a number, list or bool.
template <typename F>
Key Field(F at) {
  using T = std::remove_cvref_t<decltype(at(std::declval<StudyOptions&>()))>;
  Key key;
  if constexpr (std::is_same_v<T, bool>) {
    key.get = [at](const StudyOptions& o) { return at(const_cast<StudyOptions&>(o)) ? "true" : "false"; };
    key.set = [at](const std::string& text, StudyOptions& o) -> absl::Status {
      if (text != "true" && text != "false") return InvalidArgument("\"", text, "\"; must be true or false");
      at(o) = text == "true";
      return absl::OkStatus();
    };
  } else if constexpr (std::is_arithmetic_v<T>) {
    key.get = [at](const StudyOptions& o) {
      if constexpr (std::is_integral_v<T>) {
        return std::to_string(at(const_cast<StudyOptions&>(o)));
      } else {
        return Number(at(const_cast<StudyOptions&>(o)));
      }
    };
    key.set = [at](const std::string& text, StudyOptions& o) { return ParseNumber(text, &at(o)); };
  } else {
    key.get = [at](const StudyOptions& o) { return Join(at(const_cast<StudyOptions&>(o))); };
    key.set = [at](const std::string& text, StudyOptions& o) { return ParseList(text, &at(o)); };
  }
  return key;
}

template <typename E, size_t N, typename F>
Key Choice(const Name<E> (&names)[N], F at) {
  return {[&names, at](const StudyOptions& o) { return Find(names, at(const_cast<StudyOptions&>(o))); },
          [&names, at](const std::string& text, StudyOptions& o) -> absl::Status {
            std::string known;
            for (const auto& row : names) {
              if (text == row.name) {
                at(o) = row.value;
                return absl::OkStatus();
              }
              known += Cat(known.empty() ? "" : ", ", row.name);
            }
            return InvalidArgument("\"", text, "\"; must be one of ", known);
          }};
}

Key OptimizerName() {
  return {[](const StudyOptions& o) {
            return o.optimizer.rule == Rule::kSgd ? "sgd" : o.optimizer.decoupled ? "adamw" : "adam";
          },
          [](const std::string& text, StudyOptions& o) -> absl::Status {
            if (text != "sgd" && text != "adam" && text != "adamw") {
              return InvalidArgument("\"", text, "\"; must be one of sgd, adam, adamw");
            }
            o.optimizer.rule = text == "sgd" ? Rule::kSgd : Rule::kAdam;
            o.optimizer.decoupled = text == "adamw";
            return absl::OkStatus();
          }};
}

#define OPTOD_FIELD(name) Field([](StudyOptions & o) -> auto& { return o.name; })
const std::map<std::string, Key>& Keys() {
  static const auto* keys = new std::map<std::string, Key>{
      {"optimizer", OptimizerName()},
      {"momentum", OPTOD_FIELD(optimizer.momentum)},
      {"nesterov", OPTOD_FIELD(optimizer.nesterov)},
      {"beta1", OPTOD_FIELD(optimizer.beta1)},
      {"beta2", OPTOD_FIELD(optimizer.beta2)},
      {"eps", OPTOD_FIELD(optimizer.eps)},
      {"weight_decay", OPTOD_FIELD(optimizer.weight_decay)},
      {"lr", OPTOD_FIELD(lr)},
      {"schedule", Choice(
                       kSchedules, [](StudyOptions & o) -> auto& { return o.schedule; })},
      {"warmup", OPTOD_FIELD(warmup)},
      {"lr_final", OPTOD_FIELD(lr_final)},
      {"epochs", OPTOD_FIELD(epochs)},
      {"reference_order", OPTOD_FIELD(reference_order)},
      {"curvature", Choice(
                        kCurvatures, [](StudyOptions & o) -> auto& { return o.curvature; })},
      {"second_order", OPTOD_FIELD(second_order)},
      {"probes", OPTOD_FIELD(probes)},
      {"seed", OPTOD_FIELD(seed)},
      {"curvature_cap", OPTOD_FIELD(curvature_cap)},
      {"secant_guard", OPTOD_FIELD(secant_guard)},
      {"span_ridge", OPTOD_FIELD(span_ridge)},
      {"probe_runs", OPTOD_FIELD(probe_runs)},
      {"probe_ridge", OPTOD_FIELD(probe_ridge)},
      {"storage", Choice(
                      kStorages, [](StudyOptions & o) -> auto& { return o.storage; })},
      {"sketch_ratio", OPTOD_FIELD(sketch_ratio)},
      {"sketch_shrink", OPTOD_FIELD(sketch_shrink)},
      {"threads", OPTOD_FIELD(threads)},
      {"memory_budget", OPTOD_FIELD(memory_budget)},
      {"disk_budget", OPTOD_FIELD(disk_budget)},
      {"segment_bytes", OPTOD_FIELD(segment_bytes)},
  };
  return *keys;
}
#undef OPTOD_FIELD

size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t changed = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, changed});
    }
  }
  return row.back();
}

absl::Status NoSuchOption(const std::string& key) {
  std::string best;
  for (const auto& [name, unused] : Keys()) {
    if (best.empty() || EditDistance(key, name) < EditDistance(key, best)) best = name;
  }
  if (EditDistance(key, best) > 3) return InvalidArgument(key, ": no such option");
  return InvalidArgument(key, ": no such option; did you mean ", best, "?");
}

/// field: value; must be rule.
absl::Status Check(bool good, const char* field, double value, const char* rule) {
  return good ? absl::OkStatus() : InvalidArgument(field, ": ", value, "; must be ", rule);
}
bool UnitInterval(double x) { return x >= 0.0 && x < 1.0; }
bool AtLeastZero(double x) { return x >= 0.0 && std::isfinite(x); }

absl::Status CheckOptimizer(const Optimizer& o) {
  RETURN_IF_ERROR(Check(AtLeastZero(o.weight_decay), "weight_decay", o.weight_decay, ">= 0"));
  if (o.rule == Rule::kSgd) {
    RETURN_IF_ERROR(Check(UnitInterval(o.momentum), "momentum", o.momentum, "in [0, 1)"));
    if (o.nesterov && o.momentum == 0.0) return InvalidArgument("nesterov: true needs momentum > 0");
    if (o.decoupled) return InvalidArgument("decoupled: weight decay apart from the gradient belongs to adamw");
    return absl::OkStatus();
  }
  if (o.momentum != 0.0 || o.nesterov) return InvalidArgument("momentum: belongs to sgd; adam has beta1");
  RETURN_IF_ERROR(Check(UnitInterval(o.beta1), "beta1", o.beta1, "in [0, 1)"));
  RETURN_IF_ERROR(Check(UnitInterval(o.beta2), "beta2", o.beta2, "in [0, 1)"));
  return Check(o.eps > 0.0 && std::isfinite(o.eps), "eps", o.eps, "> 0");
}

absl::Status CheckSchedule(const StudyOptions& o) {
  if (o.lr.empty()) return InvalidArgument("lr: missing");
  for (size_t t = 0; t < o.lr.size(); ++t) {
    if (o.lr[t] < 0.0) return InvalidArgument("lr: ", o.lr[t], " is negative; must be >= 0");
    if (!std::isfinite(o.lr[t])) return InvalidArgument("lr: ", o.lr[t], " is not finite");
  }
  if (o.lr.size() > 1 && (o.schedule != Schedule::kConstant || o.warmup != 0)) {
    return InvalidArgument("lr: one number a position leaves nothing to schedule and warmup");
  }
  RETURN_IF_ERROR(Check(o.warmup >= 0, "warmup", o.warmup, ">= 0"));
  RETURN_IF_ERROR(Check(o.lr_final >= 0.0 && o.lr_final <= 1.0, "lr_final", o.lr_final, "in [0, 1]"));
  return Check(o.epochs >= 1 && o.epochs <= 100000, "epochs", o.epochs, "in 1..100000");
}

bool UsesProbeRuns(Curvature curvature) { return curvature != Curvature::kNone && curvature != Curvature::kHvp; }

absl::Status CheckProbeRuns(const StudyOptions& o) {
  RETURN_IF_ERROR(Check(o.probe_runs >= -1 && o.probe_runs <= 1024, "probe_runs", o.probe_runs,
                        "in 0..1024, or -1 (the smaller of 16 and the batches)"));
  if (o.probe_runs > 0 && !UsesProbeRuns(o.curvature)) {
    return InvalidArgument("probe_runs: ", o.probe_runs, "; curvature ", NameOf(o.curvature),
                           " uses none; must be 0 or -1");
  }
  if (o.probe_runs == 0 && o.curvature == Curvature::kMultisecant) {
    return InvalidArgument("probe_runs: 0; curvature multisecant is made of them; must be -1 or in 1..1024");
  }
  return Check(o.probe_ridge > 0.0 && std::isfinite(o.probe_ridge), "probe_ridge", o.probe_ridge, "> 0");
}

absl::Status CheckTerms(const StudyOptions& o) {
  if (o.second_order && o.curvature != Curvature::kDiag && o.curvature != Curvature::kSecant) {
    return InvalidArgument("second_order: needs curvature diag or secant, not ", NameOf(o.curvature));
  }
  RETURN_IF_ERROR(Check(o.probes >= 1 && o.probes <= 4096, "probes", o.probes, "in 1..4096"));
  RETURN_IF_ERROR(Check(AtLeastZero(o.curvature_cap), "curvature_cap", o.curvature_cap, ">= 0"));
  RETURN_IF_ERROR(Check(AtLeastZero(o.secant_guard), "secant_guard", o.secant_guard, ">= 0"));
  RETURN_IF_ERROR(Check(o.span_ridge > 0.0 && std::isfinite(o.span_ridge), "span_ridge", o.span_ridge, "> 0"));
  RETURN_IF_ERROR(CheckProbeRuns(o));
  return Check(o.sketch_ratio >= 1 && o.sketch_ratio <= 4096, "sketch_ratio", o.sketch_ratio, "in 1..4096");
}

}  // namespace

const char* NameOf(Curvature curvature) { return Find(kCurvatures, curvature); }
const char* NameOf(Storage storage) { return Find(kStorages, storage); }
const char* NameOf(Moments moments) { return Find(kMoments, moments); }

std::string ToText(const StudyOptions& options) {
  std::string text;
  for (const auto& [name, key] : Keys()) text += Cat(name, "=", key.get(options), "\n");
  return text;
}

absl::StatusOr<StudyOptions> ParseStudyOptions(const std::map<std::string, std::string>& values) {
  StudyOptions options;
  for (const auto& [name, value] : values) {
    const auto key = Keys().find(name);
    if (key == Keys().end()) return NoSuchOption(name);
    if (const absl::Status status = key->second.set(value, options); !status.ok()) {
      return InvalidArgument(name, ": ", std::string(status.message()));
    }
  }
  RETURN_IF_ERROR(CheckStudyOptions(options));
  return options;
}

absl::StatusOr<StudyOptions> ParseStudyOptions(const std::string& text) {
  std::map<std::string, std::string> values;
  std::istringstream in(text);
  int number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (line.empty() || line[0] == '#') continue;
    const size_t equals = line.find('=');
    if (equals == std::string::npos) return InvalidArgument("options: line ", number, " has no '='");
    if (!values.emplace(line.substr(0, equals), line.substr(equals + 1)).second) {
      return InvalidArgument(line.substr(0, equals), ": stands twice");
    }
  }
  return ParseStudyOptions(values);
}

absl::Status CheckStudyOptions(const StudyOptions& o) {
  RETURN_IF_ERROR(CheckOptimizer(o.optimizer));
  RETURN_IF_ERROR(CheckSchedule(o));
  RETURN_IF_ERROR(CheckTerms(o));
  RETURN_IF_ERROR(Check(o.threads >= 0 && o.threads <= 4096, "threads", o.threads, "in 0..4096"));
  RETURN_IF_ERROR(Check(o.memory_budget > 0, "memory_budget", static_cast<double>(o.memory_budget), "> 0"));
  RETURN_IF_ERROR(Check(o.disk_budget >= 0, "disk_budget", static_cast<double>(o.disk_budget), ">= 0"));
  return Check(o.segment_bytes > 0, "segment_bytes", static_cast<double>(o.segment_bytes), "> 0");
}

int ProbeRuns(const StudyOptions& o, int batches) {
  if (!UsesProbeRuns(o.curvature)) return 0;
  return o.probe_runs < 0 ? std::min(16, batches) : o.probe_runs;
}

absl::StatusOr<std::vector<double>> LearningRates(const StudyOptions& o, int positions) {
  if (static_cast<int>(o.lr.size()) == positions && positions > 1) return o.lr;
  if (o.lr.size() != 1) {
    return InvalidArgument("lr: ", o.lr.size(), " numbers; must be 1 or ", positions, ", one a position");
  }
  std::vector<double> rates(positions, o.lr[0]);
  const int decaying = positions - o.warmup;
  for (int t = 0; t < positions; ++t) {
    if (t < o.warmup) {
      rates[t] *= static_cast<double>(t + 1) / o.warmup;
      continue;
    }
    const double done = decaying > 1 ? static_cast<double>(t - o.warmup) / (decaying - 1) : 0.0;
    const double left = o.schedule == Schedule::kLinear   ? 1.0 - done
                        : o.schedule == Schedule::kCosine ? 0.5 * (1.0 + std::cos(std::numbers::pi * done))
                                                          : 1.0;
    if (o.schedule != Schedule::kConstant) rates[t] *= o.lr_final + (1.0 - o.lr_final) * left;
  }
  return rates;
}

}  // namespace optod::order

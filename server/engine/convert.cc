// Checks of what every session has in common: names, optimizer, layout, schedule, budget.
#include <algorithm>
#include <cmath>
#include <set>

#include "base/status.h"
#include "google/protobuf/util/time_util.h"
#include "optim/rules/registry.h"
#include "server/engine/engine.h"

namespace optod::engine {
namespace {

std::vector<std::string> SplitSlash(const std::string& text) {
  std::vector<std::string> parts;
  size_t start = 0;
  while (true) {
    const size_t slash = text.find('/', start);
    parts.push_back(text.substr(start, slash - start));
    if (slash == std::string::npos) return parts;
    start = slash + 1;
  }
}

absl::StatusOr<SessionName> MakeName(const std::string& user, const std::string& id, const std::string& field) {
  if (!IsResourceId(id))
    return InvalidArgument(field, ": \"", id, "\" is no session id; must match [a-z]([a-z0-9-]{0,61}[a-z0-9])?");
  if (!IsResourceId(user)) return InvalidArgument(field, ": \"", user, "\" is no user id");
  return SessionName{user, id};
}

optim::Hyper ToHyper(const v1::OptimizerSpec& spec) {
  optim::Hyper out;
  for (const auto& [name, value] : spec.hyperparameters()) {
    switch (value.value_case()) {
      case v1::HyperValue::kNumber: out[name] = value.number(); break;
      case v1::HyperValue::kFlag: out[name] = value.flag(); break;
      case v1::HyperValue::kText: out[name] = value.text(); break;
      case v1::HyperValue::VALUE_NOT_SET: out[name] = std::string(); break;
    }
  }
  return out;
}

void FromHyper(const optim::Hyper& hyper, v1::OptimizerSpec* spec) {
  spec->clear_hyperparameters();
  for (const auto& [name, value] : hyper) {
    v1::HyperValue out;
    if (const double* number = std::get_if<double>(&value)) out.set_number(*number);
    if (const bool* flag = std::get_if<bool>(&value)) out.set_flag(*flag);
    if (const std::string* text = std::get_if<std::string>(&value)) out.set_text(*text);
    (*spec->mutable_hyperparameters())[name] = out;
  }
}

absl::Status CheckSchedule(const v1::Schedule& schedule) {
  if (schedule.warmup_steps() < 0) return InvalidArgument("optimizer.schedule.warmup_steps: ", schedule.warmup_steps(), " is negative");
  if (!(schedule.floor() >= 0 && schedule.floor() <= 1))
    return InvalidArgument("optimizer.schedule.floor: ", schedule.floor(), " is outside [0, 1]");
  const bool needs_total = schedule.kind() == v1::Schedule::LINEAR || schedule.kind() == v1::Schedule::COSINE;
  if (needs_total && schedule.total_steps() <= schedule.warmup_steps())
    return InvalidArgument("optimizer.schedule.total_steps: ", schedule.total_steps(), " must be > warmup_steps (", schedule.warmup_steps(), ")");
  return absl::OkStatus();
}

/// Groups, clipping and the guard act on told gradients. Globs and values of groups are checked with the layout.
absl::Status CheckFirstOrderOnly(const v1::OptimizerSpec& spec, const optim::RuleInfo& info) {
  if (spec.groups_size() > 1000) return InvalidArgument("optimizer.groups: ", spec.groups_size(), " groups; at most 1000");
  if (info.family == optim::Family::kFirstOrder) return absl::OkStatus();
  const char* field = spec.groups_size() > 0 ? "groups" : spec.clip_value() > 0 ? "clip_value" : spec.non_finite() != v1::NON_FINITE_UNSPECIFIED ? "non_finite" : nullptr;
  if (field == nullptr) return absl::OkStatus();
  return InvalidArgument("optimizer.", field, ": ", info.name, " is not told gradients; only first-order optimizers take it");
}

}  // namespace

bool IsResourceId(const std::string& id) {
  if (id.empty() || id.size() > 63 || !(id[0] >= 'a' && id[0] <= 'z') || id.back() == '-') return false;
  return std::all_of(id.begin(), id.end(), [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; });
}

absl::StatusOr<SessionName> ParseSessionName(const std::string& text, const Caller& caller, const std::string& field) {
  const auto parts = SplitSlash(text);
  if (parts.size() == 1) return MakeName(caller.user, parts[0], field);
  if (parts.size() == 2 && parts[0] == "sessions") return MakeName(caller.user, parts[1], field);
  if (parts.size() == 4 && parts[0] == "users" && parts[2] == "sessions") return MakeName(parts[1], parts[3], field);
  return InvalidArgument(field, ": \"", text, "\" is no session name; must be users/USER/sessions/ID, sessions/ID or ID");
}

absl::StatusOr<std::pair<SessionName, int64_t>> ParseVersionName(const std::string& text, const Caller& caller, const std::string& field) {
  const size_t at = text.rfind("/versions/");
  const std::string digits = at == std::string::npos ? "" : text.substr(at + 10);
  if (digits.empty() || digits.size() > 18 || digits.find_first_not_of("0123456789") != std::string::npos)
    return InvalidArgument(field, ": \"", text, "\" is no version name; must be .../sessions/ID/versions/N");
  ASSIGN_OR_RETURN(SessionName name, ParseSessionName(text.substr(0, at), caller, field));
  return std::make_pair(name, static_cast<int64_t>(std::stoll(digits)));
}

absl::Status CheckOptimizer(v1::OptimizerSpec* spec, std::string* family, std::vector<std::string>* tell_inputs) {
  if (spec->name().empty()) return InvalidArgument("optimizer.name: missing; optoctl optimizers lists them");
  ASSIGN_OR_RETURN(const optim::RuleInfo* info, optim::FindRule(spec->name()));
  auto hyper = optim::CheckHyper(*info, ToHyper(*spec));
  if (!hyper.ok()) return hyper.status();
  FromHyper(*hyper, spec);
  RETURN_IF_ERROR(CheckSchedule(spec->schedule()));
  if (!(spec->clip_norm() >= 0) || std::isinf(spec->clip_norm()))
    return InvalidArgument("optimizer.clip_norm: ", spec->clip_norm(), " must be a finite number >= 0");
  if (!(spec->clip_value() >= 0) || std::isinf(spec->clip_value()))
    return InvalidArgument("optimizer.clip_value: ", spec->clip_value(), " must be a finite number >= 0");
  if (!v1::NonFinite_IsValid(spec->non_finite()))
    return InvalidArgument("optimizer.non_finite: ", static_cast<int>(spec->non_finite()), " is unknown");
  RETURN_IF_ERROR(CheckFirstOrderOnly(*spec, *info));
  *family = FamilyName(info->family);
  *tell_inputs = info->tell_inputs;
  return absl::OkStatus();
}

std::string FamilyName(optim::Family family) {
  switch (family) {
    case optim::Family::kFirstOrder: return "first-order";
    case optim::Family::kZerothOrder: return "zeroth-order";
    case optim::Family::kTrace: return "trace";
  }
  return "";
}

absl::Status CheckServed(const std::string& name, const std::string& family, const std::map<std::string, FamilyFactory>& families) {
  auto it = families.find(family);
  if (it != families.end()) {
    const auto& served = it->second.optimizers;
    if (std::find(served.begin(), served.end(), name) != served.end()) return absl::OkStatus();
    auto info = optim::FindRule(name);
    if (served.empty() && info.ok() && (*info)->implemented) return absl::OkStatus();
  }
  return Unimplemented("optimizer ", name, ": the name is reserved, this release does not run it");
}

void DescribeOptimizer(const optim::RuleInfo& info, const std::map<std::string, FamilyFactory>& families, v1::OptimizerInfo* out) {
  out->set_name(info.name);
  out->set_family(FamilyName(info.family));
  out->set_summary(info.summary);
  for (const optim::HyperInfo& hyper : info.hyper) {
    v1::HyperInfo* row = out->add_hyperparameters();
    row->set_name(hyper.name);
    row->set_kind(hyper.kind);
    v1::HyperValue* value = row->mutable_default_value();
    if (const double* number = std::get_if<double>(&hyper.default_value)) value->set_number(*number);
    if (const bool* flag = std::get_if<bool>(&hyper.default_value)) value->set_flag(*flag);
    if (const std::string* text = std::get_if<std::string>(&hyper.default_value)) value->set_text(*text);
    row->set_min(hyper.min);
    row->set_max(hyper.max);
    row->set_min_open(hyper.min_open);
    row->set_max_open(hyper.max_open);
    for (const std::string& choice : hyper.choices) row->add_choices(choice);
    row->set_doc(hyper.doc);
  }
  for (const std::string& input : info.tell_inputs) out->add_tell_inputs(input);
  out->set_state(info.state);
  out->set_state_bytes_per_param(info.state_bytes_per_param);
  out->set_source(info.source);
  out->set_available(CheckServed(info.name, FamilyName(info.family), families).ok());
}

absl::Status CheckLayout(v1::TensorIndex* layout) {
  if (layout->tensors_size() == 0) return InvalidArgument("layout.tensors: empty; name at least one tensor");
  if (layout->tensors_size() > 100'000) return InvalidArgument("layout.tensors: ", layout->tensors_size(), " tensors; at most 100000");
  std::set<std::string> names;
  unsigned __int128 total = 0;
  for (int i = 0; i < layout->tensors_size(); ++i) {
    const v1::TensorSpec& tensor = layout->tensors(i);
    const std::string field = Cat("layout.tensors[", i, "]");
    if (tensor.name().empty() || tensor.name().size() > 512) return InvalidArgument(field, ".name: must have 1 to 512 bytes");
    if (!names.insert(tensor.name()).second) return InvalidArgument(field, ".name: \"", tensor.name(), "\" stands twice");
    const size_t size = v1::DType_IsValid(tensor.dtype()) ? optim::DTypeSize(static_cast<optim::DType>(tensor.dtype())) : 0;
    if (size == 0) return InvalidArgument(field, ".dtype: missing or unknown (", static_cast<int>(tensor.dtype()), ")");
    unsigned __int128 elements = 1;
    if (tensor.shape_size() > 16) return InvalidArgument(field, ".shape: ", tensor.shape_size(), " dimensions; at most 16");
    for (int d = 0; d < tensor.shape_size(); ++d) {
      if (tensor.shape(d) < 0) return InvalidArgument(field, ".shape[", d, "]: ", tensor.shape(d), " is negative");
      elements *= static_cast<unsigned __int128>(tensor.shape(d));
      if (elements > (static_cast<unsigned __int128>(1) << 48)) return InvalidArgument(field, ".shape: more than 2^48 elements");
    }
    total += elements * size;
  }
  if (total > (static_cast<unsigned __int128>(1) << 50)) return InvalidArgument("layout: more than 2^50 bytes");
  const auto bytes = static_cast<uint64_t>(total);
  if (layout->total_bytes() != 0 && layout->total_bytes() != bytes)
    return InvalidArgument("layout.total_bytes: ", layout->total_bytes(), ", but the tensors have ", bytes);
  layout->set_total_bytes(bytes);
  return absl::OkStatus();
}

double ScheduledLr(const v1::Schedule& schedule, double base_lr, int64_t t) {
  const double warmup = static_cast<double>(schedule.warmup_steps());
  if (t <= schedule.warmup_steps()) return base_lr * static_cast<double>(t) / warmup;
  const double span = static_cast<double>(schedule.total_steps()) - warmup;
  const double progress = span > 0 ? std::min(1.0, (static_cast<double>(t) - warmup) / span) : 0.0;
  switch (schedule.kind()) {
    case v1::Schedule::LINEAR: return base_lr * std::max(schedule.floor(), 1.0 - progress * (1.0 - schedule.floor()));
    case v1::Schedule::COSINE:
      return base_lr * (schedule.floor() + (1.0 - schedule.floor()) * 0.5 * (1.0 + std::cos(M_PI * progress)));
    case v1::Schedule::INVERSE_SQRT: return base_lr * std::sqrt(std::max(1.0, warmup) / static_cast<double>(t));
    default: return base_lr;
  }
}

absl::Status CheckBudget(const v1::Session& session, int64_t created_ms, int64_t now_ms) {
  const v1::Budget& budget = session.budget();
  const v1::Usage& usage = session.usage();
  if (budget.max_steps() > 0 && usage.steps() >= budget.max_steps())
    return ResourceExhausted("budget.max_steps: all ", budget.max_steps(), " steps are used");
  if (budget.max_evaluations() > 0 && usage.evaluations() >= budget.max_evaluations())
    return ResourceExhausted("budget.max_evaluations: all ", budget.max_evaluations(), " evaluations are used");
  const int64_t tokens = usage.llm_prompt_tokens() + usage.llm_completion_tokens();
  if (budget.max_llm_tokens() > 0 && tokens >= budget.max_llm_tokens())
    return ResourceExhausted("budget.max_llm_tokens: ", tokens, " of ", budget.max_llm_tokens(), " tokens are used");
  if (budget.max_llm_usd() > 0 && usage.llm_usd() >= budget.max_llm_usd())
    return ResourceExhausted("budget.max_llm_usd: ", usage.llm_usd(), " of ", budget.max_llm_usd(), " USD are used");
  if (budget.has_max_wall()) {
    const int64_t wall_ms = google::protobuf::util::TimeUtil::DurationToMilliseconds(budget.max_wall());
    if (wall_ms > 0 && now_ms - created_ms >= wall_ms) return ResourceExhausted("budget.max_wall: ", wall_ms / 1000, " s are over");
  }
  return absl::OkStatus();
}

}  // namespace optod::engine

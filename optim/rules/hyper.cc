// CheckHyper and the constructors of HyperInfo.
#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

#include "base/status.h"
#include "optim/rules/nearest.h"
#include "optim/rules/registry_rows.h"

namespace optod::optim {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

HyperInfo Number(const char* name, const char* kind, double value, double min, double max, const char* doc) {
  HyperInfo info;
  info.name = name;
  info.kind = kind;
  info.default_value = value;
  info.min = min;
  info.max = max;
  info.max_open = max == kInfinity;
  info.doc = doc;
  return info;
}

std::string RangeText(const HyperInfo& info) {
  if (info.max == kInfinity && info.min == -kInfinity) return "must be finite";
  if (info.max == kInfinity) return Cat("must be ", info.min_open ? "> " : ">= ", info.min);
  return Cat("must be in ", info.min_open ? "(" : "[", info.min, ", ", info.max, info.max_open ? ")" : "]");
}

std::string ValueText(const HyperValue& value) {
  if (const auto* number = std::get_if<double>(&value)) {
    std::ostringstream out;
    out.precision(15);
    out << *number;
    return out.str();
  }
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
  std::string text = std::get<std::string>(value);
  constexpr size_t kShown = 64;  // a message is no place for a document
  if (text.size() > kShown) text = text.substr(0, kShown) + "...";
  return "\"" + text + "\"";
}

const char* KindText(const HyperValue& value) {
  return std::holds_alternative<double>(value) ? "a number" : std::holds_alternative<bool>(value) ? "a switch" : "text";
}

absl::Status Refuse(const HyperInfo& info, const HyperValue& value, const std::string& why) {
  return InvalidArgument("hyperparameters.", info.name, ": ", ValueText(value), " ", why);
}

absl::Status CheckNumber(const HyperInfo& info, const HyperValue& value) {
  const double* number = std::get_if<double>(&value);
  if (number == nullptr) return Refuse(info, value, Cat("is ", KindText(value), "; must be a number"));
  if (!std::isfinite(*number)) return Refuse(info, value, "is not finite; " + RangeText(info));
  if (info.kind == "int" && std::floor(*number) != *number)
    return Refuse(info, value, "is not an integer; " + RangeText(info));
  const bool low = info.min_open ? *number <= info.min : *number < info.min;
  const bool high = info.max_open ? *number >= info.max : *number > info.max;
  if (low && *number < 0 && info.min == 0) return Refuse(info, value, "is negative; " + RangeText(info));
  if (low || high) return Refuse(info, value, "is out of range; " + RangeText(info));
  return absl::OkStatus();
}

absl::Status CheckValue(const HyperInfo& info, const HyperValue& value) {
  if (info.kind == "float" || info.kind == "int") return CheckNumber(info, value);
  if (info.kind == "bool") {
    if (!std::holds_alternative<bool>(value))
      return Refuse(info, value, Cat("is ", KindText(value), "; must be true or false"));
    return absl::OkStatus();
  }
  const std::string* text = std::get_if<std::string>(&value);
  if (text == nullptr) return Refuse(info, value, Cat("is ", KindText(value), "; must be text"));
  if (info.kind != "choice" || std::count(info.choices.begin(), info.choices.end(), *text)) return absl::OkStatus();
  std::string all;
  for (const std::string& choice : info.choices) all += (all.empty() ? "" : ", ") + choice;
  const std::string near = Nearest(*text, info.choices);
  return Refuse(info, value,
                Cat("is unknown; must be one of ", all, near.empty() ? "" : "; did you mean " + near + "?"));
}

}  // namespace

absl::StatusOr<Hyper> CheckHyper(const RuleInfo& info, const Hyper& given) {
  Hyper complete;
  std::vector<std::string> names;
  for (const HyperInfo& hyper : info.hyper) {
    complete[hyper.name] = hyper.default_value;
    names.push_back(hyper.name);
  }
  for (const auto& [name, value] : given) {
    const auto it = std::find(names.begin(), names.end(), name);
    if (it == names.end()) {
      const std::string near = Nearest(name, names);
      std::string hint = near.empty() ? "known are" : "did you mean " + near + "?";
      for (size_t k = 0; near.empty() && k < names.size(); ++k) hint += (k ? ", " : " ") + names[k];
      return InvalidArgument("hyperparameters.", name, ": unknown for ", info.name, "; ", hint);
    }
    RETURN_IF_ERROR(CheckValue(info.hyper[it - names.begin()], value));
    complete[name] = value;
  }
  return complete;
}

HyperInfo Positive(const char* name, double value, const char* doc) {
  HyperInfo info = Number(name, "float", value, 0, kInfinity, doc);
  info.min_open = true;
  return info;
}
HyperInfo NonNegative(const char* name, double value, const char* doc) {
  return Number(name, "float", value, 0, kInfinity, doc);
}
HyperInfo Fraction(const char* name, double value, const char* doc) {
  HyperInfo info = Number(name, "float", value, 0, 1, doc);
  info.max_open = true;
  return info;
}
HyperInfo Range(const char* name, double value, double min, double max, const char* doc) {
  return Number(name, "float", value, min, max, doc);
}
HyperInfo Int(const char* name, int64_t value, int64_t min, int64_t max, const char* doc) {
  return Number(name, "int", static_cast<double>(value), static_cast<double>(min), static_cast<double>(max), doc);
}
HyperInfo Flag(const char* name, bool value, const char* doc) {
  HyperInfo info;
  info.name = name;
  info.kind = "bool";
  info.default_value = value;
  info.doc = doc;
  return info;
}
HyperInfo Choice(const char* name, const char* value, std::vector<std::string> choices, const char* doc) {
  HyperInfo info = Text(name, value, doc);
  info.kind = "choice";
  info.choices = std::move(choices);
  return info;
}
HyperInfo Text(const char* name, const char* value, const char* doc) {
  HyperInfo info;
  info.name = name;
  info.kind = "text";
  info.default_value = std::string(value);
  info.doc = doc;
  return info;
}

}  // namespace optod::optim

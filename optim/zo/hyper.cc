#include "optim/zo/hyper.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/status.h"

namespace optod::zo {
namespace {

absl::Status CheckPositive(const char* name, double value) {
  if (std::isfinite(value) && value > 0) return absl::OkStatus();
  return InvalidArgument("hyperparameters.", name, ": ", value, " is not a positive number; must be > 0");
}

absl::Status CheckUnitInterval(const char* name, double value) {
  if (value >= 0 && value < 1) return absl::OkStatus();
  return InvalidArgument("hyperparameters.", name, ": ", value, " is out of range; must be in [0, 1)");
}

absl::StatusOr<ZoHyper> DefaultsFor(const std::string& optimizer) {
  ZoHyper hyper;
  if (optimizer == "zo-sgd") return hyper;
  if (optimizer == "zo-sgd-mmt") return hyper.momentum = 0.9, hyper;
  if (optimizer == "zo-sgd-cons") return hyper.rule = Rule::kConservative, hyper;
  if (optimizer == "zo-sgd-sign") return hyper.sign = Sign::kScalar, hyper;
  if (optimizer == "zo-adam") return hyper.base = Base::kAdam, hyper;
  if (optimizer == "forward-grad") return hyper.rule = Rule::kForwardGrad, hyper;
  return NotFound("optimizer: \"", optimizer, "\" is not a zeroth-order optimizer");
}

absl::Status SetNumber(const std::string& name, double value, ZoHyper* hyper) {
  static constexpr std::pair<const char*, double ZoHyper::*> kNumbers[] = {{"lr", &ZoHyper::lr},
                                                                           {"eps", &ZoHyper::eps},
                                                                           {"weight_decay", &ZoHyper::weight_decay},
                                                                           {"momentum", &ZoHyper::momentum},
                                                                           {"beta1", &ZoHyper::beta1},
                                                                           {"beta2", &ZoHyper::beta2},
                                                                           {"mask_ratio", &ZoHyper::mask_ratio},
                                                                           {"adam_eps", &ZoHyper::adam_eps}};
  for (const auto& [known, member] : kNumbers) {
    if (name == known) return hyper->*member = value, absl::OkStatus();
  }
  if (name != "queries" && name != "mask_every")
    return InvalidArgument("hyperparameters.", name, ": is unknown, or not a number");
  if (!(value >= 1 && value <= 1 << 20 && value == std::floor(value))) {
    return InvalidArgument("hyperparameters.", name, ": ", value, " must be a whole number in [1, ", 1 << 20, "]");
  }
  (name == "queries" ? hyper->queries : hyper->mask_every) = static_cast<int>(value);
  return absl::OkStatus();
}

absl::Status SetChoice(const std::string& name, const std::string& value, ZoHyper* hyper) {
  struct Choice {
    const char *name, *value;
    void (*set)(ZoHyper*);
  };
  static constexpr Choice kChoices[] = {
      {"perturbation", "two-side", [](ZoHyper* h) { h->sides = Sides::kTwo; }},
      {"perturbation", "one-side", [](ZoHyper* h) { h->sides = Sides::kOne; }},
      {"residue", "none", [](ZoHyper* h) { h->residue = Residue::kNone; }},
      {"residue", "mezo", [](ZoHyper* h) { h->residue = Residue::kMezo; }},
      {"sign", "code", [](ZoHyper* h) { h->sign = Sign::kScalar; }},
      {"sign", "paper", [](ZoHyper* h) { h->sign = Sign::kElement; }},
      {"block_schedule", "coordinate", [](ZoHyper* h) { h->block_schedule = BlockSchedule::kCoordinate; }},
      {"block_schedule", "joint", [](ZoHyper* h) { h->block_schedule = BlockSchedule::kJoint; }},
      {"mask_law", "uniform", [](ZoHyper* h) { h->mask_law = MaskLaw::kUniform; }},
      {"mask_law", "normal", [](ZoHyper* h) { h->mask_law = MaskLaw::kNormal; }},
  };
  if (name == "blocks") return hyper->blocks = value, absl::OkStatus();
  if (name == "mask_ratios") return hyper->mask_ratios = value, absl::OkStatus();
  std::string allowed;
  for (const Choice& choice : kChoices) {
    if (name != choice.name) continue;
    if (value == choice.value) return choice.set(hyper), absl::OkStatus();
    allowed += Cat(allowed.empty() ? "" : ", ", choice.value);
  }
  if (allowed.empty()) return InvalidArgument("hyperparameters.", name, ": is unknown, or not a choice");
  return InvalidArgument("hyperparameters.", name, ": \"", value, "\" is not one of ", allowed);
}

}  // namespace

absl::Status CheckZoHyper(const ZoHyper& hyper) {
  RETURN_IF_ERROR(CheckPositive("lr", hyper.lr));
  RETURN_IF_ERROR(CheckPositive("eps", hyper.eps));
  RETURN_IF_ERROR(CheckPositive("adam_eps", hyper.adam_eps));
  RETURN_IF_ERROR(CheckUnitInterval("momentum", hyper.momentum));
  RETURN_IF_ERROR(CheckUnitInterval("beta1", hyper.beta1));
  RETURN_IF_ERROR(CheckUnitInterval("beta2", hyper.beta2));
  if (hyper.queries < 1)
    return InvalidArgument("hyperparameters.queries: ", hyper.queries, " is too small; must be >= 1");
  if (!(std::isfinite(hyper.weight_decay) && hyper.weight_decay >= 0)) {
    return InvalidArgument("hyperparameters.weight_decay: ", hyper.weight_decay, " is not allowed; must be >= 0");
  }
  if (!(hyper.mask_ratio >= 0 && hyper.mask_ratio <= 1)) {
    return InvalidArgument("hyperparameters.mask_ratio: ", hyper.mask_ratio, " is out of range; must be in [0, 1]");
  }
  if (hyper.base == Base::kAdam && hyper.momentum != 0) {
    return InvalidArgument("hyperparameters.momentum: ", hyper.momentum, " has no meaning for Adam; must be 0");
  }
  if (hyper.rule == Rule::kConservative && (hyper.base != Base::kSgd || hyper.momentum != 0)) {
    return InvalidArgument(
        "hyperparameters.momentum: zo-sgd-cons undoes rejected steps, which only plain SGD allows; must be 0");
  }
  return absl::OkStatus();
}

absl::StatusOr<ZoHyper> ZoHyperFor(const std::string& optimizer, const ZoValues& values) {
  ASSIGN_OR_RETURN(ZoHyper hyper, DefaultsFor(optimizer));
  for (const auto& [name, value] : values) {
    if (const double* number = std::get_if<double>(&value)) {
      RETURN_IF_ERROR(SetNumber(name, *number, &hyper));
    } else if (const std::string* text = std::get_if<std::string>(&value)) {
      RETURN_IF_ERROR(SetChoice(name, *text, &hyper));
    } else {
      return InvalidArgument("hyperparameters.", name, ": no zeroth-order hyperparameter is a switch");
    }
  }
  RETURN_IF_ERROR(CheckZoHyper(hyper));
  return hyper;
}

ZoLayout::ZoLayout(std::vector<ZoTensor> tensors) : tensors_(std::move(tensors)) {
  for (const ZoTensor& tensor : tensors_) {
    offsets_.push_back(offsets_.back() + tensor.size);
    blocks_ = std::max(blocks_, tensor.block + 1);
  }
}

std::vector<size_t> ZoLayout::All() const {
  std::vector<size_t> all(tensors_.size());
  std::iota(all.begin(), all.end(), size_t{0});
  return all;
}

size_t ZoLayout::TensorAt(size_t position) const {
  return std::upper_bound(offsets_.begin(), offsets_.end(), position) - offsets_.begin() - 1;
}

bool DecaysByName(const std::string& tensor_name) {
  for (const char* part : {"bias", "layer_norm", "layernorm"}) {
    if (tensor_name.find(part) != std::string::npos) return false;
  }
  return true;
}

}  // namespace optod::zo

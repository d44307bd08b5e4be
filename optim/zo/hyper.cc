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
  if (hyper.base == Base::kAdam && hyper.momentum != 0) {
    return InvalidArgument("hyperparameters.momentum: ", hyper.momentum, " has no meaning for Adam; must be 0");
  }
  if (hyper.rule == Rule::kConservative && (hyper.base != Base::kSgd || hyper.momentum != 0)) {
    return InvalidArgument(
        "hyperparameters.momentum: zo-sgd-cons undoes rejected steps, which only plain SGD allows; must be 0");
  }
  return absl::OkStatus();
}

absl::StatusOr<ZoHyper> ZoHyperFor(const std::string& optimizer) {
  ZoHyper hyper;
  if (optimizer == "zo-sgd") return hyper;
  if (optimizer == "zo-sgd-mmt") return hyper.momentum = 0.9, hyper;
  if (optimizer == "zo-sgd-cons") return hyper.rule = Rule::kConservative, hyper;
  if (optimizer == "zo-sgd-sign") return hyper.sign = Sign::kElement, hyper;
  if (optimizer == "zo-adam") return hyper.base = Base::kAdam, hyper;
  if (optimizer == "forward-grad") return hyper.rule = Rule::kForwardGrad, hyper;
  return NotFound("optimizer: \"", optimizer, "\" is not a zeroth-order optimizer");
}

ZoLayout::ZoLayout(std::vector<ZoTensor> tensors) : tensors_(std::move(tensors)) {
  for (const ZoTensor& tensor : tensors_) offsets_.push_back(offsets_.back() + tensor.size);
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

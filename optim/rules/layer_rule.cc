#include "optim/rules/layer_rule.h"

#include <algorithm>

#include "base/status.h"
#include "optim/rules/glob.h"

namespace optod::optim {
namespace {

constexpr std::string_view kWeight = ".weight";

std::vector<Layer> FindLayers(std::span<const TensorSpec> layout, const std::string& left_out) {
  std::vector<Layer> layers;
  for (size_t i = 0; i < layout.size(); ++i) {
    const TensorSpec& spec = layout[i];
    if (spec.shape.size() < 2 || spec.elements() == 0 || !std::string_view(spec.name).ends_with(kWeight)) continue;
    Layer layer;
    layer.name = spec.name.substr(0, spec.name.size() - kWeight.size());
    if (MatchesAny(left_out, layer.name)) continue;
    layer.weight = static_cast<int>(i);
    layer.out = spec.shape[0];
    layer.in = spec.elements() / layer.out;
    for (size_t j = 0; j < layout.size(); ++j) {
      const bool fits = layout[j].name == layer.name + ".bias" && layout[j].shape == std::vector<int64_t>{layer.out};
      if (fits && layout[j].dtype == spec.dtype) layer.bias = static_cast<int>(j);
    }
    layers.push_back(layer);
  }
  return layers;
}

}  // namespace

LayerRule::LayerRule(RuleArgs args, std::unique_ptr<Rule> backend)
    : RuleBase(std::move(args)), backend_(std::move(backend)), replaced_(layout().size()), grads_(layout().size()) {
  layers_ = FindLayers(layout(), this->args().text("sgd_layers"));
  AddInner("backend", backend_.get());
  size_t most = 0;
  std::vector<bool> differs(layout().size());
  for (const Layer& layer : layers_) {
    differs[layer.weight] = true;
    if (layer.bias >= 0) differs[layer.bias] = true;
    most = std::max(most, GradientBytes(layer));
  }
  for (int i = 0; i < tensors(); ++i) {
    if (differs[i] || DTypeSize(layout()[i].dtype) == 2)
      replaced_[i] = Buffer(layout()[i].elements() * DTypeSize(compute(i)));
  }
  for (Buffer* buffer : {&matrix_, &product_}) *buffer = Buffer(most);
}

size_t LayerRule::GradientBytes(const Layer& layer) const {
  return static_cast<size_t>(layer.out * layer.extended()) * DTypeSize(layer_compute(layer));
}

size_t LayerRule::ScratchOf(int i) const {
  for (const Layer& layer : layers_) {
    if (layer.weight == i || layer.bias == i) return replaced_[i].size() + 2 * GradientBytes(layer);
  }
  return replaced_[i].size();
}

size_t LayerRule::Scratch() const {
  size_t bytes = matrix_.size() + product_.size();
  for (const Buffer& buffer : replaced_) bytes += buffer.size();
  return bytes;
}

bool LayerRule::Present(const Layer& layer, const StepInput& input) const {
  return input.grads[layer.weight] != nullptr && (layer.bias < 0 || input.grads[layer.bias] != nullptr);
}

absl::Status LayerRule::Check(const StepInput& input) const {
  if (!Active()) return absl::OkStatus();
  for (const Layer& layer : layers_) {
    if (!Present(layer, input) || !FactorsDue(t(layer.weight) + 1)) continue;
    int64_t act_rows = 0, pgrad_rows = 0;
    RETURN_IF_ERROR(CheckStatistic(layer, "act/", layer.in, input, act_rows));
    RETURN_IF_ERROR(CheckStatistic(layer, "pgrad/", layer.out, input, pgrad_rows));
    if (act_rows != pgrad_rows && !TakesMeans()) {
      return InvalidArgument("pgrad/", layer.name, ": ", pgrad_rows, " rows given; act/", layer.name, " has ",
                             act_rows);
    }
  }
  return absl::OkStatus();
}

absl::Status LayerRule::CheckStatistic(const Layer& layer, const std::string& prefix, int64_t width,
                                       const StepInput& input, int64_t& rows) const {
  const std::string name = prefix + layer.name;
  RETURN_IF_ERROR(CheckExtra(input, name, layout()[layer.weight].dtype,
                             args().info->name + " needs it at this step (sgd_layers names layers that go without)"));
  const std::vector<int64_t>& shape = Extra(input, name)->spec.shape;
  const bool is_rows = shape.size() == 2 && shape[0] >= 1 && shape[1] == width;
  const bool is_mean = TakesMeans() && shape.size() == 1 && shape[0] == width;
  if (!is_rows && !is_mean) {
    return InvalidArgument(name, ": its shape does not fit; must be [rows, ", width, "]",
                           TakesMeans() ? Cat(" or [", width, "]") : std::string());
  }
  rows = is_rows ? shape[0] : 0;
  return absl::OkStatus();
}

void LayerRule::Apply(std::span<void* const> params, const StepInput& input, StepReport& report) {
  for (int i = 0; i < tensors(); ++i) {
    grads_[i] = input.grads[i];
    const DType dtype = grad_dtype(i, input);
    if (input.grads[i] == nullptr || dtype == compute(i)) continue;
    Kernels().widen(dtype, input.grads[i], replaced_[i].as<float>(), layout()[i].elements());
    grads_[i] = replaced_[i].data();
  }
  if (Active()) Precondition(input, report);
  StepInput onward;
  onward.grads = grads_;
  onward.grad_dtype = DType::kF32;
  onward.lr = input.lr;
  onward.loss = input.loss;
  // Counts and finiteness hold by construction, so the backend cannot refuse.
  if (const auto stepped = backend_->Step(params, onward); stepped.ok()) {
    report.figures.insert(stepped->figures.begin(), stepped->figures.end());
  }
}

template <typename T>
void LayerRule::Gather(const Layer& layer, const StepInput& input, T* matrix) const {
  const T* weight = static_cast<const T*>(grads_[layer.weight]);
  const T* bias = layer.bias >= 0 ? static_cast<const T*>(grads_[layer.bias]) : nullptr;
  for (int64_t row = 0; row < layer.out; ++row) {
    T* to = matrix + row * layer.extended();
    std::copy_n(weight + row * layer.in, layer.in, to);
    if (bias != nullptr) to[layer.in] = bias[row];
  }
}

template <typename T>
void LayerRule::Scatter(const Layer& layer, double scale, const T* matrix) {
  T* weight = replaced_[layer.weight].template as<T>();
  T* bias = layer.bias >= 0 ? replaced_[layer.bias].template as<T>() : nullptr;
  const T factor = static_cast<T>(scale);
  for (int64_t row = 0; row < layer.out; ++row) {
    const T* from = matrix + row * layer.extended();
    for (int64_t col = 0; col < layer.in; ++col) weight[row * layer.in + col] = factor * from[col];
    if (bias != nullptr) bias[row] = factor * from[layer.in];
  }
  grads_[layer.weight] = weight;
  if (bias != nullptr) grads_[layer.bias] = bias;
}

template <typename T>
int64_t LayerRule::Statistic(const Layer& layer, const std::string& prefix, const StepInput& input,
                             std::vector<T>& rows) const {
  const OwnedTensor& tensor = *Extra(input, prefix + layer.name);
  const int64_t n = tensor.spec.elements();
  rows.resize(n);
  const T* values = Load<T>(tensor.spec.dtype, tensor.data.data(), 0, n, rows.data());
  if (values != rows.data()) std::copy_n(values, n, rows.data());
  return tensor.spec.shape.size() == 2 ? tensor.spec.shape[0] : 0;
}

#define OPTOD_INSTANTIATE(T)                                                    \
  template void LayerRule::Gather<T>(const Layer&, const StepInput&, T*) const; \
  template void LayerRule::Scatter<T>(const Layer&, double, const T*);          \
  template int64_t LayerRule::Statistic<T>(const Layer&, const std::string&, const StepInput&, std::vector<T>&) const;
OPTOD_INSTANTIATE(float)
OPTOD_INSTANTIATE(double)
#undef OPTOD_INSTANTIATE

absl::StatusOr<std::unique_ptr<Rule>> MakeBackend(const std::string& name, const RuleArgs& args) {
  ASSIGN_OR_RETURN(const RuleInfo* info, FindRule(name));
  Hyper hyper;
  for (const HyperInfo& known : info->hyper) {
    const auto it = args.hyper.find(known.name);
    if (it != args.hyper.end()) hyper[known.name] = it->second;
  }
  return MakeRule(name, hyper, args.layout, args.seed);
}

}  // namespace optod::optim

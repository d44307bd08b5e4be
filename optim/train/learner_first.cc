// First order: a rule of optim/rules on the gradient, and on what else the rule asks for: z * Hz, or the statistics of
// linear layers.
#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "optim/rules/registry.h"
#include "optim/train/learners.h"

namespace optod::train {
namespace {

constexpr uint32_t kSignsQuery = 0xfffffffdu;  // no step has so many queries

bool Asks(const optim::RuleInfo& info, const char* input) {
  return std::find(info.tell_inputs.begin(), info.tell_inputs.end(), input) != info.tell_inputs.end();
}

/// What the rule named in the spec is given beside the gradient.
GradientRequest RequestOf(const TrainSpec& spec, const optim::RuleInfo& info) {
  GradientRequest request;
  request.hessian = Asks(info, "hessian_z");
  if (!Asks(info, "act")) return request;
  const auto clipping = spec.hyper.find("clipping");  // mkor takes means of clipped rows; kfac takes rows
  const bool means = clipping != spec.hyper.end();
  request.statistics = means ? GradientRequest::Statistics::kMeans : GradientRequest::Statistics::kRows;
  if (means) request.clipping = std::get<double>(clipping->second);
  return request;
}

/// [rows, columns] -> [columns, rows].
void Transpose(const float* from, int64_t rows, int64_t columns, float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) to[c * rows + r] = from[r * columns + c];
  }
}

class FirstOrder final : public SnapshotLearner {
 public:
  FirstOrder(const LearnerArgs& args, std::unique_ptr<optim::Rule> rule, GradientRequest request,
             std::vector<bool> turned)
      : SnapshotLearner(args),
        seed_(args.spec.seed),
        rule_(std::move(rule)),
        request_(request),
        turned_(std::move(turned)),
        grad_(engine_.layout().size()) {
    if (std::find(turned_.begin(), turned_.end(), true) != turned_.end()) {
      turned_theta_.resize(grad_.size());
      turned_grad_.resize(grad_.size());
    }
  }

  absl::StatusOr<StepOutcome> Step(int64_t step, std::span<const Example* const> batch, double lr) override {
    GradientRequest request;
    if (Due()) request = request_;
    request.signs = {seed_, static_cast<uint32_t>(step), kSignsQuery};
    ASSIGN_OR_RETURN(GradientResult result, engine_.Gradient(batch, classify_, request, grad_));
    const double loss = result.objective.loss;
    if (!Clip(grad_) || !std::isfinite(loss)) return Skip(loss, "the gradient or the loss is not finite");
    for (float x : result.hessian_z) {
      if (!std::isfinite(x)) return Skip(loss, "the product with the Hessian is not finite");
    }
    HessianTensors(result.hessian_z, &result.statistics);
    optim::StepInput input;
    for (const auto& [name, tensor] : result.statistics) input.extra[name] = &tensor;
    input.lr = lr;
    input.loss = loss;
    const std::vector<void*> params = Parameters(true);
    const std::vector<const void*> grads = Gradients();
    input.grads = grads;
    input.grads_finite = true;  // their squares' sum is
    RETURN_IF_ERROR(rule_->Step(params, input).status());
    TurnBack();
    return Done(loss);
  }

  Memory memory() const override {
    std::vector<optim::TensorSpec> layout;
    for (const tier::BlockTensor& tensor : engine_.trainable()) layout.push_back({tensor.name, optim::DType::kF32, tensor.shape});
    return {optim::MemoryOf(*rule_, layout), (grad_.size() + turned_theta_.size() + turned_grad_.size()) * sizeof(float)};
  }

 protected:
  std::vector<optim::OwnedTensor> ExportState() const override { return rule_->ExportState(); }
  absl::Status ImportState(const std::vector<optim::OwnedTensor>& state) override { return rule_->ImportState(state); }

 private:
  /// Whether the rule wants more than the gradient at its next step: it refuses a step without.
  bool Due() {
    if (!request_.hessian && request_.statistics == GradientRequest::Statistics::kNone) return false;
    std::fill(grad_.begin(), grad_.end(), 0.0f);
    optim::StepInput input;
    const std::vector<void*> params = Parameters(false);
    const std::vector<const void*> grads = Gradients();
    input.grads = grads;
    input.loss = 0;
    return absl::IsFailedPrecondition(rule_->CheckStep(params, input));
  }

  void HessianTensors(const std::vector<float>& values, std::map<std::string, optim::OwnedTensor>* out) const {
    for (size_t i = 0; i < engine_.layout().tensors() && !values.empty(); ++i) {
      const auto bytes =
          std::as_bytes(std::span(values).subspan(engine_.layout().offset(i), engine_.layout().tensor(i).size));
      optim::OwnedTensor& tensor = (*out)["hessian_z/" + engine_.layout().tensor(i).name];
      tensor.spec = {engine_.layout().tensor(i).name, optim::DType::kF32, engine_.trainable()[i].shape};
      tensor.data.assign(bytes.begin(), bytes.end());
    }
  }

  // Weights that the model stores [in, out] stand before the rule as [out, in], the way layers are described to it.
  std::vector<void*> Parameters(bool fill) {
    const std::span<float> theta = engine_.theta();
    std::vector<void*> params;
    for (size_t i = 0; i < turned_.size(); ++i) {
      const size_t at = engine_.layout().offset(i);
      const std::vector<int64_t>& shape = engine_.trainable()[i].shape;
      if (turned_[i] && fill) Transpose(theta.data() + at, shape[0], shape[1], turned_theta_.data() + at);
      params.push_back((turned_[i] ? turned_theta_.data() : theta.data()) + at);
    }
    return params;
  }
  std::vector<const void*> Gradients() {
    std::vector<const void*> grads;
    for (size_t i = 0; i < turned_.size(); ++i) {
      const size_t at = engine_.layout().offset(i);
      const std::vector<int64_t>& shape = engine_.trainable()[i].shape;
      if (turned_[i]) Transpose(grad_.data() + at, shape[0], shape[1], turned_grad_.data() + at);
      grads.push_back((turned_[i] ? turned_grad_.data() : grad_.data()) + at);
    }
    return grads;
  }
  void TurnBack() {
    const std::span<float> theta = engine_.theta();
    for (size_t i = 0; i < turned_.size(); ++i) {
      if (!turned_[i]) continue;
      const size_t at = engine_.layout().offset(i);
      const std::vector<int64_t>& shape = engine_.trainable()[i].shape;
      Transpose(turned_theta_.data() + at, shape[1], shape[0], theta.data() + at);
    }
  }

  const uint64_t seed_;
  std::unique_ptr<optim::Rule> rule_;
  const GradientRequest request_;
  const std::vector<bool> turned_;
  std::vector<float> grad_, turned_theta_, turned_grad_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Learner>> MakeFirstOrder(const LearnerArgs& args) {
  ASSIGN_OR_RETURN(const optim::RuleInfo* info, optim::FindRule(args.spec.optimizer));
  const GradientRequest request = RequestOf(args.spec, *info);
  const bool layers = request.statistics != GradientRequest::Statistics::kNone;
  optim::Hyper hyper = args.spec.hyper;
  std::vector<optim::TensorSpec> layout;
  std::vector<bool> turned;
  for (size_t i = 0; i < args.engine.trainable().size(); ++i) {
    const tier::BlockTensor& tensor = args.engine.trainable()[i];
    std::vector<int64_t> shape = tensor.shape;
    turned.push_back(layers && args.engine.stores_in_out() && args.engine.is_linear(i));
    if (turned.back()) std::swap(shape[0], shape[1]);
    layout.push_back({tensor.name, optim::DType::kF32, std::move(shape), !tensor.decay});
    if (!layers || args.engine.is_linear(i) || !tensor.name.ends_with(".weight")) continue;
    std::string& rest = std::get<std::string>(hyper["sgd_layers"]);  // tables have no statistics: the backend's
    rest = Cat(rest, rest.empty() ? "" : ",", tensor.name.substr(0, tensor.name.rfind(".weight")));
  }
  ASSIGN_OR_RETURN(auto rule, optim::MakeRule(args.spec.optimizer, hyper, layout, args.spec.seed));
  auto learner = std::make_unique<FirstOrder>(args, std::move(rule), request, std::move(turned));
  RETURN_IF_ERROR(learner->Resume(args.before));
  return learner;
}

}  // namespace optod::train

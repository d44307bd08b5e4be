// Hybrid of zeroth and first order (ZO-Bench, section "hybrid"): the last layers and the head by gradients that stop
// below them, the rest by two losses; both from the same theta. A step is one forward pass with the upper activations
// kept, its backward pass through the upper part, and two forward passes. The optimizer is the zeroth-order one for
// both.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/status.h"
#include "optim/train/learners.h"
#include "optim/zo/zo_optimizer.h"

namespace optod::train {
namespace {

template <typename T>
optim::OwnedTensor Stored(const std::string& name, optim::DType type, const std::vector<T>& values) {
  optim::OwnedTensor tensor;
  tensor.spec = {name, type, {static_cast<int64_t>(values.size())}};
  const auto bytes = std::as_bytes(std::span(values));
  tensor.data.assign(bytes.begin(), bytes.end());
  return tensor;
}
template <typename T>
std::vector<T> Restored(const optim::OwnedTensor& tensor) {
  std::vector<T> values(tensor.data.size() / sizeof(T));
  std::memcpy(values.data(), tensor.data.data(), values.size() * sizeof(T));
  return values;
}

class Hybrid final : public SnapshotLearner {
 public:
  Hybrid(const LearnerArgs& args, const zo::ZoHyper& hyper, size_t first_block)
      : SnapshotLearner(args),
        seed_(args.spec.seed),
        rate_(args.spec.hybrid.lr > 0 ? args.spec.hybrid.lr / hyper.lr : 1),
        first_block_(first_block),
        hyper_(hyper),
        update_(engine_.layout(), hyper),
        grad_(engine_.layout().size()) {
    for (size_t i : engine_.layout().All()) (engine_.block_of(i) < first_block ? zeroth_ : first_).push_back(i);
  }

  absl::StatusOr<StepOutcome> Step(int64_t step, std::span<const Example* const> batch, double lr) override {
    GradientRequest request;
    request.first_block = first_block_;
    ASSIGN_OR_RETURN(const GradientResult gradient, engine_.Gradient(batch, classify_, request, grad_));
    const double loss = gradient.objective.loss;
    std::vector<double> plus, minus;
    for (int q = 0; q < hyper_.queries; ++q) {
      const Perturbation p{{seed_, static_cast<uint32_t>(step), static_cast<uint32_t>(q)},
                           static_cast<float>(hyper_.eps),
                           nullptr,
                           zeroth_};
      ASSIGN_OR_RETURN(const ScoredPair pair, engine_.ScorePair(p, batch));
      plus.push_back(Judge(batch, pair.plus, classify_).loss);
      minus.push_back(Judge(batch, pair.minus, classify_).loss);
    }
    ASSIGN_OR_RETURN(const zo::ProjectedGradients projected, zo::ProjectLosses(hyper_, plus, minus));
    if (!projected.usable) return Skip(loss, projected.reason);
    if (!Clip(grad_) || !std::isfinite(loss)) return Skip(loss, "the gradient or the loss is not finite");
    const zo::StreamDirection<float> z(seed_, static_cast<uint32_t>(step), engine_.layout());
    update_.set_lr(lr);
    update_.Apply(engine_.theta(), z, projected.g, zeroth_);
    update_.set_lr(lr * rate_);
    update_.ApplyGradient(engine_.theta(), grad_, first_);
    return Done(loss);
  }

  Memory memory() const override {
    return {MemoryOfMoments(engine_.layout(), update_.state()), grad_.size() * sizeof(float)};
  }

 protected:
  std::vector<optim::OwnedTensor> ExportState() const override {
    const zo::ZoState<float>& state = update_.state();
    return {Stored("m", optim::DType::kF32, state.m), Stored("t", optim::DType::kI64, state.counts),
            Stored("v", optim::DType::kF32, state.v)};
  }
  absl::Status ImportState(const std::vector<optim::OwnedTensor>& tensors) override {
    zo::ZoState<float> state;
    for (const optim::OwnedTensor& tensor : tensors) {
      if (tensor.spec.name == "m") state.m = Restored<float>(tensor);
      if (tensor.spec.name == "t") state.counts = Restored<int64_t>(tensor);
      if (tensor.spec.name == "v") state.v = Restored<float>(tensor);
    }
    return update_.set_state(std::move(state));
  }

 private:
  const uint64_t seed_;
  const double rate_;  // of the upper part, in rates of the lower
  const size_t first_block_;
  const zo::ZoHyper hyper_;
  zo::ZoUpdate<float> update_;
  std::vector<size_t> zeroth_, first_;
  std::vector<float> grad_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Learner>> MakeHybrid(const LearnerArgs& args) {
  ASSIGN_OR_RETURN(const zo::ZoHyper hyper, ZoHyperOf(args.spec));
  const auto layers = static_cast<int64_t>(args.engine.blocks()) - 2;
  if (args.spec.hybrid.blocks > layers)
    return InvalidArgument("hybrid.blocks: ", args.spec.hybrid.blocks, " is over the model's ", layers, " layers");
  const auto first_block = static_cast<size_t>(layers - args.spec.hybrid.blocks + 1);
  size_t lower = 0;
  for (size_t i : args.engine.layout().All()) lower += args.engine.block_of(i) < first_block ? 1 : 0;
  if (lower == 0) return InvalidArgument("hybrid.blocks: ", args.spec.hybrid.blocks, " leaves nothing to zeroth order");
  auto learner = std::make_unique<Hybrid>(args, hyper, first_block);
  RETURN_IF_ERROR(learner->Resume(args.before));
  return learner;
}

}  // namespace optod::train

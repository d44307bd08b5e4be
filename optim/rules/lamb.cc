// LAMB: u = (m / bias1) / (sqrt(v) / root_bias + eps) + lambda p; p -= eta * (clamp(||p||) / ||u||) u, ratio 1 when
// either norm is 0. State: m, v of the parameter's shape. Two passes: moments and norms, then the move (the direction
// is recomputed, not stored). Figures: weight_norm/<tensor> (clamped), update_norm/<tensor>, trust_ratio/<tensor>.
#include <algorithm>
#include <cmath>

#include "optim/rules/factories.h"
#include "optim/rules/formulas.h"

namespace optod::optim {
namespace {

class LambRule : public RuleBase {
 public:
  explicit LambRule(RuleArgs rule_args)
      : RuleBase(std::move(rule_args)),
        beta1_(args().number("beta1")),
        beta2_(args().number("beta2")),
        clamp_(args().number("clamp")),
        m_(AddLike("m")),
        v_(AddLike("v")),
        weight_squares_(chunks().size()),
        update_squares_(chunks().size()),
        ratio_(layout().size()) {}

 protected:
  size_t Scratch() const override {
    return (weight_squares_.size() + update_squares_.size() + ratio_.size()) * sizeof(double);
  }
  size_t ScratchOf(int i) const override { return (2 * ChunksOf(i) + 1) * sizeof(double); }
  size_t SharedScratch() const override { return 0; }
  void Apply(std::span<void* const> params, const StepInput& input, StepReport& report) override {
    ForEachChunkIndexed(input, [&](size_t index, const Chunk& chunk) {
      WithComputeType(compute(chunk.tensor), [&](auto zero) { Moments<decltype(zero)>(index, chunk, params, input); });
    });
    for (int i = 0; i < tensors(); ++i) {
      if (input.grads[i] != nullptr) ratio_[i] = TrustRatio(i, report);
    }
    ForEachChunk(input, [&](const Chunk& chunk) {
      const int i = chunk.tensor;
      WithComputeType(compute(i), [&](auto zero) {
        using T = decltype(zero);
        formula::Lamb<T> c = Constants<T>(i);
        c.step = static_cast<T>(lr(input) * ratio_[i]);
        RunKernel(kLambApply, &c, Operand(i, params, input), chunk.begin, chunk.end);
      });
    });
  }

 private:
  Operands Operand(int i, std::span<void* const> params, const StepInput& input) const {
    Operands operands = Bind(i, params, input);
    operands.s[0] = m_[i]->data.data();
    operands.s[1] = v_[i]->data.data();
    return operands;
  }

  template <typename T>
  void Moments(size_t index, const Chunk& chunk, std::span<void* const> params, const StepInput& input) {
    const Operands operands = Operand(chunk.tensor, params, input);
    const TypedKernels<T>& kernels = Kernels().typed<T>();
    const formula::Lamb<T> c = Constants<T>(chunk.tensor);
    T p_tile[kTile], g_tile[kTile], direction[kTile];
    double weights = 0, updates = 0;
    for (int64_t at = chunk.begin; at < chunk.end; at += kTile) {
      const int64_t n = std::min(kTile, chunk.end - at);
      Lanes<T> lanes;
      lanes.p = const_cast<T*>(Load<T>(operands.p_dtype, operands.p, at, n, p_tile));  // read only
      lanes.g = Load<T>(operands.g_dtype, operands.g, at, n, g_tile);
      lanes.s[0] = static_cast<T*>(operands.s[0]) + at;
      lanes.s[1] = static_cast<T*>(operands.s[1]) + at;
      lanes.s[2] = direction;
      kernels.step[kLambMoments](&c, lanes, n);
      weights += kernels.sum_squares(lanes.p, n);
      updates += kernels.sum_squares(direction, n);
    }
    weight_squares_[index] = weights;
    update_squares_[index] = updates;
  }

  double TrustRatio(int i, StepReport& report) const {
    const double norm = std::sqrt(SumOverChunks(i, weight_squares_));
    const double weight_norm = clamp_ > 0 ? std::min(norm, clamp_) : norm;
    const double update_norm = std::sqrt(SumOverChunks(i, update_squares_));
    const double ratio = weight_norm == 0 || update_norm == 0 ? 1 : weight_norm / update_norm;
    report.figures["weight_norm/" + layout()[i].name] = weight_norm;
    report.figures["update_norm/" + layout()[i].name] = update_norm;
    report.figures["trust_ratio/" + layout()[i].name] = ratio;
    return ratio;
  }

  template <typename T>
  formula::Lamb<T> Constants(int i) const {
    const double steps = static_cast<double>(t(i));
    const bool correct = args().flag("bias_correction");
    formula::Lamb<T> c;
    c.first = {static_cast<T>(beta1_), static_cast<T>(1 - beta1_)};
    c.second = {static_cast<T>(beta2_), static_cast<T>(1 - beta2_)};
    c.first_scale = static_cast<T>(correct ? 1 / (1 - std::pow(beta1_, steps)) : 1);
    c.root_scale = static_cast<T>(correct ? 1 / std::sqrt(1 - std::pow(beta2_, steps)) : 1);
    c.eps = static_cast<T>(args().number("eps"));
    c.weight_decay = static_cast<T>(weight_decay(i));
    c.step = 0;
    return c;
  }

  const double beta1_, beta2_, clamp_;
  const std::vector<StateTensor*> m_, v_;
  std::vector<double> weight_squares_, update_squares_, ratio_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Rule>> MakeLamb(RuleArgs args) { return std::make_unique<LambRule>(std::move(args)); }

}  // namespace optod::optim

// SGD-SaI (Xu et al. 2024, Alg. 1, with the released code's arithmetic): the step length of each tensor is fixed by the
// signal-to-noise ratio of its first gradient, gsnr = ||g|| / (std(g) + eps), std with n - 1 (0 for one element); then
// b := g at first use, else mu b + (1 - mu) g; p := p (1 - eta lambda) - eta gsnr b. State: m (b) of the parameter's
// shape, gsnr a tensor, and the largest gsnr of the first step. Figure: gsnr_max.
#include <algorithm>
#include <cmath>

#include "optim/rules/factories.h"
#include "optim/rules/formulas.h"

namespace optod::optim {
namespace {

class SaiRule : public RuleBase {
 public:
  explicit SaiRule(RuleArgs rule_args)
      : RuleBase(std::move(rule_args)),
        momentum_(args().number("momentum")),
        eps_(args().number("eps")),
        min_std_(args().number("min_std")),
        normalise_(args().text("normalise") == "max"),
        m_(AddLike("m")),
        largest_(AddState("gsnr_max", DType::kF64, {})),
        partial_(chunks().size()) {
    for (const TensorSpec& spec : layout()) gsnr_.push_back(AddState("gsnr/" + spec.name, DType::kF64, {}));
  }

 protected:
  size_t Scratch() const override {
    return partial_.size() * sizeof(double);
  }
  size_t ScratchOf(int i) const override { return ChunksOf(i) * sizeof(double); }
  size_t SharedScratch() const override { return 0; }
  void Apply(std::span<void* const> params, const StepInput& input, StepReport& report) override {
    MeasureNewTensors(input);
    double& largest = *largest_->as<double>();
    report.figures["gsnr_max"] = largest;
    ForEachChunk(input, [&](const Chunk& chunk) {
      const int i = chunk.tensor;
      Operands operands = Bind(i, params, input);
      operands.s[0] = m_[i]->data.data();
      const double gsnr = *gsnr_[i]->as<double>() / (normalise_ && largest > 0 ? largest : 1);
      WithComputeType(compute(i), [&](auto zero) {
        using T = decltype(zero);
        const double mu = t(i) == 1 ? 0 : momentum_;
        formula::Sai<T> c;
        c.average = {static_cast<T>(mu), static_cast<T>(1 - mu)};
        c.decay = static_cast<T>(1 - lr(input) * weight_decay(i));
        c.step = static_cast<T>(lr(input) * gsnr);
        RunKernel(kSai, &c, operands, chunk.begin, chunk.end);
      });
    });
  }

 private:
  // Tensors that meet their first gradient get their ratio; the largest of the first step is held for normalise = max.
  void MeasureNewTensors(const StepInput& input) {
    double largest = 0;
    for (int i = 0; i < tensors(); ++i) {
      if (input.grads[i] == nullptr || t(i) != 1 || layout()[i].elements() == 0) continue;
      *gsnr_[i]->as<double>() = Ratio(i, input);
      largest = std::max(largest, *gsnr_[i]->as<double>());
    }
    double& held = *largest_->as<double>();
    if (held == 0) held = largest;
  }

  double Ratio(int i, const StepInput& input) {
    const double n = static_cast<double>(layout()[i].elements());
    const double squares =
        Reduce(i, input, [](const auto& k, const auto* x, int64_t count) { return k.sum_squares(x, count); });
    const double mean =
        Reduce(i, input, [](const auto& k, const auto* x, int64_t count) { return k.sum(x, count); }) / n;
    const double deviations = Reduce(i, input, [mean](const auto& k, const auto* x, int64_t count) {
      return k.sum_square_deviations(x, count, mean);
    });
    const double std = n > 1 ? std::sqrt(deviations / (n - 1)) : 0;
    const double norm = std::sqrt(squares);
    const double denominator = std::max(std, min_std_ * norm / std::sqrt(n)) + eps_;
    return denominator > 0 ? norm / denominator : 0;
  }

  // f over the tiles of tensor i's gradient, tiles in parallel, partial sums added in order.
  template <typename F>
  double Reduce(int i, const StepInput& input, F f) {
    const DType dtype = grad_dtype(i, input);
    ForEachChunkIndexed(input, [&](size_t index, const Chunk& chunk) {
      if (chunk.tensor != i) return;
      WithComputeType(compute(i), [&](auto zero) {
        using T = decltype(zero);
        T tile[kTile];
        double sum = 0;
        for (int64_t at = chunk.begin; at < chunk.end; at += kTile) {
          const int64_t count = std::min(kTile, chunk.end - at);
          sum += f(Kernels().typed<T>(), Load<T>(dtype, input.grads[i], at, count, tile), count);
        }
        partial_[index] = sum;
      });
    });
    return SumOverChunks(i, partial_);
  }

  const double momentum_, eps_, min_std_;
  const bool normalise_;
  const std::vector<StateTensor*> m_;
  StateTensor* const largest_;
  std::vector<StateTensor*> gsnr_;
  std::vector<double> partial_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Rule>> MakeSgdSai(RuleArgs args) { return std::make_unique<SaiRule>(std::move(args)); }

}  // namespace optod::optim

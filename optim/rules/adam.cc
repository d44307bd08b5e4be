// Adam and AdamW, one formula: decay multiplies the parameter first (AdamW) or is added to the gradient (Adam).
// State: m, v of the parameter's shape; amsgrad adds vmax.
#include <cmath>

#include "optim/rules/factories.h"
#include "optim/rules/formulas.h"

namespace optod::optim {
namespace {

class AdamRule : public RuleBase {
 public:
  AdamRule(RuleArgs rule_args, bool decoupled)
      : RuleBase(std::move(rule_args)),
        decoupled_(decoupled),
        beta1_(args().number("beta1")),
        beta2_(args().number("beta2")),
        eps_(args().number("eps")),
        weight_decay_(args().number("weight_decay")),
        m_(AddLike("m")),
        v_(AddLike("v")) {
    if (args().flag("amsgrad")) v_max_ = AddLike("vmax");
  }

 protected:
  void Apply(std::span<void* const> params, const StepInput& input, StepReport&) override {
    const double eta = lr(input);
    ForEachChunk(input, [&](const Chunk& chunk) {
      const int i = chunk.tensor;
      Operands operands = Bind(i, params, input);
      operands.s[0] = m_[i]->data.data();
      operands.s[1] = v_[i]->data.data();
      if (!v_max_.empty()) operands.s[2] = v_max_[i]->data.data();
      WithComputeType(compute(i), [&](auto zero) {
        const auto c = Constants<decltype(zero)>(eta, static_cast<double>(t(i)));
        RunKernel(v_max_.empty() ? kAdam : kAmsgrad, &c, operands, chunk.begin, chunk.end);
      });
    });
  }

 private:
  template <typename T>
  formula::Adam<T> Constants(double eta, double t) const {
    formula::Adam<T> c;
    c.first = {static_cast<T>(beta1_), static_cast<T>(1 - beta1_)};
    c.second = {static_cast<T>(beta2_), static_cast<T>(1 - beta2_)};
    c.step = static_cast<T>(eta / (1 - std::pow(beta1_, t)));
    c.root_bias = static_cast<T>(std::sqrt(1 - std::pow(beta2_, t)));
    c.eps = static_cast<T>(eps_);
    c.decay = static_cast<T>(decoupled_ ? 1 - eta * weight_decay_ : 1);
    c.l2 = static_cast<T>(decoupled_ ? 0 : weight_decay_);
    c.decay_after = 1;
    return c;
  }

  const bool decoupled_;
  const double beta1_, beta2_, eps_, weight_decay_;
  std::vector<StateTensor*> m_, v_, v_max_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Rule>> MakeAdam(RuleArgs args) {
  return std::make_unique<AdamRule>(std::move(args), false);
}
absl::StatusOr<std::unique_ptr<Rule>> MakeAdamW(RuleArgs args) {
  return std::make_unique<AdamRule>(std::move(args), true);
}

}  // namespace optod::optim

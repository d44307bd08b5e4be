// Adam and AdamW, one formula: decay multiplies the parameter first (AdamW) or is added to the gradient (Adam).
// State: m, v of the parameter's shape; amsgrad adds vmax.
#include <cmath>

#include "optim/rules/adam_constants.h"
#include "optim/rules/factories.h"

namespace optod::optim {
namespace {

class AdamRule : public RuleBase {
 public:
  AdamRule(RuleArgs rule_args, bool decoupled)
      : RuleBase(std::move(rule_args)),
        settings_{args().number("beta1"), args().number("beta2"), args().number("eps"), args().number("weight_decay"),
                  decoupled ? AdamSettings::Decay::kFirst : AdamSettings::Decay::kL2},
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
        const auto c =
            AdamConstants<decltype(zero)>(settings_.WithDecay(weight_decay(i)), eta, static_cast<double>(t(i)));
        RunKernel(v_max_.empty() ? kAdam : kAmsgrad, &c, operands, chunk.begin, chunk.end);
      });
    });
  }

 private:
  const AdamSettings settings_;
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

// SGD with momentum, dampening, Nesterov look-ahead and L2 decay:
//   d = g + lambda p;  b := d at first use, else mu b + (1 - dampening) d;  p -= eta (nesterov ? d + mu b : b).
// State: m (b above) of the parameter's shape when momentum > 0, else none.
#include "optim/rules/factories.h"
#include "optim/rules/formulas.h"

namespace optod::optim {
namespace {

class SgdRule : public RuleBase {
 public:
  explicit SgdRule(RuleArgs rule_args) : RuleBase(std::move(rule_args)), momentum_(args().number("momentum")) {
    if (momentum_ > 0) buffer_ = AddLike("m");
  }

 protected:
  void Apply(std::span<void* const> params, const StepInput& input, StepReport&) override {
    const KernelId kernel = buffer_.empty() ? kSgdPlain : args().flag("nesterov") ? kSgdNesterov : kSgdMomentum;
    ForEachChunk(input, [&](const Chunk& chunk) {
      const int i = chunk.tensor;
      Operands operands = Bind(i, params, input);
      if (!buffer_.empty()) operands.s[0] = buffer_[i]->data.data();
      WithComputeType(compute(i), [&](auto zero) {
        using T = decltype(zero);
        const bool first = t(i) == 1;
        formula::Sgd<T> c;
        c.lr = static_cast<T>(lr(input));
        c.weight_decay = static_cast<T>(weight_decay(i));
        c.momentum = static_cast<T>(first ? 0 : momentum_);
        c.gain = static_cast<T>(first ? 1 : 1 - args().number("dampening"));
        c.lookahead = static_cast<T>(momentum_);
        RunKernel(kernel, &c, operands, chunk.begin, chunk.end);
      });
    });
  }

 private:
  const double momentum_;
  std::vector<StateTensor*> buffer_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Rule>> MakeSgd(RuleArgs args) { return std::make_unique<SgdRule>(std::move(args)); }

}  // namespace optod::optim

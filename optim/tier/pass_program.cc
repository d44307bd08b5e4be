#include "optim/tier/pass_program.h"

#include "optim/zo/replay.h"
#include "optim/zo/update_formulas.h"

namespace optod::tier {
namespace {

double Scalar(const zo::ZoHyper& hyper, double g) {
  return hyper.sign == zo::Sign::kScalar ? zo::formula::SignOf(g) : g;
}

void AddResidues(const zo::ZoHyper& hyper, uint32_t step, std::vector<PassOp>* ops) {
  for (int query = 0; query < hyper.queries; ++query)
    ops->push_back({.kind = PassOp::kResidue,
                    .step = step,
                    .query = static_cast<uint32_t>(query),
                    .a = static_cast<float>(hyper.eps)});
}

void AddPlain(const zo::ZoHyper& hyper, const StepRecord& record, uint32_t step, bool decay, std::vector<PassOp>* ops) {
  if (hyper.weight_decay > 0 && decay)
    ops->push_back({.kind = PassOp::kDecay, .a = static_cast<float>(record.factor * (record.lr * hyper.weight_decay))});
  for (size_t k = 0; k < record.g.size(); ++k)
    ops->push_back({.kind = PassOp::kAdd,
                    .step = step,
                    .query = static_cast<uint32_t>(k),
                    .a = static_cast<float>(record.factor) * PlainCoefficient(hyper, record.lr, record.g, k)});
}

void AddRule(const zo::ZoHyper& hyper, const StepRecord& record, uint32_t step, int64_t update, bool decay,
             std::vector<PassOp>* ops) {
  for (size_t k = 0; k < record.g.size(); ++k)
    ops->push_back({.kind = PassOp::kGradient,
                    .step = step,
                    .query = static_cast<uint32_t>(k),
                    .a = GradientCoefficient(hyper, record.g[k])});
  const auto rule = zo::RuleScalarsFor<float>(hyper, record.lr, update);
  ops->push_back({.kind = PassOp::kRule,
                  .queries = static_cast<float>(record.g.size()),
                  .decay = decay ? rule.weight_decay : 0.0f,
                  .lr = rule.lr,
                  .bias1 = rule.bias1,
                  .bias2 = rule.bias2,
                  .first = update == 1});
}

}  // namespace

float PlainCoefficient(const zo::ZoHyper& hyper, double lr, std::span<const double> g, size_t k) {
  return -static_cast<float>(lr * Scalar(hyper, g[k]) / static_cast<double>(g.size()));
}

float GradientCoefficient(const zo::ZoHyper& hyper, double g) { return static_cast<float>(Scalar(hyper, g)); }

std::vector<PassOp> ProgramOf(const zo::ZoHyper& hyper, const History& history, Progress from, uint32_t steps,
                              bool decay) {
  std::vector<PassOp> ops;
  for (uint32_t step = from.updates; step < steps; ++step) {
    const StepRecord& record = history[step];
    if (hyper.residue == zo::Residue::kMezo && from.passes <= step) AddResidues(hyper, step, &ops);
    if (record.skipped) continue;
    if (zo::NeedsRule(hyper))
      AddRule(hyper, record, step, history.UpdateNumber(step, -1), decay, &ops);
    else
      AddPlain(hyper, record, step, decay, &ops);
  }
  return ops;
}

PassRule RuleOf(const zo::ZoHyper& hyper) {
  return {.adam = hyper.base == zo::Base::kAdam,
          .element_sign = hyper.sign == zo::Sign::kElement,
          .momentum = static_cast<float>(hyper.momentum),
          .beta1 = static_cast<float>(hyper.beta1),
          .beta2 = static_cast<float>(hyper.beta2),
          .eps = static_cast<float>(hyper.adam_eps)};
}

PassCopies CopiesOf(const zo::ZoHyper& hyper, uint32_t step, int query, Copies copies) {
  const bool mezo = hyper.residue == zo::Residue::kMezo;
  const PassCopies::Form forms[] = {mezo ? PassCopies::kMezoBoth : PassCopies::kBoth,
                                    mezo ? PassCopies::kMezoPlus : PassCopies::kPlus,
                                    mezo ? PassCopies::kMezoMinus : PassCopies::kMinus};
  return {forms[static_cast<int>(copies)], step, static_cast<uint32_t>(query), static_cast<float>(hyper.eps)};
}

}  // namespace optod::tier

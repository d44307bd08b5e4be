#pragma once
/// A unit's pass (optim/tier/pass_ops.h) on one block of four elements, for host and device: the bytes of
/// optim/tier/unit_pass.h. A direction's z is generated once a block and operation.

#include "cuda/philox.h"
#include "optim/tier/pass_ops.h"
#include "optim/zo/update_formulas.h"

namespace optod::cuda {

using tier::PassCopies;
using tier::PassOp;
using tier::PassRule;

/// Four consecutive elements that begin on a block of the stream.
struct PassFour {
  float theta[4], m[4], v[4], gradient[4], plus[4], minus[4];
};

OPTOD_HD void ApplyRule(const PassOp& op, const PassRule& rule, PassFour& x) {
  namespace formula = zo::formula;
  for (int k = 0; k < 4; ++k) {
    const float gradient = formula::Averaged(op.queries, op.decay, x.theta[k], x.gradient[k]);
    if (rule.adam)
      formula::Adam<float>({rule.beta1, rule.beta2, rule.eps, op.lr, op.bias1, op.bias2}, gradient, x.theta[k], x.m[k],
                           x.v[k]);
    else if (rule.momentum > 0)
      formula::Momentum(rule.momentum, op.lr, op.first, gradient, x.theta[k], x.m[k]);
    else
      x.theta[k] -= op.lr * gradient;
    x.gradient[k] = 0;
  }
}

/// kDecay, kAdd, kResidue. `id`: seed and tensor; step and query are the operation's.
OPTOD_HD void ApplyPlainOp(const PassOp& op, const StreamId& id, uint64_t block, PassFour& x) {
  if (op.kind == PassOp::kDecay) {
    for (int k = 0; k < 4; ++k) x.theta[k] = zo::formula::Decayed(op.a, x.theta[k]);
    return;
  }
  float z[4];
  NormalBlock({id.seed, op.step, op.query, id.tensor}, block, z);
  for (int k = 0; k < 4; ++k) {
    x.theta[k] = x.theta[k] + op.a * z[k];
    if (op.kind != PassOp::kResidue) continue;
    x.theta[k] = x.theta[k] + (-2.0f * op.a) * z[k];
    x.theta[k] = x.theta[k] + op.a * z[k];
  }
}
OPTOD_HD void ApplyOp(const PassOp& op, const PassRule& rule, const StreamId& id, uint64_t block, PassFour& x) {
  if (op.kind == PassOp::kRule) return ApplyRule(op, rule, x);
  if (op.kind != PassOp::kGradient) return ApplyPlainOp(op, id, block, x);
  float z[4];
  NormalBlock({id.seed, op.step, op.query, id.tensor}, block, z);
  for (int k = 0; k < 4; ++k) x.gradient[k] += zo::formula::Product(rule.element_sign, op.a, z[k]);
}

OPTOD_HD void FormCopies(const PassCopies& copies, const StreamId& id, uint64_t block, PassFour& x) {
  if (copies.form == PassCopies::kNone) return;
  const bool up = copies.form == PassCopies::kMezoBoth || copies.form == PassCopies::kMezoPlus;
  const bool down = copies.form == PassCopies::kMezoBoth || copies.form == PassCopies::kMezoMinus;
  float z[4];
  NormalBlock({id.seed, copies.step, copies.query, id.tensor}, block, z);
  for (int k = 0; k < 4; ++k) {
    if (!up && !down) {
      x.plus[k] = x.theta[k] + copies.eps * z[k];
      x.minus[k] = x.theta[k] - copies.eps * z[k];
      continue;
    }
    if (up) x.plus[k] = x.theta[k] + copies.eps * z[k];
    if (!down) continue;
    x.minus[k] = x.plus[k] + (-2.0f * copies.eps) * z[k];
    x.theta[k] = x.minus[k] + copies.eps * z[k];
  }
}

/// Which operands a form reads and writes besides theta.
OPTOD_HD bool WritesPlus(PassCopies::Form form) {
  return form == PassCopies::kPlus || form == PassCopies::kBoth || form == PassCopies::kMezoPlus ||
         form == PassCopies::kMezoBoth;
}
OPTOD_HD bool WritesMinus(PassCopies::Form form) {
  return form == PassCopies::kMinus || form == PassCopies::kBoth || form == PassCopies::kMezoMinus ||
         form == PassCopies::kMezoBoth;
}
OPTOD_HD bool ChangesTheta(PassCopies::Form form) {
  return form == PassCopies::kMezoMinus || form == PassCopies::kMezoBoth;
}

}  // namespace optod::cuda

#pragma once
/// A pass over a unit as a list of operations on each element, in order: what a device that is not this process's CPU
/// is told to do (accelerator.h). Made from the history by pass_program.h; carried out on the GPU by cuda/unit_pass.h.
/// Plain data, no absl.
///
///   kDecay    theta -= a theta
///   kAdd      theta += a z(step, query)
///   kResidue  theta += a z, theta += -2 a z, theta += a z          MeZO's passes of a step that is over, one z
///   kGradient gradient += a z, or the sign of that product         gradient is 0 at first and after each kRule
///   kRule     the base optimizer along gradient / queries + decay theta

#include <cstdint>

namespace optod::tier {

struct PassOp {
  enum Kind : uint32_t { kDecay, kAdd, kResidue, kGradient, kRule };
  Kind kind = kAdd;
  uint32_t step = 0, query = 0;  ///< of the direction z
  float a = 0;
  // kRule alone
  float queries = 1, decay = 0, lr = 0, bias1 = 1, bias2 = 1;  ///< bias: 1 - beta^t
  bool first = false;                                          ///< of the updates: momentum begins
};

/// The base optimizer of kRule and the signs of kGradient.
struct PassRule {
  bool adam = false;          ///< else SGD with momentum (0 = none)
  bool element_sign = false;  ///< kGradient adds signs
  float momentum = 0, beta1 = 0, beta2 = 0, eps = 0;
};

/// What is formed after the operations.
struct PassCopies {
  enum Form : uint32_t {
    kNone,   ///< theta alone
    kPlus,   ///< plus = theta + eps z
    kMinus,  ///< minus = theta - eps z
    kBoth,
    kMezoPlus,   ///< plus = theta + eps z
    kMezoMinus,  ///< minus = plus - 2 eps z, then theta = minus + eps z: plus is read
    kMezoBoth,
  };
  Form form = kNone;
  uint32_t step = 0, query = 0;
  float eps = 0;
};

}  // namespace optod::tier

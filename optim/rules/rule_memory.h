#pragma once
/// Where a rule's memory is, tensor by tensor: what memory reports of sessions and jobs are made of.

#include <span>
#include <vector>

#include "optim/rules/rule.h"

namespace optod::optim {

struct RuleMemory {
  struct Tensor {
    size_t state = 0;      ///< bytes of states that carry the tensor's name
    size_t transient = 0;  ///< working memory that its step uses, its part of `shared_transient` included
  };
  std::vector<Tensor> tensors;  ///< layout order
  size_t state = 0;             ///< all of it
  size_t shared_state = 0;      ///< of no single tensor: layer factors, counts of the rule
  size_t transient = 0;         ///< all working memory kept from step to step
  size_t shared_transient = 0;  ///< of that, what serves one tensor after another
};

/// `layout` is the one that the rule was made for.
RuleMemory MemoryOf(const Rule& rule, std::span<const TensorSpec> layout);

}  // namespace optod::optim

#pragma once
/// The sequences of some examples, one after another, by length so that equal ones are neighbours. No LibTorch.

#include <cstdint>
#include <span>
#include <vector>

#include "optim/train/task.h"

namespace optod::train {

struct Packed {
  std::vector<int64_t> ids;      ///< of all tokens, those of virtual ones 0
  std::vector<int64_t> lengths;  ///< of the sequences, virtual tokens included
  std::vector<int64_t> rows;     ///< rows of the hidden states that are asked, each once
  /// Embedding rows: row number of real token i, or -1 - v for virtual token v. Empty without virtual tokens.
  std::vector<int64_t> sources;
  struct Ask {
    int64_t row, target;  ///< index into rows; token
  };
  std::vector<Ask> asks;  ///< one a pick, in the order of Judge
};

/// `virtual_tokens` stand in front of every sequence.
Packed Pack(std::span<const Example* const> examples, int64_t virtual_tokens = 0);

}  // namespace optod::train

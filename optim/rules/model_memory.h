#pragma once
/// How many numbers training a known model holds: parameters and optimizer state, by arithmetic on the shapes, for any
/// size. The counting is that of SCALE's tables (Glentis et al. 2025): gradients and activations are not in it. Pure.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/rules/tensor.h"

namespace optod::optim {

/// Names that ModelLayout knows: llama-60m, -130m, -350m, -1b, -7b (vocabulary 32,000, head not tied), gpt2,
/// gpt2-medium, gpt2-large, gpt2-xl (head tied), vit-s, vit-b, vit-l (patch 16, 1,000 classes).
std::vector<std::string> KnownModels();

/// The tensors of a model, named as Hugging Face's checkpoints or timm's name them; float32. NOT_FOUND with the known
/// names.
absl::StatusOr<std::vector<TensorSpec>> ModelLayout(const std::string& model);

struct MemoryOptions {
  int64_t rank = 0;               ///< of galore, fira and apollo; 0 = the one that fits the model's printed figures
  bool count_projection = false;  ///< apollo: count the projection, which a seed stands for, as if it were stored
};

struct MemoryRow {
  std::string method;
  uint64_t parameters = 0;
  uint64_t state = 0;   ///< numbers of optimizer state
  std::string what;     ///< in words
  /// Gigabytes (1e9) of both at `bytes` a number.
  double Gigabytes(double bytes) const { return bytes * static_cast<double>(parameters + state) * 1e-9; }
  /// Gibibytes (2^30) of the state at `bytes` a number.
  double StateGibibytes(double bytes) const { return bytes * static_cast<double>(state) / (1 << 30); }
};

/// One row a method, from the smallest state to the largest: the methods of SCALE's tables as they are printed there
/// ("muon" with momentum for every tensor; "swan", "galore", "fira", "apollo" with Adam on embedding and head and no state
/// for 1-D tensors) and optod's rules as they are ("muon (optod)": AdamW for all but hidden matrices).
std::vector<MemoryRow> MemoryTable(const std::vector<TensorSpec>& layout, const MemoryOptions& options);

/// Rank behind the printed GaLore figures by the model's hidden size: 128, 256, 384, 512 for 60M, 130M, 350M, 1B; 256 for
/// all others.
int64_t PrintedRank(const std::vector<TensorSpec>& layout);

}  // namespace optod::optim

#pragma once
/// What a tiered run streams: the model's tensors cut into units, which of them are trained, and the adapters beside them.
///
///   full            every unit is trained
///   head            the vocabulary's pieces are; the rest is read only
///   lora, prefix,   the model is read only; the adapters are one unit that stays in memory and comes first, so that every
///   prompt          copy has them when the layers come by

#include <vector>

#include "absl/status/statusor.h"
#include "optim/nn/checkpoint.h"
#include "optim/tier/pipeline.h"
#include "optim/tier/unit.h"
#include "optim/train/spec.h"

namespace optod::train {

struct TieredUnits {
  std::vector<tier::BlockSpec> blocks;  ///< the model's; adapters are one more block behind them
  std::vector<tier::Unit> units;        ///< in the order of the forward pass: a tied vocabulary last
  std::vector<size_t> trainable;        ///< tensor numbers, in the order of the resident engine's layout
  bool adapters = false;
  size_t model_tensors = 0;
  const tier::BlockTensor& tensor(size_t uid) const;
  size_t block_of(size_t uid) const;
};

/// Tables are in units of about 4096 rows (whole pieces of the resident engine's sweep, vocabulary.h), layers are whole.
/// Errors of AdapterTensors.
absl::StatusOr<TieredUnits> UnitsOf(const nn::ModelConfig& config, const std::vector<tier::BlockSpec>& model,
                                    const SchemeSpec& scheme);

/// The groups of block-wise estimation (groups.h), as the resident engine forms them.
absl::StatusOr<std::vector<tier::TensorGroup>> GroupsOf(const nn::ModelConfig& config, const TieredUnits& streamed,
                                                        const SchemeSpec& scheme, const std::string& level);
/// How often all parameters come by in a step of these groups, counting a part of them as a part.
double SweepsOf(const TieredUnits& streamed, const std::vector<tier::TensorGroup>& groups);

/// What the adapters begin as, one behind the other: the values of the resident engine, with one layer in memory at a
/// time.
absl::StatusOr<std::vector<float>> InitialAdapters(const TieredUnits& streamed, const SchemeSpec& scheme, uint64_t seed,
                                                   nn::WeightReader& reader);

}  // namespace optod::train

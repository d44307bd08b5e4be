#pragma once
/// Values and optimizer state as one safetensors file: the checkpoint of runs that scalars do not describe. No
/// LibTorch.

#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/rules/tensor.h"

namespace optod::train {

struct StateFile {
  std::vector<float> theta;
  std::vector<optim::OwnedTensor> state;
  int64_t step = 0;
};

absl::Status WriteStateFile(const std::string& path, std::span<const float> theta,
                            const std::vector<optim::OwnedTensor>& state, int64_t step);
/// NOT_FOUND: there is none. DATA_LOSS: theta is not of `size` values.
absl::StatusOr<StateFile> ReadStateFile(const std::string& path, size_t size);

}  // namespace optod::train

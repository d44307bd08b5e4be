#pragma once
/// Dual numbers of LibTorch's forward mode: a value and its tangent. Private: LibTorch types.

#include <ATen/ops/_make_dual.h>
#include <ATen/ops/_unpack_dual.h>
#include <torch/csrc/autograd/forward_grad.h>

#include "optim/nn/aten.h"

namespace optod::train {

/// The scope of dual numbers: none outlives it.
class DualLevel {
 public:
  DualLevel() : index_(torch::autograd::ForwardADLevel::get_next_idx()) {}
  ~DualLevel() { torch::autograd::ForwardADLevel::release_idx(index_); }
  DualLevel(const DualLevel&) = delete;
  DualLevel& operator=(const DualLevel&) = delete;
  uint64_t index() const { return index_; }

 private:
  const uint64_t index_;
};

inline at::Tensor Dual(const at::Tensor& value, const at::Tensor& tangent, uint64_t level) {
  return at::_make_dual(value, tangent, static_cast<int64_t>(level));
}

}  // namespace optod::train

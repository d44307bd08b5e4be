#pragma once
/// A block's tensors as they are, with an eye on its linear layers. Private: LibTorch types.

#include <cmath>
#include <functional>
#include <utility>
#include <vector>

#include "optim/nn/model.h"

namespace optod::train {

/// Is shown input and output of the linear layers whose weight is trainable tensor `tensor`.
using LayerObserver = std::function<void(int tensor, const at::Tensor& x, const at::Tensor& y)>;

class ObservedOps final : public nn::BlockOps {
 public:
  /// `trainable`: number of the trainable tensor in a slot of the block, or -1. `block`: its number, for adapters.
  using TrainableAt = std::function<int(int slot)>;
  ObservedOps(const nn::ModelConfig& config, size_t block, TrainableAt trainable, const nn::Weights& w,
              const nn::LayerExtra* extra, LayerObserver seen)
      : block_(block), trainable_(std::move(trainable)), extra_(extra), plain_(config, w, extra), seen_(std::move(seen)) {}

  at::Tensor Linear(const at::Tensor& x, int weight, int bias) const override {
    return Watched(trainable_(weight), x, plain_.Linear(x, weight, bias));
  }
  at::Tensor Norm(const at::Tensor& x, int weight, int bias) const override { return plain_.Norm(x, weight, bias); }
  at::Tensor LowRank(const at::Tensor& x, nn::Projection projection) const override {
    if (extra_ == nullptr || !extra_->q_a.defined()) return {};
    const bool query = projection == nn::Projection::kQuery;
    const int first = static_cast<int>(4 * (block_ - 1)) + (query ? 0 : 2);  // as AdapterTensors lists them
    const at::Tensor inner = Watched(first, x, at::linear(x, query ? extra_->q_a : extra_->v_a));
    return Watched(first + 1, inner, at::linear(inner, query ? extra_->q_b : extra_->v_b)).mul(extra_->scale);
  }
  nn::KeyValues Prefix(int lane) const override { return plain_.Prefix(lane); }

 private:
  at::Tensor Watched(int tensor, const at::Tensor& x, at::Tensor y) const {
    if (seen_ && tensor >= 0) seen_(tensor, x, y);
    return y;
  }

  const size_t block_;
  const TrainableAt trainable_;
  const nn::LayerExtra* const extra_;
  const nn::PlainOps plain_;
  const LayerObserver seen_;
};

/// The L2 norm of every column of x (Wanda's |x|).
inline std::vector<double> ColumnNorms(const at::Tensor& x) {
  const at::Tensor squares = x.mul(x).sum(at::IntArrayRef{0}).contiguous();
  std::vector<double> norms;
  for (int64_t i = 0; i < squares.numel(); ++i) norms.push_back(std::sqrt(squares.data_ptr<float>()[i]));
  return norms;
}

}  // namespace optod::train

#pragma once
/// ZO2's order of work (Wang et al., 2025): while a block of parameters is at hand, first apply the update of the step
/// before, then form both perturbed copies; the update of this step waits until the block is at hand again. Every block
/// is touched once a step. After Flush the bytes equal those of ZoOptimizer::Step (same Residue). T is float or double.
/// Calls on one object must not overlap.
///
///   BeginStep(z_t) -> Block(0), Block(1), ... in any order, each once -> EndStep(losses) ; Flush before export,
///   evaluation or the end

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "optim/zo/projected_gradient.h"
#include "optim/zo/update.h"

namespace optod::zo {

template <class T>
class DeferredUpdate {
 public:
  /// hyper.queries must be 1 and hyper.sides kTwo: two copies of the activations travel through the blocks.
  static absl::StatusOr<DeferredUpdate> Create(const ZoLayout& layout, const ZoHyper& hyper);

  /// Directions of this step; kept until its update has been applied everywhere.
  void BeginStep(std::shared_ptr<const DirectionSource<T>> z);
  /// The block `tensors`: theta[block] <- pending update; plus[block], minus[block] <- theta[block] +- eps z. All three
  /// of the layout's size.
  void Block(std::span<const size_t> tensors, std::span<T> theta, std::span<T> plus, std::span<T> minus);
  /// Losses of the two copies. The new pending update keeps the lr of now. NaN or Inf: nothing becomes pending,
  /// `usable` is false.
  ProjectedGradients EndStep(double loss_plus, double loss_minus);
  /// Applies what is pending to every tensor.
  void Flush(std::span<T> theta);

  bool pending() const { return pending_.has_value(); }
  ZoUpdate<T>& update() { return update_; }

 private:
  struct Pending {
    std::shared_ptr<const DirectionSource<T>> z;
    double g = 0, lr = 0;
  };
  DeferredUpdate(const ZoLayout& layout, const ZoHyper& hyper) : update_(layout, hyper) {}
  void ApplyPending(std::span<T> theta, std::span<const size_t> tensors);

  ZoUpdate<T> update_;
  std::optional<Pending> pending_;
  std::shared_ptr<const DirectionSource<T>> z_;
};

}  // namespace optod::zo

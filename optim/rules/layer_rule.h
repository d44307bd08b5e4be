#pragma once
/// What MKOR and KFAC share: layers found in the layout, their statistics in the tell, and a first-order rule behind
/// (the backend) that steps on the preconditioned gradients.
///
/// A layer L is a tensor `L.weight` of rank >= 2, taken as [out, in] (rank > 2: [out, rest]), and, when the layout has
/// it, `L.bias` [out]; then the gradient matrix is [dW | db] and the input is extended by a constant 1. Layers that
/// `sgd_layers` names, and all other tensors, go to the backend untouched. Statistics of a step, required when factors
/// are due and the layer has gradients:
///   act/L    [rows, in]   layer inputs, or their mean [in] where the rule says so
///   pgrad/L  [rows, out]  gradient of the row-mean loss with respect to the layer's outputs, or its column sums [out]

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "optim/rules/rule_base.h"

namespace optod::optim {

struct Layer {
  std::string name;
  int weight = 0;
  int bias = -1;  ///< index in the layout; -1 = none
  int64_t in = 0, out = 0;
  int64_t extended() const { return in + (bias >= 0 ? 1 : 0); }  ///< in, and 1 for the bias column
};

class LayerRule : public RuleBase {
 protected:
  LayerRule(RuleArgs args, std::unique_ptr<Rule> backend);

  /// Whether layer k needs its statistics at its step number `t` (1, 2, ...).
  virtual bool FactorsDue(int64_t t) const = 0;
  /// Whether a vector (already averaged) serves as a statistic, or only rows do.
  virtual bool TakesMeans() const = 0;
  /// Factor updates and preconditioning: reads gradients by Gather, writes them by Scatter.
  virtual void Precondition(const StepInput& input, StepReport& report) = 0;
  /// False: gradients pass straight to the backend and no statistics are asked for.
  virtual bool Active() const { return true; }

  size_t Scratch() const override;
  size_t ScratchOf(int i) const override;
  size_t SharedScratch() const override { return matrix_.size() + product_.size(); }
  absl::Status Check(const StepInput& input) const override;
  void Apply(std::span<void* const> params, const StepInput& input, StepReport& report) final;

  const std::vector<Layer>& layers() const { return layers_; }
  /// All gradients of the layer are there in this step.
  bool Present(const Layer& layer, const StepInput& input) const;
  DType layer_compute(const Layer& layer) const { return compute(layer.weight); }

  /// [dW | db] as [out, extended].
  template <typename T>
  void Gather(const Layer& layer, const StepInput& input, T* matrix) const;
  /// The backend will see `matrix` times `scale` in place of the layer's gradients.
  template <typename T>
  void Scatter(const Layer& layer, double scale, const T* matrix);
  /// Statistic `prefix/L` as T in `rows` (grown as needed). Returns the number of rows; 0 = a mean vector was given.
  template <typename T>
  int64_t Statistic(const Layer& layer, const std::string& prefix, const StepInput& input, std::vector<T>& rows) const;

  /// Scratch for matrices of any layer.
  Buffer matrix_, product_;

 private:
  /// Of [dW | db] in the compute dtype.
  size_t GradientBytes(const Layer& layer) const;
  absl::Status CheckStatistic(const Layer& layer, const std::string& prefix, int64_t width, const StepInput& input,
                              int64_t& rows) const;

  std::unique_ptr<Rule> backend_;
  std::vector<Layer> layers_;
  std::vector<Buffer> replaced_;    // gradient of tensor i in its compute dtype, when it can differ from the one given
  std::vector<const void*> grads_;  // what the backend sees in this step
};

/// The backend rule `name` with those of `args`' hyperparameters that it knows.
absl::StatusOr<std::unique_ptr<Rule>> MakeBackend(const std::string& name, const RuleArgs& args);

}  // namespace optod::optim

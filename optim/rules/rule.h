#pragma once
/// A first-order optimizer rule bound to one set of tensors: it holds the optimizer state and turns (parameters,
/// gradients) into new parameters. One rule object belongs to one training run; calls on it must not overlap. A step
/// uses all the threads of the shared pool. The table of rules is in registry.h.

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "optim/rules/tensor.h"

namespace optod::optim {

/// Hyperparameters by the names of the registry. Numbers travel as double (bool for switches, text for choices).
using HyperValue = std::variant<double, bool, std::string>;
using Hyper = std::map<std::string, HyperValue>;

/// What one step is given. Pointers are borrowed for the call; tensor i belongs to layout entry i.
struct StepInput {
  /// grads[i]: contiguous, dtype and shape of tensor i (or float32 for f16/bf16 parameters when grad_dtype says so).
  /// nullptr = this tensor has no gradient in this step: it is left alone entirely, its step count too.
  std::span<const void* const> grads;
  /// float32: gradients of f16 and bf16 parameters are float32 (state and arithmetic always are). Absent: they have the
  /// parameter's dtype.
  std::optional<DType> grad_dtype;
  /// Learning rate of this step when a schedule set one; absent = the rule's own `lr`.
  std::optional<double> lr;
  /// True: the caller has found every gradient finite (by their norm, say, or as they arrived), and every further input:
  /// the step does not look again. Never true by guess: a NaN that slips through is in the parameters and the state.
  bool grads_finite = false, extra_finite = false;
  /// Loss of this step when the client sent it (mkor-h needs it); absent otherwise.
  std::optional<double> loss;
  /// Further inputs a rule declares in RuleInfo::tell_inputs, by name, e.g. "hessian_z/<tensor>", "act/<layer>",
  /// "pgrad/<layer>".
  std::map<std::string, const OwnedTensor*> extra;
};

/// What a step reports beside the new parameters (all optional figures; names are stable, documented by each rule).
struct StepReport {
  std::map<std::string, double> figures;
};

/// Payload of the INVALID_ARGUMENT that Step returns for NaN or Inf in a gradient: tells a bad number from a bad request.
inline constexpr const char* kNotFinitePayload = "optod/not-finite";

class Rule {
 public:
  virtual ~Rule() = default;
  /// Everything that Step would refuse, without a step.
  virtual absl::Status CheckStep(std::span<void* const> params, const StepInput& input) const = 0;
  /// One update in place. `params[i]`: contiguous, layout entry i. Errors leave parameters and state unchanged:
  /// INVALID_ARGUMENT (NaN or Inf in a gradient: names the tensor; wrong count), FAILED_PRECONDITION (a declared input
  /// is missing: names it).
  virtual absl::StatusOr<StepReport> Step(std::span<void* const> params, const StepInput& input) = 0;
  /// Everything needed to go on bit for bit: named tensors ("m/<tensor>", "v/<tensor>", "t/<tensor>", ...), sorted by
  /// name.
  virtual std::vector<OwnedTensor> ExportState() const = 0;
  /// Inverse of ExportState. INVALID_ARGUMENT naming the tensor when a name, dtype or shape does not fit; then the
  /// state is unchanged.
  virtual absl::Status ImportState(std::span<const OwnedTensor> state) = 0;
  /// Bytes of optimizer state now allocated.
  virtual size_t StateBytes() const = 0;
  /// Names, dtypes and shapes of ExportState, in its order.
  virtual std::vector<TensorSpec> StateSpecs() const = 0;
  /// Working memory kept from step to step. What a decomposition allocates for itself (GaLore, Fira, KFAC) is not in it.
  virtual size_t TransientBytes() const = 0;
  /// What of it the step of each tensor uses, in layout order. Buffers that serve one tensor after another count with
  /// each: they are as large as the neediest tensor wants.
  virtual std::vector<size_t> TransientBytesOfTensors() const = 0;
  /// The part of TransientBytes in such buffers.
  virtual size_t SharedTransientBytes() const = 0;
};

}  // namespace optod::optim

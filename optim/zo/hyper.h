#pragma once
/// Settings of a zeroth-order run: which estimator, which base optimizer, which step sizes. Passive data; CheckZoHyper
/// says what is wrong with it. Names and defaults are those of ZO-Bench (Zhang et al., 2024) and MeZO (Malladi et al.,
/// 2023).

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace optod::zo {

/// What turns the estimate into an update. SGD: buffer b = g at the first step, then momentum * b + g; Adam:
/// bias-corrected, epsilon outside the root (Kingma & Ba, 2015, Alg. 1).
enum class Base { kSgd, kAdam };
/// Two-sided (SPSA): g = (L(theta + eps z) - L(theta - eps z)) / (2 eps). One-sided: g = (L(theta + eps z) - L(theta))
/// / eps.
enum class Sides { kTwo, kOne };
/// kNone: g z. kScalar: sign(g) z, what ZO-Bench's code runs. kElement: sign(g z) per element, what its paper writes
/// (signSGD, Liu et al. 2019).
enum class Sign { kNone, kScalar, kElement };
/// How perturbed points are formed. kNone: in a scratch copy, theta is changed by the update alone. kMezo: in place by
/// +1, -2, +1, which leaves MeZO's rounding residue in theta (about 1 ulp a step) and needs no copy.
enum class Residue { kNone, kMezo };
/// Block-wise estimation: update a block at once, so later blocks see it, or all of them at the end of the step.
enum class BlockSchedule { kCoordinate, kJoint };
/// Masks of sparse estimation. kUniform masks a fraction `ratio`. kNormal is what the published code does,
/// (N(0,1) < ratio), and masks Phi(ratio): 0.5 gives 0.69.
enum class MaskLaw { kUniform, kNormal };
/// Which step procedure; see ZoOptimizer.
enum class Rule { kPlain, kConservative, kForwardGrad };

struct ZoHyper {
  Rule rule = Rule::kPlain;
  Base base = Base::kSgd;
  Sides sides = Sides::kTwo;
  Sign sign = Sign::kNone;
  Residue residue = Residue::kNone;
  double lr = 1e-6;           ///< eta; > 0
  double eps = 1e-3;          ///< smoothing; > 0 (unused by forward-grad)
  int queries = 1;            ///< q directions a step; >= 1
  double momentum = 0.0;      ///< mu of SGD; [0, 1)
  double beta1 = 0.9;         ///< Adam; [0, 1)
  double beta2 = 0.999;       ///< Adam; [0, 1)
  double adam_eps = 1e-8;     ///< Adam; > 0
  double weight_decay = 0.0;  ///< added to the estimate as weight_decay * theta on tensors with `decay`; >= 0
  /// Of sessions and workers (support.h): block-wise estimation, and random masks over the elements of z.
  std::string blocks{};       ///< "" = one block; "each" = every tensor; else "prefix,prefix;prefix;..."
  BlockSchedule block_schedule = BlockSchedule::kCoordinate;
  double mask_ratio = 0;      ///< [0, 1]; 0 = no mask
  std::string mask_ratios{};  ///< "" = mask_ratio everywhere; else one ratio a tensor, comma-separated
  MaskLaw mask_law = MaskLaw::kUniform;
  int mask_every = 1;         ///< steps that share a mask; >= 1
};

/// INVALID_ARGUMENT naming the field, its value and the rule: `hyperparameters.lr: -1 is negative; must be > 0`.
absl::Status CheckZoHyper(const ZoHyper& hyper);

/// Hyperparameters by the registry's names: lr, eps, queries, perturbation (two-side | one-side), weight_decay, residue
/// (none | mezo), momentum, sign (code | paper), beta1, beta2, adam_eps, blocks, block_schedule (coordinate | joint),
/// mask_ratio, mask_ratios, mask_law (uniform | normal), mask_every. Numbers are double.
using ZoValues = std::map<std::string, std::variant<double, bool, std::string>>;

/// The settings a registered name stands for: zo-sgd, zo-sgd-mmt (momentum 0.9), zo-sgd-cons, zo-sgd-sign (sign of the
/// scalar, as the published code), zo-adam, forward-grad; `values` replace the defaults. NOT_FOUND for other
/// optimizers; INVALID_ARGUMENT for unknown names, wrong kinds and whatever CheckZoHyper refuses.
absl::StatusOr<ZoHyper> ZoHyperFor(const std::string& optimizer, const ZoValues& values = {});

/// One tensor of the flat parameter vector. Its number in the layout is its tensor number in the random stream.
struct ZoTensor {
  std::string name;
  size_t size = 0;    ///< elements
  bool decay = true;  ///< weight decay applies
  uint32_t block = 0;     ///< of block-wise estimation
  double mask_ratio = 0;  ///< of random masks; 0 = no mask
};

/// The flat parameter vector as consecutive tensors.
class ZoLayout {
 public:
  ZoLayout() = default;
  explicit ZoLayout(std::vector<ZoTensor> tensors);

  size_t size() const { return offsets_.back(); }
  size_t tensors() const { return tensors_.size(); }
  const ZoTensor& tensor(size_t i) const { return tensors_[i]; }
  size_t offset(size_t i) const { return offsets_[i]; }
  /// All tensor numbers, in order.
  std::vector<size_t> All() const;
  /// Blocks of the tensors; at least 1.
  uint32_t blocks() const { return blocks_; }
  /// Number of the tensor that holds flat position `position` < size().
  size_t TensorAt(size_t position) const;

 private:
  std::vector<ZoTensor> tensors_;
  std::vector<size_t> offsets_ = {0};  // tensors() + 1 entries
  uint32_t blocks_ = 1;
};

/// MeZO's name rule: no weight decay for names that contain "bias", "layer_norm" or "layernorm".
bool DecaysByName(const std::string& tensor_name);

}  // namespace optod::zo

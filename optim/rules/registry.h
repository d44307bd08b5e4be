#pragma once
/// The one table of optimizers. `optoctl optimizers` prints it, the server checks every OptimizerSpec against it, tests
/// walk it. Adding an optimizer: one file in optim/rules (or optim/zo), one row in registry.cc, one golden test.
/// Thread-safe: read-only.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/rules/rule.h"

namespace optod::optim {

enum class Family { kFirstOrder, kZerothOrder, kTrace };

/// One hyperparameter: `kind` "float", "int", "bool", "choice" or "text" (any string); numbers must lie in [min, max]
/// (open ends by `min_open`, `max_open`).
struct HyperInfo {
  std::string name;
  std::string kind;
  HyperValue default_value;
  double min = 0, max = 0;
  bool min_open = false, max_open = false;
  std::vector<std::string> choices;
  std::string doc;  ///< what it does, unit, paper's symbol
};

struct RuleInfo {
  std::string name;  ///< "adamw"
  Family family = Family::kFirstOrder;
  std::string summary;  ///< one line
  std::vector<HyperInfo> hyper;
  std::vector<std::string>
      tell_inputs;    ///< "grad", "hessian_z", "act", "pgrad", "loss", "loss_plus", "loss_minus", "feedback"
  std::string state;  ///< in words: "m, v of the parameter's shape, float32"
  double state_bytes_per_param = 0;  ///< for a float32 matrix parameter, asymptotically
  std::string golden;                ///< file stem under tests/golden that pins it ("" only for rules without one)
  std::string source;                ///< paper and equation or algorithm
  bool implemented = false;          ///< first-order rows: MakeRule works; other families: their own folder serves them
};

/// All rows, sorted by name.
std::span<const RuleInfo> AllRules();
/// NOT_FOUND with the nearest name: `optimizer: "adamv" is unknown; did you mean "adamw"?`
absl::StatusOr<const RuleInfo*> FindRule(const std::string& name);
/// Fills defaults and checks names, kinds and ranges. INVALID_ARGUMENT: `hyperparameters.lr: -1 is negative; must be >
/// 0`; unknown names suggest the nearest.
absl::StatusOr<Hyper> CheckHyper(const RuleInfo& info, const Hyper& given);
/// A first-order rule bound to `layout` (dtypes f32, f64; f16 and bf16 with float32 state). `seed` drives every random
/// draw. UNIMPLEMENTED for rows of the other families.
absl::StatusOr<std::unique_ptr<Rule>> MakeRule(const std::string& name, const Hyper& hyper,
                                               std::span<const TensorSpec> layout, uint64_t seed);

}  // namespace optod::optim

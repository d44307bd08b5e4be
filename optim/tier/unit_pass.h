#pragma once
/// The arithmetic on a unit at hand: catch up with the history, then form the perturbed copies, tile by tile while the
/// tile is in the first-level cache. Every element passes through the same operations in the same order as in
/// ZoOptimizer::Step, so the bytes do not depend on tiers, slots, threads or how far a unit was behind.
///
///   theta --(updates p .. t-1)--> theta_t --+eps z--> plus
///                                         --(-eps z)--> minus          z of a tile is generated once for both
///
/// Residue::kMezo: the copies are the in-place passes +1, -2, +1 of MeZO's code, whose rounding stays in theta.

#include <span>

#include "optim/tier/accelerator.h"
#include "optim/tier/history.h"
#include "optim/tier/record.h"
#include "optim/tier/tile_team.h"

namespace optod::tier {

/// A run of one tensor's elements and its optimizer state; m, v empty where there is none.
struct Values {
  uint32_t uid = 0;
  uint64_t first = 0;
  bool decay = true;
  std::span<float> theta, m, v;
  int group = -1;  ///< block-wise: the tensor's; it moves by that group's scalar alone
  Values Range(size_t begin, size_t count) const {
    const auto part = [&](std::span<float> all) { return all.empty() ? all : all.subspan(begin, count); };
    return {uid, first + begin, decay, part(theta), part(m), part(v), group};
  }
};

/// Sparse estimation: which elements have z = 0 (zo/mask.h). Asked from several threads.
class MaskSource {
 public:
  virtual ~MaskSource() = default;
  /// Elements first .. first + z.size() - 1 of a tensor (its number in the random stream), at most zo::kChunk, as step
  /// `step` masks them: of a step under way, or of a past one that some unit may lack.
  virtual void Zero(uint32_t tensor, uint64_t first, uint32_t step, std::span<float> z) const = 0;
};

enum class Copies { kBoth, kPlus, kMinus };

class UnitPass {
 public:
  /// `history`, `mask` (null: nothing is masked) and `accelerator` are borrowed. With an
  /// accelerator, values and copies are in its memory and the passes are enqueued there; no masks, no candidates.
  UnitPass(const zo::ZoHyper& hyper, uint64_t seed, const History& history, ParallelFor parallel,
           const MaskSource* mask = nullptr, Accelerator* accelerator = nullptr)
      : hyper_(hyper),
        seed_(seed),
        history_(history),
        parallel_(std::move(parallel)),
        mask_(mask),
        accelerator_(accelerator) {}

  /// Floats of optimizer state beside a parameter: 0, 1 or 2.
  static int StatesOf(const zo::ZoHyper& hyper);

  /// From `from` to {steps, passes}: updates of steps before `steps`, and before each, with kMezo, the passes of that
  /// step that are not in `from`. Of the open step: the groups that count already.
  void CatchUp(const Values& values, Progress from, uint32_t steps) const;
  /// CatchUp, then the copies of direction (steps, query) in the same pass.
  /// kMezo: kBoth, or kPlus and then kMinus; after the latter theta has the step's rounding. kMinus reads `plus` there.
  void Perturb(const Values& values, Progress from, uint32_t steps, int query, Copies copies, std::span<float> plus,
               std::span<float> minus) const;
  /// z of direction (step, query), masked.
  void Direction(const Values& values, uint32_t step, int query, std::span<float> z) const;
  /// CatchUp, then theta after the open step's update and after the opposite one: zo-sgd-cons' candidates.
  /// Either copy may be empty: it is not formed then.
  void Candidates(const Values& values, Progress from, uint32_t steps, std::span<float> descent,
                  std::span<float> ascent) const;

 private:
  struct Tile;
  void UpdateTile(Tile& tile, Progress from, uint32_t steps) const;
  void PassesTile(Tile& tile, uint32_t step) const;
  void MezoTile(Tile& tile, Copies copies, std::span<float> up, std::span<float> down) const;
  void ApplyTile(Tile& tile, uint32_t step, const StepRecord& record) const;
  void DirectionTile(Tile& tile, uint32_t step, int query) const;
  void AddTile(Tile& tile, uint32_t step, int query, float scale, std::span<const float> in, std::span<float> out) const;
  void PlainTile(Tile& tile, uint32_t step, const StepRecord& record, double factor, std::span<float> theta) const;
  void RuleTile(Tile& tile, uint32_t step, const StepRecord& record) const;
  template <class Body>
  void ForTiles(const Values& values, Body body) const;

  zo::ZoHyper hyper_;
  uint64_t seed_;
  const History& history_;
  ParallelFor parallel_;
  const MaskSource* const mask_;
  Accelerator* const accelerator_;
};

}  // namespace optod::tier

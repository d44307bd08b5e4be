#pragma once
/// The steps of a run as the few numbers that repeat them (MeZO, Malladi et al., 2023, section 2.1). A unit that is
/// behind catches up from here: after one step (ZO2's deferred update), after K (lazy replay), after a crash.

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "optim/zo/hyper.h"
#include "optim/zo/update.h"

namespace optod::tier {

struct StepRecord {
  double lr = 0;            ///< of this step: what is applied later keeps it
  std::vector<double> g{};  ///< projected gradients, one a query; block-wise: one a group, and one that is not finite moves nothing
  bool skipped = false;     ///< nothing is applied: losses were not finite, or zo-sgd-cons stayed
  double factor = 1;        ///< of the update; -1: zo-sgd-cons went up
};

class History {
 public:
  void Add(StepRecord record) {
    for (uint32_t i = 0; i < record.g.size() && !record.skipped; ++i) {
      if (!std::isfinite(record.g[i])) left_out_.emplace_back(steps(), i);
    }
    groups_ = 0;
    applied_.push_back((applied_.empty() ? 0 : applied_.back()) + (record.skipped ? 0 : 1));
    records_.push_back(std::move(record));
  }
  /// The step that is being made, when points of it are updates themselves (zo-sgd-cons' candidates, block-wise).
  void Open(StepRecord record) { open_ = std::move(record); }
  const StepRecord& open() const { return open_; }
  /// Block-wise: the next group's scalar of the open step; `apply`: later points see its update.
  void AddToOpen(double g, bool apply) {
    open_.g.push_back(g);
    if (apply) groups_ = static_cast<uint32_t>(open_.g.size());
  }
  /// Groups of the open step whose updates count already.
  uint32_t groups() const { return groups_; }
  uint32_t steps() const { return static_cast<uint32_t>(records_.size()); }
  const StepRecord& operator[](uint32_t step) const { return records_[step]; }
  /// Which update of a tensor step `step` is (the open one too): 1 for the first that was not skipped (Adam's t). `group`:
  /// the tensor's, block-wise; else -1.
  int64_t UpdateNumber(uint32_t step, int group) const {
    int64_t number = 1 + (step == 0 ? 0 : applied_[step - 1]);
    for (const auto& [when, which] : left_out_) number -= when < step && static_cast<int>(which) == group ? 1 : 0;
    return number;
  }

 private:
  std::vector<StepRecord> records_;
  std::vector<std::pair<uint32_t, uint32_t>> left_out_;  // step and group
  StepRecord open_;
  uint32_t groups_ = 0;
  std::vector<int64_t> applied_;
};

}  // namespace optod::tier

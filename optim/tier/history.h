#pragma once
/// The steps of a run as the few numbers that repeat them (MeZO, Malladi et al., 2023, section 2.1). A unit that is
/// behind catches up from here: after one step (ZO2's deferred update), after K (lazy replay), after a crash.

#include <cstdint>
#include <vector>

#include "optim/zo/hyper.h"
#include "optim/zo/update.h"

namespace optod::tier {

struct StepRecord {
  double lr = 0;            ///< of this step: what is applied later keeps it
  std::vector<double> g{};  ///< projected gradients, one a query
  bool skipped = false;     ///< nothing is applied: losses were not finite, or zo-sgd-cons stayed
  double factor = 1;        ///< of the update; -1: zo-sgd-cons went up
};

class History {
 public:
  void Add(StepRecord record) {
    applied_.push_back((applied_.empty() ? 0 : applied_.back()) + (record.skipped ? 0 : 1));
    records_.push_back(std::move(record));
  }
  /// The step that is being made, when points of it are updates themselves (zo-sgd-cons' candidates).
  void Open(StepRecord record) { open_ = std::move(record); }
  const StepRecord& open() const { return open_; }
  uint32_t steps() const { return static_cast<uint32_t>(records_.size()); }
  const StepRecord& operator[](uint32_t step) const { return records_[step]; }
  /// Which update of every tensor step `step` is: 1 for the first that was not skipped (Adam's t).
  int64_t UpdateNumber(uint32_t step) const { return applied_[step]; }

 private:
  std::vector<StepRecord> records_;
  StepRecord open_;
  std::vector<int64_t> applied_;
};

}  // namespace optod::tier

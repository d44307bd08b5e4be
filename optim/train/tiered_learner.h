#pragma once
/// The learner of a tiered run: its replay log is the checkpoint, as of every zeroth-order run; the block file on disk
/// makes resuming short.

#include <functional>
#include <memory>
#include <string>

#include "optim/train/learner.h"
#include "optim/train/tiered_model.h"

namespace optod::train {

/// `model` is borrowed, open and not started. `own`, `before`, `exchange`: as MakeLearner's; `stop` ends waiting for the
/// other workers with CANCELLED.
absl::StatusOr<std::unique_ptr<Learner>> MakeTieredLearner(const TrainSpec& spec, TieredModel& model, bool classify,
                                                           const std::string& own, const std::string& before,
                                                           ScalarExchange* exchange = nullptr,
                                                           std::function<bool()> stop = nullptr);

}  // namespace optod::train

#pragma once
/// RunTraining with what is thrown for lack of memory as a status, for both ways to start a run.

#include <exception>
#include <new>
#include <string>

#include "base/status.h"
#include "optim/train/trainer.h"

namespace optod::worker {

/// As train::RunTraining; RESOURCE_EXHAUSTED: `out of memory: limits.memory, or the machine`.
inline absl::StatusOr<train::TrainResult> GuardedTraining(const train::TrainSpec& spec, const std::string& folder,
                                                          int attempt, const train::TrainHooks& hooks) {
  try {
    return train::RunTraining(spec, folder, attempt, hooks);
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("out of memory: limits.memory, or the machine");
  } catch (const std::exception& error) {
    return Internal("worker: ", error.what());
  }
}

}  // namespace optod::worker

#pragma once
/// The tasks of ZO-Bench (Zhang et al., 2024; MeZO, Malladi et al., 2023) as data: prompt, options, how they are scored.
/// Fields of the rows are those of the Hugging Face data sets. A new task is a row here, or templates in a job file.

#include <string>
#include <vector>

#include "optim/train/spec.h"

namespace optod::train {

/// "custom" and the names below, in order.
std::vector<std::string> TaskNames();

/// What task->name stands for; "custom" changes nothing.
void ApplyPreset(TaskSpec* task);

}  // namespace optod::train

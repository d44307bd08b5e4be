#pragma once
/// The kinds of jobs: which parser checks a job file, and what the queue must know of it. One row a kind.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace optod::jobs {

struct CheckedSpec {
  std::string kind;                ///< finetune, sample_order
  int64_t total_steps = 0;         ///< of which `step` of a progress counts
  std::vector<std::string> paths;  ///< files and folders that the worker opens
  int64_t workers = 1;             ///< processes of an attempt
  std::string share;               ///< of several workers: what they divide (optim/train/exchange.h)
};

/// Checks everything that can be checked without a model. INVALID_ARGUMENT names the field; an unknown kind lists the
/// known ones.
absl::StatusOr<CheckedSpec> CheckJobSpec(const std::string& spec_json);

}  // namespace optod::jobs

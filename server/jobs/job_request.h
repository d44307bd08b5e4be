#pragma once
/// What is checked of a request for a job before anything is queued: the job file, the fields that are the queue's own
/// (priority, after, limits), the placement, and which files and how many processes this server allows.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "optod/v1/job.pb.h"

namespace optod::jobs {

struct RequestRules {
  std::vector<std::string> file_roots;  ///< folders that jobs may name; empty = all
  int64_t max_job_workers = 8;          ///< processes of one job
};

/// Fills the parts of `job` that come from the request. INVALID_ARGUMENT: `limits.memory: "lots" is not a size like
/// 2GiB`; UNIMPLEMENTED: a placement that this release does not run; PERMISSION_DENIED: a path outside file_roots;
/// RESOURCE_EXHAUSTED: too many processes, or a job file over 1 MiB.
absl::Status CheckJobRequest(const v1::Job& request, const RequestRules& rules, v1::Job* job);

/// A letter, then letters, digits, hyphens; at most 63, lower case.
bool IsJobId(const std::string& id);

}  // namespace optod::jobs

#pragma once
/// Sample-order jobs in the worker: which model a spec means, one attempt of the job, and the process that answers
/// questions about a recorded study.

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "optim/order_job/language_model.h"
#include "optim/order_job/run.h"

namespace optod::worker {

/// True for a job file of kind sample_order.
bool IsSampleOrder(const std::string& spec_json);

/// `threads` > 0 replaces the spec's. The result as JSON (optim/order_job/run.h).
absl::StatusOr<std::string> RunSampleOrderJob(const std::string& spec_json, const std::string& folder, int threads,
                                              const order::RunHooks& hooks);

struct OrderServeOptions {
  std::string folder;  ///< of the job: spec.json, study/
  std::string socket;  ///< path of the Unix socket, in a folder that nobody else may enter
  std::string name;    ///< users/U/jobs/J
  int idle_seconds = 300;
};
/// Serves until nobody has asked anything for idle_seconds, or SIGTERM.
absl::Status ServeOrders(const OrderServeOptions& options);

}  // namespace optod::worker

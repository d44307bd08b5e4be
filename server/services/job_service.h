#pragma once
/// optod.v1.JobService for clients and optod.v1.WorkerService for the workers that the queue starts. Handlers validate,
/// call the queue on a pool that may block, and answer; streams read what the queue and the log file have and wait for
/// more by a timer.

#include <memory>

#include "base/thread_pool.h"
#include "server/auth/authenticator.h"
#include "server/jobs/job_queue.h"

namespace grpc {
class Service;
}

namespace optod::services {

struct JobParts {
  const auth::Authenticator* authenticator = nullptr;
  jobs::JobQueue* queue = nullptr;
  ThreadPool* pool = nullptr;  ///< may block
  Timers* timers = nullptr;    ///< posts to pool
};

/// Ends the open streams of WatchJob and TailLogs when asked.
class JobServiceControl {
 public:
  virtual ~JobServiceControl() = default;
  virtual grpc::Service* service() = 0;
  virtual void StopStreams() = 0;
};

std::unique_ptr<JobServiceControl> MakeJobService(const JobParts& parts);
std::unique_ptr<grpc::Service> MakeWorkerService(jobs::JobQueue& queue, ThreadPool& pool);

}  // namespace optod::services

#pragma once
/// optod.v1.OrderService for clients: checks who asks and whose study it is, then passes the question to the study's
/// own process (study_processes.h) and its answers back. The server itself computes nothing.
///
/// A pool of threads that may block does the passing: one a call under way. Streams go in lock-step: one message of the
/// client, one of the process.

#include <memory>

#include "base/thread_pool.h"
#include "server/auth/authenticator.h"
#include "server/jobs/job_queue.h"
#include "server/services/study_processes.h"

namespace grpc {
class Service;
}

namespace optod::services {

struct OrderParts {
  const auth::Authenticator* authenticator = nullptr;
  const jobs::JobQueue* queue = nullptr;
  StudyProcesses* processes = nullptr;
  Fs* fs = nullptr;
  ThreadPool* pool = nullptr;  ///< may block, for as long as a call takes
};

std::unique_ptr<grpc::Service> MakeOrderService(const OrderParts& parts);

}  // namespace optod::services

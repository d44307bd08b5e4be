#pragma once
/// optod.v1.AdminService: what runs here, users, tokens, backups, draining. Everything that may block runs on `care`, a
/// small pool of its own, so that a long backup delays no session.

#include <functional>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/fs.h"
#include "base/thread_pool.h"
#include "server/auth/authenticator.h"
#include "server/jobs/job_queue.h"
#include "server/services/server_state.h"
#include "server/store/blob_store.h"
#include "server/store/store.h"

namespace grpc {
class Service;
}

namespace optod::v1 {
class GetUsageRequest;
class GetUsageResponse;
}  // namespace optod::v1

namespace optod::services {

/// All borrowed; must outlive the service.
struct AdminParts {
  auth::Authenticator* authenticator = nullptr;
  store::Store* store = nullptr;
  store::BlobStore* blobs = nullptr;
  Fs* fs = nullptr;
  Clock* clock = nullptr;
  ThreadPool* care = nullptr;
  jobs::JobQueue* queue = nullptr;
  std::string data_dir;  ///< backups go to data_dir/backups
  /// Answers GetUsage. May block on the store.
  std::function<absl::Status(const engine::Caller&, const v1::GetUsageRequest&, v1::GetUsageResponse*)> usage;
};

std::unique_ptr<grpc::Service> MakeAdminService(AdminParts parts, ServerState state);

}  // namespace optod::services

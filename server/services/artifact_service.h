#pragma once
/// optod.v1.ArtifactService: files by content. An upload is held in memory until it is complete, then checked, stored
/// and recorded, in this order: there is no half an artifact. Transfers share one memory budget; who does not fit gets
/// RESOURCE_EXHAUSTED with a time to come back.

#include <cstdint>
#include <memory>

#include "base/clock.h"
#include "base/thread_pool.h"
#include "server/auth/authenticator.h"
#include "server/services/byte_budget.h"
#include "server/store/blob_store.h"
#include "server/store/store.h"

namespace grpc {
class Service;
}

namespace optod::services {

/// All borrowed; must outlive the service.
struct ArtifactParts {
  const auth::Authenticator* authenticator = nullptr;
  store::Store* store = nullptr;
  store::BlobStore* blobs = nullptr;
  Clock* clock = nullptr;
  ThreadPool* pool = nullptr;    ///< hashing, file and store access happen here
  ByteBudget* budget = nullptr;  ///< of all transfers under way
  int64_t max_artifact_bytes = 256 << 20;
};

std::unique_ptr<grpc::Service> MakeArtifactService(ArtifactParts parts);

}  // namespace optod::services

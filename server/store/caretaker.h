#pragma once
/// What time does to a data directory: answers that no retry asks for any more, sessions deleted a week ago, events beyond
/// the kept window and blobs that no row points to. Safe beside writers: whatever changed meanwhile is left alone until
/// the next round.

#include <cstdint>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "server/store/blob_store.h"
#include "server/store/store.h"

namespace optod::store {

struct CareOptions {
  int64_t request_ms = 25LL * 3600 * 1000;      ///< answers to retries are promised for 24 hours
  int64_t deleted_ms = 7LL * 24 * 3600 * 1000;  ///< from DeleteSession to the purge
  int64_t events_kept = 100'000;                ///< a user, newest
  int64_t blob_age_ms = 3'600'000;              ///< a younger blob may get its row yet
};

struct CareReport {
  int64_t sessions_purged = 0;
  int64_t blob_bytes_freed = 0;
};

/// One round, on the calling thread (blocks on the disk). The first error ends it; what was done stays done.
absl::StatusOr<CareReport> TakeCare(Store& store, BlobStore& blobs, Clock& clock, const CareOptions& options = {});

}  // namespace optod::store

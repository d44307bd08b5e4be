#include "server/store/caretaker.h"

#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"

namespace optod::store {
namespace {

constexpr int64_t kPage = 1000;

/// In slices of a few seconds' requests: a transaction of hours of them would hold up every writer.
absl::Status PruneOldRequests(Store& store, int64_t older_than_ms) {
  constexpr int64_t kSliceMs = 10'000;
  while (true) {
    const absl::StatusOr<int64_t> oldest = store.OldestRequestMs();
    if (absl::IsNotFound(oldest.status())) return absl::OkStatus();
    RETURN_IF_ERROR(oldest.status());
    if (*oldest >= older_than_ms) return absl::OkStatus();
    Batch batch;
    batch.mutations.push_back(PruneRequests{std::min(older_than_ms, *oldest + kSliceMs)});
    RETURN_IF_ERROR(store.CommitAndWait(std::move(batch)));
  }
}

/// Removes sessions whose delete_ms is at least `age_ms` past. A session that was restored since it was read is not
/// touched: the update in front of the purge checks its revision.
absl::StatusOr<int64_t> PurgeDeleted(Store& store, int64_t now_ms, int64_t age_ms) {
  int64_t purged = 0, before = 0;
  while (true) {
    ASSIGN_OR_RETURN(std::vector<SessionRow> page, store.ListSessions("", /*show_deleted=*/true, before, kPage));
    if (page.empty()) return purged;
    before = page.back().uid;
    for (SessionRow& row : page) {
      if (row.delete_ms == 0 || row.delete_ms > now_ms - age_ms) continue;
      const int64_t uid = row.uid;
      ++row.revision;
      Batch batch;
      batch.mutations.push_back(UpdateSession{std::move(row)});
      batch.mutations.push_back(PurgeSession{uid});
      absl::Status status = store.CommitAndWait(std::move(batch));
      if (absl::IsAborted(status) || absl::IsNotFound(status)) continue;
      RETURN_IF_ERROR(status);
      ++purged;
    }
  }
}

/// Who may have events: registered users, and the one user of a server without authentication.
absl::StatusOr<std::set<std::string>> Users(Store& store) {
  std::set<std::string> users = {"local"};
  ASSIGN_OR_RETURN(const std::vector<UserRow> rows, store.ListUsers());
  for (const UserRow& row : rows) users.insert(row.user);
  return users;
}

absl::Status PruneOldEvents(Store& store, int64_t kept) {
  ASSIGN_OR_RETURN(const std::set<std::string> users, Users(store));
  for (const std::string& user : users) {
    ASSIGN_OR_RETURN(const int64_t last, store.LastEventSequence(user));
    ASSIGN_OR_RETURN(const int64_t first, store.FirstEventSequence(user));
    if (last - first + 1 <= kept) continue;
    Batch batch;
    batch.mutations.push_back(PruneEvents{user, last - kept + 1});
    RETURN_IF_ERROR(store.CommitAndWait(std::move(batch)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CareReport> TakeCare(Store& store, BlobStore& blobs, Clock& clock, const CareOptions& options) {
  CareReport report;
  const int64_t now_ms = clock.NowUnixMs();
  RETURN_IF_ERROR(PruneOldRequests(store, now_ms - options.request_ms));
  ASSIGN_OR_RETURN(report.sessions_purged, PurgeDeleted(store, now_ms, options.deleted_ms));
  RETURN_IF_ERROR(PruneOldEvents(store, options.events_kept));
  ASSIGN_OR_RETURN(const std::vector<std::string> live, store.LiveBlobs());
  ASSIGN_OR_RETURN(report.blob_bytes_freed, blobs.Sweep(live, options.blob_age_ms, clock.NowUnixMs()));
  return report;
}

}  // namespace optod::store

#pragma once
/// Mutations as SQL on the writer's connection, inside a transaction that somebody else opens and closes. Writer thread
/// only.

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "server/store/sqlite_connection.h"
#include "server/store/store.h"

namespace optod::store {

/// The meta key that holds the first session uid not yet given out for good.
inline constexpr char kUidLimitKey[] = "store.session_uid_limit";
/// Uids reserved at a time.
inline constexpr int64_t kUidBlock = 4096;

class SqliteApplier {
 public:
  explicit SqliteApplier(Connection& connection) : db_(connection) {}

  /// Stops at the first failure; what was applied before it stays in the transaction, to be rolled back by the caller.
  /// RESOURCE_EXHAUSTED, UNAVAILABLE and DATA_LOSS say that the transaction is lost, other errors that this batch is
  /// wrong.
  absl::Status Apply(const std::vector<Mutation>& mutations);
  /// The transaction, or a part of it, was rolled back: forgets what was remembered from it.
  void RolledBack();

 private:
  absl::Status Do(const PutUser& m);
  absl::Status Do(const PutToken& m);
  absl::Status Do(const InsertSession& m);
  absl::Status Do(const UpdateSession& m);
  absl::Status Do(const PurgeSession& m);
  absl::Status Do(const InsertVersion& m);
  absl::Status Do(const UpdateVersion& m);
  absl::Status Do(const PutObservation& m);
  absl::Status Do(const DeleteObservations& m);
  absl::Status Do(const InsertRequest& m);
  absl::Status Do(const InsertNodes& m);
  absl::Status Do(const UpdateNode& m);
  absl::Status Do(const AppendEvent& m);
  absl::Status Do(const PutOperation& m);
  absl::Status Do(const PutArtifact& m);
  absl::Status Do(const DeleteArtifact& m);
  absl::Status Do(const PruneRequests& m);
  absl::Status Do(const PruneEvents& m);
  absl::Status Do(const SetMeta& m);

  /// Binds, runs, and names the failure.
  template <typename... Args>
  absl::Status Run(Query query, const char* doing, const Args&... args);

  Connection& db_;
  std::unordered_map<std::string, int64_t> last_event_;  ///< of users met since the last rollback
  int64_t uid_limit_ = -1;                               ///< -1 = not read since the last rollback
};

}  // namespace optod::store

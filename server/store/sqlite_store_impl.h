#pragma once
/// The class behind OpenSqliteStore: writer, readers and checkpointer put together. sqlite_store.cc opens, writes,
/// backs up and closes; sqlite_reads.cc reads.

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "server/store/commit_queue.h"
#include "server/store/meta_range.h"
#include "server/store/sqlite_checkpointer.h"
#include "server/store/sqlite_readers.h"
#include "server/store/sqlite_store.h"
#include "server/store/sqlite_writer.h"

namespace optod::store {

class SqliteStore final : public Store, public MetaRange {
 public:
  SqliteStore(const SqliteOptions& options, std::unique_ptr<Connection> connection, int64_t first_uid,
              double commits_per_second);
  ~SqliteStore() override;

  void Commit(Batch batch, CommitCallback done) override;
  void Barrier(CommitCallback done) override;
  int64_t NewSessionUid() override;

  absl::StatusOr<UserRow> GetUser(const std::string& user) override;
  absl::StatusOr<std::vector<UserRow>> ListUsers() override;
  absl::StatusOr<TokenRow> GetToken(const std::string& token_id) override;
  absl::StatusOr<std::vector<TokenRow>> ListTokens(const std::string& user) override;
  absl::StatusOr<SessionRow> GetSession(const std::string& user, const std::string& id) override;
  absl::StatusOr<SessionRow> GetSessionByUid(int64_t uid) override;
  absl::StatusOr<std::vector<SessionRow>> ListSessions(const std::string& user, bool show_deleted, int64_t before_uid,
                                                       int64_t limit) override;
  absl::StatusOr<VersionRow> GetVersion(int64_t session_uid, int64_t number) override;
  absl::StatusOr<std::vector<VersionRow>> ListVersions(int64_t session_uid, int64_t first, int64_t end,
                                                       int64_t limit) override;
  absl::StatusOr<VersionRow> LatestSnapshot(int64_t session_uid, int64_t number) override;
  absl::StatusOr<std::vector<ObservationRow>> ListObservations(int64_t session_uid, const std::string& kind,
                                                               int64_t first_a, int64_t end_a) override;
  absl::StatusOr<RequestRow> GetRequest(const std::string& user, const std::string& method,
                                        const std::string& request_id) override;
  absl::StatusOr<std::vector<NodeRow>> ListNodes(int64_t session_uid, int64_t first, int64_t limit) override;
  absl::StatusOr<std::vector<EventRow>> ListEvents(const std::string& user, int64_t after, int64_t limit) override;
  absl::StatusOr<int64_t> FirstEventSequence(const std::string& user) override;
  absl::StatusOr<int64_t> LastEventSequence(const std::string& user) override;
  absl::StatusOr<OperationRow> GetOperation(const std::string& user, const std::string& id) override;
  absl::StatusOr<std::vector<OperationRow>> ListOperations(const std::string& user, int64_t before_ms, int64_t limit,
                                                           const std::string& before_id) override;
  absl::StatusOr<std::vector<OperationRow>> ListUndoneOperations() override;
  absl::StatusOr<ArtifactRow> GetArtifact(const std::string& user, const std::string& sha256) override;
  absl::StatusOr<std::vector<ArtifactRow>> ListArtifacts(const std::string& user, int64_t before_ms, int64_t limit,
                                                         const std::string& before_sha256) override;
  absl::StatusOr<int64_t> OldestRequestMs() override;
  absl::StatusOr<std::string> GetMeta(const std::string& key) override;
  absl::StatusOr<MetaEntries> ListMeta(const std::string& first, const std::string& end) override;
  absl::StatusOr<std::vector<std::string>> LiveBlobs() override;

  absl::Status BackupTo(const std::string& path) override;
  double CommitsPerSecond() override { return commits_per_second_; }
  absl::Status Close() override;

 private:
  /// Makes more uids durable when half a block is left.
  void ReserveUids();

  template <typename Row, typename Decode, typename... Args>
  absl::StatusOr<std::optional<Row>> One(Query query, Decode decode, const Args&... args);
  template <typename Row, typename Decode, typename... Args>
  absl::StatusOr<std::vector<Row>> All(Query query, Decode decode, const Args&... args);

  const SqliteOptions options_;
  const double commits_per_second_;

  std::mutex uid_mutex_;  ///< guards the three below
  int64_t next_uid_;
  int64_t uid_limit_;  ///< durable: uids below are never given out again
  bool extending_ = false;

  SqliteReaders readers_;
  std::optional<SqliteWriter> writer_;
  std::optional<SqliteCheckpointer> checkpointer_;
  std::mutex close_mutex_;
  CommitQueue queue_;  ///< last: its threads use the above
};

}  // namespace optod::store

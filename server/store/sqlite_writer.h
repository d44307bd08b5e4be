#pragma once
/// Group commit: turns a group of batches into one transaction, or a few when some of them fail.
///
/// A group is first tried without savepoints, which cost a copy of every page that a batch touches. When batch k turns
/// out to be wrong, the transaction is rolled back, batches 0..k-1 are applied again and committed, k fails, and the
/// rest of the group goes on with a savepoint a batch. So a failure costs one more commit and undoes nobody else, and
/// callbacks keep the order of Commit.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>

#include "absl/status/status.h"
#include "server/store/commit_queue.h"
#include "server/store/sqlite_applier.h"
#include "server/store/sqlite_connection.h"

namespace optod::store {

/// Process is for the writer thread; Poison and poison() are thread-safe.
class SqliteWriter {
 public:
  struct Hooks {
    std::function<void(std::span<PendingBatch>, const absl::Status&)> complete;  ///< CommitQueue::Complete
    std::function<void()> start_checkpoint, wait_for_checkpoint;                 ///< of SqliteCheckpointer
    std::atomic<int64_t>* commits = nullptr;                                     ///< counts transactions when set
  };
  SqliteWriter(std::unique_ptr<Connection> connection, Hooks hooks, int64_t checkpoint_bytes, int64_t wal_limit_bytes);

  void Process(std::span<PendingBatch> group);

  /// From now on every write fails with DATA_LOSS. The first reason stays.
  void Poison(const absl::Status& reason);
  absl::Status poison();
  /// Before the connection is closed, when the writer thread is gone.
  void PrepareToClose();
  Connection& connection() { return *connection_; }

 private:
  /// One transaction from the front of `group`; how many batches it dealt with. `isolate`: a savepoint a batch; set
  /// after a failure.
  size_t ProcessSome(std::span<PendingBatch> group, bool* isolate);
  void FailTransaction(std::span<PendingBatch> batches, const absl::Status& lost);
  absl::Status ApplyIsolated(const Batch& batch);
  absl::Status Begin();
  absl::Status Commit();
  void Rollback();
  /// Applies the batches again in a new transaction and commits them: they are known to be right.
  absl::Status Redo(std::span<PendingBatch> batches);
  void CareForWal();

  std::unique_ptr<Connection> connection_;
  SqliteApplier applier_;
  const Hooks hooks_;
  const int64_t checkpoint_pages_, wal_limit_pages_;
  int64_t checkpointed_pages_ = 0;  ///< size of the WAL when a checkpoint was last asked for
  int wal_pages_ = 0;               ///< size of the WAL after the last commit, told by SQLite
  bool in_transaction_ = false;
  std::atomic<bool> poisoned_{false};
  std::mutex poison_mutex_;
  absl::Status poison_;
};

}  // namespace optod::store

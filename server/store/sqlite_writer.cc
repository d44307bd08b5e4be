#include "server/store/sqlite_writer.h"

#include <sqlite3.h>

#include <algorithm>
#include <cstddef>
#include <utility>

#include "base/status.h"

namespace optod::store {
namespace {

constexpr int64_t kPageBytes = 4096;

/// Whether the error is about the transaction and the file, not about what the batch says.
bool TransactionIsLost(const absl::Status& status) {
  return absl::IsDataLoss(status) || absl::IsResourceExhausted(status) || absl::IsUnavailable(status);
}

}  // namespace

SqliteWriter::SqliteWriter(std::unique_ptr<Connection> connection, Hooks hooks, int64_t checkpoint_bytes,
                           int64_t wal_limit_bytes)
    : connection_(std::move(connection)),
      applier_(*connection_),
      hooks_(std::move(hooks)),
      checkpoint_pages_(std::max<int64_t>(1, checkpoint_bytes / kPageBytes)),
      wal_limit_pages_(std::max<int64_t>(1, wal_limit_bytes / kPageBytes)) {
  sqlite3_wal_hook(
      connection_->handle(),
      [](void* self, sqlite3*, const char*, int pages) {
        static_cast<SqliteWriter*>(self)->wal_pages_ = pages;
        return SQLITE_OK;
      },
      this);
}

void SqliteWriter::Poison(const absl::Status& reason) {
  std::lock_guard lock(poison_mutex_);
  if (!poison_.ok()) return;
  poison_ = DataLoss("store: writing stopped after an I/O error, restart the server when the disk is well: ",
                     std::string(reason.message()));
  poisoned_ = true;
}

void SqliteWriter::PrepareToClose() {
  // Closing must not try the failed fsync again and call the result durable.
  if (poisoned_) sqlite3_db_config(connection_->handle(), SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, nullptr);
}

absl::Status SqliteWriter::poison() {
  std::lock_guard lock(poison_mutex_);
  return poison_;
}

void SqliteWriter::Process(std::span<PendingBatch> group) {
  bool isolate = false;
  while (!group.empty()) {
    if (poisoned_) return hooks_.complete(group, poison());
    group = group.subspan(ProcessSome(group, &isolate));
  }
  CareForWal();
}

size_t SqliteWriter::ProcessSome(std::span<PendingBatch> group, bool* isolate) {
  size_t done = 0;       // batches that are in the transaction
  absl::Status refused;  // why batch `done` is not among them
  absl::Status lost;     // why the transaction failed
  for (; done < group.size() && refused.ok() && lost.ok(); ++done) {
    const Batch& batch = group[done].batch;
    if (batch.gate) refused = batch.gate();
    if (!refused.ok()) break;
    if (batch.mutations.empty()) continue;  // a barrier
    lost = Begin();
    if (!lost.ok()) break;
    absl::Status status = *isolate ? ApplyIsolated(batch) : applier_.Apply(batch.mutations);
    if (status.ok()) continue;
    if (TransactionIsLost(status)) {
      lost = status;
    } else {
      refused = status;
      if (!*isolate) {
        *isolate = true;
        Rollback();
        lost = Redo(group.first(done));
      }
    }
    break;
  }
  if (lost.ok()) lost = Commit();
  if (!lost.ok()) {
    Rollback();
    if (absl::IsDataLoss(lost)) Poison(lost);
    if (refused.ok() && done < group.size()) ++done;  // the batch at which it was lost
    FailTransaction(group.first(done), absl::IsDataLoss(lost) ? poison() : lost);
  } else {
    hooks_.complete(group.first(done), absl::OkStatus());
  }
  if (refused.ok()) return done;
  hooks_.complete(group.subspan(done, 1), refused);
  return done + 1;
}

void SqliteWriter::FailTransaction(std::span<PendingBatch> batches, const absl::Status& lost) {
  for (size_t i = 0; i < batches.size(); ++i) {
    // A barrier asks that what was before it has ended, well or not.
    const bool barrier = batches[i].batch.mutations.empty() && !absl::IsDataLoss(lost);
    hooks_.complete(batches.subspan(i, 1), barrier ? absl::OkStatus() : lost);
  }
}

absl::Status SqliteWriter::ApplyIsolated(const Batch& batch) {
  if (const int code = Cursor(connection_->Prepared(Query::kSavepoint)).Run(); code != SQLITE_DONE)
    return SqliteStatus(code, "savepoint");
  const absl::Status status = applier_.Apply(batch.mutations);
  if (TransactionIsLost(status)) return status;
  if (!status.ok()) {
    if (const int code = Cursor(connection_->Prepared(Query::kRollbackTo)).Run(); code != SQLITE_DONE)
      return SqliteStatus(code, "rollback");
    applier_.RolledBack();
  }
  if (const int code = Cursor(connection_->Prepared(Query::kRelease)).Run(); code != SQLITE_DONE)
    return SqliteStatus(code, "release");
  return status;
}

absl::Status SqliteWriter::Begin() {
  if (in_transaction_) return absl::OkStatus();
  const int code = Cursor(connection_->Prepared(Query::kBegin)).Run();
  in_transaction_ = code == SQLITE_DONE;
  return in_transaction_ ? absl::OkStatus() : SqliteStatus(code, "begin");
}

absl::Status SqliteWriter::Commit() {
  if (!in_transaction_) return absl::OkStatus();
  const int code = Cursor(connection_->Prepared(Query::kCommit)).Run();
  if (code != SQLITE_DONE) return SqliteStatus(code, "commit");
  in_transaction_ = false;
  if (hooks_.commits != nullptr) hooks_.commits->fetch_add(1, std::memory_order_relaxed);
  return absl::OkStatus();
}

void SqliteWriter::Rollback() {
  // Some errors have rolled back already; then there is nothing to do and the transaction is closed either way.
  if (sqlite3_get_autocommit(connection_->handle()) == 0)
    sqlite3_exec(connection_->handle(), "ROLLBACK", nullptr, nullptr, nullptr);
  in_transaction_ = false;
  applier_.RolledBack();
}

absl::Status SqliteWriter::Redo(std::span<PendingBatch> batches) {
  for (const PendingBatch& pending : batches) {
    if (pending.batch.mutations.empty()) continue;
    RETURN_IF_ERROR(Begin());
    absl::Status status = applier_.Apply(pending.batch.mutations);
    if (!status.ok())
      return TransactionIsLost(status)
                 ? status
                 : Internal("store: a batch failed when repeated: ", std::string(status.message()));
  }
  return absl::OkStatus();
}

void SqliteWriter::CareForWal() {
  if (wal_pages_ < checkpointed_pages_) checkpointed_pages_ = 0;  // it started anew
  if (wal_pages_ >= wal_limit_pages_ && wal_pages_ - checkpointed_pages_ >= checkpoint_pages_) {
    // The passive checkpoints have done most of it; what is left is short. Readers in the old WAL make this fail: next
    // time then.
    hooks_.wait_for_checkpoint();
    sqlite3_busy_timeout(connection_->handle(), 50);
    const int code =
        sqlite3_wal_checkpoint_v2(connection_->handle(), nullptr, SQLITE_CHECKPOINT_RESTART, nullptr, nullptr);
    sqlite3_busy_timeout(connection_->handle(), 5000);
    if (IsFatal(code)) Poison(SqliteStatus(code, "checkpoint"));
    checkpointed_pages_ = code == SQLITE_OK ? 0 : wal_pages_;
    if (code == SQLITE_OK) wal_pages_ = 0;
  } else if (wal_pages_ - checkpointed_pages_ >= checkpoint_pages_) {
    checkpointed_pages_ = wal_pages_;
    hooks_.start_checkpoint();
  }
}

}  // namespace optod::store

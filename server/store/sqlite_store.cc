#include "server/store/sqlite_store.h"

#include <sqlite3.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "base/clock.h"
#include "base/status.h"
#include "server/store/sqlite_backup.h"
#include "server/store/sqlite_schema.h"
#include "server/store/sqlite_store_impl.h"

namespace optod::store {
namespace {

Connection::Options WriterOptions(const SqliteOptions& options) {
  return {.path = options.path,
          .vfs = options.vfs,
          .create = true,
          .full_sync = options.synchronous == SqliteOptions::kFull,
          .cache_bytes = options.cache_bytes,
          .mmap_bytes = options.mmap_bytes};
}

Connection::Options ReaderOptions(const SqliteOptions& options) {
  Connection::Options reader = WriterOptions(options);
  reader.create = false;
  reader.read_only = true;
  reader.cache_bytes = options.cache_bytes / 16;
  return reader;
}

Connection::Options CheckpointerOptions(const SqliteOptions& options) {
  Connection::Options checkpointer = WriterOptions(options);
  checkpointer.create = false;
  checkpointer.cache_bytes = 1 << 20;
  return checkpointer;
}

/// Reserves the next block of uids, over and over while the time lasts: every round is a real commit of this disk. At
/// least one round.
absl::StatusOr<double> ReserveFirstUids(Connection& db, int64_t first_uid, int64_t measure_ms) {
  constexpr int kMaxRounds = 20;
  const std::string sql = Cat("INSERT OR REPLACE INTO meta(key, value) VALUES('", kUidLimitKey, "', CAST('",
                              first_uid + kUidBlock, "' AS BLOB))");
  Clock& clock = SystemClock();
  const int64_t start = clock.NowMonotonicNs();
  int64_t elapsed = 0;
  int rounds = 0;
  do {
    RETURN_IF_ERROR(db.Exec(sql));
    ++rounds;
    elapsed = clock.NowMonotonicNs() - start;
  } while (rounds < kMaxRounds && elapsed < measure_ms * 1'000'000);
  return rounds * 1e9 / static_cast<double>(std::max<int64_t>(1, elapsed));
}

Batch ReserveBatch(int64_t limit) {
  Batch batch;
  batch.mutations.push_back(SetMeta{kUidLimitKey, std::to_string(limit)});
  return batch;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Store>> OpenSqliteStore(const SqliteOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<Connection> db, Connection::Open(WriterOptions(options)));
  RETURN_IF_ERROR(Migrate(*db));
  ASSIGN_OR_RETURN(
      const int64_t first_uid,
      db->QueryInt(Cat("SELECT max(ifnull((SELECT CAST(CAST(value AS TEXT) AS INTEGER) FROM meta WHERE key='",
                       kUidLimitKey, "'), 1), ifnull((SELECT max(uid) + 1 FROM sessions), 1))")));
  ASSIGN_OR_RETURN(const double commits_per_second, ReserveFirstUids(*db, first_uid, options.measure_ms));
  return std::make_unique<SqliteStore>(options, std::move(db), first_uid,
                                       options.measure_ms > 0 ? commits_per_second : 0);
}

SqliteStore::SqliteStore(const SqliteOptions& options, std::unique_ptr<Connection> connection, int64_t first_uid,
                         double commits_per_second)
    : options_(options),
      commits_per_second_(commits_per_second),
      next_uid_(first_uid),
      uid_limit_(first_uid + kUidBlock),
      readers_(ReaderOptions(options), options.reader_count),
      queue_(static_cast<size_t>(std::max(1, options.max_group)),
             [this](std::span<PendingBatch> group) { writer_->Process(group); }) {
  writer_.emplace(std::move(connection),
                  SqliteWriter::Hooks{[this](std::span<PendingBatch> batches, const absl::Status& status) {
                                        queue_.Complete(batches, status);
                                      },
                                      [this] { checkpointer_->Start(); }, [this] { checkpointer_->WaitUntilIdle(); }, options.commits},
                  options.checkpoint_bytes, options.wal_limit_bytes);
  checkpointer_.emplace(CheckpointerOptions(options), [this](absl::Status status) { writer_->Poison(status); });
}

SqliteStore::~SqliteStore() { Close().IgnoreError(); }

void SqliteStore::Commit(Batch batch, CommitCallback done) { queue_.Submit(std::move(batch), std::move(done)); }

void SqliteStore::Barrier(CommitCallback done) { queue_.Submit({}, std::move(done)); }

int64_t SqliteStore::NewSessionUid() {
  int64_t uid = 0;
  {
    std::lock_guard lock(uid_mutex_);
    uid = next_uid_++;
  }
  ReserveUids();
  return uid;
}

void SqliteStore::ReserveUids() {
  int64_t limit = 0;
  {
    std::lock_guard lock(uid_mutex_);
    if (extending_ || uid_limit_ - next_uid_ >= kUidBlock / 2) return;
    extending_ = true;
    limit = next_uid_ + kUidBlock;
  }
  Commit(ReserveBatch(limit), [this, limit](absl::Status status) {
    {
      std::lock_guard lock(uid_mutex_);
      extending_ = false;
      if (!status.ok()) return;  // the next call tries again; InsertSession reserves for itself meanwhile
      uid_limit_ = limit;
    }
    ReserveUids();  // callers may have run ahead of the commit
  });
}

absl::Status SqliteStore::BackupTo(const std::string& path) { return BackupDatabase(ReaderOptions(options_), path); }

absl::Status SqliteStore::Close() {
  std::lock_guard lock(close_mutex_);
  int64_t beyond = 0;  // uids given out faster than reserved
  {
    std::lock_guard uid_lock(uid_mutex_);
    if (next_uid_ > uid_limit_) beyond = next_uid_;
  }
  if (beyond > 0) Commit(ReserveBatch(beyond), nullptr);
  queue_.Close();
  checkpointer_.reset();
  readers_.Close();
  if (!writer_.has_value()) return absl::OkStatus();
  const absl::Status status = writer_->poison();
  writer_->PrepareToClose();
  writer_.reset();  // the last connection: SQLite checkpoints and removes the WAL
  return status;
}

}  // namespace optod::store

#pragma once
/// The store of a real server: one SQLite file in WAL mode.
///
///   Commit ──► queue ──► writer thread: BEGIN IMMEDIATE, batches, COMMIT (one fsync a group) ──► completion thread:
///   callbacks Get/List ──► pool of read-only connections, each call one short statement checkpointer thread: WAL ──►
///   database file, beside the writer
///
/// Errors at commit: disk full fails that group with RESOURCE_EXHAUSTED and the store goes on; an I/O error fails it
/// with DATA_LOSS and so does everything written later. Thread-safe. Nobody else may have the file open for writing
/// (directory_lock.h).

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/store/store.h"

namespace optod::store {

struct SqliteOptions {
  enum Synchronous {
    kFull,    ///< fsync at every commit: what is acknowledged survives a power cut
    kNormal,  ///< fsync at checkpoints: it survives a crash of the process, not always one of the machine
  };
  std::string path;  ///< created when absent; its directory must exist
  Synchronous synchronous = kFull;
  int reader_count = 4;                ///< connections for reads, opened when first needed
  int max_group = 512;                 ///< batches in one transaction at most
  int64_t cache_bytes = 64 << 20;      ///< page cache of the writer; a sixteenth of it for each reader
  int64_t mmap_bytes = 256 << 20;      ///< how much of the file is read through a mapping
  int64_t checkpoint_bytes = 4 << 20;  ///< growth of the WAL that starts a checkpoint beside the writer
  int64_t wal_limit_bytes =
      64 << 20;             ///< size of the WAL at which the writer itself finishes one, so that the file starts anew
  int64_t measure_ms = 20;  ///< time spent at open to measure commits per second; 0 = not measured
  std::atomic<int64_t>* commits = nullptr;       ///< counts transactions when set; must outlive the store
  std::string vfs;          ///< name of a registered VFS; "" = the system's (fault tests use another)
};

/// Opens or creates, migrates to this program's schema. FAILED_PRECONDITION: not a database of ours, or of a newer
/// schema. DATA_LOSS: damaged.
absl::StatusOr<std::unique_ptr<Store>> OpenSqliteStore(const SqliteOptions& options);

}  // namespace optod::store

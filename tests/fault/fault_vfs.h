#pragma once
// An SQLite VFS over the system's one that fails or loses power when told to.
//
//   SQLite ──► FaultVfs ──► "unix" VFS (no real fsync: the crash is simulated)
//                 │
//                 └── per file: what is durable, and the writes since the last sync
//
// At the crash each file is what was durable plus a random subset, in 512-byte sectors, of the writes since; every
// later call fails. The images are then written to another folder, where a store can be opened on them. Deleting a file
// is durable at once. Thread-safe.

#include <sqlite3.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace optod::store {

class FaultVfs {
 public:
  explicit FaultVfs(const std::string& name);
  ~FaultVfs();  // all files must be closed
  const char* name() const { return name_.c_str(); }

  /// Writes, truncations and syncs of database, journal and WAL since construction or the last Disarm.
  int64_t calls();
  /// The n-th call from now on (1 = the next) fails: a write or truncation with `write_code`, a sync with `sync_code`.
  /// Once.
  void FailAt(int64_t n, int write_code, int sync_code);
  /// While true, every write that would make a file longer fails with SQLITE_FULL.
  void SetFull(bool full);
  /// The power goes at the n-th call from now on.
  void CrashAt(int64_t n, uint64_t seed);
  /// No more faults; counts from zero.
  void Disarm();
  bool crashed();
  /// After the crash: the files as they are found at the next start.
  void WriteImages(const std::string& folder);

  // -- for the VFS's functions
  struct Change {
    int64_t offset = 0;
    std::string data;
    bool truncate = false;  ///< to `offset`
  };
  struct FileState {
    std::string durable;
    std::vector<Change> pending;
    int64_t size = 0;  ///< as the program sees it
  };
  std::shared_ptr<FileState> StateOf(const std::string& path);
  void Forget(const std::string& path);
  /// SQLITE_OK, or what the call must return.
  int OnChange(FileState& file, Change change);
  int OnSync(FileState& file);
  int OnRead();
  sqlite3_vfs* real() const { return real_; }

 private:
  int Count(int code);
  void Crash();

  const std::string name_;
  sqlite3_vfs* const real_;
  sqlite3_vfs vfs_{};
  std::mutex mutex_;  ///< guards the rest
  std::map<std::string, std::shared_ptr<FileState>> files_;
  std::map<std::string, std::string> images_;
  int64_t calls_ = 0, fail_at_ = 0, crash_at_ = 0;
  int write_code_ = SQLITE_OK, sync_code_ = SQLITE_OK;
  uint64_t seed_ = 0;
  bool full_ = false, crashed_ = false;
};

}  // namespace optod::store

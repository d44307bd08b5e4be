#pragma once
/// Moves the WAL into the database file on a thread and connection of its own, beside the writer (PASSIVE: it never
/// makes anybody wait).

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "server/store/sqlite_connection.h"

namespace optod::store {

/// Thread-safe.
class SqliteCheckpointer {
 public:
  /// `failed` hears of errors after which nothing more may be written (an fsync of the database file).
  SqliteCheckpointer(Connection::Options options, std::function<void(absl::Status)> failed);
  ~SqliteCheckpointer();  ///< finishes the running checkpoint

  /// Asks for a checkpoint; one that is asked for while another runs follows it.
  void Start();
  /// Returns when none runs or is asked for: two checkpoints at a time refuse each other.
  void WaitUntilIdle();

 private:
  void Loop();

  const Connection::Options options_;
  const std::function<void(absl::Status)> failed_;
  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  bool asked_ = false, running_ = false, stop_ = false;
  std::thread thread_;
};

}  // namespace optod::store

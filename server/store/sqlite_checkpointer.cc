#include "server/store/sqlite_checkpointer.h"

#include <sqlite3.h>

#include <utility>

namespace optod::store {

SqliteCheckpointer::SqliteCheckpointer(Connection::Options options, std::function<void(absl::Status)> failed)
    : options_(std::move(options)), failed_(std::move(failed)), thread_([this] { Loop(); }) {}

SqliteCheckpointer::~SqliteCheckpointer() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void SqliteCheckpointer::Start() {
  {
    std::lock_guard lock(mutex_);
    asked_ = true;
  }
  wake_.notify_one();
}

void SqliteCheckpointer::WaitUntilIdle() {
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [this] { return !asked_ && !running_; });
}

void SqliteCheckpointer::Loop() {
  std::unique_ptr<Connection> connection;
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return asked_ || stop_; });
    if (stop_) return;
    asked_ = false;
    running_ = true;
    lock.unlock();
    if (connection == nullptr) {
      auto opened = Connection::Open(options_);
      if (opened.ok())
        connection = *std::move(opened);  // otherwise the next call tries again; the WAL only grows meanwhile
    }
    if (connection != nullptr) {
      const int code =
          sqlite3_wal_checkpoint_v2(connection->handle(), nullptr, SQLITE_CHECKPOINT_PASSIVE, nullptr, nullptr);
      // A full disk or a busy lock loses nothing: the WAL still holds everything, and the next call tries again.
      if (IsFatal(code)) failed_(SqliteStatus(code, "checkpoint"));
    }
    lock.lock();
    running_ = false;
    idle_.notify_all();
  }
}

}  // namespace optod::store

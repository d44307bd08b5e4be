#include "server/store/sqlite_readers.h"

#include <utility>

namespace optod::store {

absl::StatusOr<SqliteReaders::Lease> SqliteReaders::Get() {
  std::unique_lock lock(mutex_);
  returned_.wait(lock, [this] { return closed_ || !idle_.empty() || leased_ < count_; });
  if (closed_) return absl::UnavailableError("the store is closed");
  ++leased_;
  if (!idle_.empty()) {
    std::unique_ptr<Connection> connection = std::move(idle_.back());
    idle_.pop_back();
    return Lease(this, std::move(connection));
  }
  lock.unlock();
  auto opened = Connection::Open(options_);
  if (opened.ok()) return Lease(this, *std::move(opened));
  lock.lock();
  --leased_;
  returned_.notify_all();
  return opened.status();
}

void SqliteReaders::Return(std::unique_ptr<Connection> connection) {
  {
    std::lock_guard lock(mutex_);
    --leased_;
    idle_.push_back(std::move(connection));
  }
  returned_.notify_all();
}

void SqliteReaders::Close() {
  std::unique_lock lock(mutex_);
  closed_ = true;
  returned_.notify_all();
  returned_.wait(lock, [this] { return leased_ == 0; });
  idle_.clear();
}

}  // namespace optod::store

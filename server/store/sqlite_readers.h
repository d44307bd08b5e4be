#pragma once
/// A pool of read-only connections. Thread-safe. Each lease is for one short statement: a reader that lingers keeps the
/// WAL from starting anew.

#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/statusor.h"
#include "server/store/sqlite_connection.h"

namespace optod::store {

class SqliteReaders {
 public:
  class Lease {
   public:
    Lease(SqliteReaders* pool, std::unique_ptr<Connection> connection)
        : pool_(pool), connection_(std::move(connection)) {}
    Lease(Lease&& other) = default;
    ~Lease() {
      if (connection_ != nullptr) pool_->Return(std::move(connection_));
    }
    Connection* operator->() { return connection_.get(); }

   private:
    SqliteReaders* pool_;
    std::unique_ptr<Connection> connection_;
  };

  SqliteReaders(Connection::Options options, int count) : options_(std::move(options)), count_(count < 1 ? 1 : count) {}

  /// Waits when all connections are in use. UNAVAILABLE after Close.
  absl::StatusOr<Lease> Get();
  /// Waits for leases to come back.
  void Close();

 private:
  void Return(std::unique_ptr<Connection> connection);

  const Connection::Options options_;
  const int count_;
  std::mutex mutex_;
  std::condition_variable returned_;
  std::vector<std::unique_ptr<Connection>> idle_;
  int leased_ = 0;
  bool closed_ = false;
};

}  // namespace optod::store

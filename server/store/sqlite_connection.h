#pragma once
/// A thin, owning wrapper over one SQLite connection and its prepared statements. Not thread-safe: one thread at a
/// time.

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/store/sqlite_queries.h"

struct sqlite3;
struct sqlite3_stmt;

namespace optod::store {

/// Status for an (extended) SQLite result code: FULL and NOMEM are RESOURCE_EXHAUSTED, BUSY is UNAVAILABLE, IOERR,
/// CORRUPT and NOTADB are DATA_LOSS, constraints are ALREADY_EXISTS or, for foreign keys, NOT_FOUND.
absl::Status SqliteStatus(int code, std::string_view doing);
/// Whether, after this code, nothing more may be written: the file may not hold what SQLite thinks it holds.
bool IsFatal(int code);

/// Bytes to bind as BLOB (std::string binds as TEXT).
struct Bytes {
  std::string_view value;
};
/// TEXT, or NULL when empty.
struct TextOrNull {
  std::string_view value;
};

/// One execution of a prepared statement; resets it at the end of its life. What is bound must live as long.
class Cursor {
 public:
  explicit Cursor(sqlite3_stmt* statement) : statement_(statement) {}
  ~Cursor();
  Cursor(const Cursor&) = delete;
  Cursor& operator=(const Cursor&) = delete;

  /// Binds to parameters 1, 2, ...
  template <typename... Args>
  Cursor& Bind(const Args&... args) {
    (BindOne(args), ...);
    return *this;
  }
  /// True when it stands on a row. After false, code() says whether it ended (SQLITE_DONE) or failed.
  bool Next();
  /// Runs a statement that returns no rows; the result code (SQLITE_DONE when all is well).
  int Run();
  int code() const { return code_; }
  /// OK when the statement ended well.
  absl::Status status() const;

  int64_t Int(int column) const;
  std::string Text(int column) const;  ///< also of BLOB; "" for NULL

 private:
  void BindOne(int64_t value);
  void BindOne(int value) { BindOne(static_cast<int64_t>(value)); }
  void BindOne(bool value) { BindOne(static_cast<int64_t>(value)); }
  void BindOne(std::string_view text);
  void BindOne(const std::string& text) { BindOne(std::string_view(text)); }
  void BindOne(Bytes bytes);
  void BindOne(TextOrNull text);

  sqlite3_stmt* statement_;
  int parameter_ = 0;
  int code_ = 0;
};

class Connection {
 public:
  struct Options {
    std::string path, vfs;
    bool read_only = false;
    bool create = false;
    bool full_sync = true;
    int64_t cache_bytes = 0, mmap_bytes = 0;
  };
  static absl::StatusOr<std::unique_ptr<Connection>> Open(const Options& options);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  /// The statement of `query`, prepared at its first use.
  sqlite3_stmt* Prepared(Query query);
  /// Several statements without parameters.
  absl::Status Exec(const std::string& sql);
  absl::StatusOr<int64_t> QueryInt(const std::string& sql);
  absl::StatusOr<std::string> QueryText(const std::string& sql);
  int64_t Changes() const;
  sqlite3* handle() const { return db_; }

 private:
  explicit Connection(sqlite3* db) : db_(db) {}
  sqlite3* db_;
  std::array<sqlite3_stmt*, static_cast<size_t>(Query::kCount)> statements_{};
};

}  // namespace optod::store

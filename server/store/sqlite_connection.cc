#include "server/store/sqlite_connection.h"

#include <sqlite3.h>

#include "base/status.h"

namespace optod::store {

absl::Status SqliteStatus(int code, std::string_view doing) {
  const std::string text = Cat("store: ", doing, ": ", sqlite3_errstr(code), " (SQLite code ", code, ")");
  switch (code & 0xff) {
    case SQLITE_OK:
    case SQLITE_ROW:
    case SQLITE_DONE:
      return absl::OkStatus();
    case SQLITE_FULL:
      return ResourceExhausted("store: ", doing, ": the disk is full; nothing of it was kept");
    case SQLITE_NOMEM:
      return ResourceExhausted(text);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return Unavailable(text);
    case SQLITE_IOERR:
    case SQLITE_CORRUPT:
      return DataLoss(text);
    case SQLITE_NOTADB:
      return DataLoss(
          "the database file is not an SQLite database, or its first page is damaged; restore a backup or choose "
          "another data "
          "directory");
    case SQLITE_TOOBIG:
      return InvalidArgument(text);
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
      return FailedPrecondition(text);
    case SQLITE_CONSTRAINT:
      if (code == SQLITE_CONSTRAINT_FOREIGNKEY) return NotFound("store: ", doing, ": the session does not exist");
      if (code == SQLITE_CONSTRAINT_PRIMARYKEY || code == SQLITE_CONSTRAINT_UNIQUE) return AlreadyExists(text);
      return InvalidArgument(text);
    default:
      return Internal(text);
  }
}

bool IsFatal(int code) {
  const int primary = code & 0xff;
  return primary == SQLITE_IOERR || primary == SQLITE_CORRUPT || primary == SQLITE_NOTADB;
}

// ---- Cursor

Cursor::~Cursor() { sqlite3_reset(statement_); }

void Cursor::BindOne(int64_t value) { sqlite3_bind_int64(statement_, ++parameter_, value); }

void Cursor::BindOne(std::string_view text) {
  const char* data = text.data() != nullptr ? text.data() : "";  // a null pointer would bind NULL
  sqlite3_bind_text64(statement_, ++parameter_, data, text.size(), SQLITE_STATIC, SQLITE_UTF8);
}

void Cursor::BindOne(Bytes bytes) {
  const char* data = bytes.value.data() != nullptr ? bytes.value.data() : "";
  sqlite3_bind_blob64(statement_, ++parameter_, data, bytes.value.size(), SQLITE_STATIC);
}

void Cursor::BindOne(TextOrNull text) {
  if (text.value.empty()) {
    sqlite3_bind_null(statement_, ++parameter_);
  } else {
    BindOne(text.value);
  }
}

bool Cursor::Next() {
  code_ = sqlite3_step(statement_);
  return code_ == SQLITE_ROW;
}

int Cursor::Run() {
  code_ = sqlite3_step(statement_);
  return code_;
}

absl::Status Cursor::status() const { return SqliteStatus(code_, "reading"); }

int64_t Cursor::Int(int column) const { return sqlite3_column_int64(statement_, column); }

std::string Cursor::Text(int column) const {
  const void* data = sqlite3_column_blob(statement_, column);
  const int size = sqlite3_column_bytes(statement_, column);
  return data == nullptr ? std::string() : std::string(static_cast<const char*>(data), static_cast<size_t>(size));
}

// ---- Connection

absl::StatusOr<std::unique_ptr<Connection>> Connection::Open(const Options& options) {
  sqlite3* db = nullptr;
  const int flags =
      SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE | SQLITE_OPEN_READWRITE | (options.create ? SQLITE_OPEN_CREATE : 0);
  const int code =
      sqlite3_open_v2(options.path.c_str(), &db, flags, options.vfs.empty() ? nullptr : options.vfs.c_str());
  std::unique_ptr<Connection> connection(new Connection(db));
  if (code != SQLITE_OK) return SqliteStatus(code, "opening the database");
  // busy_timeout matters when a foreign process holds the file and at recovery. Everything else here is per connection.
  RETURN_IF_ERROR(connection->Exec(
      Cat("PRAGMA busy_timeout=5000; PRAGMA temp_store=MEMORY; PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON; "
          "PRAGMA foreign_keys=ON;",
          "PRAGMA cache_size=", -(options.cache_bytes / 1024), "; PRAGMA mmap_size=", options.mmap_bytes,
          "; PRAGMA synchronous=", options.full_sync ? "FULL" : "NORMAL", ";",
          options.read_only ? "PRAGMA query_only=1;" : "")));
  return connection;
}

Connection::~Connection() {
  for (sqlite3_stmt* statement : statements_) sqlite3_finalize(statement);
  sqlite3_close_v2(db_);
}

sqlite3_stmt* Connection::Prepared(Query query) {
  sqlite3_stmt*& statement = statements_[static_cast<size_t>(query)];
  if (statement == nullptr) sqlite3_prepare_v3(db_, SqlOf(query), -1, SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
  return statement;  // null after a failed prepare: every call on it then returns SQLITE_MISUSE, which is reported as
                     // INTERNAL
}

absl::Status Connection::Exec(const std::string& sql) {
  const int code = sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr);
  return code == SQLITE_OK ? absl::OkStatus() : SqliteStatus(code, "preparing the database");
}

absl::StatusOr<int64_t> Connection::QueryInt(const std::string& sql) {
  ASSIGN_OR_RETURN(const std::string text, QueryText(sql));
  return std::strtoll(text.c_str(), nullptr, 10);
}

absl::StatusOr<std::string> Connection::QueryText(const std::string& sql) {
  sqlite3_stmt* statement = nullptr;
  int code = sqlite3_prepare_v2(db_, sql.c_str(), -1, &statement, nullptr);
  std::string text;
  if (code == SQLITE_OK) {
    Cursor cursor(statement);
    if (cursor.Next()) text = cursor.Text(0);
    code = cursor.code();
  }
  sqlite3_finalize(statement);
  if (absl::Status status = SqliteStatus(code, "reading the database"); !status.ok()) return status;
  return text;
}

int64_t Connection::Changes() const { return sqlite3_changes64(db_); }

}  // namespace optod::store

#include "server/store/sqlite_schema.h"

#include <cstdint>
#include <iterator>

#include "base/status.h"

namespace optod::store {
namespace {

constexpr int64_t kApplicationId =
    0x6f70746f;  // "opto"; shown by file(1), keeps us from writing into another program's database

// Rules for migrations: append only, never edit one that has been released. Number n is entry n - 1.
constexpr const char* kMigrations[] = {
    // 1: the first schema.
    // - What a step rewrites (the session row) holds no large column: the immutable spec has its own table.
    // - Rows that are found by a composite key and are small live in the key's own b-tree (WITHOUT ROWID).
    // - Requests are appended in commit order and found by a 64-bit hash of their key, so that random ids touch only a
    // small index.
    R"sql(
CREATE TABLE meta(key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE users(user TEXT PRIMARY KEY, role INTEGER NOT NULL, deleted INTEGER NOT NULL, create_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE tokens(token_id TEXT PRIMARY KEY, user TEXT NOT NULL, label TEXT NOT NULL, secret_sha256 BLOB NOT NULL, create_ms INTEGER NOT NULL,
  expire_ms INTEGER NOT NULL, revoked INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX tokens_by_user ON tokens(user);

CREATE TABLE sessions(uid INTEGER PRIMARY KEY, user TEXT NOT NULL, id TEXT NOT NULL, state INTEGER NOT NULL, etag INTEGER NOT NULL,
  revision INTEGER NOT NULL, head_version INTEGER NOT NULL, version_count INTEGER NOT NULL, seq INTEGER NOT NULL, create_ms INTEGER NOT NULL,
  update_ms INTEGER NOT NULL, delete_ms INTEGER NOT NULL, mutable_fields BLOB NOT NULL, UNIQUE(user, id)) STRICT;
CREATE INDEX sessions_by_user ON sessions(user, uid);
CREATE TABLE session_specs(uid INTEGER PRIMARY KEY REFERENCES sessions(uid), spec BLOB NOT NULL) STRICT;
CREATE TABLE versions(session_uid INTEGER NOT NULL REFERENCES sessions(uid), number INTEGER NOT NULL, parent INTEGER NOT NULL,
  step INTEGER NOT NULL, create_ms INTEGER NOT NULL, payload BLOB NOT NULL, blob TEXT, PRIMARY KEY(session_uid, number)) STRICT, WITHOUT ROWID;
CREATE INDEX versions_with_blob ON versions(session_uid, number, blob) WHERE blob IS NOT NULL;
CREATE TABLE observations(session_uid INTEGER NOT NULL REFERENCES sessions(uid), kind TEXT NOT NULL, a INTEGER NOT NULL, b INTEGER NOT NULL,
  payload BLOB NOT NULL, blob TEXT, PRIMARY KEY(session_uid, kind, a, b)) STRICT, WITHOUT ROWID;
CREATE INDEX observations_with_blob ON observations(blob) WHERE blob IS NOT NULL;
CREATE TABLE nodes(session_uid INTEGER NOT NULL REFERENCES sessions(uid), id INTEGER NOT NULL, payload BLOB NOT NULL,
  PRIMARY KEY(session_uid, id)) STRICT, WITHOUT ROWID;

CREATE TABLE requests(id INTEGER PRIMARY KEY, key_hash INTEGER NOT NULL UNIQUE, user TEXT NOT NULL, method TEXT NOT NULL,
  request_id TEXT NOT NULL, request_sha256 BLOB NOT NULL, response BLOB NOT NULL, session_uid INTEGER NOT NULL,
  create_ms INTEGER NOT NULL) STRICT;

CREATE TABLE events(user TEXT NOT NULL, sequence INTEGER NOT NULL, type TEXT NOT NULL, resource TEXT NOT NULL, detail_json TEXT NOT NULL,
  time_ms INTEGER NOT NULL, PRIMARY KEY(user, sequence)) STRICT, WITHOUT ROWID;
CREATE TABLE last_events(user TEXT PRIMARY KEY, sequence INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE operations(user TEXT NOT NULL, id TEXT NOT NULL, done INTEGER NOT NULL, payload BLOB NOT NULL, request BLOB NOT NULL,
  create_ms INTEGER NOT NULL, PRIMARY KEY(user, id)) STRICT, WITHOUT ROWID;
CREATE INDEX operations_by_time ON operations(user, create_ms, id);
CREATE INDEX operations_undone ON operations(user, id) WHERE done=0;
CREATE TABLE artifacts(user TEXT NOT NULL, sha256 TEXT NOT NULL, size_bytes INTEGER NOT NULL, display_name TEXT NOT NULL,
  media_type TEXT NOT NULL, create_ms INTEGER NOT NULL, PRIMARY KEY(user, sha256)) STRICT, WITHOUT ROWID;
CREATE INDEX artifacts_by_time ON artifacts(user, create_ms, sha256);
)sql",
};

}  // namespace

int SchemaVersion() { return static_cast<int>(std::size(kMigrations)); }

absl::Status Migrate(Connection& connection) {
  ASSIGN_OR_RETURN(const int64_t application, connection.QueryInt("PRAGMA application_id"));
  ASSIGN_OR_RETURN(const int64_t version, connection.QueryInt("PRAGMA user_version"));
  ASSIGN_OR_RETURN(const int64_t tables, connection.QueryInt("SELECT count(*) FROM sqlite_schema"));
  const bool is_new = application == 0 && version == 0 && tables == 0;
  if (!is_new && application != kApplicationId) {
    return FailedPrecondition("the database file belongs to another program (application id ", application, ", not ",
                              kApplicationId, ")");
  }
  if (version > SchemaVersion()) {
    return FailedPrecondition("the database has schema ", version, ", this program knows schemas up to ",
                              SchemaVersion(), "; use a newer optod, or a backup made by this one");
  }
  // No auto_vacuum: its pointer-map pages cost 10-20 % of a step (measured by store_bench); free pages are used again
  // by later rows.
  RETURN_IF_ERROR(
      connection.Exec("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; PRAGMA journal_size_limit=67108864"));
  for (int64_t next = version + 1; next <= SchemaVersion(); ++next) {
    absl::Status status =
        connection.Exec(Cat("BEGIN IMMEDIATE;", kMigrations[next - 1], "PRAGMA application_id=", kApplicationId,
                            "; PRAGMA user_version=", next, "; COMMIT;"));
    if (!status.ok()) {
      connection.Exec("ROLLBACK").IgnoreError();
      return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace optod::store

#pragma once
/// Every statement the SQLite store runs on rows, in one place. Parameters are bound in the order of the question marks.

namespace optod::store {

#define OPTOD_STORE_SESSION_COLUMNS                                                                                        \
  "s.uid, s.user, s.id, s.state, s.etag, s.revision, s.head_version, s.version_count, s.seq, s.create_ms, s.update_ms, "   \
  "s.delete_ms, s.mutable_fields, p.spec FROM sessions s JOIN session_specs p ON p.uid = s.uid "
#define OPTOD_STORE_VERSION_COLUMNS "session_uid, number, parent, step, create_ms, payload, blob FROM versions "
#define OPTOD_STORE_OPERATION_COLUMNS "user, id, done, payload, request, create_ms FROM operations "
#define OPTOD_STORE_ARTIFACT_COLUMNS "user, sha256, size_bytes, display_name, media_type, create_ms FROM artifacts "
#define OPTOD_STORE_TOKEN_COLUMNS "token_id, user, label, secret_sha256, create_ms, expire_ms, revoked FROM tokens "

// clang-format off
#define OPTOD_STORE_QUERIES(X) \
  X(kBegin, "BEGIN IMMEDIATE") \
  X(kCommit, "COMMIT") \
  X(kSavepoint, "SAVEPOINT batch") \
  X(kRelease, "RELEASE batch") \
  X(kRollbackTo, "ROLLBACK TO batch") \
  /* users and tokens */ \
  X(kPutUser, "INSERT OR REPLACE INTO users(user, role, deleted, create_ms) VALUES(?,?,?,?)") \
  X(kGetUser, "SELECT user, role, deleted, create_ms FROM users WHERE user=?") \
  X(kListUsers, "SELECT user, role, deleted, create_ms FROM users ORDER BY user") \
  X(kPutToken, "INSERT OR REPLACE INTO tokens(token_id, user, label, secret_sha256, create_ms, expire_ms, revoked) VALUES(?,?,?,?,?,?,?)") \
  X(kGetToken, "SELECT " OPTOD_STORE_TOKEN_COLUMNS "WHERE token_id=?") \
  X(kListTokens, "SELECT " OPTOD_STORE_TOKEN_COLUMNS "WHERE user=? ORDER BY token_id") \
  X(kListAllTokens, "SELECT " OPTOD_STORE_TOKEN_COLUMNS "ORDER BY token_id") \
  /* sessions */ \
  X(kInsertSession, "INSERT INTO sessions(uid, user, id, state, etag, revision, head_version, version_count, seq, create_ms, update_ms, " \
                    "delete_ms, mutable_fields) VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?)") \
  X(kInsertSpec, "INSERT INTO session_specs(uid, spec) VALUES(?,?)") \
  X(kUpdateSession, "UPDATE sessions SET state=?, etag=?, revision=?, head_version=?, version_count=?, seq=?, update_ms=?, delete_ms=?, " \
                    "mutable_fields=? WHERE uid=? AND revision=?") \
  X(kGetRevision, "SELECT revision FROM sessions WHERE uid=?") \
  X(kPurgeVersions, "DELETE FROM versions WHERE session_uid=?") \
  X(kPurgeObservations, "DELETE FROM observations WHERE session_uid=?") \
  X(kPurgeNodes, "DELETE FROM nodes WHERE session_uid=?") \
  X(kPurgeSpec, "DELETE FROM session_specs WHERE uid=?") \
  X(kPurgeSession, "DELETE FROM sessions WHERE uid=?") \
  X(kGetSession, "SELECT " OPTOD_STORE_SESSION_COLUMNS "WHERE s.user=? AND s.id=?") \
  X(kGetSessionByUid, "SELECT " OPTOD_STORE_SESSION_COLUMNS "WHERE s.uid=?") \
  X(kListSessions, "SELECT " OPTOD_STORE_SESSION_COLUMNS "WHERE s.user=? AND s.uid<? AND (? OR s.delete_ms=0) ORDER BY s.uid DESC LIMIT ?") \
  X(kListAllSessions, "SELECT " OPTOD_STORE_SESSION_COLUMNS "WHERE s.uid<? AND (? OR s.delete_ms=0) ORDER BY s.uid DESC LIMIT ?") \
  /* versions */ \
  X(kInsertVersion, "INSERT INTO versions(session_uid, number, parent, step, create_ms, payload, blob) VALUES(?,?,?,?,?,?,?)") \
  X(kUpdateVersion, "UPDATE versions SET payload=?, blob=? WHERE session_uid=? AND number=?") \
  X(kGetVersion, "SELECT " OPTOD_STORE_VERSION_COLUMNS "WHERE session_uid=? AND number=?") \
  X(kListVersions, "SELECT " OPTOD_STORE_VERSION_COLUMNS "WHERE session_uid=? AND number>=? AND number<? ORDER BY number LIMIT ?") \
  X(kLatestSnapshot, "SELECT " OPTOD_STORE_VERSION_COLUMNS "WHERE session_uid=? AND number<=? AND blob IS NOT NULL ORDER BY number DESC LIMIT 1") \
  /* observations, nodes */ \
  X(kPutObservation, "INSERT OR REPLACE INTO observations(session_uid, kind, a, b, payload, blob) VALUES(?,?,?,?,?,?)") \
  X(kDeleteObservations, "DELETE FROM observations WHERE session_uid=? AND kind=? AND a<?") \
  X(kListObservations, "SELECT session_uid, kind, a, b, payload, blob FROM observations WHERE session_uid=? AND kind=? AND a>=? AND a<? " \
                       "ORDER BY a, b") \
  X(kInsertNode, "INSERT INTO nodes(session_uid, id, payload) VALUES(?,?,?)") \
  X(kUpdateNode, "UPDATE nodes SET payload=? WHERE session_uid=? AND id=?") \
  X(kListNodes, "SELECT session_uid, id, payload FROM nodes WHERE session_uid=? AND id>=? ORDER BY id LIMIT ?") \
  /* requests */ \
  X(kInsertRequest, "INSERT INTO requests(key_hash, user, method, request_id, request_sha256, response, session_uid, create_ms) " \
                    "VALUES(?,?,?,?,?,?,?,?)") \
  X(kGetRequest, "SELECT user, method, request_id, request_sha256, response, session_uid, create_ms FROM requests WHERE key_hash=?") \
  X(kOldestRequest, "SELECT create_ms FROM requests ORDER BY id LIMIT 1") \
  X(kPruneRequests, "DELETE FROM requests WHERE id < ifnull((SELECT id FROM requests WHERE create_ms>=? ORDER BY id LIMIT 1), " \
                    "9223372036854775807)") \
  /* events */ \
  X(kInsertEvent, "INSERT INTO events(user, sequence, type, resource, detail_json, time_ms) VALUES(?,?,?,?,?,?)") \
  X(kPutLastEvent, "INSERT OR REPLACE INTO last_events(user, sequence) VALUES(?,?)") \
  X(kGetLastEvent, "SELECT sequence FROM last_events WHERE user=?") \
  X(kFirstEvent, "SELECT sequence FROM events WHERE user=? ORDER BY sequence LIMIT 1") \
  X(kListEvents, "SELECT user, sequence, type, resource, detail_json, time_ms FROM events WHERE user=? AND sequence>? ORDER BY sequence LIMIT ?") \
  X(kPruneEvents, "DELETE FROM events WHERE user=? AND sequence<?") \
  /* operations, artifacts */ \
  X(kPutOperation, "INSERT OR REPLACE INTO operations(user, id, done, payload, request, create_ms) VALUES(?,?,?,?,?,?)") \
  X(kGetOperation, "SELECT " OPTOD_STORE_OPERATION_COLUMNS "WHERE user=? AND id=?") \
  X(kListOperations, "SELECT " OPTOD_STORE_OPERATION_COLUMNS "WHERE user=? AND (create_ms, id)<(?,?) ORDER BY create_ms DESC, id DESC LIMIT ?") \
  X(kListAllOperations, "SELECT " OPTOD_STORE_OPERATION_COLUMNS "WHERE (create_ms, id)<(?,?) ORDER BY create_ms DESC, id DESC LIMIT ?") \
  X(kListUndoneOperations, "SELECT " OPTOD_STORE_OPERATION_COLUMNS "WHERE done=0 ORDER BY user, id") \
  X(kPutArtifact, "INSERT OR REPLACE INTO artifacts(user, sha256, size_bytes, display_name, media_type, create_ms) VALUES(?,?,?,?,?,?)") \
  X(kDeleteArtifact, "DELETE FROM artifacts WHERE user=? AND sha256=?") \
  X(kGetArtifact, "SELECT " OPTOD_STORE_ARTIFACT_COLUMNS "WHERE user=? AND sha256=?") \
  X(kListArtifacts, "SELECT " OPTOD_STORE_ARTIFACT_COLUMNS "WHERE user=? AND (create_ms, sha256)<(?,?) ORDER BY create_ms DESC, sha256 DESC LIMIT ?") \
  X(kListAllArtifacts, "SELECT " OPTOD_STORE_ARTIFACT_COLUMNS "WHERE (create_ms, sha256)<(?,?) ORDER BY create_ms DESC, sha256 DESC LIMIT ?") \
  /* meta, blobs */ \
  X(kSetMeta, "INSERT OR REPLACE INTO meta(key, value) VALUES(?,?)") \
  X(kGetMeta, "SELECT value FROM meta WHERE key=?") \
  X(kListMeta, "SELECT key, value FROM meta WHERE key>=? AND key<? ORDER BY key") \
  X(kLiveBlobs, "SELECT blob FROM versions WHERE blob IS NOT NULL UNION SELECT blob FROM observations WHERE blob IS NOT NULL " \
                "UNION SELECT sha256 FROM artifacts ORDER BY 1")
// clang-format on

enum class Query : int {
#define OPTOD_STORE_NAME(name, sql) name,
  OPTOD_STORE_QUERIES(OPTOD_STORE_NAME)
#undef OPTOD_STORE_NAME
  kCount
};

const char* SqlOf(Query query);

}  // namespace optod::store

#include "server/store/sqlite_applier.h"

#include <sqlite3.h>

#include <cstdlib>
#include <variant>

#include "server/store/request_key.h"
#include "server/store/store_errors.h"

namespace optod::store {
namespace {

bool IsTaken(int code) {
  return code == SQLITE_CONSTRAINT_PRIMARYKEY || code == SQLITE_CONSTRAINT_UNIQUE || code == SQLITE_CONSTRAINT_ROWID;
}

}  // namespace

absl::Status SqliteApplier::Apply(const std::vector<Mutation>& mutations) {
  for (const Mutation& mutation : mutations) {
    RETURN_IF_ERROR(std::visit([this](const auto& m) { return Do(m); }, mutation));
  }
  return absl::OkStatus();
}

void SqliteApplier::RolledBack() {
  last_event_.clear();
  uid_limit_ = -1;
}

template <typename... Args>
absl::Status SqliteApplier::Run(Query query, const char* doing, const Args&... args) {
  const int code = Cursor(db_.Prepared(query)).Bind(args...).Run();
  return code == SQLITE_DONE ? absl::OkStatus() : SqliteStatus(code, doing);
}

absl::Status SqliteApplier::Do(const PutUser& m) {
  return Run(Query::kPutUser, "user", m.row.user, m.row.role, m.row.deleted, m.row.create_ms);
}

absl::Status SqliteApplier::Do(const PutToken& m) {
  const TokenRow& row = m.row;
  return Run(Query::kPutToken, "token", row.token_id, row.user, row.label, Bytes{row.secret_sha256}, row.create_ms,
             row.expire_ms, row.revoked);
}

absl::Status SqliteApplier::Do(const InsertSession& m) {
  const SessionRow& row = m.row;
  {
    Cursor cursor(db_.Prepared(Query::kInsertSession));
    const int code =
        cursor
            .Bind(row.uid, row.user, row.id, row.state, row.etag, row.revision, row.head_version, row.version_count,
                  row.seq, row.create_ms, row.update_ms, row.delete_ms, Bytes{row.mutable_fields})
            .Run();
    if (IsTaken(code)) return SessionTaken(row.user, row.id);
    if (code != SQLITE_DONE) return SqliteStatus(code, "session");
  }
  if (uid_limit_ < 0) {
    Cursor cursor(db_.Prepared(Query::kGetMeta));
    uid_limit_ =
        cursor.Bind(std::string_view(kUidLimitKey)).Next() ? std::strtoll(cursor.Text(0).c_str(), nullptr, 10) : 0;
    RETURN_IF_ERROR(cursor.status());
  }
  if (row.uid >= uid_limit_) {  // a uid whose reservation failed (full disk)
    uid_limit_ = row.uid + kUidBlock;
    RETURN_IF_ERROR(Do(SetMeta{kUidLimitKey, std::to_string(uid_limit_)}));
  }
  return Run(Query::kInsertSpec, "session", row.uid, Bytes{row.spec});
}

absl::Status SqliteApplier::Do(const UpdateSession& m) {
  const SessionRow& row = m.row;
  RETURN_IF_ERROR(Run(Query::kUpdateSession, "session", row.state, row.etag, row.revision, row.head_version,
                      row.version_count, row.seq, row.update_ms, row.delete_ms, Bytes{row.mutable_fields}, row.uid,
                      row.revision - 1));
  if (db_.Changes() == 1) return absl::OkStatus();
  Cursor cursor(db_.Prepared(Query::kGetRevision));
  if (cursor.Bind(row.uid).Next()) return SessionMoved(row.uid, cursor.Int(0), row.revision);
  RETURN_IF_ERROR(cursor.status());
  return NoSession(row.uid);
}

absl::Status SqliteApplier::Do(const PurgeSession& m) {
  for (Query query : {Query::kPurgeVersions, Query::kPurgeObservations, Query::kPurgeNodes, Query::kPurgeSpec,
                      Query::kPurgeSession}) {
    RETURN_IF_ERROR(Run(query, "purging a session", m.session_uid));
  }
  return absl::OkStatus();
}

absl::Status SqliteApplier::Do(const InsertVersion& m) {
  const VersionRow& row = m.row;
  const int code = Cursor(db_.Prepared(Query::kInsertVersion))
                       .Bind(row.session_uid, row.number, row.parent, row.step, row.create_ms, Bytes{row.payload},
                             TextOrNull{row.blob})
                       .Run();
  if (code == SQLITE_DONE) return absl::OkStatus();
  if (code == SQLITE_CONSTRAINT_FOREIGNKEY) return NoSession(row.session_uid);
  return IsTaken(code) ? VersionTaken(row.session_uid, row.number) : SqliteStatus(code, "version");
}

absl::Status SqliteApplier::Do(const UpdateVersion& m) {
  const VersionRow& row = m.row;
  RETURN_IF_ERROR(
      Run(Query::kUpdateVersion, "version", Bytes{row.payload}, TextOrNull{row.blob}, row.session_uid, row.number));
  return db_.Changes() == 1 ? absl::OkStatus() : NoVersion(row.session_uid, row.number);
}

absl::Status SqliteApplier::Do(const PutObservation& m) {
  const ObservationRow& row = m.row;
  const int code = Cursor(db_.Prepared(Query::kPutObservation))
                       .Bind(row.session_uid, row.kind, row.a, row.b, Bytes{row.payload}, TextOrNull{row.blob})
                       .Run();
  if (code == SQLITE_DONE) return absl::OkStatus();
  return code == SQLITE_CONSTRAINT_FOREIGNKEY ? NoSession(row.session_uid) : SqliteStatus(code, "observation");
}

absl::Status SqliteApplier::Do(const DeleteObservations& m) {
  return Run(Query::kDeleteObservations, "observations", m.session_uid, m.kind, m.a_below);
}

absl::Status SqliteApplier::Do(const InsertRequest& m) {
  const RequestRow& row = m.row;
  for (int64_t place = RequestKeyHash(row.user, row.method, row.request_id);; place = NextPlace(place)) {
    const int code = Cursor(db_.Prepared(Query::kInsertRequest))
                         .Bind(place, row.user, row.method, row.request_id, Bytes{row.request_sha256},
                               Bytes{row.response}, row.session_uid, row.create_ms)
                         .Run();
    if (!IsTaken(code)) return code == SQLITE_DONE ? absl::OkStatus() : SqliteStatus(code, "request");
    Cursor cursor(db_.Prepared(Query::kGetRequest));
    if (!cursor.Bind(place).Next()) {
      RETURN_IF_ERROR(cursor.status());
      return Internal("store: request: a taken place is empty");
    }
    if (cursor.Text(0) == row.user && cursor.Text(1) == row.method && cursor.Text(2) == row.request_id) {
      return RequestTaken(row.method, row.request_id);
    }
  }
}

absl::Status SqliteApplier::Do(const InsertNodes& m) {
  for (const NodeRow& row : m.rows) {
    const int code = Cursor(db_.Prepared(Query::kInsertNode)).Bind(row.session_uid, row.id, Bytes{row.payload}).Run();
    if (code == SQLITE_DONE) continue;
    if (code == SQLITE_CONSTRAINT_FOREIGNKEY) return NoSession(row.session_uid);
    return IsTaken(code) ? NodeTaken(row.session_uid, row.id) : SqliteStatus(code, "node");
  }
  return absl::OkStatus();
}

absl::Status SqliteApplier::Do(const UpdateNode& m) {
  RETURN_IF_ERROR(Run(Query::kUpdateNode, "node", Bytes{m.row.payload}, m.row.session_uid, m.row.id));
  return db_.Changes() == 1 ? absl::OkStatus() : NoNode(m.row.session_uid, m.row.id);
}

absl::Status SqliteApplier::Do(const AppendEvent& m) {
  const EventRow& row = m.row;
  auto it = last_event_.find(row.user);
  if (it == last_event_.end()) {
    Cursor cursor(db_.Prepared(Query::kGetLastEvent));
    const int64_t last = cursor.Bind(row.user).Next() ? cursor.Int(0) : 0;
    RETURN_IF_ERROR(cursor.status());
    it = last_event_.emplace(row.user, last).first;
  }
  const int64_t sequence = ++it->second;
  RETURN_IF_ERROR(Run(Query::kPutLastEvent, "event", row.user, sequence));
  return Run(Query::kInsertEvent, "event", row.user, sequence, row.type, row.resource, row.detail_json, row.time_ms);
}

absl::Status SqliteApplier::Do(const PutOperation& m) {
  const OperationRow& row = m.row;
  return Run(Query::kPutOperation, "operation", row.user, row.id, row.done, Bytes{row.payload}, Bytes{row.request},
             row.create_ms);
}

absl::Status SqliteApplier::Do(const PutArtifact& m) {
  const ArtifactRow& row = m.row;
  return Run(Query::kPutArtifact, "artifact", row.user, row.sha256, row.size_bytes, row.display_name, row.media_type,
             row.create_ms);
}

absl::Status SqliteApplier::Do(const DeleteArtifact& m) {
  return Run(Query::kDeleteArtifact, "artifact", m.user, m.sha256);
}

absl::Status SqliteApplier::Do(const PruneRequests& m) {
  return Run(Query::kPruneRequests, "requests", m.older_than_ms);
}

absl::Status SqliteApplier::Do(const PruneEvents& m) {
  return Run(Query::kPruneEvents, "events", m.user, m.before_sequence);
}

absl::Status SqliteApplier::Do(const SetMeta& m) { return Run(Query::kSetMeta, "meta", m.key, Bytes{m.value}); }

}  // namespace optod::store

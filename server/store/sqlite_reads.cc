#include <limits>
#include <optional>
#include <utility>

#include "base/status.h"
#include "server/store/request_key.h"
#include "server/store/sqlite_store_impl.h"
#include "server/store/store_errors.h"

namespace optod::store {
namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

// ---- columns -> rows; the order of columns is that of sqlite_queries.h

UserRow DecodeUser(const Cursor& c) {
  return {.user = c.Text(0), .role = static_cast<int>(c.Int(1)), .deleted = c.Int(2) != 0, .create_ms = c.Int(3)};
}

TokenRow DecodeToken(const Cursor& c) {
  return {.token_id = c.Text(0),
          .user = c.Text(1),
          .label = c.Text(2),
          .secret_sha256 = c.Text(3),
          .create_ms = c.Int(4),
          .expire_ms = c.Int(5),
          .revoked = c.Int(6) != 0};
}

SessionRow DecodeSession(const Cursor& c) {
  SessionRow row;
  row.uid = c.Int(0);
  row.user = c.Text(1);
  row.id = c.Text(2);
  row.state = static_cast<int>(c.Int(3));
  row.etag = c.Int(4);
  row.revision = c.Int(5);
  row.head_version = c.Int(6);
  row.version_count = c.Int(7);
  row.seq = c.Int(8);
  row.create_ms = c.Int(9);
  row.update_ms = c.Int(10);
  row.delete_ms = c.Int(11);
  row.mutable_fields = c.Text(12);
  row.spec = c.Text(13);
  return row;
}

VersionRow DecodeVersion(const Cursor& c) {
  return {.session_uid = c.Int(0),
          .number = c.Int(1),
          .parent = c.Int(2),
          .step = c.Int(3),
          .payload = c.Text(5),
          .blob = c.Text(6),
          .create_ms = c.Int(4)};
}

ObservationRow DecodeObservation(const Cursor& c) {
  return {.session_uid = c.Int(0),
          .kind = c.Text(1),
          .a = c.Int(2),
          .b = c.Int(3),
          .payload = c.Text(4),
          .blob = c.Text(5)};
}

RequestRow DecodeRequest(const Cursor& c) {
  return {.user = c.Text(0),
          .method = c.Text(1),
          .request_id = c.Text(2),
          .request_sha256 = c.Text(3),
          .response = c.Text(4),
          .session_uid = c.Int(5),
          .create_ms = c.Int(6)};
}

NodeRow DecodeNode(const Cursor& c) { return {.session_uid = c.Int(0), .id = c.Int(1), .payload = c.Text(2)}; }

EventRow DecodeEvent(const Cursor& c) {
  return {.user = c.Text(0),
          .sequence = c.Int(1),
          .type = c.Text(2),
          .resource = c.Text(3),
          .detail_json = c.Text(4),
          .time_ms = c.Int(5)};
}

OperationRow DecodeOperation(const Cursor& c) {
  return {.user = c.Text(0),
          .id = c.Text(1),
          .done = c.Int(2) != 0,
          .payload = c.Text(3),
          .request = c.Text(4),
          .create_ms = c.Int(5)};
}

ArtifactRow DecodeArtifact(const Cursor& c) {
  return {.user = c.Text(0),
          .sha256 = c.Text(1),
          .size_bytes = c.Int(2),
          .display_name = c.Text(3),
          .media_type = c.Text(4),
          .create_ms = c.Int(5)};
}

int64_t DecodeInt(const Cursor& c) { return c.Int(0); }
std::string DecodeText(const Cursor& c) { return c.Text(0); }
std::pair<std::string, std::string> DecodeMeta(const Cursor& c) { return {c.Text(0), c.Text(1)}; }

}  // namespace

template <typename Row, typename Decode, typename... Args>
absl::StatusOr<std::vector<Row>> SqliteStore::All(Query query, Decode decode, const Args&... args) {
  ASSIGN_OR_RETURN(SqliteReaders::Lease db, readers_.Get());
  Cursor cursor(db->Prepared(query));
  cursor.Bind(args...);
  std::vector<Row> rows;
  while (cursor.Next()) rows.push_back(decode(cursor));
  RETURN_IF_ERROR(cursor.status());
  return rows;
}

template <typename Row, typename Decode, typename... Args>
absl::StatusOr<std::optional<Row>> SqliteStore::One(Query query, Decode decode, const Args&... args) {
  ASSIGN_OR_RETURN(SqliteReaders::Lease db, readers_.Get());
  Cursor cursor(db->Prepared(query));
  std::optional<Row> row;
  if (cursor.Bind(args...).Next()) return std::optional<Row>(decode(cursor));
  RETURN_IF_ERROR(cursor.status());
  return row;
}

absl::StatusOr<UserRow> SqliteStore::GetUser(const std::string& user) {
  ASSIGN_OR_RETURN(auto row, One<UserRow>(Query::kGetUser, DecodeUser, user));
  if (!row) return NotFound("user ", user, " does not exist");
  return *std::move(row);
}

absl::StatusOr<std::vector<UserRow>> SqliteStore::ListUsers() { return All<UserRow>(Query::kListUsers, DecodeUser); }

absl::StatusOr<TokenRow> SqliteStore::GetToken(const std::string& token_id) {
  ASSIGN_OR_RETURN(auto row, One<TokenRow>(Query::kGetToken, DecodeToken, token_id));
  if (!row) return NotFound("token ", token_id, " does not exist");
  return *std::move(row);
}

absl::StatusOr<std::vector<TokenRow>> SqliteStore::ListTokens(const std::string& user) {
  if (user.empty()) return All<TokenRow>(Query::kListAllTokens, DecodeToken);
  return All<TokenRow>(Query::kListTokens, DecodeToken, user);
}

absl::StatusOr<SessionRow> SqliteStore::GetSession(const std::string& user, const std::string& id) {
  ASSIGN_OR_RETURN(auto row, One<SessionRow>(Query::kGetSession, DecodeSession, user, id));
  if (!row) return NoSession(user, id);
  return *std::move(row);
}

absl::StatusOr<SessionRow> SqliteStore::GetSessionByUid(int64_t uid) {
  ASSIGN_OR_RETURN(auto row, One<SessionRow>(Query::kGetSessionByUid, DecodeSession, uid));
  if (!row) return NoSession(uid);
  return *std::move(row);
}

absl::StatusOr<std::vector<SessionRow>> SqliteStore::ListSessions(const std::string& user, bool show_deleted,
                                                                  int64_t before_uid, int64_t limit) {
  const int64_t end = before_uid > 0 ? before_uid : kMax;
  if (user.empty()) return All<SessionRow>(Query::kListAllSessions, DecodeSession, end, show_deleted, limit);
  return All<SessionRow>(Query::kListSessions, DecodeSession, user, end, show_deleted, limit);
}

absl::StatusOr<VersionRow> SqliteStore::GetVersion(int64_t uid, int64_t number) {
  ASSIGN_OR_RETURN(auto row, One<VersionRow>(Query::kGetVersion, DecodeVersion, uid, number));
  if (!row) return NoVersion(uid, number);
  return *std::move(row);
}

absl::StatusOr<std::vector<VersionRow>> SqliteStore::ListVersions(int64_t uid, int64_t first, int64_t end,
                                                                  int64_t limit) {
  return All<VersionRow>(Query::kListVersions, DecodeVersion, uid, first, end, limit);
}

absl::StatusOr<VersionRow> SqliteStore::LatestSnapshot(int64_t uid, int64_t number) {
  ASSIGN_OR_RETURN(auto row, One<VersionRow>(Query::kLatestSnapshot, DecodeVersion, uid, number));
  if (!row) return NoSnapshot(uid, number);
  return *std::move(row);
}

absl::StatusOr<std::vector<ObservationRow>> SqliteStore::ListObservations(int64_t uid, const std::string& kind,
                                                                          int64_t first_a, int64_t end_a) {
  return All<ObservationRow>(Query::kListObservations, DecodeObservation, uid, kind, first_a, end_a);
}

absl::StatusOr<RequestRow> SqliteStore::GetRequest(const std::string& user, const std::string& method,
                                                   const std::string& request_id) {
  for (int64_t place = RequestKeyHash(user, method, request_id);; place = NextPlace(place)) {
    ASSIGN_OR_RETURN(auto row, One<RequestRow>(Query::kGetRequest, DecodeRequest, place));
    if (!row) return NoRequest(method, request_id);
    if (row->user == user && row->method == method && row->request_id == request_id) return *std::move(row);
  }
}

absl::StatusOr<int64_t> SqliteStore::OldestRequestMs() {
  ASSIGN_OR_RETURN(auto oldest, One<int64_t>(Query::kOldestRequest, DecodeInt));
  if (!oldest) return NotFound("no request is kept");
  return *oldest;
}

absl::StatusOr<std::vector<NodeRow>> SqliteStore::ListNodes(int64_t uid, int64_t first, int64_t limit) {
  return All<NodeRow>(Query::kListNodes, DecodeNode, uid, first, limit);
}

absl::StatusOr<std::vector<EventRow>> SqliteStore::ListEvents(const std::string& user, int64_t after, int64_t limit) {
  return All<EventRow>(Query::kListEvents, DecodeEvent, user, after, limit);
}

absl::StatusOr<int64_t> SqliteStore::FirstEventSequence(const std::string& user) {
  ASSIGN_OR_RETURN(auto first, One<int64_t>(Query::kFirstEvent, DecodeInt, user));
  if (first) return *first;
  ASSIGN_OR_RETURN(const int64_t last, LastEventSequence(user));
  return last + 1;
}

absl::StatusOr<int64_t> SqliteStore::LastEventSequence(const std::string& user) {
  ASSIGN_OR_RETURN(auto last, One<int64_t>(Query::kGetLastEvent, DecodeInt, user));
  return last.value_or(0);
}

absl::StatusOr<OperationRow> SqliteStore::GetOperation(const std::string& user, const std::string& id) {
  ASSIGN_OR_RETURN(auto row, One<OperationRow>(Query::kGetOperation, DecodeOperation, user, id));
  if (!row) return NotFound("operation ", id, " does not exist");
  return *std::move(row);
}

absl::StatusOr<std::vector<OperationRow>> SqliteStore::ListOperations(const std::string& user, int64_t before_ms,
                                                                      int64_t limit, const std::string& before_id) {
  const int64_t end = before_ms > 0 ? before_ms : kMax;
  if (user.empty()) return All<OperationRow>(Query::kListAllOperations, DecodeOperation, end, before_id, limit);
  return All<OperationRow>(Query::kListOperations, DecodeOperation, user, end, before_id, limit);
}

absl::StatusOr<std::vector<OperationRow>> SqliteStore::ListUndoneOperations() {
  return All<OperationRow>(Query::kListUndoneOperations, DecodeOperation);
}

absl::StatusOr<ArtifactRow> SqliteStore::GetArtifact(const std::string& user, const std::string& sha256) {
  ASSIGN_OR_RETURN(auto row, One<ArtifactRow>(Query::kGetArtifact, DecodeArtifact, user, sha256));
  if (!row) return NotFound("artifact ", sha256, " does not exist");
  return *std::move(row);
}

absl::StatusOr<std::vector<ArtifactRow>> SqliteStore::ListArtifacts(const std::string& user, int64_t before_ms,
                                                                    int64_t limit, const std::string& before_sha256) {
  const int64_t end = before_ms > 0 ? before_ms : kMax;
  if (user.empty()) return All<ArtifactRow>(Query::kListAllArtifacts, DecodeArtifact, end, before_sha256, limit);
  return All<ArtifactRow>(Query::kListArtifacts, DecodeArtifact, user, end, before_sha256, limit);
}

absl::StatusOr<std::string> SqliteStore::GetMeta(const std::string& key) {
  ASSIGN_OR_RETURN(auto value, One<std::string>(Query::kGetMeta, DecodeText, key));
  if (!value) return NotFound("meta ", key, " does not exist");
  return *std::move(value);
}

absl::StatusOr<MetaEntries> SqliteStore::ListMeta(const std::string& first, const std::string& end) {
  return All<std::pair<std::string, std::string>>(Query::kListMeta, DecodeMeta, first, end);
}

absl::StatusOr<std::vector<std::string>> SqliteStore::LiveBlobs() {
  return All<std::string>(Query::kLiveBlobs, DecodeText);
}

}  // namespace optod::store

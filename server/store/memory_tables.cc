#include "server/store/memory_tables.h"

#include <limits>
#include <variant>

#include "server/store/store_errors.h"

namespace optod::store {
namespace {

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();

}  // namespace

template <typename Map>
void MemoryTables::Set(Map& map, const typename Map::key_type& key, typename Map::mapped_type value) {
  auto [it, inserted] = map.try_emplace(key);
  if (inserted) {
    undo_.push_back([&map, key] { map.erase(key); });
  } else {
    undo_.push_back([&map, key, old = std::move(it->second)]() mutable { map[key] = std::move(old); });
  }
  it->second = std::move(value);
}

template <typename Map>
void MemoryTables::Erase(Map& map, const typename Map::key_type& key) {
  auto it = map.find(key);
  if (it == map.end()) return;
  undo_.push_back([&map, key, old = std::move(it->second)]() mutable { map[key] = std::move(old); });
  map.erase(it);
}

template <typename Map>
void MemoryTables::EraseRange(Map& map, const typename Map::key_type& first, const typename Map::key_type& end) {
  for (auto it = map.lower_bound(first); it != map.end() && it->first < end; it = map.lower_bound(first)) {
    const typename Map::key_type key = it->first;
    Erase(map, key);
  }
}

absl::Status MemoryTables::Apply(const std::vector<Mutation>& mutations) {
  absl::Status status;
  for (const Mutation& mutation : mutations) {
    status = std::visit([this](const auto& m) { return Do(m); }, mutation);
    if (!status.ok()) break;
  }
  if (!status.ok()) {
    for (auto it = undo_.rbegin(); it != undo_.rend(); ++it) (*it)();
  }
  undo_.clear();
  return status;
}

absl::Status MemoryTables::CheckSession(int64_t uid) const {
  return sessions.contains(uid) ? absl::OkStatus() : NoSession(uid);
}

absl::Status MemoryTables::Do(const PutUser& m) {
  Set(users, m.row.user, m.row);
  return absl::OkStatus();
}

absl::Status MemoryTables::Do(const PutToken& m) {
  Set(tokens, m.row.token_id, m.row);
  return absl::OkStatus();
}

absl::Status MemoryTables::Do(const InsertSession& m) {
  const TextPair name(m.row.user, m.row.id);
  if (session_uids.contains(name) || sessions.contains(m.row.uid)) return SessionTaken(m.row.user, m.row.id);
  Set(sessions, m.row.uid, m.row);
  Set(session_uids, name, m.row.uid);
  return absl::OkStatus();
}

absl::Status MemoryTables::Do(const UpdateSession& m) {
  auto it = sessions.find(m.row.uid);
  if (it == sessions.end()) return NoSession(m.row.uid);
  if (it->second.revision != m.row.revision - 1) return SessionMoved(m.row.uid, it->second.revision, m.row.revision);
  SessionRow row = m.row;
  row.user = it->second.user;
  row.id = it->second.id;
  row.spec = it->second.spec;
  row.create_ms = it->second.create_ms;
  Set(sessions, m.row.uid, std::move(row));
  return absl::OkStatus();
}

absl::Status MemoryTables::Do(const PurgeSession& m) {
  auto it = sessions.find(m.session_uid);
  if (it == sessions.end()) return absl::OkStatus();
  const TextPair name(it->second.user, it->second.id);
  Erase(session_uids, name);
  Erase(sessions, m.session_uid);
  EraseRange(versions, {m.session_uid, kMin}, {m.session_uid + 1, kMin});
  EraseRange(observations, {m.session_uid, "", kMin, kMin}, {m.session_uid + 1, "", kMin, kMin});
  EraseRange(nodes, {m.session_uid, kMin}, {m.session_uid + 1, kMin});
  return absl::OkStatus();
}

absl::Status MemoryTables::Do(const InsertVersion& m) {
  RETURN_IF_ERROR(CheckSession(m.row.session_uid));
  const SessionPart key(m.row.session_uid, m.row.number);
  if (versions.contains(key)) return VersionTaken(key.first, key.second);
  Set(versions, key, m.row);
  return absl::OkStatus();
}

absl::Status MemoryTables::Do(const UpdateVersion& m) {
  const SessionPart key(m.row.session_uid, m.row.number);
  auto it = versions.find(key);
  if (it == versions.end()) return NoVersion(key.first, key.second);
  VersionRow row = it->second;
  row.payload = m.row.payload;
  row.blob = m.row.blob;
  Set(versions, key, std::move(row));
  return absl::OkStatus();
}

absl::Status MemoryTables::Do(const PutObservation& m) {
  RETURN_IF_ERROR(CheckSession(m.row.session_uid));
  Set(observations, {m.row.session_uid, m.row.kind, m.row.a, m.row.b}, m.row);
  return absl::OkStatus();
}

absl::Status MemoryTables::Do(const DeleteObservations& m) {
  EraseRange(observations, {m.session_uid, m.kind, kMin, kMin}, {m.session_uid, m.kind, m.a_below, kMin});
  return absl::OkStatus();
}

absl::Status MemoryTables::Do(const InsertRequest& m) {
  std::tuple key(m.row.user, m.row.method, m.row.request_id);
  if (requests.contains(key)) return RequestTaken(m.row.method, m.row.request_id);
  const int64_t place = request_order.empty() ? 1 : request_order.rbegin()->first + 1;
  Set(requests, key, {m.row, place});
  Set(request_order, place, key);
  return absl::OkStatus();
}

absl::Status MemoryTables::Do(const InsertNodes& m) {
  for (const NodeRow& row : m.rows) {
    RETURN_IF_ERROR(CheckSession(row.session_uid));
    const SessionPart key(row.session_uid, row.id);
    if (nodes.contains(key)) return NodeTaken(key.first, key.second);
    Set(nodes, key, row);
  }
  return absl::OkStatus();
}

absl::Status MemoryTables::Do(const UpdateNode& m) {
  const SessionPart key(m.row.session_uid, m.row.id);
  if (!nodes.contains(key)) return NoNode(key.first, key.second);
  Set(nodes, key, m.row);
  return absl::OkStatus();
}

absl::Status MemoryTables::Do(const AppendEvent& m) {
  auto last = last_event.find(m.row.user);
  EventRow row = m.row;
  row.sequence = last == last_event.end() ? 1 : last->second + 1;
  Set(last_event, row.user, row.sequence);
  Set(events, {row.user, row.sequence}, row);
  return absl::OkStatus();
}

absl::Status MemoryTables::Do(const PutOperation& m) {
  Set(operations, {m.row.user, m.row.id}, m.row);
  return absl::OkStatus();
}

absl::Status MemoryTables::Do(const PutArtifact& m) {
  Set(artifacts, {m.row.user, m.row.sha256}, m.row);
  return absl::OkStatus();
}

absl::Status MemoryTables::Do(const DeleteArtifact& m) {
  Erase(artifacts, {m.user, m.sha256});
  return absl::OkStatus();
}

absl::Status MemoryTables::Do(const PruneRequests& m) {
  while (!request_order.empty()) {
    const auto [place, key] = *request_order.begin();
    if (requests.at(key).first.create_ms >= m.older_than_ms) break;
    Erase(requests, key);
    Erase(request_order, place);
  }
  return absl::OkStatus();
}

absl::Status MemoryTables::Do(const PruneEvents& m) {
  EraseRange(events, {m.user, kMin}, {m.user, m.before_sequence});
  return absl::OkStatus();
}

absl::Status MemoryTables::Do(const SetMeta& m) {
  Set(meta, m.key, m.value);
  return absl::OkStatus();
}

}  // namespace optod::store

#include "server/store/memory_store.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <mutex>
#include <set>
#include <span>
#include <utility>

#include "base/status.h"
#include "server/store/commit_queue.h"
#include "server/store/memory_tables.h"
#include "server/store/meta_range.h"
#include "server/store/store_errors.h"

namespace optod::store {
namespace {

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr size_t kMaxGroup = 512;

bool Full(size_t rows, int64_t limit) { return limit >= 0 && rows >= static_cast<size_t>(limit); }

/// Copies the values of the keys in [first, end) for which `keep` holds.
template <typename Map, typename Keep>
auto Values(const Map& map, const typename Map::key_type& first, const typename Map::key_type& end, int64_t limit,
            Keep keep) {
  std::vector<typename Map::mapped_type> rows;
  for (auto it = map.lower_bound(first); it != map.end() && it->first < end && !Full(rows.size(), limit); ++it) {
    if (keep(it->second)) rows.push_back(it->second);
  }
  return rows;
}

/// Rows of `user` ("" = all) before the cursor, newest first.
template <typename Map, typename Id>
auto NewestFirst(const Map& map, const std::string& user, int64_t before_ms, const std::string& before_id,
                 int64_t limit, Id id) {
  using Row = typename Map::mapped_type;
  std::vector<Row> rows;
  for (const auto& [key, row] : map) {
    const bool before = before_ms <= 0 || std::pair(row.create_ms, id(row)) < std::pair(before_ms, before_id);
    if ((user.empty() || row.user == user) && before) rows.push_back(row);
  }
  std::sort(rows.begin(), rows.end(),
            [&](const Row& x, const Row& y) { return std::pair(x.create_ms, id(x)) > std::pair(y.create_ms, id(y)); });
  if (Full(rows.size(), limit)) rows.resize(static_cast<size_t>(limit));
  return rows;
}

class MemoryStore final : public Store, public MetaRange {
 public:
  MemoryStore() : queue_(kMaxGroup, [this](std::span<PendingBatch> group) { Process(group); }) {}
  ~MemoryStore() override { queue_.Close(); }

  void Commit(Batch batch, CommitCallback done) override { queue_.Submit(std::move(batch), std::move(done)); }
  void Barrier(CommitCallback done) override { queue_.Submit({}, std::move(done)); }
  int64_t NewSessionUid() override { return next_uid_.fetch_add(1); }

  absl::StatusOr<UserRow> GetUser(const std::string& user) override { return Find(tables_.users, user, "user ", user); }

  absl::StatusOr<std::vector<UserRow>> ListUsers() override {
    std::lock_guard lock(mutex_);
    std::vector<UserRow> rows;
    for (const auto& [key, row] : tables_.users) rows.push_back(row);
    return rows;
  }

  absl::StatusOr<TokenRow> GetToken(const std::string& token_id) override {
    return Find(tables_.tokens, token_id, "token ", token_id);
  }

  absl::StatusOr<std::vector<TokenRow>> ListTokens(const std::string& user) override {
    std::lock_guard lock(mutex_);
    std::vector<TokenRow> rows;
    for (const auto& [key, row] : tables_.tokens) {
      if (user.empty() || row.user == user) rows.push_back(row);
    }
    return rows;
  }

  absl::StatusOr<SessionRow> GetSession(const std::string& user, const std::string& id) override {
    std::lock_guard lock(mutex_);
    auto it = tables_.session_uids.find({user, id});
    if (it == tables_.session_uids.end()) return NoSession(user, id);
    return tables_.sessions.at(it->second);
  }

  absl::StatusOr<SessionRow> GetSessionByUid(int64_t uid) override {
    return Find(tables_.sessions, uid, "session uid ", uid);
  }

  absl::StatusOr<std::vector<SessionRow>> ListSessions(const std::string& user, bool show_deleted, int64_t before_uid,
                                                       int64_t limit) override {
    std::lock_guard lock(mutex_);
    std::vector<SessionRow> rows;
    auto it = before_uid > 0 ? tables_.sessions.lower_bound(before_uid) : tables_.sessions.end();
    while (it != tables_.sessions.begin() && !Full(rows.size(), limit)) {
      const SessionRow& row = (--it)->second;
      if ((user.empty() || row.user == user) && (show_deleted || row.delete_ms == 0)) rows.push_back(row);
    }
    return rows;
  }

  absl::StatusOr<VersionRow> GetVersion(int64_t uid, int64_t number) override {
    std::lock_guard lock(mutex_);
    auto it = tables_.versions.find({uid, number});
    if (it == tables_.versions.end()) return NoVersion(uid, number);
    return it->second;
  }

  absl::StatusOr<std::vector<VersionRow>> ListVersions(int64_t uid, int64_t first, int64_t end,
                                                       int64_t limit) override {
    std::lock_guard lock(mutex_);
    return Values(tables_.versions, {uid, first}, {uid, end}, limit, [](const VersionRow&) { return true; });
  }

  absl::StatusOr<VersionRow> LatestSnapshot(int64_t uid, int64_t number) override {
    std::lock_guard lock(mutex_);
    auto it = tables_.versions.upper_bound({uid, number});
    while (it != tables_.versions.begin() && (--it)->first.first == uid) {
      if (!it->second.blob.empty()) return it->second;
    }
    return NoSnapshot(uid, number);
  }

  absl::StatusOr<std::vector<ObservationRow>> ListObservations(int64_t uid, const std::string& kind, int64_t first_a,
                                                               int64_t end_a) override {
    std::lock_guard lock(mutex_);
    return Values(tables_.observations, {uid, kind, first_a, kMin}, {uid, kind, end_a, kMin}, -1,
                  [](const ObservationRow&) { return true; });
  }

  absl::StatusOr<RequestRow> GetRequest(const std::string& user, const std::string& method,
                                        const std::string& request_id) override {
    std::lock_guard lock(mutex_);
    auto it = tables_.requests.find({user, method, request_id});
    if (it == tables_.requests.end()) return NoRequest(method, request_id);
    return it->second.first;
  }

  absl::StatusOr<int64_t> OldestRequestMs() override {
    std::lock_guard lock(mutex_);
    if (tables_.request_order.empty()) return NotFound("no request is kept");
    return tables_.requests.at(tables_.request_order.begin()->second).first.create_ms;
  }

  absl::StatusOr<std::vector<NodeRow>> ListNodes(int64_t uid, int64_t first, int64_t limit) override {
    std::lock_guard lock(mutex_);
    return Values(tables_.nodes, {uid, first}, {uid + 1, kMin}, limit, [](const NodeRow&) { return true; });
  }

  absl::StatusOr<std::vector<EventRow>> ListEvents(const std::string& user, int64_t after, int64_t limit) override {
    std::lock_guard lock(mutex_);
    return Values(tables_.events, {user, after + 1}, {user + '\0', kMin}, limit, [](const EventRow&) { return true; });
  }

  absl::StatusOr<int64_t> FirstEventSequence(const std::string& user) override {
    std::lock_guard lock(mutex_);
    auto it = tables_.events.lower_bound({user, kMin});
    return it != tables_.events.end() && it->first.first == user ? it->first.second : LastEvent(user) + 1;
  }

  absl::StatusOr<int64_t> LastEventSequence(const std::string& user) override {
    std::lock_guard lock(mutex_);
    return LastEvent(user);
  }

  absl::StatusOr<OperationRow> GetOperation(const std::string& user, const std::string& id) override {
    return Find(tables_.operations, {user, id}, "operation ", id);
  }

  using Store::ListArtifacts;
  using Store::ListOperations;
  absl::StatusOr<std::vector<OperationRow>> ListOperations(const std::string& user, int64_t before_ms, int64_t limit,
                                                           const std::string& before_id) override {
    std::lock_guard lock(mutex_);
    return NewestFirst(tables_.operations, user, before_ms, before_id, limit,
                       [](const OperationRow& row) { return row.id; });
  }

  absl::StatusOr<std::vector<OperationRow>> ListUndoneOperations() override {
    std::lock_guard lock(mutex_);
    std::vector<OperationRow> rows;
    for (const auto& [key, row] : tables_.operations) {
      if (!row.done) rows.push_back(row);
    }
    return rows;
  }

  absl::StatusOr<ArtifactRow> GetArtifact(const std::string& user, const std::string& sha256) override {
    return Find(tables_.artifacts, {user, sha256}, "artifact ", sha256);
  }

  absl::StatusOr<std::vector<ArtifactRow>> ListArtifacts(const std::string& user, int64_t before_ms, int64_t limit,
                                                         const std::string& before_sha256) override {
    std::lock_guard lock(mutex_);
    return NewestFirst(tables_.artifacts, user, before_ms, before_sha256, limit,
                       [](const ArtifactRow& row) { return row.sha256; });
  }

  absl::StatusOr<std::string> GetMeta(const std::string& key) override { return Find(tables_.meta, key, "meta ", key); }

  absl::StatusOr<MetaEntries> ListMeta(const std::string& first, const std::string& end) override {
    std::lock_guard lock(mutex_);
    MetaEntries rows;
    for (auto it = tables_.meta.lower_bound(first); it != tables_.meta.end() && it->first < end; ++it) rows.push_back(*it);
    return rows;
  }

  absl::StatusOr<std::vector<std::string>> LiveBlobs() override {
    std::lock_guard lock(mutex_);
    std::set<std::string> live;
    for (const auto& [key, row] : tables_.versions) live.insert(row.blob);
    for (const auto& [key, row] : tables_.observations) live.insert(row.blob);
    for (const auto& [key, row] : tables_.artifacts) live.insert(row.sha256);
    live.erase("");
    return std::vector<std::string>(live.begin(), live.end());
  }

  absl::Status BackupTo(const std::string&) override {
    return Unimplemented("a store in memory has no backup; start with --data-dir DIR");
  }
  double CommitsPerSecond() override { return 0; }
  absl::Status Close() override {
    queue_.Close();
    return absl::OkStatus();
  }

 private:
  void Process(std::span<PendingBatch> group) {
    for (PendingBatch& pending : group) {
      absl::Status status = pending.batch.gate ? pending.batch.gate() : absl::OkStatus();
      if (status.ok()) {
        std::lock_guard lock(mutex_);
        status = tables_.Apply(pending.batch.mutations);
      }
      queue_.Complete({&pending, 1}, status);
    }
  }

  template <typename Map, typename... Name>
  absl::StatusOr<typename Map::mapped_type> Find(const Map& map, const typename Map::key_type& key,
                                                 const Name&... name) {
    std::lock_guard lock(mutex_);
    auto it = map.find(key);
    if (it == map.end()) return NotFound(name..., " does not exist");
    return it->second;
  }

  int64_t LastEvent(const std::string& user) const {  // mutex_ held
    auto it = tables_.last_event.find(user);
    return it == tables_.last_event.end() ? 0 : it->second;
  }

  std::mutex mutex_;  ///< guards tables_; not a shared one, whose readers could starve the writer
  MemoryTables tables_;
  std::atomic<int64_t> next_uid_{1};
  CommitQueue queue_;  ///< last: its threads use the above
};

}  // namespace

std::unique_ptr<Store> MakeMemoryStore() { return std::make_unique<MemoryStore>(); }

}  // namespace optod::store

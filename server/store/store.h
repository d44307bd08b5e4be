#pragma once
/// What the server remembers. One writer, many readers: mutations are queued, grouped into one transaction per fsync, and their callbacks run
/// after the commit that holds them (group commit). All methods are thread-safe. Implementations: sqlite_store.h (the real one), memory_store.h
/// (tests and `--data-dir :memory:`); both pass tests/unit/server/store_conformance.
///
/// Rules
/// - A Batch is atomic: all of its mutations or none. Batches commit in the order in which Commit was called (prefix property): when a batch is
///   durable, every earlier one is.
/// - A batch that fails (constraint, disk full) does not undo its neighbours. After an I/O error on the database the store refuses all further
///   writes with DATA_LOSS until restart: an fsync that failed once is never retried. What was in that commit may or may not be there then.
/// - Callbacks run in the order of Commit. The gate of a batch is asked after the callbacks of all earlier batches that failed have returned.
/// - Versions, observations and nodes belong to a session: NOT_FOUND when it does not exist. Requests and events outlive a purged session.
/// - Payload columns are opaque bytes (serialized protobuf of the layer above). Times are Unix milliseconds.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace optod::store {

// ---- rows

struct UserRow {
  std::string user;
  int role = 0;                 ///< admin.proto User.Role
  bool deleted = false;
  int64_t create_ms = 0;
};

struct TokenRow {
  std::string token_id;
  std::string user;
  std::string label;
  std::string secret_sha256;    ///< raw 32 bytes
  int64_t create_ms = 0;
  int64_t expire_ms = 0;        ///< 0 = never
  bool revoked = false;
};

/// One session. `uid` is the store's key for everything that belongs to it and is never reused.
struct SessionRow {
  int64_t uid = 0;
  std::string user, id;         ///< unique together among sessions that are not purged
  int state = 0;                ///< session.proto Session.State
  int64_t etag = 0;             ///< counts changes of the session's own fields
  int64_t revision = 0;         ///< counts writes of this row; UpdateSession checks it, so that a batch whose predecessor failed fails too
  std::string spec;             ///< serialized Session message as created (immutable fields)
  std::string mutable_fields;   ///< serialized Session message holding labels, display_name, budget, usage, scores, has_values
  int64_t head_version = 0;
  int64_t version_count = 0;
  int64_t seq = 0;
  int64_t create_ms = 0, update_ms = 0, delete_ms = 0;
};

/// One version of a session's parameters; (session_uid, number) is the key, numbers are gapless from 0.
struct VersionRow {
  int64_t session_uid = 0;
  int64_t number = 0;
  int64_t parent = -1;          ///< -1 for version 0
  int64_t step = 0;
  std::string payload;          ///< serialized session.proto Version (without name) or a compact form of the family's own
  std::string blob;             ///< hex SHA-256 of a snapshot in the blob store; "" = none
  int64_t create_ms = 0;
};

/// Something told that belongs to a session but is not (yet) a version: partial probe results, pending feedback, gradients kept for replay.
/// Key: (session_uid, kind, a, b).
struct ObservationRow {
  int64_t session_uid = 0;
  std::string kind;             ///< "probe", "feedback", "gradient", "memory", ...
  int64_t a = 0, b = 0;         ///< meaning by kind, e.g. (base_version, query)
  std::string payload;
  std::string blob;
};

/// The answer to a mutating call, for retries. Key: (user, method, request_id).
struct RequestRow {
  std::string user, method, request_id;
  std::string request_sha256;   ///< raw 32 bytes, of the serialized request
  std::string response;         ///< serialized answer
  int64_t session_uid = 0;
  int64_t create_ms = 0;
};

/// One recorded node of a trace. Key: (session_uid, id), ids gapless from 0.
struct NodeRow {
  int64_t session_uid = 0;
  int64_t id = 0;
  std::string payload;          ///< serialized trace.proto Node
};

struct EventRow {
  std::string user;
  int64_t sequence = 0;         ///< given by the store at commit: 1, 2, ... per user without gaps
  std::string type, resource, detail_json;
  int64_t time_ms = 0;
};

struct OperationRow {
  std::string user, id;
  bool done = false;
  std::string payload;          ///< serialized operation.proto Operation
  std::string request;          ///< serialized request that started it, for resuming
  int64_t create_ms = 0;
};

struct ArtifactRow {
  std::string user, sha256;
  int64_t size_bytes = 0;
  std::string display_name, media_type;
  int64_t create_ms = 0;
};

// ---- mutations

struct PutUser { UserRow row; };                 ///< insert or replace
struct PutToken { TokenRow row; };               ///< insert or replace
struct InsertSession { SessionRow row; };        ///< ALREADY_EXISTS when (user, id) is taken; row.uid from NewSessionUid()
/// Replaces all mutable columns (all but uid, user, id, spec, create_ms) when the stored revision is row.revision - 1. ABORTED (whole batch) when it is not; NOT_FOUND when the uid is unknown.
struct UpdateSession { SessionRow row; };
struct PurgeSession { int64_t session_uid; };    ///< deletes the session, its versions, observations and nodes; ok when it is not there
struct InsertVersion { VersionRow row; };        ///< ALREADY_EXISTS when the number is taken
struct UpdateVersion { VersionRow row; };        ///< replaces payload and blob (scores); NOT_FOUND when the number is unknown
struct PutObservation { ObservationRow row; };   ///< insert or replace
struct DeleteObservations { int64_t session_uid; std::string kind; int64_t a_below; };   ///< all with a < a_below
struct InsertRequest { RequestRow row; };        ///< ALREADY_EXISTS when the key is taken
struct InsertNodes { std::vector<NodeRow> rows; };   ///< ALREADY_EXISTS when an id is taken
struct UpdateNode { NodeRow row; };              ///< NOT_FOUND when the id is unknown
struct AppendEvent { EventRow row; };            ///< row.sequence is ignored
struct PutOperation { OperationRow row; };       ///< insert or replace
struct PutArtifact { ArtifactRow row; };         ///< insert or replace
struct DeleteArtifact { std::string user, sha256; };   ///< ok when it is not there
struct PruneRequests { int64_t older_than_ms; };  ///< from the oldest commit on, up to the first with create_ms >= older_than_ms
struct PruneEvents { std::string user; int64_t before_sequence; };   ///< those with sequence < before_sequence; numbers go on as before
struct SetMeta { std::string key, value; };

using Mutation = std::variant<PutUser, PutToken, InsertSession, UpdateSession, PurgeSession, InsertVersion, UpdateVersion, PutObservation,
                              DeleteObservations, InsertRequest, InsertNodes, UpdateNode, AppendEvent, PutOperation, PutArtifact, DeleteArtifact,
                              PruneRequests, PruneEvents, SetMeta>;

/// A transaction. `gate`, when set, is asked on the writer thread just before the batch is applied; an error from it fails the batch (how a
/// session whose earlier batch failed keeps its later ones out).
struct Batch {
  std::vector<Mutation> mutations;
  std::function<absl::Status()> gate;
};

/// Called once, on the writer's completion thread, after the commit (or the failure). Must be quick and must not call Commit synchronously
/// waiting for its result. After Close it runs on the caller's thread, with UNAVAILABLE.
using CommitCallback = absl::AnyInvocable<void(absl::Status)>;

class Store {
 public:
  virtual ~Store() = default;

  // ---- writes
  virtual void Commit(Batch batch, CommitCallback done) = 0;
  /// Blocks until durable. For start-up and tools, never on a gRPC thread.
  absl::Status CommitAndWait(Batch batch);
  /// Runs `done` once everything queued so far is durable (or has failed).
  virtual void Barrier(CommitCallback done) = 0;
  /// A fresh key; unique for ever, also across restarts.
  virtual int64_t NewSessionUid() = 0;

  // ---- reads: what is committed. NOT_FOUND when absent. limit < 0: all.
  virtual absl::StatusOr<UserRow> GetUser(const std::string& user) = 0;
  virtual absl::StatusOr<std::vector<UserRow>> ListUsers() = 0;
  virtual absl::StatusOr<TokenRow> GetToken(const std::string& token_id) = 0;
  virtual absl::StatusOr<std::vector<TokenRow>> ListTokens(const std::string& user) = 0;   ///< "" = all
  virtual absl::StatusOr<SessionRow> GetSession(const std::string& user, const std::string& id) = 0;
  virtual absl::StatusOr<SessionRow> GetSessionByUid(int64_t uid) = 0;
  /// Newest first (descending uid), without those that have a delete_ms unless show_deleted; only uid < before_uid when before_uid > 0. user "" = all users.
  virtual absl::StatusOr<std::vector<SessionRow>> ListSessions(const std::string& user, bool show_deleted, int64_t before_uid, int64_t limit) = 0;
  virtual absl::StatusOr<VersionRow> GetVersion(int64_t session_uid, int64_t number) = 0;
  /// Versions first <= number < end, ascending, at most limit.
  virtual absl::StatusOr<std::vector<VersionRow>> ListVersions(int64_t session_uid, int64_t first, int64_t end, int64_t limit) = 0;
  /// The newest version <= number that has a blob; NOT_FOUND when there is none.
  virtual absl::StatusOr<VersionRow> LatestSnapshot(int64_t session_uid, int64_t number) = 0;
  /// Observations of a kind with first_a <= a < end_a, by (a, b).
  virtual absl::StatusOr<std::vector<ObservationRow>> ListObservations(int64_t session_uid, const std::string& kind, int64_t first_a, int64_t end_a) = 0;
  virtual absl::StatusOr<RequestRow> GetRequest(const std::string& user, const std::string& method, const std::string& request_id) = 0;
  /// create_ms of the request that was committed first and is still kept; NOT_FOUND when none is.
  virtual absl::StatusOr<int64_t> OldestRequestMs() = 0;
  /// Nodes first <= id, ascending, at most limit.
  virtual absl::StatusOr<std::vector<NodeRow>> ListNodes(int64_t session_uid, int64_t first, int64_t limit) = 0;
  /// Events with sequence > after, ascending. `oldest` of the log via FirstEventSequence.
  virtual absl::StatusOr<std::vector<EventRow>> ListEvents(const std::string& user, int64_t after, int64_t limit) = 0;
  /// Oldest sequence still kept; one past the newest when none is (1 for a user without events).
  virtual absl::StatusOr<int64_t> FirstEventSequence(const std::string& user) = 0;
  /// The sequence given last; 0 for a user without events.
  virtual absl::StatusOr<int64_t> LastEventSequence(const std::string& user) = 0;
  virtual absl::StatusOr<OperationRow> GetOperation(const std::string& user, const std::string& id) = 0;
  /// Newest first: by (create_ms, id) descending, those before (before_ms, before_id) when before_ms > 0. user "" = all users.
  virtual absl::StatusOr<std::vector<OperationRow>> ListOperations(const std::string& user, int64_t before_ms, int64_t limit, const std::string& before_id) = 0;
  absl::StatusOr<std::vector<OperationRow>> ListOperations(const std::string& user, int64_t before_ms, int64_t limit) {
    return ListOperations(user, before_ms, limit, "");
  }
  virtual absl::StatusOr<std::vector<OperationRow>> ListUndoneOperations() = 0;
  virtual absl::StatusOr<ArtifactRow> GetArtifact(const std::string& user, const std::string& sha256) = 0;
  /// As ListOperations, with the hash as id.
  virtual absl::StatusOr<std::vector<ArtifactRow>> ListArtifacts(const std::string& user, int64_t before_ms, int64_t limit, const std::string& before_sha256) = 0;
  absl::StatusOr<std::vector<ArtifactRow>> ListArtifacts(const std::string& user, int64_t before_ms, int64_t limit) {
    return ListArtifacts(user, before_ms, limit, "");
  }
  virtual absl::StatusOr<std::string> GetMeta(const std::string& key) = 0;
  /// Every blob hash that a row points to (for the sweep): of versions, observations and artifacts. Sorted, each once.
  virtual absl::StatusOr<std::vector<std::string>> LiveBlobs() = 0;

  // ---- care
  /// A consistent copy of the database at `path`, checked with integrity_check; writers go on meanwhile. ALREADY_EXISTS when `path` is there,
  /// DATA_LOSS when the check fails. UNIMPLEMENTED for the memory store.
  virtual absl::Status BackupTo(const std::string& path) = 0;
  /// Synchronous commits per second of this disk, measured once at open (0 for the memory store).
  virtual double CommitsPerSecond() = 0;
  /// Stops taking batches, commits what is queued, closes. Idempotent.
  virtual absl::Status Close() = 0;
};

}  // namespace optod::store

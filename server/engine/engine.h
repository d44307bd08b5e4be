#pragma once
/// The session engine: sessions in memory, one strand each, over a durable store.
///
///   gRPC thread ──► Engine::Mutate/Read ──► strand of the session: work(LiveSession&) ──► Effects ──► Store::Commit ──► answer
///
/// Contract
/// - Work runs on the session's strand, never two at once, never on a gRPC thread. It changes memory and returns the mutations that make the same
///   change durable; the answer leaves after their commit. Work that returns an error must have changed nothing.
/// - A request id is looked up before the work runs and stored in the same batch as its effect: a retry gets the first answer.
/// - When a commit fails, the session's memory is thrown away (its later batches fail too) and it is loaded anew from what is durable.
/// - A read answers after everything it could have seen is durable.
/// All methods are thread-safe; callbacks run on the store's completion thread or on the pool.

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/thread_pool.h"
#include "optim/rules/registry.h"
#include "optod/v1/session.pb.h"
#include "server/store/blob_store.h"
#include "server/store/store.h"

namespace optod::engine {

/// Who calls: filled by authentication.
struct Caller {
  std::string user = "local";
  bool admin = false;
  bool viewer = false;   ///< may read, not change
  bool internal = false; ///< the server itself, ending work that was let in before a drain
};

/// users/U/sessions/S taken apart.
struct SessionName {
  std::string user, id;
  std::string Full() const { return "users/" + user + "/sessions/" + id; }
};

/// Accepts users/U/sessions/S, sessions/S and S (both of the caller). INVALID_ARGUMENT naming `field`.
absl::StatusOr<SessionName> ParseSessionName(const std::string& text, const Caller& caller, const std::string& field);
/// users/U/sessions/S/versions/N (or the short forms).
absl::StatusOr<std::pair<SessionName, int64_t>> ParseVersionName(const std::string& text, const Caller& caller, const std::string& field);
/// [a-z]([a-z0-9-]{0,61}[a-z0-9])?
bool IsResourceId(const std::string& id);

/// What a piece of work wants written. The engine adds the session row (when row_changed) and the request row.
struct Effects {
  std::vector<store::Mutation> mutations;
  bool row_changed = true;
  /// false: the answer does not wait for a commit (sessions that asked for less durability).
  bool wait_for_commit = true;
};

class LiveSession;
struct Context;

/// The family-specific half of a session: first-order, zeroth-order or trace. Called on the session's strand only.
class Family {
 public:
  virtual ~Family() = default;
  /// What to evaluate. An answer without probes, points, replay or budget_spent means that nothing is free now: the engine asks again after the
  /// next change, or when a lease may have ended, as long as the request waits.
  virtual absl::StatusOr<v1::AskResponse> Ask(LiveSession& session, const v1::AskRequest& request, const Caller& caller) = 0;
  /// What was observed (not ScoreTell: the engine does that). Fills response and effects.
  virtual absl::Status Tell(LiveSession& session, const v1::TellRequest& request, v1::TellResponse* response, Effects* effects) = 0;
  /// The head is about to become `version` (exists, durable or in this session's memory). Makes memory follow.
  virtual absl::Status MoveHead(LiveSession& session, const store::VersionRow& version, Effects* effects) = 0;
  /// Completes a version for GetVersion (all values of a trace version, ...).
  virtual absl::Status FillVersion(LiveSession& session, v1::Version* version) { return absl::OkStatus(); }
  /// Bytes of memory held, for eviction and reports.
  virtual size_t ResidentBytes() const = 0;
  /// Makes what is only in memory durable (sessions with less durability), before eviction and at shutdown.
  virtual absl::Status Flush(LiveSession& session, Effects* effects) { return absl::OkStatus(); }
};

/// How families are made. One entry a family in engine/families.cc.
struct FamilyFactory {
  /// Optimizer names this family serves ("zo-sgd", ...); others of the family answer UNIMPLEMENTED. Empty: all rows that the registry calls implemented.
  std::vector<std::string> optimizers;
  /// Checks a CreateSessionRequest beyond what the registry checks, fills family-specific defaults into `session`, and says what is stored with
  /// version 0 (payload, blob) and which further mutations belong to the creation (their session_uid is filled in by the engine).
  std::function<absl::Status(Context&, const v1::CreateSessionRequest&, v1::Session* session, store::VersionRow* version0, Effects*)> create;
  /// Builds the in-memory half from what is committed.
  std::function<absl::StatusOr<std::unique_ptr<Family>>(Context&, LiveSession&)> load;
  /// Mutations that give a fork (new uid, already in `fork`) what version `version` of `source` needs. Default: the engine copies the version chain's
  /// snapshot pointer only; families that replay copy what they must.
  std::function<absl::Status(Context&, LiveSession& source, int64_t version, LiveSession& fork, store::VersionRow* version0, Effects*)> fork;
};

struct TraceServices;

/// What the engine and its families run on. Borrowed; outlives the engine.
struct Context {
  store::Store* store = nullptr;
  store::BlobStore* blobs = nullptr;
  Clock* clock = nullptr;
  ThreadPool* pool = nullptr;
  Timers* timers = nullptr;
  TraceServices* trace = nullptr;   ///< language models and operations: trace_services.h; nullptr = no trace sessions
};

/// One session in memory. Only its strand touches it.
class LiveSession {
 public:
  explicit LiveSession(ThreadPool& pool) : strand(pool) {}

  store::SessionRow row;           ///< counters (head_version, version_count, seq, ...): the truth
  v1::Session proto;               ///< immutable and mutable fields; counters are filled from `row` by ToProto
  std::unique_ptr<Family> family;
  int64_t durable_version = 0;     ///< highest version known to be committed (kept by the family when it does not commit every step)

  SessionName name() const { return {row.user, row.id}; }
  /// The resource as clients see it.
  v1::Session ToProto() const;
  /// Serializes the changeable fields of `proto` into row.mutable_fields, bumps update_ms and revision.
  void SyncRow(int64_t now_ms);
  /// A version row numbered row.version_count with parent = head; increments version_count. `version` gets number, parent, step, create_time.
  store::VersionRow NewVersion(v1::Version* version, int64_t parent_step, int64_t now_ms);

  // -- engine's own
  Strand strand;
  std::atomic<bool> poisoned{false};
  std::atomic<int64_t> commits_in_flight{0};
  bool loaded = false;
  absl::Status load_error;
  struct Recent { std::string sha256, response; };
  std::mutex recent_mutex;
  std::unordered_map<std::string, Recent> recent;      ///< request key -> answer: commits in flight, and steps that are not durable by choice
  std::deque<std::string> recent_order;                ///< of the latter, oldest first
  struct Waiter;
  std::deque<std::shared_ptr<Waiter>> waiters;         ///< asks that wait for a free probe
  bool polling = false;                                ///< a timer looks after `waiters`
  std::atomic<int64_t> last_used_ms{0};
  std::atomic<int64_t> resident_bytes{0};
};

/// On the strand: blocks until all of the session's commits are durable, so that the store's reads see them.
void WaitDurable(store::Store& store, LiveSession& live);

template <typename Response>
using Done = absl::AnyInvocable<void(absl::StatusOr<Response>)>;

class Engine {
 public:
  Engine(Context context, std::map<std::string, FamilyFactory> families);   ///< by family name: "first-order", ...
  ~Engine();                                                               ///< flushes; call Drain first

  // ---- SessionService
  /// Where a new session comes from when it is not the request alone: an imported state.
  struct Origin {
    std::string method = "CreateSession";  ///< of the request id
    std::string hash_source;               ///< what is hashed for REQUEST_ID_REUSED; "" = the request
    std::function<void(v1::Session*, store::VersionRow* version0)> fill;  ///< after the family's `create`
  };
  void CreateSession(const Caller&, v1::CreateSessionRequest, Done<v1::Session>);
  void CreateSession(const Caller&, v1::CreateSessionRequest, Done<v1::Session>, Origin);
  void GetSession(const Caller&, v1::GetSessionRequest, Done<v1::Session>);
  void ListSessions(const Caller&, v1::ListSessionsRequest, Done<v1::ListSessionsResponse>);
  void UpdateSession(const Caller&, v1::UpdateSessionRequest, Done<v1::Session>);
  void DeleteSession(const Caller&, v1::DeleteSessionRequest, Done<v1::Session>);
  void UndeleteSession(const Caller&, v1::UndeleteSessionRequest, Done<v1::Session>);
  void Ask(const Caller&, v1::AskRequest, Done<v1::AskResponse>);
  void Tell(const Caller&, v1::TellRequest, Done<v1::TellResponse>);
  void ListVersions(const Caller&, v1::ListVersionsRequest, Done<v1::ListVersionsResponse>);
  void GetVersion(const Caller&, v1::GetVersionRequest, Done<v1::Version>);
  void Rollback(const Caller&, v1::RollbackRequest, Done<v1::Session>);
  void ForkSession(const Caller&, v1::ForkSessionRequest, Done<v1::Session>);
  /// One line of JSON at a time, off the strand; `sink` returns false to stop.
  void ExportSession(const Caller&, v1::ExportSessionRequest, std::function<bool(std::string)> sink, Done<bool>);
  void ListOptimizers(const v1::ListOptimizersRequest&, Done<v1::ListOptimizersResponse>);

  // ---- for families' own services (trace, streams)
  /// Runs `work` on the session's strand; see the contract above. `method` and the request's id and serialized bytes protect against retries
  /// (request_id "" = none). The response type must be a protobuf message. `hash_source` = what is hashed for REQUEST_ID_REUSED.
  template <typename Response>
  void Mutate(const Caller& caller, const std::string& session, const std::string& method, const std::string& request_id, std::string hash_source,
              std::function<absl::StatusOr<Effects>(LiveSession&, Response*)> work, Done<Response> done) {
    MutateBytes(
        caller, session, method, request_id, std::move(hash_source),
        [work = std::move(work)](LiveSession& live, std::string* bytes) -> absl::StatusOr<Effects> {
          Response response;
          auto effects = work(live, &response);
          if (effects.ok()) response.SerializeToString(bytes);
          return effects;
        },
        [done = std::move(done)](absl::StatusOr<std::string> bytes) mutable {
          if (!bytes.ok()) return done(bytes.status());
          Response response;
          if (!response.ParseFromString(*bytes)) return done(absl::InternalError("stored answer cannot be parsed"));
          done(std::move(response));
        });
  }
  /// As Mutate, without request protection or changes: answers after what was seen is durable.
  template <typename Response>
  void Read(const Caller& caller, const std::string& session, std::function<absl::StatusOr<Response>(LiveSession&)> work, Done<Response> done) {
    auto result = std::make_shared<absl::StatusOr<Response>>(absl::UnknownError("not run"));
    ReadErased(
        caller, session, [work = std::move(work), result](LiveSession& live) { *result = work(live); return result->status(); },
        [result, done = std::move(done)](absl::Status status) mutable {
          if (!status.ok()) return done(status);
          done(std::move(*result));
        });
  }

  /// Keeps a drain waiting while the token lives: for work that goes on after its call was answered.
  std::shared_ptr<void> HoldDrain();

  // ---- care
  Context& context() { return context_; }
  /// No new calls (UNAVAILABLE "draining"); returns when running ones are done and sessions are flushed.
  void Drain();
  int64_t LoadedSessions();
  int64_t ResidentBytes();
  /// Sessions kept in memory; the least recently used idle one is unloaded beyond that. Default 1024.
  void SetMaxLoaded(size_t sessions);
  /// Idle sessions leave memory while those that are loaded hold more than this; they come back when asked for. What one
  /// session needs for itself is not limited by it.
  void SetMemoryBudget(int64_t bytes);

 private:
  struct Mutation;
  using BytesWork = std::function<absl::StatusOr<Effects>(LiveSession&, std::string*)>;
  void MutateBytes(const Caller&, const std::string& session, const std::string& method, const std::string& request_id, std::string hash_source,
                   BytesWork work, Done<std::string> done);
  void ReadErased(const Caller&, const std::string& session, std::function<absl::Status(LiveSession&)> work, absl::AnyInvocable<void(absl::Status)> done);

  struct Impl;
  Context context_;
  std::unique_ptr<Impl> impl_;
};

// ---- conversions that several files need (engine/convert.cc)

/// Values of the wire against the registry: fills defaults, checks ranges; "optimizer.hyperparameters.lr: ..." errors.
absl::Status CheckOptimizer(v1::OptimizerSpec* spec, std::string* family, std::vector<std::string>* tell_inputs);
/// A registry row as the API shows it; `available` says whether sessions with it can be made here.
void DescribeOptimizer(const optim::RuleInfo& info, const std::map<std::string, FamilyFactory>& families, v1::OptimizerInfo* out);
/// Whether `name` of `family` can be served: OK or UNIMPLEMENTED naming it.
absl::Status CheckServed(const std::string& name, const std::string& family, const std::map<std::string, FamilyFactory>& families);
/// "first-order", "zeroth-order" or "trace".
std::string FamilyName(optim::Family family);
/// Checks names, dtypes, shapes, duplicates and sizes; fills total_bytes. "layout.tensors[3].shape[0]: -1 is negative".
absl::Status CheckLayout(v1::TensorIndex* layout);
/// "users/U/sessions/S" of a row, taken apart into an API message without a family (lists, deleted sessions).
v1::Session SessionFromRow(const store::SessionRow& row);
/// The bytes of a message with map entries sorted: equal messages, equal bytes.
std::string CanonicalBytes(const google::protobuf::MessageLite& message);
/// lr(t) for update number t = 1, 2, ...: see optimizer.proto Schedule.
double ScheduledLr(const v1::Schedule& schedule, double base_lr, int64_t t);
/// Adds one score to a version (mean of all told) and keeps the best. On the strand.
absl::StatusOr<Effects> ApplyScore(Context& context, LiveSession& live, const v1::ScoreTell& tell, v1::TellResponse* response);
/// OK, or RESOURCE_EXHAUSTED naming the limit that is reached.
absl::Status CheckBudget(const v1::Session& session, int64_t created_ms, int64_t now_ms);

}  // namespace optod::engine

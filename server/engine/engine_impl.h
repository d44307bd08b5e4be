#pragma once
/// Private to engine_*.cc: what the engine keeps beside the sessions.

#include <condition_variable>

#include "server/engine/engine.h"

namespace optod::engine {

using SessionPtr = std::shared_ptr<LiveSession>;

/// An ask that waits for a free probe. Touched on the session's strand only.
struct LiveSession::Waiter {
  Caller caller;
  v1::AskRequest request;
  Done<v1::AskResponse> done;
  int64_t deadline_ns = 0;
  bool finished = false;
};

struct Engine::Impl {
  Impl(Context& c, std::map<std::string, FamilyFactory> f) : context(c), families(std::move(f)), create_strand(*c.pool) {}

  Context& context;
  std::map<std::string, FamilyFactory> families;
  Strand create_strand;   ///< creations one at a time: request ids and session ids are checked in order

  std::mutex mutex;
  std::condition_variable idle;
  std::unordered_map<std::string, SessionPtr> sessions;   ///< by full name
  bool draining = false;
  int64_t running = 0;
  size_t max_loaded = 1024;
  int64_t memory_budget = INT64_MAX;         ///< bytes of families in memory before idle sessions leave
  std::atomic<int64_t> resident_total{0};    ///< sum of LiveSession::resident_bytes over `sessions`

  /// Counts a call in; UNAVAILABLE while draining. Every success is paired with Leave.
  absl::Status Enter(bool internal = false);
  void Leave();

  /// The session's place in memory, made when it is not there (not loaded yet).
  SessionPtr Acquire(const SessionName& name);
  /// Takes a session out of memory: later calls load it anew.
  void Drop(const SessionPtr& live);
  /// On the strand: OK when the session is in memory and usable by `caller`.
  absl::Status EnsureLoaded(const SessionPtr& live, const SessionName& name);
  absl::StatusOr<std::unique_ptr<Family>> LoadFamily(LiveSession& live);
  const FamilyFactory& Factory(const v1::Session& session) const;
  /// Asks the family how much memory it holds. On the strand.
  void NoteResident(LiveSession& live);
  void EvictIdle();

  void WaitDurable(LiveSession& live) { engine::WaitDurable(*context.store, live); }
  /// On the strand, after a change: answers asks that wait.
  void RunWaiters(const SessionPtr& live);
  void PollWaiters(const SessionPtr& live);
  /// Answers after everything queued so far is durable (at once when nothing is in flight).
  void AfterDurable(const SessionPtr& live, absl::AnyInvocable<void(absl::Status)> done);

  /// The stored answer for a request id: value, or NOT_FOUND, or ABORTED when the id came with another request.
  absl::StatusOr<std::string> StoredAnswer(LiveSession* live, const std::string& user, const std::string& method, const std::string& request_id,
                                           const std::string& sha256);
  int64_t NowMs() { return context.clock->NowUnixMs(); }
};

/// Usage.stored_bytes of what a batch adds to a session's history: versions with their snapshots, and trace nodes. `blobs` may be null.
int64_t HistoryBytes(store::BlobStore* blobs, const std::vector<store::Mutation>& mutations);
/// Adds them to the session's usage; before SyncRow.
void CountStored(Context& context, LiveSession& live, const std::vector<store::Mutation>& mutations);
/// Whether `caller` may see (and, for `change`, alter) sessions of `name.user`. NOT_FOUND for what may not be seen.
absl::Status CheckAccess(const Caller& caller, const SessionName& name, bool change);
/// Raw SHA-256 of bytes.
std::string RequestHash(const std::string& bytes);
absl::Status CheckRequestId(const std::string& request_id);
store::Mutation EventOf(const std::string& user, const std::string& type, const std::string& resource, const std::string& detail_json, int64_t now_ms);
v1::Version VersionFromRow(const store::VersionRow& row, const SessionName& session);
/// Adds the caller's mark to an INVALID_ARGUMENT-like status with a machine-readable reason (payload "optod/reason").
absl::Status WithReason(absl::Status status, const std::string& reason);

}  // namespace optod::engine

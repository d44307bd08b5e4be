// The engine's core: where sessions live, how work runs on their strands, and how answers wait for commits.
#include "server/engine/engine.h"

#include <utility>

#include "absl/strings/cord.h"
#include "base/sha256.h"
#include "base/status.h"
#include "google/protobuf/util/time_util.h"
#include "server/engine/engine_impl.h"
#include "server/engine/trace_services.h"

namespace optod::engine {
namespace {

constexpr size_t kRecentNotDurable = 256;
constexpr int64_t kWaiterPollNs = 100'000'000;

std::string RequestKey(const std::string& method, const std::string& request_id) { return method + '\n' + request_id; }

}  // namespace

absl::Status WithReason(absl::Status status, const std::string& reason) {
  status.SetPayload("optod/reason", absl::Cord(reason));
  return status;
}

absl::Status CheckAccess(const Caller& caller, const SessionName& name, bool change) {
  if (caller.user != name.user && !caller.admin) return NotFound("session ", name.Full(), " does not exist");
  if (change && caller.viewer) return absl::PermissionDeniedError("this token may read but not change");
  return absl::OkStatus();
}

std::string RequestHash(const std::string& bytes) {
  Sha256 hasher;
  hasher.Update(std::string_view(bytes));
  const Sha256Digest digest = hasher.Finish();
  return std::string(reinterpret_cast<const char*>(digest.data()), digest.size());
}

absl::Status CheckRequestId(const std::string& request_id) {
  if (request_id.size() > 64) return InvalidArgument("request_id: ", request_id.size(), " bytes; at most 64");
  return absl::OkStatus();
}

store::Mutation EventOf(const std::string& user, const std::string& type, const std::string& resource, const std::string& detail_json,
                        int64_t now_ms) {
  store::EventRow row;
  row.user = user;
  row.type = type;
  row.resource = resource;
  row.detail_json = detail_json;
  row.time_ms = now_ms;
  return store::AppendEvent{std::move(row)};
}

int64_t HistoryBytes(store::BlobStore* blobs, const std::vector<store::Mutation>& mutations) {
  int64_t bytes = 0;
  for (const store::Mutation& mutation : mutations) {
    if (const auto* version = std::get_if<store::InsertVersion>(&mutation)) {
      bytes += static_cast<int64_t>(version->row.payload.size());
      if (!version->row.blob.empty() && blobs != nullptr) bytes += blobs->Size(version->row.blob).value_or(0);
    } else if (const auto* nodes = std::get_if<store::InsertNodes>(&mutation)) {
      for (const store::NodeRow& row : nodes->rows) bytes += static_cast<int64_t>(row.payload.size());
    }
  }
  return bytes;
}

void CountStored(Context& context, LiveSession& live, const std::vector<store::Mutation>& mutations) {
  const int64_t bytes = HistoryBytes(context.blobs, mutations);
  if (bytes > 0) live.proto.mutable_usage()->set_stored_bytes(live.proto.usage().stored_bytes() + bytes);
}

// ---- Impl

absl::Status Engine::Impl::Enter(bool internal) {
  std::lock_guard lock(mutex);
  if (draining && !internal) return WithReason(Unavailable("the server is draining; try again later"), "DRAINING");
  ++running;
  return absl::OkStatus();
}

void Engine::Impl::Leave() {
  std::lock_guard lock(mutex);
  if (--running == 0) idle.notify_all();
}

SessionPtr Engine::Impl::Acquire(const SessionName& name) {
  bool crowded = false;
  SessionPtr live;
  {
    std::lock_guard lock(mutex);
    SessionPtr& slot = sessions[name.Full()];
    if (!slot) slot = std::make_shared<LiveSession>(*context.pool);
    live = slot;
    crowded = sessions.size() > max_loaded || resident_total > memory_budget;
  }
  live->last_used_ms = NowMs();
  if (crowded) EvictIdle();
  return live;
}

void Engine::Impl::Drop(const SessionPtr& live) {
  live->poisoned = true;
  std::lock_guard lock(mutex);
  for (auto it = sessions.begin(); it != sessions.end(); ++it) {
    if (it->second == live) {
      resident_total -= live->resident_bytes.exchange(0);
      sessions.erase(it);
      return;
    }
  }
}

void Engine::Impl::NoteResident(LiveSession& live) {
  std::lock_guard lock(mutex);
  if (live.poisoned) return;  // dropped: no longer counted
  const int64_t bytes = static_cast<int64_t>(live.family->ResidentBytes());
  resident_total += bytes - live.resident_bytes.exchange(bytes);
}

const FamilyFactory& Engine::Impl::Factory(const v1::Session& session) const {
  static const FamilyFactory none;
  v1::OptimizerSpec spec = session.optimizer();
  std::string family;
  std::vector<std::string> inputs;
  if (!CheckOptimizer(&spec, &family, &inputs).ok()) return none;
  auto it = families.find(family);
  return it == families.end() ? none : it->second;
}

absl::StatusOr<std::unique_ptr<Family>> Engine::Impl::LoadFamily(LiveSession& live) {
  const FamilyFactory& factory = Factory(live.proto);
  if (!factory.load) return Unimplemented("optimizer ", live.proto.optimizer().name(), ": not part of this server");
  return factory.load(context, live);
}

absl::Status Engine::Impl::EnsureLoaded(const SessionPtr& live, const SessionName& name) {
  if (live->loaded) return absl::OkStatus();
  auto row = context.store->GetSession(name.user, name.id);
  if (!row.ok()) {
    Drop(live);
    if (absl::IsNotFound(row.status())) return NotFound("session ", name.Full(), " does not exist");
    return row.status();
  }
  live->row = *std::move(row);
  live->proto = SessionFromRow(live->row);
  live->durable_version = live->row.version_count - 1;
  auto family = LoadFamily(*live);
  if (!family.ok()) {
    Drop(live);
    return family.status();
  }
  live->family = *std::move(family);
  live->loaded = true;
  NoteResident(*live);
  return absl::OkStatus();
}

void WaitDurable(store::Store& store, LiveSession& live) {
  if (live.commits_in_flight == 0) return;
  std::mutex done_mutex;
  std::condition_variable done_cv;
  bool done = false;
  store.Barrier([&](absl::Status) {
    std::lock_guard lock(done_mutex);
    done = true;
    done_cv.notify_all();
  });
  std::unique_lock lock(done_mutex);
  done_cv.wait(lock, [&] { return done; });
}

void Engine::Impl::AfterDurable(const SessionPtr& live, absl::AnyInvocable<void(absl::Status)> done) {
  if (live->commits_in_flight == 0) return done(absl::OkStatus());
  context.store->Barrier([live, done = std::move(done)](absl::Status status) mutable {
    if (status.ok() && live->poisoned) status = Unavailable("a write of this session failed; try again");
    done(std::move(status));
  });
}

absl::StatusOr<std::string> Engine::Impl::StoredAnswer(LiveSession* live, const std::string& user, const std::string& method,
                                                       const std::string& request_id, const std::string& sha256) {
  auto check = [&](const std::string& stored_sha, std::string response) -> absl::StatusOr<std::string> {
    if (stored_sha == sha256) return response;
    return WithReason(Aborted("request_id: \"", request_id, "\" was used before with another request"), "REQUEST_ID_REUSED");
  };
  if (live != nullptr) {
    std::lock_guard lock(live->recent_mutex);
    auto it = live->recent.find(RequestKey(method, request_id));
    if (it != live->recent.end()) return check(it->second.sha256, it->second.response);
  }
  auto row = context.store->GetRequest(user, method, request_id);
  if (!row.ok()) return row.status();
  return check(row->request_sha256, row->response);
}

void Engine::Impl::RunWaiters(const SessionPtr& live) {
  std::deque<std::shared_ptr<LiveSession::Waiter>> still;
  const int64_t now_ns = context.clock->NowMonotonicNs();
  while (!live->waiters.empty()) {
    auto waiter = live->waiters.front();
    live->waiters.pop_front();
    if (live->poisoned || !live->loaded) {
      waiter->done(Unavailable("a write of this session failed; try again"));
      continue;
    }
    auto answer = live->family->Ask(*live, waiter->request, waiter->caller);
    const bool empty = answer.ok() && answer->probes().empty() && answer->points().empty() && !answer->budget_spent() && answer->replay().empty();
    if (empty && now_ns < waiter->deadline_ns) {
      still.push_back(waiter);
      continue;
    }
    AfterDurable(live, [waiter, answer = std::move(answer)](absl::Status status) mutable {
      if (!status.ok()) return waiter->done(std::move(status));
      waiter->done(std::move(answer));
    });
  }
  live->waiters = std::move(still);
}

void Engine::Impl::PollWaiters(const SessionPtr& live) {
  if (live->polling) return;   // one chain of timers a session, counted once
  live->polling = true;
  {
    std::lock_guard lock(mutex);
    ++running;   // the chain of timers ends before a drain does
  }
  context.timers->After(std::chrono::nanoseconds(kWaiterPollNs), [this, live] {
    live->strand.Post([this, live] {
      RunWaiters(live);
      live->polling = false;
      if (!live->waiters.empty()) PollWaiters(live);
      Leave();
    });
  });
}

void Engine::Impl::EvictIdle() {
  SessionPtr victim;
  std::string victim_name;
  {
    std::lock_guard lock(mutex);
    for (const auto& [name, live] : sessions) {
      if (live.use_count() > 1 || live->commits_in_flight > 0 || live->poisoned) continue;
      if (!victim || live->last_used_ms < victim->last_used_ms) {
        victim = live;
        victim_name = name;
      }
    }
  }
  if (!victim) return;
  victim->strand.Post([this, victim] {
    if (victim->poisoned || !victim->loaded || !victim->waiters.empty() || victim->commits_in_flight > 0) return;
    Effects effects;
    if (!victim->family->Flush(*victim, &effects).ok()) return;
    if (!effects.mutations.empty()) {
      CountStored(context, *victim, effects.mutations);
      victim->SyncRow(NowMs());
      effects.mutations.push_back(store::UpdateSession{victim->row});
      store::Batch batch;
      batch.mutations = std::move(effects.mutations);
      (void)context.store->CommitAndWait(std::move(batch));
    }
    Drop(victim);
  });
}

// ---- Engine

Engine::Engine(Context context, std::map<std::string, FamilyFactory> families)
    : context_(context), impl_(std::make_unique<Impl>(context_, std::move(families))) {}

Engine::~Engine() { Drain(); }

void Engine::Drain() {
  std::vector<SessionPtr> all;
  {
    std::unique_lock lock(impl_->mutex);
    impl_->draining = true;
    for (const auto& [name, live] : impl_->sessions) all.push_back(live);
  }
  for (const SessionPtr& live : all) {   // waiting asks would hold the drain up
    live->strand.Post([live] {
      for (auto& waiter : live->waiters) waiter->done(WithReason(Unavailable("the server is draining; try again later"), "DRAINING"));
      live->waiters.clear();
    });
  }
  std::unique_lock lock(impl_->mutex);
  impl_->idle.wait(lock, [&] { return impl_->running == 0; });
  lock.unlock();
  for (const SessionPtr& live : all) {
    std::mutex done_mutex;
    std::condition_variable done_cv;
    bool done = false;
    live->strand.Post([&, this] {
      Effects effects;
      if (live->loaded && !live->poisoned && live->family->Flush(*live, &effects).ok() && !effects.mutations.empty()) {
        CountStored(context_, *live, effects.mutations);
        live->SyncRow(impl_->NowMs());
        effects.mutations.push_back(store::UpdateSession{live->row});
        store::Batch batch;
        batch.mutations = std::move(effects.mutations);
        (void)context_.store->CommitAndWait(std::move(batch));
      }
      std::lock_guard flush_lock(done_mutex);
      done = true;
      done_cv.notify_all();
    });
    std::unique_lock flush_lock(done_mutex);
    done_cv.wait(flush_lock, [&] { return done; });
  }
}

int64_t Engine::LoadedSessions() {
  std::lock_guard lock(impl_->mutex);
  return static_cast<int64_t>(impl_->sessions.size());
}

int64_t Engine::ResidentBytes() {
  return impl_->resident_total;
}

std::shared_ptr<void> Engine::HoldDrain() {
  (void)impl_->Enter(/*internal=*/true);
  return std::shared_ptr<void>(nullptr, [impl = impl_.get()](void*) { impl->Leave(); });
}

void Engine::SetMaxLoaded(size_t sessions) { impl_->max_loaded = sessions; }
void Engine::SetMemoryBudget(int64_t bytes) { impl_->memory_budget = bytes; }

/// One mutating call on its way: looked up, run, committed, answered.
struct Engine::Mutation : std::enable_shared_from_this<Engine::Mutation> {
  Engine::Impl* impl = nullptr;
  Caller caller;
  SessionName name;
  std::string method, request_id, sha256;
  BytesWork work;
  Done<std::string> done;
  int attempts = 0;
  int64_t evaluations = 0;   ///< that the work added to the session's usage

  /// To whoever counts by user and day.
  void CountEvaluations() {
    if (evaluations > 0 && impl->context.trace != nullptr && impl->context.trace->on_evaluations)
      impl->context.trace->on_evaluations(name.user, evaluations);
  }

  void Answer(absl::StatusOr<std::string> result) {
    done(std::move(result));
    impl->Leave();
  }

  void Start() {
    SessionPtr live = impl->Acquire(name);
    (void)impl->Enter(/*internal=*/true);   // the work goes on for a moment after its answer left: a drain waits for that too
    live->strand.Post([self = shared_from_this(), live] {
      self->Run(live);
      self->impl->Leave();
    });
  }

  void Run(const SessionPtr& live) {
    if (live->poisoned) {
      if (++attempts > 4) return Answer(Unavailable("writes of this session keep failing; try again"));
      return Start();
    }
    if (absl::Status loaded = impl->EnsureLoaded(live, name); !loaded.ok()) return Answer(loaded);
    if (live->row.state == v1::Session::DELETED && method != "UndeleteSession")
      return Answer(NotFound("session ", name.Full(), " is deleted; UndeleteSession restores it"));
    if (!request_id.empty()) {
      auto stored = impl->StoredAnswer(live.get(), name.user, method, request_id, sha256);
      if (!absl::IsNotFound(stored.status())) {
        return impl->AfterDurable(live, [self = shared_from_this(), stored = std::move(stored)](absl::Status status) mutable {
          self->Answer(status.ok() ? std::move(stored) : absl::StatusOr<std::string>(std::move(status)));
        });
      }
    }
    std::string bytes;
    const int64_t before = live->proto.usage().evaluations();
    auto effects = work(*live, &bytes);
    if (!effects.ok()) return Answer(effects.status());
    evaluations = live->proto.usage().evaluations() - before;
    impl->NoteResident(*live);
    if (effects->mutations.empty() && !effects->row_changed && request_id.empty()) {
      impl->AfterDurable(live, [self = shared_from_this(), bytes = std::move(bytes)](absl::Status status) mutable {
        self->Answer(status.ok() ? absl::StatusOr<std::string>(std::move(bytes)) : std::move(status));
      });
    } else if (!effects->wait_for_commit && effects->mutations.empty()) {
      Remember(*live, bytes);
      CountEvaluations();
      Answer(std::move(bytes));
    } else {
      Commit(live, *std::move(effects), std::move(bytes));
    }
    impl->RunWaiters(live);
  }

  /// A step that is not durable by choice: its answer is kept in memory for retries.
  void Remember(LiveSession& live, const std::string& bytes) {
    if (request_id.empty()) return;
    std::lock_guard lock(live.recent_mutex);
    const std::string key = RequestKey(method, request_id);
    live.recent[key] = {sha256, bytes};
    live.recent_order.push_back(key);
    if (live.recent_order.size() > kRecentNotDurable) {
      live.recent.erase(live.recent_order.front());
      live.recent_order.pop_front();
    }
  }

  void Commit(const SessionPtr& live, Effects effects, std::string bytes) {
    const int64_t now_ms = impl->NowMs();
    const bool early_answer = !effects.wait_for_commit;
    store::Batch batch;
    batch.mutations = std::move(effects.mutations);
    CountStored(impl->context, *live, batch.mutations);
    live->SyncRow(now_ms);
    batch.mutations.push_back(store::UpdateSession{live->row});
    std::string key;
    if (!request_id.empty()) {
      key = RequestKey(method, request_id);
      store::RequestRow row;
      row.user = name.user;
      row.method = method;
      row.request_id = request_id;
      row.request_sha256 = sha256;
      row.response = bytes;
      row.session_uid = live->row.uid;
      row.create_ms = now_ms;
      batch.mutations.push_back(store::InsertRequest{std::move(row)});
      std::lock_guard lock(live->recent_mutex);
      live->recent[key] = {sha256, bytes};
    }
    batch.gate = [live]() -> absl::Status {
      if (live->poisoned) return Unavailable("an earlier write of this session failed; try again");
      return absl::OkStatus();
    };
    ++live->commits_in_flight;
    if (early_answer) done(bytes);
    impl->context.store->Commit(std::move(batch), [self = shared_from_this(), live, key, early_answer, bytes = std::move(bytes)](absl::Status status) {
      if (!status.ok()) self->impl->Drop(live);
      if (status.ok()) self->CountEvaluations();
      --live->commits_in_flight;
      if (!key.empty()) {
        std::lock_guard lock(live->recent_mutex);
        live->recent.erase(key);
      }
      if (!early_answer) self->done(status.ok() ? absl::StatusOr<std::string>(bytes) : absl::StatusOr<std::string>(status));
      self->impl->Leave();
    });
  }
};

void Engine::MutateBytes(const Caller& caller, const std::string& session, const std::string& method, const std::string& request_id,
                         std::string hash_source, BytesWork work, Done<std::string> done) {
  auto name = ParseSessionName(session, caller, "session");
  absl::Status status = name.ok() ? CheckAccess(caller, *name, /*change=*/true) : name.status();
  if (status.ok()) status = CheckRequestId(request_id);
  if (status.ok()) status = impl_->Enter(caller.internal);
  if (!status.ok()) return done(status);
  auto mutation = std::make_shared<Mutation>();
  mutation->impl = impl_.get();
  mutation->caller = caller;
  mutation->name = *std::move(name);
  mutation->method = method;
  mutation->request_id = request_id;
  if (!request_id.empty()) mutation->sha256 = RequestHash(hash_source);
  mutation->work = std::move(work);
  mutation->done = std::move(done);
  mutation->Start();
}

namespace {

/// A read on its way to the strand; tried again when the session was dropped meanwhile.
struct ReadCall : std::enable_shared_from_this<ReadCall> {
  std::function<SessionPtr()> acquire;
  std::function<void(const SessionPtr&)> run;
  int attempts = 0;
  void Start() {
    SessionPtr live = acquire();
    live->strand.Post([self = shared_from_this(), live] {
      if (live->poisoned && ++self->attempts <= 4) return self->Start();
      self->run(live);
    });
  }
};

}  // namespace

void Engine::ReadErased(const Caller& caller, const std::string& session, std::function<absl::Status(LiveSession&)> work,
                        absl::AnyInvocable<void(absl::Status)> done) {
  auto name = ParseSessionName(session, caller, "session");
  absl::Status status = name.ok() ? CheckAccess(caller, *name, /*change=*/false) : name.status();
  if (status.ok()) status = impl_->Enter(caller.internal);
  if (!status.ok()) return done(status);
  auto call = std::make_shared<ReadCall>();
  auto shared_done = std::make_shared<absl::AnyInvocable<void(absl::Status)>>(std::move(done));
  Impl* impl = impl_.get();
  call->acquire = [impl, name = *name] { return impl->Acquire(name); };
  call->run = [impl, name = *name, work = std::move(work), shared_done](const SessionPtr& live) {
    absl::Status result = impl->EnsureLoaded(live, name);
    if (result.ok()) result = work(*live);
    if (!result.ok()) {
      (*shared_done)(std::move(result));
      return impl->Leave();
    }
    impl->AfterDurable(live, [impl, shared_done](absl::Status durable) {
      (*shared_done)(std::move(durable));
      impl->Leave();
    });
  };
  call->Start();
}

void Engine::Ask(const Caller& caller, v1::AskRequest request, Done<v1::AskResponse> done) {
  auto name = ParseSessionName(request.session(), caller, "session");
  absl::Status status = name.ok() ? CheckAccess(caller, *name, /*change=*/true) : name.status();
  if (status.ok() && (request.count() < 0 || request.count() > 65536)) status = InvalidArgument("count: ", request.count(), " is outside [0, 65536]");
  if (status.ok()) status = impl_->Enter();
  if (!status.ok()) return done(status);
  Impl* impl = impl_.get();
  auto waiter = std::make_shared<LiveSession::Waiter>();
  waiter->caller = caller;
  const int64_t wait_ns = request.has_wait() ? google::protobuf::util::TimeUtil::DurationToNanoseconds(request.wait()) : 0;
  waiter->deadline_ns = impl->context.clock->NowMonotonicNs() + wait_ns;
  waiter->request = std::move(request);
  waiter->done = [impl, done = std::move(done)](absl::StatusOr<v1::AskResponse> answer) mutable {
    done(std::move(answer));
    impl->Leave();
  };
  auto call = std::make_shared<ReadCall>();
  call->acquire = [impl, name = *name] { return impl->Acquire(name); };
  call->run = [impl, name = *name, waiter](const SessionPtr& live) {
    absl::Status ready = impl->EnsureLoaded(live, name);
    if (ready.ok() && live->row.state == v1::Session::DELETED) ready = NotFound("session ", name.Full(), " is deleted; UndeleteSession restores it");
    if (ready.ok() && live->row.state != v1::Session::ACTIVE) ready = FailedPrecondition("session ", name.Full(), " is closed");
    if (!ready.ok()) return waiter->done(ready);
    if (absl::Status budget = CheckBudget(live->proto, live->row.create_ms, impl->NowMs()); !budget.ok()) {
      // Nothing is handed out, but who asks still learns what leads to the head.
      v1::AskRequest look = waiter->request;
      look.set_with_point(false);
      look.set_with_values(false);
      look.mutable_lease()->Clear();
      v1::AskResponse spent;
      if (auto seen = live->family->Ask(*live, look, waiter->caller); seen.ok()) spent = *std::move(seen);
      spent.clear_probes();
      spent.clear_points();
      spent.set_head_version(live->row.head_version);
      spent.set_seq(live->row.seq);
      spent.set_budget_spent(true);
      spent.set_budget_reason(std::string(budget.message()));
      return impl->AfterDurable(live, [waiter, spent = std::move(spent)](absl::Status status) mutable {
        if (!status.ok()) return waiter->done(std::move(status));
        waiter->done(std::move(spent));
      });
    }
    live->waiters.push_back(waiter);
    impl->RunWaiters(live);
    if (!live->waiters.empty() && !live->polling) impl->PollWaiters(live);  // one chain of timers a session
  };
  call->Start();
}

}  // namespace optod::engine

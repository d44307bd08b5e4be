#include "server/services/event_service.h"

#include <chrono>
#include <deque>
#include <mutex>
#include <set>

#include "base/reason.h"
#include "base/status.h"
#include "optod/v1/event.grpc.pb.h"
#include "server/services/pages.h"
#include "server/services/unary.h"

namespace optod::services {
namespace {

using engine::Caller;
using grpc::CallbackServerContext;

constexpr size_t kMaxWatchers = 256;
constexpr int64_t kRowsPerRead = 256;
constexpr std::chrono::milliseconds kPollInterval{100};

void FillEvent(const store::EventRow& row, v1::Event* event) {
  event->set_sequence(row.sequence);
  event->set_type(row.type);
  event->set_resource(row.resource);
  event->set_detail_json(row.detail_json);
  event->mutable_time()->set_seconds(row.time_ms / 1000);
  event->mutable_time()->set_nanos(static_cast<int32_t>(row.time_ms % 1000) * 1'000'000);
}

absl::Status CheckAfter(int64_t after_sequence) {
  if (after_sequence < 0) return InvalidArgument("after_sequence: ", after_sequence, " is negative");
  return absl::OkStatus();
}

/// Sequences have no gaps: a hole after `after` means that what came next is no longer kept.
absl::Status CheckKept(const std::vector<store::EventRow>& rows, int64_t after) {
  if (rows.empty() || rows.front().sequence == after + 1) return absl::OkStatus();
  return WithReason(absl::OutOfRangeError(
                        Cat("after_sequence: events before ", rows.front().sequence, " are no longer kept; list anew")),
                    "EVENTS_EXPIRED");
}

class Watcher;

/// The watchers there are. Outlived by none of them: gRPC ends every call before the service goes.
struct Watchers {
  std::mutex mutex;
  std::set<Watcher*> all;
  bool stopping = false;
};

/// States: reading the store -> writing what was read, one event at a time -> waiting for the timer -> reading ... ->
/// finished. One of "work on the pool", "write in flight" and "timer set" is pending at any time, so that the last one
/// to see `end` finishes the call.
class Watcher final : public grpc::ServerWriteReactor<v1::Event> {
 public:
  Watcher(Watchers& watchers, const auth::Authenticator& authenticator, store::Store& store, ThreadPool& pool,
          Timers& timers, CallbackServerContext* context)
      : watchers_(watchers),
        authenticator_(authenticator),
        store_(store),
        pool_(pool),
        timers_(timers),
        context_(context) {}

  /// Owns itself until OnDone.
  void Start(std::shared_ptr<Watcher> self, const v1::WatchEventsRequest& request) {
    self_ = std::move(self);
    absl::Status status = Open(request);
    if (!status.ok()) return End(status);
    StartSendInitialMetadata();  // tells the client that it misses nothing from here on, long before the first event
    pool_.Post([this] { Read(); });
  }

  /// From outside: ends the call at the next turn.
  void Stop(const absl::Status& status) {
    std::unique_lock lock(mutex_);
    if (end_.ok()) end_ = status;
    if (!waiting_) return;
    waiting_ = false;  // the timer's task will see that somebody else went on
    lock.unlock();
    pool_.Post([this] { Turn(); });
  }

  void OnWriteDone(bool ok) override {
    if (!ok) {
      std::lock_guard lock(mutex_);
      if (end_.ok()) end_ = absl::CancelledError("the reader is gone");
    }
    Turn();
  }
  void OnCancel() override { Stop(absl::CancelledError("cancelled")); }
  void OnDone() override {
    {
      std::lock_guard lock(watchers_.mutex);
      watchers_.all.erase(this);
    }
    self_.reset();  // a timer that is still set keeps the rest
  }

 private:
  absl::Status Open(const v1::WatchEventsRequest& request) {
    generation_ = authenticator_.generation();
    ASSIGN_OR_RETURN(Caller caller, authenticator_.Authenticate(*context_));
    ASSIGN_OR_RETURN(user_, auth::ResolveUser(request.parent(), caller, "parent"));
    RETURN_IF_ERROR(CheckAfter(request.after_sequence()));
    after_ = request.after_sequence();
    prefix_ = request.resource_prefix();
    std::lock_guard lock(watchers_.mutex);
    if (watchers_.stopping) return WithReason(Unavailable("the server is draining; try again later"), "DRAINING");
    if (watchers_.all.size() >= kMaxWatchers) {
      return WithRetryAfterMs(
          WithReason(ResourceExhausted("watchers: ", kMaxWatchers, " calls watch events already"), "TOO_MANY_WATCHERS"),
          5000);
    }
    watchers_.all.insert(this);
    return absl::OkStatus();
  }

  void End(const absl::Status& status) { Finish(ToGrpc(status, context_)); }

  void Read() {
    absl::Status status = ReadRows();
    if (!status.ok()) {
      std::lock_guard lock(mutex_);
      if (end_.ok()) end_ = status;
    }
    Turn();
  }

  absl::Status ReadRows() {
    if (uint64_t now = authenticator_.generation(); now != generation_) {  // a token was revoked: perhaps this one
      RETURN_IF_ERROR(authenticator_.Authenticate(*context_).status());
      generation_ = now;
    }
    ASSIGN_OR_RETURN(std::vector<store::EventRow> rows, store_.ListEvents(user_, after_, kRowsPerRead));
    RETURN_IF_ERROR(CheckKept(rows, after_));
    if (first_read_ && rows.empty()) {  // ahead of the log: it was restored from a backup since
      ASSIGN_OR_RETURN(int64_t last, store_.LastEventSequence(user_));
      if (after_ > last) {
        return WithReason(
            absl::OutOfRangeError(Cat("after_sequence: ", after_, " is after the last event, ", last, "; list anew")),
            "EVENTS_AHEAD");
      }
    }
    first_read_ = false;
    full_ = rows.size() == static_cast<size_t>(kRowsPerRead);
    for (store::EventRow& row : rows) {
      after_ = row.sequence;
      if (row.resource.starts_with(prefix_)) rows_.push_back(std::move(row));
    }
    return absl::OkStatus();
  }

  /// Whatever comes next. Called by whoever ended the pending thing.
  void Turn() {
    std::unique_lock lock(mutex_);
    if (!end_.ok()) {
      absl::Status end = end_;
      lock.unlock();
      return End(end);
    }
    if (!rows_.empty()) {
      FillEvent(rows_.front(), &event_);
      rows_.pop_front();
      lock.unlock();
      return StartWrite(&event_);
    }
    if (full_) {
      full_ = false;
      lock.unlock();
      pool_.Post([this] { Read(); });
      return;
    }
    waiting_ = true;
    timers_.After(kPollInterval, [self = self_] { self->TimerDue(); });
  }

  void TimerDue() {
    {
      std::lock_guard lock(mutex_);
      if (!waiting_) return;  // stopped meanwhile
      waiting_ = false;
    }
    Read();
  }

  std::shared_ptr<Watcher> self_;
  Watchers& watchers_;
  const auth::Authenticator& authenticator_;
  store::Store& store_;
  ThreadPool& pool_;
  Timers& timers_;
  CallbackServerContext* const context_;
  std::string user_, prefix_;
  uint64_t generation_ = 0;

  // Of whoever holds the turn.
  int64_t after_ = 0;
  std::deque<store::EventRow> rows_;
  bool full_ = false, first_read_ = true;
  v1::Event event_;

  std::mutex mutex_;  ///< guards what follows
  absl::Status end_;  ///< not ok: how the call shall end
  bool waiting_ = false;
};

class EventService final : public v1::EventService::CallbackService, public EventServiceControl {
 public:
  EventService(const auth::Authenticator& authenticator, store::Store& store, ThreadPool& pool, Timers& timers)
      : authenticator_(authenticator), store_(store), pool_(pool), timers_(timers) {}

  grpc::Service* service() override { return this; }

  void StopWatchers() override {
    std::lock_guard lock(watchers_.mutex);
    watchers_.stopping = true;
    for (Watcher* watcher : watchers_.all)
      watcher->Stop(WithReason(Unavailable("the server is draining; try again later"), "DRAINING"));
  }

  grpc::ServerWriteReactor<v1::Event>* WatchEvents(CallbackServerContext* context,
                                                   const v1::WatchEventsRequest* request) override {
    auto watcher = std::make_shared<Watcher>(watchers_, authenticator_, store_, pool_, timers_, context);
    watcher->Start(watcher, *request);
    return watcher.get();
  }

  grpc::ServerUnaryReactor* ListEvents(CallbackServerContext* context, const v1::ListEventsRequest* request,
                                       v1::ListEventsResponse* response) override {
    return RunOnPool(context, authenticator_, pool_, [this, request, response](const Caller& caller) -> absl::Status {
      ASSIGN_OR_RETURN(std::string user, auth::ResolveUser(request->parent(), caller, "parent"));
      RETURN_IF_ERROR(CheckAfter(request->after_sequence()));
      ASSIGN_OR_RETURN(int64_t size, PageSize(request->page_size()));
      ASSIGN_OR_RETURN(std::vector<store::EventRow> rows, store_.ListEvents(user, request->after_sequence(), size));
      response->set_last_sequence(rows.empty() ? request->after_sequence() : rows.back().sequence);
      for (const store::EventRow& row : rows) {
        if (row.resource.starts_with(request->resource_prefix())) FillEvent(row, response->add_events());
      }
      return absl::OkStatus();
    });
  }

 private:
  const auth::Authenticator& authenticator_;
  store::Store& store_;
  ThreadPool& pool_;
  Timers& timers_;
  Watchers watchers_;
};

}  // namespace

std::unique_ptr<EventServiceControl> MakeEventService(const auth::Authenticator& authenticator, store::Store& store,
                                                      ThreadPool& pool, Timers& timers) {
  return std::make_unique<EventService>(authenticator, store, pool, timers);
}

}  // namespace optod::services

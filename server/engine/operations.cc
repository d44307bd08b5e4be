#include "server/engine/operations.h"

#include <map>
#include <mutex>
#include <vector>

#include "base/random_id.h"
#include "base/status.h"
#include "google/protobuf/util/time_util.h"

namespace optod::engine {
namespace {

using google::protobuf::util::TimeUtil;

/// users/U/operations/ID, operations/ID or ID (both of the caller) -> (user, id).
absl::StatusOr<std::pair<std::string, std::string>> ParseName(const std::string& name, const Caller& caller) {
  std::string user = caller.user, id = name;
  if (name.rfind("users/", 0) == 0) {
    const size_t slash = name.find('/', 6);
    if (slash == std::string::npos || name.compare(slash, 12, "/operations/") != 0)
      return InvalidArgument("name: \"", name, "\" is no operation; must be users/USER/operations/ID");
    user = name.substr(6, slash - 6);
    id = name.substr(slash + 12);
  } else if (name.rfind("operations/", 0) == 0) {
    id = name.substr(11);
  }
  if (!IsResourceId(id)) return InvalidArgument("name: \"", name, "\" is no operation; must be users/USER/operations/ID");
  if (user != caller.user && !caller.admin) return NotFound("operation ", name, " does not exist");
  return std::make_pair(user, id);
}

}  // namespace

struct Operations::Impl {
  Impl(store::Store& s, Clock& c, ThreadPool& p, Timers& t) : store(s), clock(c), pool(p), timers(t) {}
  store::Store& store;
  Clock& clock;
  ThreadPool& pool;
  Timers& timers;

  struct Waiter {
    Done<v1::Operation> done;
    uint64_t timer = 0;
  };
  struct Live {
    v1::Operation operation;
    std::shared_ptr<std::atomic<bool>> cancelled;
    std::map<uint64_t, std::shared_ptr<Waiter>> waiters;
  };
  std::mutex mutex;
  std::map<std::string, Live> live;   ///< by full name
  uint64_t next_waiter = 1;

  absl::StatusOr<v1::Operation> Find(const std::string& user, const std::string& id) {
    const std::string name = "users/" + user + "/operations/" + id;
    {
      std::lock_guard lock(mutex);
      auto it = live.find(name);
      if (it != live.end()) return it->second.operation;
    }
    auto row = store.GetOperation(user, id);
    if (absl::IsNotFound(row.status())) return NotFound("operation ", name, " does not exist");
    if (!row.ok()) return row.status();
    v1::Operation out;
    out.ParseFromString(row->payload);
    return out;
  }
};

Operations::Operations(store::Store& store, Clock& clock, ThreadPool& pool, Timers& timers)
    : impl_(std::make_shared<Impl>(store, clock, pool, timers)) {}
Operations::~Operations() = default;

absl::Status Operations::AbortUnfinished() {
  ASSIGN_OR_RETURN(auto rows, impl_->store.ListUndoneOperations());
  store::Batch batch;
  for (store::OperationRow& row : rows) {
    v1::Operation operation;
    operation.ParseFromString(row.payload);
    batch.mutations.push_back(Finish(&operation, Aborted("the server stopped before this operation ended; start it again")));
  }
  if (batch.mutations.empty()) return absl::OkStatus();
  return impl_->store.CommitAndWait(std::move(batch));
}

v1::Operation Operations::Prepare(const std::string& user, const std::string& kind, const std::string& target, const std::string& request,
                                  store::Mutation* row) {
  v1::Operation operation;
  store::OperationRow out;
  out.user = user;
  out.id = RandomId(16);
  operation.set_name("users/" + user + "/operations/" + out.id);
  operation.set_kind(kind);
  operation.set_target(target);
  out.create_ms = impl_->clock.NowUnixMs();
  *operation.mutable_create_time() = TimeUtil::MillisecondsToTimestamp(out.create_ms);
  out.payload = operation.SerializeAsString();
  out.request = request;
  *row = store::PutOperation{std::move(out)};
  return operation;
}

std::shared_ptr<std::atomic<bool>> Operations::Begin(const v1::Operation& operation) {
  std::lock_guard lock(impl_->mutex);
  Impl::Live& live = impl_->live[operation.name()];
  live.operation = operation;
  live.cancelled = std::make_shared<std::atomic<bool>>(false);
  return live.cancelled;
}

void Operations::Progress(const std::string& name, double progress, const std::string& message) {
  std::lock_guard lock(impl_->mutex);
  auto it = impl_->live.find(name);
  if (it == impl_->live.end()) return;
  it->second.operation.set_progress(progress);
  it->second.operation.set_progress_message(message);
}

store::Mutation Operations::Finish(v1::Operation* operation, const absl::StatusOr<google::protobuf::Any>& result) {
  const int64_t now_ms = impl_->clock.NowUnixMs();
  operation->set_done(true);
  *operation->mutable_end_time() = TimeUtil::MillisecondsToTimestamp(now_ms);
  if (result.ok()) {
    operation->set_progress(1);
    operation->clear_progress_message();
    *operation->mutable_response() = *result;
  } else {
    operation->mutable_error()->set_code(static_cast<int>(result.status().code()));
    operation->mutable_error()->set_message(std::string(result.status().message()));
  }
  store::OperationRow row;
  const std::string& name = operation->name();
  row.user = name.substr(6, name.find('/', 6) - 6);
  row.id = name.substr(name.rfind('/') + 1);
  row.done = true;
  row.create_ms = TimeUtil::TimestampToMilliseconds(operation->create_time());
  row.payload = operation->SerializeAsString();
  return store::PutOperation{std::move(row)};
}

void Operations::Ended(const v1::Operation& operation) {
  std::map<uint64_t, std::shared_ptr<Impl::Waiter>> waiters;
  {
    std::lock_guard lock(impl_->mutex);
    auto it = impl_->live.find(operation.name());
    if (it == impl_->live.end()) return;
    waiters = std::move(it->second.waiters);
    impl_->live.erase(it);
  }
  for (auto& [id, waiter] : waiters) {
    if (waiter->timer != 0) impl_->timers.Cancel(waiter->timer);
    waiter->done(operation);
  }
}

void Operations::CancelAll() {
  std::vector<std::pair<std::shared_ptr<Impl::Waiter>, v1::Operation>> waiting;
  {
    std::lock_guard lock(impl_->mutex);
    for (auto& [name, live] : impl_->live) {
      *live.cancelled = true;
      for (auto& [id, waiter] : live.waiters) waiting.emplace_back(waiter, live.operation);
      live.waiters.clear();
    }
  }
  for (auto& [waiter, operation] : waiting) {
    if (waiter->timer != 0) impl_->timers.Cancel(waiter->timer);
    waiter->done(operation);
  }
}

void Operations::Get(const Caller& caller, const v1::GetOperationRequest& request, Done<v1::Operation> done) {
  auto name = ParseName(request.name(), caller);
  if (!name.ok()) return done(name.status());
  impl_->pool.Post([impl = impl_, name = *name, done = std::move(done)]() mutable { done(impl->Find(name.first, name.second)); });
}

void Operations::List(const Caller& caller, const v1::ListOperationsRequest& request, Done<v1::ListOperationsResponse> done) {
  std::string user = caller.user;
  if (!request.parent().empty()) {
    if (request.parent().rfind("users/", 0) != 0) return done(InvalidArgument("parent: \"", request.parent(), "\" is no user"));
    user = request.parent().substr(6);
    if (user != caller.user && !caller.admin) return done(NotFound("user ", request.parent(), " does not exist"));
  }
  if (request.page_size() < 0 || request.page_size() > 1000)
    return done(InvalidArgument("page_size: ", request.page_size(), " is outside [0, 1000]"));
  const int64_t limit = request.page_size() == 0 ? 100 : request.page_size();
  int64_t before = 0;
  if (const std::string& token = request.page_token(); !token.empty()) {
    if (token.size() > 18 || token.find_first_not_of("0123456789") != std::string::npos)
      return done(InvalidArgument("page_token: not from a page of this list"));
    before = std::stoll(token);
  }
  impl_->pool.Post([impl = impl_, user, before, limit, done = std::move(done)]() mutable {
    auto rows = impl->store.ListOperations(user, before, limit);
    if (!rows.ok()) return done(rows.status());
    v1::ListOperationsResponse out;
    for (const store::OperationRow& row : *rows) {
      auto found = impl->Find(row.user, row.id);
      if (found.ok()) *out.add_operations() = *std::move(found);
    }
    if (static_cast<int64_t>(rows->size()) == limit) out.set_next_page_token(std::to_string(rows->back().create_ms));
    done(std::move(out));
  });
}

void Operations::Wait(const Caller& caller, const v1::WaitOperationRequest& request, Done<v1::Operation> done) {
  auto name = ParseName(request.name(), caller);
  if (!name.ok()) return done(name.status());
  const std::string full = "users/" + name->first + "/operations/" + name->second;
  {
    std::lock_guard lock(impl_->mutex);
    auto it = impl_->live.find(full);
    if (it != impl_->live.end()) {
      auto waiter = std::make_shared<Impl::Waiter>();
      waiter->done = std::move(done);
      const uint64_t id = impl_->next_waiter++;
      // Without a timeout: a minute at a time, so that a client whose call ends earlier holds nothing here for long.
      const int64_t timeout_ns = request.has_timeout() ? TimeUtil::DurationToNanoseconds(request.timeout()) : 60'000'000'000;
      waiter->timer = impl_->timers.After(std::chrono::nanoseconds(timeout_ns), [impl = impl_, full, id] {
        std::shared_ptr<Impl::Waiter> late;
        v1::Operation operation;
        {
          std::lock_guard timer_lock(impl->mutex);
          auto at = impl->live.find(full);
          if (at == impl->live.end()) return;
          auto mine = at->second.waiters.find(id);
          if (mine == at->second.waiters.end()) return;
          late = mine->second;
          operation = at->second.operation;
          at->second.waiters.erase(mine);
        }
        late->done(std::move(operation));
      });
      it->second.waiters[id] = std::move(waiter);
      return;
    }
  }
  impl_->pool.Post([impl = impl_, name = *name, done = std::move(done)]() mutable { done(impl->Find(name.first, name.second)); });
}

void Operations::Cancel(const Caller& caller, const v1::CancelOperationRequest& request, Done<v1::Operation> done) {
  auto name = ParseName(request.name(), caller);
  if (!name.ok()) return done(name.status());
  const std::string full = "users/" + name->first + "/operations/" + name->second;
  {
    std::lock_guard lock(impl_->mutex);
    auto it = impl_->live.find(full);
    if (it != impl_->live.end()) *it->second.cancelled = true;
  }
  impl_->pool.Post([impl = impl_, name = *name, done = std::move(done)]() mutable { done(impl->Find(name.first, name.second)); });
}

}  // namespace optod::engine

// Life of a session: create, read, list, change, delete, fork, roll back.
#include "base/random_id.h"
#include "base/status.h"
#include "optim/rules/registry.h"
#include "server/engine/engine_impl.h"

namespace optod::engine {
namespace {

absl::Status CheckLabels(const v1::Session& session) {
  if (session.labels_size() > 64) return InvalidArgument("labels: ", session.labels_size(), " entries; at most 64");
  for (const auto& [key, value] : session.labels()) {
    if (key.empty() || key.size() > 63) return InvalidArgument("labels: key \"", key, "\" must have 1 to 63 bytes");
    if (value.size() > 255) return InvalidArgument("labels.", key, ": ", value.size(), " bytes; at most 255");
  }
  if (session.display_name().size() > 255) return InvalidArgument("display_name: ", session.display_name().size(), " bytes; at most 255");
  return absl::OkStatus();
}

absl::Status CheckBudgetFields(const v1::Budget& budget) {
  if (budget.max_steps() < 0 || budget.max_evaluations() < 0 || budget.max_llm_tokens() < 0 || !(budget.max_llm_usd() >= 0))
    return InvalidArgument("budget: limits must be >= 0 (0 = no limit)");
  return absl::OkStatus();
}

absl::Status CheckDurability(const v1::Durability& durability) {
  if (durability.mode() == v1::Durability::EVERY_N && (durability.n() < 1 || durability.n() > 1'000'000))
    return InvalidArgument("durability.n: ", durability.n(), " is outside [1, 1000000]");
  if (durability.snapshot_every() < 0) return InvalidArgument("durability.snapshot_every: ", durability.snapshot_every(), " is negative");
  return absl::OkStatus();
}

absl::StatusOr<int64_t> PageLimit(int32_t page_size) {
  if (page_size < 0 || page_size > 1000) return InvalidArgument("page_size: ", page_size, " is outside [0, 1000]");
  return page_size == 0 ? 100 : page_size;
}

/// The fields that never change, as stored with the row.
std::string FixedFields(const v1::Session& session) {
  v1::Session fixed;
  *fixed.mutable_optimizer() = session.optimizer();
  if (session.has_layout()) *fixed.mutable_layout() = session.layout();
  *fixed.mutable_parameters() = session.parameters();
  fixed.set_direction(session.direction());
  if (session.has_durability()) *fixed.mutable_durability() = session.durability();
  fixed.set_forked_from(session.forked_from());
  *fixed.mutable_tell_inputs() = session.tell_inputs();
  fixed.set_first_direction(session.first_direction());
  fixed.set_next_direction(session.next_direction());
  return fixed.SerializeAsString();
}

/// "users/U" of a request's parent, "" and users/- resolved. Empty result = all users.
absl::StatusOr<std::string> ParentUser(const std::string& parent, const Caller& caller, bool allow_all) {
  if (parent.empty()) return caller.user;
  if (parent.rfind("users/", 0) != 0 || parent.find('/', 6) != std::string::npos)
    return InvalidArgument("parent: \"", parent, "\" is no user; must be users/USER");
  const std::string user = parent.substr(6);
  if (user == "-") {
    if (!allow_all) return InvalidArgument("parent: users/- is not allowed here");
    if (!caller.admin) return absl::PermissionDeniedError("parent: only admins list users/-");
    return std::string();
  }
  if (user != caller.user && !caller.admin) return NotFound("user ", parent, " does not exist");
  return user;
}

}  // namespace

void Engine::CreateSession(const Caller& caller, v1::CreateSessionRequest request, Done<v1::Session> done) {
  CreateSession(caller, std::move(request), std::move(done), Origin{});
}

void Engine::CreateSession(const Caller& caller, v1::CreateSessionRequest request, Done<v1::Session> done, Origin origin) {
  Impl* impl = impl_.get();
  auto user = ParentUser(request.parent(), caller, /*allow_all=*/false);
  absl::Status status = user.status();
  if (status.ok() && caller.viewer) status = absl::PermissionDeniedError("this token may read but not change");
  if (status.ok() && !request.session_id().empty() && !IsResourceId(request.session_id()))
    status = InvalidArgument("session_id: \"", request.session_id(), "\" must match [a-z]([a-z0-9-]{0,61}[a-z0-9])?");
  if (status.ok()) status = CheckRequestId(request.request_id());
  v1::Session session;
  std::string family;
  std::vector<std::string> tell_inputs;
  if (status.ok()) {
    *session.mutable_optimizer() = request.optimizer();
    status = CheckOptimizer(session.mutable_optimizer(), &family, &tell_inputs);
  }
  if (status.ok()) status = CheckServed(session.optimizer().name(), family, impl->families);
  if (status.ok()) {
    for (const std::string& input : tell_inputs) session.add_tell_inputs(input);
    *session.mutable_labels() = request.labels();
    session.set_display_name(request.display_name());
    if (request.has_budget()) *session.mutable_budget() = request.budget();
    if (request.has_durability()) *session.mutable_durability() = request.durability();
    session.set_direction(request.direction() == v1::DIRECTION_UNSPECIFIED ? v1::MAXIMIZE : request.direction());
    *session.mutable_parameters() = request.parameters();
    if (request.has_layout()) *session.mutable_layout() = request.layout();
    status = CheckLabels(session);
    if (status.ok()) status = CheckBudgetFields(session.budget());
    if (status.ok()) status = CheckDurability(session.durability());
  }
  if (status.ok() && family != "trace") {
    if (!request.parameters().empty()) status = InvalidArgument("parameters: ", family, " sessions have a layout, not parameters");
    if (status.ok()) status = CheckLayout(session.mutable_layout());
  } else if (status.ok() && request.has_layout()) {
    status = InvalidArgument("layout: trace sessions have parameters, not a layout");
  }
  if (status.ok()) status = impl->Enter();
  if (!status.ok()) return done(status);

  impl->create_strand.Post([impl, user = *user, request = std::move(request), session = std::move(session), family, done = std::move(done),
                            origin = std::move(origin)]() mutable {
    auto answer = [impl, &done](absl::StatusOr<v1::Session> result) {
      done(std::move(result));
      impl->Leave();
    };
    auto parse = [](const std::string& bytes) -> absl::StatusOr<v1::Session> {
      v1::Session out;
      if (!out.ParseFromString(bytes)) return absl::InternalError("stored answer cannot be parsed");
      return out;
    };
    const std::string sha256 =
        request.request_id().empty() ? "" : RequestHash(origin.hash_source.empty() ? CanonicalBytes(request) : origin.hash_source);
    if (!sha256.empty()) {
      auto stored = impl->StoredAnswer(nullptr, user, origin.method, request.request_id(), sha256);
      if (stored.ok()) return answer(parse(*stored));
      if (!absl::IsNotFound(stored.status())) return answer(stored.status());
    }
    const SessionName name{user, request.session_id().empty() ? RandomId(12) : request.session_id()};
    if (impl->context.store->GetSession(name.user, name.id).ok()) return answer(AlreadyExists("session ", name.Full(), " exists already"));
    const int64_t now_ms = impl->NowMs();
    store::SessionRow row;
    row.uid = impl->context.store->NewSessionUid();
    row.user = user;
    row.id = name.id;
    row.state = v1::Session::ACTIVE;
    row.etag = 1;
    row.version_count = 1;
    row.create_ms = now_ms;
    store::VersionRow version0;
    version0.session_uid = row.uid;
    version0.create_ms = now_ms;
    Effects effects;
    absl::Status made = impl->families.at(family).create(impl->context, request, &session, &version0, &effects);
    if (!made.ok()) return answer(made);
    if (origin.fill) origin.fill(&session, &version0);
    if (version0.payload.empty()) {
      v1::Version initial;
      initial.set_kind("initial");
      version0.payload = initial.SerializeAsString();
    }
    LiveSession scratch(*impl->context.pool);
    row.spec = FixedFields(session);
    scratch.row = row;
    scratch.proto = std::move(session);
    effects.mutations.insert(effects.mutations.begin(), store::InsertVersion{version0});
    CountStored(impl->context, scratch, effects.mutations);
    scratch.SyncRow(now_ms);
    const v1::Session created = scratch.ToProto();
    if (request.validate_only()) return answer(created);
    store::Batch batch;
    batch.mutations.push_back(store::InsertSession{scratch.row});
    for (store::Mutation& mutation : effects.mutations) {
      if (auto* observation = std::get_if<store::PutObservation>(&mutation)) observation->row.session_uid = row.uid;
      if (auto* nodes = std::get_if<store::InsertNodes>(&mutation))
        for (store::NodeRow& node : nodes->rows) node.session_uid = row.uid;
      batch.mutations.push_back(std::move(mutation));
    }
    if (!sha256.empty()) {
      store::RequestRow stored{user, origin.method, request.request_id(), sha256, created.SerializeAsString(), row.uid, now_ms};
      batch.mutations.push_back(store::InsertRequest{std::move(stored)});
    }
    batch.mutations.push_back(EventOf(user, "session.created", name.Full(), "{}", now_ms));
    auto finish = [impl, user, parse, method = origin.method, request_id = request.request_id(), sha256, created, done = std::move(done)](absl::Status status) mutable {
      if (absl::IsAlreadyExists(status) && !sha256.empty()) {   // the same request twice at once: the first answer counts
        auto stored = impl->StoredAnswer(nullptr, user, method, request_id, sha256);
        if (stored.ok()) {
          done(parse(*stored));
          return impl->Leave();
        }
      }
      done(status.ok() ? absl::StatusOr<v1::Session>(created) : absl::StatusOr<v1::Session>(status));
      impl->Leave();
    };
    impl->context.store->Commit(std::move(batch), std::move(finish));
  });
}

void Engine::GetSession(const Caller& caller, v1::GetSessionRequest request, Done<v1::Session> done) {
  Read<v1::Session>(caller, request.name(), [](LiveSession& live) -> absl::StatusOr<v1::Session> { return live.ToProto(); }, std::move(done));
}

void Engine::ListSessions(const Caller& caller, v1::ListSessionsRequest request, Done<v1::ListSessionsResponse> done) {
  auto user = ParentUser(request.parent(), caller, /*allow_all=*/true);
  if (!user.ok()) return done(user.status());
  auto limit = PageLimit(request.page_size());
  if (!limit.ok()) return done(limit.status());
  int64_t before = 0;
  const std::string filter = Cat(request.show_deleted() ? "d" : "a", *user, ":");
  if (!request.page_token().empty()) {
    const std::string& token = request.page_token();
    if (token.rfind(filter, 0) != 0 || token.size() == filter.size() || token.size() > filter.size() + 18 ||
        token.find_first_not_of("0123456789", filter.size()) != std::string::npos)
      return done(InvalidArgument("page_token: not from a page of this list"));
    before = std::stoll(token.substr(filter.size()));
  }
  context_.pool->Post([this, user = *user, show_deleted = request.show_deleted(), before, limit = *limit, filter, done = std::move(done)]() mutable {
    auto rows = context_.store->ListSessions(user, show_deleted, before, limit);
    if (!rows.ok()) return done(rows.status());
    v1::ListSessionsResponse out;
    for (const store::SessionRow& row : *rows) *out.add_sessions() = SessionFromRow(row);
    if (static_cast<int64_t>(rows->size()) == limit) out.set_next_page_token(Cat(filter, rows->back().uid));
    done(std::move(out));
  });
}

void Engine::UpdateSession(const Caller& caller, v1::UpdateSessionRequest request, Done<v1::Session> done) {
  const std::string name = request.session().name();
  const std::string hash = CanonicalBytes(request);
  const std::string request_id = request.request_id();
  Mutate<v1::Session>(
      caller, name, "UpdateSession", request_id, hash,
      [request = std::move(request), now = impl_->NowMs()](LiveSession& live, v1::Session* out) -> absl::StatusOr<Effects> {
        const v1::Session& want = request.session();
        if (!want.etag().empty() && want.etag() != std::to_string(live.row.etag))
          return Aborted("etag: \"", want.etag(), "\" is stale; the session has \"", live.row.etag, "\"");
        v1::Session next = live.proto;
        int state = live.row.state;
        if (request.update_mask().paths().empty())
          return InvalidArgument("update_mask: empty; name labels, display_name, budget or state");
        for (const std::string& path : request.update_mask().paths()) {
          if (path == "labels") *next.mutable_labels() = want.labels();
          else if (path == "display_name") next.set_display_name(want.display_name());
          else if (path == "budget") *next.mutable_budget() = want.budget();
          else if (path == "state" && (want.state() == v1::Session::ACTIVE || want.state() == v1::Session::CLOSED)) state = want.state();
          else return InvalidArgument("update_mask: \"", path, "\" cannot be changed; labels, display_name, budget and state (ACTIVE, CLOSED) can");
        }
        RETURN_IF_ERROR(CheckLabels(next));
        RETURN_IF_ERROR(CheckBudgetFields(next.budget()));
        live.proto = std::move(next);
        live.row.state = state;
        ++live.row.etag;
        *out = live.ToProto();
        Effects effects;
        effects.mutations.push_back(EventOf(live.row.user, "session.updated", live.name().Full(), "{}", now));
        return effects;
      },
      std::move(done));
}

void Engine::DeleteSession(const Caller& caller, v1::DeleteSessionRequest request, Done<v1::Session> done) {
  Mutate<v1::Session>(
      caller, request.name(), "DeleteSession", request.request_id(), CanonicalBytes(request),
      [etag = request.etag(), now = impl_->NowMs()](LiveSession& live, v1::Session* out) -> absl::StatusOr<Effects> {
        if (!etag.empty() && etag != std::to_string(live.row.etag)) return Aborted("etag: \"", etag, "\" is stale");
        live.row.state = v1::Session::DELETED;
        live.row.delete_ms = now;
        ++live.row.etag;
        *out = live.ToProto();
        Effects effects;
        effects.mutations.push_back(EventOf(live.row.user, "session.deleted", live.name().Full(), "{}", now));
        return effects;
      },
      std::move(done));
}

void Engine::UndeleteSession(const Caller& caller, v1::UndeleteSessionRequest request, Done<v1::Session> done) {
  Mutate<v1::Session>(
      caller, request.name(), "UndeleteSession", request.request_id(), CanonicalBytes(request),
      [now = impl_->NowMs()](LiveSession& live, v1::Session* out) -> absl::StatusOr<Effects> {
        if (live.row.state != v1::Session::DELETED) return FailedPrecondition("session ", live.name().Full(), " is not deleted");
        live.row.state = v1::Session::ACTIVE;
        live.row.delete_ms = 0;
        ++live.row.etag;
        *out = live.ToProto();
        Effects effects;
        effects.mutations.push_back(EventOf(live.row.user, "session.undeleted", live.name().Full(), "{}", now));
        return effects;
      },
      std::move(done));
}

void Engine::Rollback(const Caller& caller, v1::RollbackRequest request, Done<v1::Session> done) {
  Impl* impl = impl_.get();
  Mutate<v1::Session>(
      caller, request.session(), "Rollback", request.request_id(), CanonicalBytes(request),
      [impl, version = request.version(), etag = request.etag()](LiveSession& live, v1::Session* out) -> absl::StatusOr<Effects> {
        if (!etag.empty() && etag != std::to_string(live.row.etag)) return Aborted("etag: \"", etag, "\" is stale");
        if (version < 0 || version >= live.row.version_count)
          return NotFound("version: ", version, " does not exist; the session has versions 0 to ", live.row.version_count - 1);
        impl->WaitDurable(live);
        ASSIGN_OR_RETURN(store::VersionRow row, impl->context.store->GetVersion(live.row.uid, version));
        Effects effects;
        RETURN_IF_ERROR(live.family->MoveHead(live, row, &effects));
        const int64_t from = live.row.head_version;
        live.row.head_version = version;
        ++live.row.etag;
        *out = live.ToProto();
        effects.mutations.push_back(
            EventOf(live.row.user, "session.rollback", live.name().Full(), Cat("{\"from\":", from, ",\"to\":", version, "}"), impl->NowMs()));
        return effects;
      },
      std::move(done));
}

void Engine::ForkSession(const Caller& caller, v1::ForkSessionRequest request, Done<v1::Session> done) {
  Impl* impl = impl_.get();
  if (!request.session_id().empty() && !IsResourceId(request.session_id()))
    return done(InvalidArgument("session_id: \"", request.session_id(), "\" must match [a-z]([a-z0-9-]{0,61}[a-z0-9])?"));
  Mutate<v1::Session>(
      caller, request.session(), "ForkSession", request.request_id(), CanonicalBytes(request),
      [impl, request](LiveSession& live, v1::Session* out) -> absl::StatusOr<Effects> {
        const int64_t version = request.has_version() ? request.version() : live.row.head_version;
        if (version < 0 || version >= live.row.version_count)
          return NotFound("version: ", version, " does not exist; the session has versions 0 to ", live.row.version_count - 1);
        impl->WaitDurable(live);
        const SessionName name{live.row.user, request.session_id().empty() ? RandomId(12) : request.session_id()};
        if (impl->context.store->GetSession(name.user, name.id).ok()) return AlreadyExists("session ", name.Full(), " exists already");
        const int64_t now_ms = impl->NowMs();
        LiveSession fork(*impl->context.pool);
        fork.row.uid = impl->context.store->NewSessionUid();
        fork.row.user = name.user;
        fork.row.id = name.id;
        fork.row.state = v1::Session::ACTIVE;
        fork.row.etag = 1;
        fork.row.version_count = 1;
        fork.row.create_ms = now_ms;
        fork.proto = live.proto;
        fork.proto.clear_usage();
        fork.proto.clear_best_score();
        fork.proto.clear_best_version();
        fork.proto.set_forked_from(Cat(live.name().Full(), "/versions/", version));
        if (request.has_seed()) {
          if (FamilyName((*optim::FindRule(live.proto.optimizer().name()))->family) != "zeroth-order")
            return InvalidArgument("seed: ", live.proto.optimizer().name(), " draws no directions; only zeroth-order forks have a seed of their own");
          fork.proto.mutable_optimizer()->set_seed(request.seed());
        }
        store::VersionRow version0;
        version0.session_uid = fork.row.uid;
        version0.create_ms = now_ms;
        Effects effects;
        effects.row_changed = false;
        const FamilyFactory& factory = impl->Factory(live.proto);
        if (!factory.fork) return Unimplemented("sessions with ", live.proto.optimizer().name(), " cannot be forked");
        Effects family_effects;
        RETURN_IF_ERROR(factory.fork(impl->context, live, version, fork, &version0, &family_effects));
        fork.row.spec = FixedFields(fork.proto);
        family_effects.mutations.insert(family_effects.mutations.begin(), store::InsertVersion{version0});
        CountStored(impl->context, fork, family_effects.mutations);
        fork.SyncRow(now_ms);
        effects.mutations.push_back(store::InsertSession{fork.row});
        for (store::Mutation& mutation : family_effects.mutations) effects.mutations.push_back(std::move(mutation));
        effects.mutations.push_back(EventOf(name.user, "session.created", name.Full(), "{\"forked_from\":\"" + fork.proto.forked_from() + "\"}", now_ms));
        *out = fork.ToProto();
        return effects;
      },
      std::move(done));
}

void Engine::ListOptimizers(const v1::ListOptimizersRequest& request, Done<v1::ListOptimizersResponse> done) {
  v1::ListOptimizersResponse out;
  if (!request.name().empty()) {
    auto found = optim::FindRule(request.name());
    if (!found.ok()) return done(found.status());
    DescribeOptimizer(**found, impl_->families, out.add_optimizers());
    return done(std::move(out));
  }
  for (const optim::RuleInfo& info : optim::AllRules()) DescribeOptimizer(info, impl_->families, out.add_optimizers());
  done(std::move(out));
}

}  // namespace optod::engine

// Versions: listing, reading, scoring and export; and Tell, which makes them.
#include <cmath>

#include "base/status.h"
#include "google/protobuf/util/json_util.h"
#include "google/protobuf/util/time_util.h"
#include "google/protobuf/util/type_resolver_util.h"
#include "optod/v1/trace.pb.h"
#include "server/engine/engine_impl.h"

namespace optod::engine {
namespace {

bool Better(double a, double b, v1::Direction direction) { return direction == v1::MINIMIZE ? a < b : a > b; }

/// JSON with the proto's field names and map entries sorted: equal messages, equal text. (MessageToJsonString prints maps
/// in the order of their hashes, which differs from copy to copy.)
std::string CanonicalJson(const google::protobuf::Message& message) {
  static google::protobuf::util::TypeResolver* const types = google::protobuf::util::NewTypeResolverForDescriptorPool(
      "type.googleapis.com", google::protobuf::DescriptorPool::generated_pool());
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string json;
  (void)google::protobuf::util::BinaryToJsonString(types, "type.googleapis.com/" + message.GetDescriptor()->full_name(),
                                                   CanonicalBytes(message), &json, options);
  return json;
}

}  // namespace

v1::Version VersionFromRow(const store::VersionRow& row, const SessionName& session) {
  v1::Version out;
  out.ParseFromString(row.payload);
  out.set_name(Cat(session.Full(), "/versions/", row.number));
  out.set_number(row.number);
  if (row.parent >= 0) out.set_parent(row.parent);
  else out.clear_parent();
  out.set_step(row.step);
  out.set_durable(true);
  *out.mutable_create_time() = google::protobuf::util::TimeUtil::MillisecondsToTimestamp(row.create_ms);
  return out;
}

absl::StatusOr<Effects> ApplyScore(Context& context, LiveSession& live, const v1::ScoreTell& tell, v1::TellResponse* response) {
  if (!std::isfinite(tell.score())) return InvalidArgument("score.score: ", tell.score(), " is not finite");
  if (tell.feedback().size() > (1u << 20)) return InvalidArgument("score.feedback: ", tell.feedback().size(), " bytes; at most 1 MiB");
  if (tell.version() < 0 || tell.version() >= live.row.version_count)
    return NotFound("score.version: ", tell.version(), " does not exist; the session has versions 0 to ", live.row.version_count - 1);
  WaitDurable(*context.store, live);
  ASSIGN_OR_RETURN(store::VersionRow row, context.store->GetVersion(live.row.uid, tell.version()));
  v1::Version version;
  version.ParseFromString(row.payload);
  const double n = static_cast<double>(version.evaluations());
  const double mean = version.has_score() ? (version.score() * n + tell.score()) / (n + 1) : tell.score();
  version.set_score(mean);
  version.set_evaluations(version.evaluations() + 1);
  row.payload = version.SerializeAsString();
  Effects effects;
  effects.mutations.push_back(store::UpdateVersion{row});
  if (!tell.feedback().empty()) {
    store::ObservationRow feedback;
    feedback.session_uid = live.row.uid;
    feedback.kind = "score";
    feedback.a = tell.version();
    feedback.b = version.evaluations();
    feedback.payload = tell.SerializeAsString();
    effects.mutations.push_back(store::PutObservation{std::move(feedback)});
  }
  live.proto.mutable_usage()->set_evaluations(live.proto.usage().evaluations() + 1);
  if (!live.proto.has_best_score() || live.proto.best_version() == tell.version() || Better(mean, live.proto.best_score(), live.proto.direction())) {
    const bool new_best = !live.proto.has_best_version() || live.proto.best_version() != tell.version();
    live.proto.set_best_score(mean);
    live.proto.set_best_version(tell.version());
    if (new_best)
      effects.mutations.push_back(EventOf(live.row.user, "version.best", Cat(live.name().Full(), "/versions/", tell.version()),
                                          Cat("{\"score\":", mean, "}"), context.clock->NowUnixMs()));
  }
  response->set_head_version(live.row.head_version);
  response->set_seq(live.row.seq);
  response->set_durable_version(live.durable_version);
  return effects;
}

void Engine::Tell(const Caller& caller, v1::TellRequest request, Done<v1::TellResponse> done) {
  if (request.observation_case() == v1::TellRequest::OBSERVATION_NOT_SET)
    return done(InvalidArgument("observation: missing; send gradients, losses or score"));
  Impl* impl = impl_.get();
  const int64_t start_ns = context_.clock->NowMonotonicNs();
  auto shared = std::make_shared<const v1::TellRequest>(std::move(request));
  Mutate<v1::TellResponse>(
      caller, shared->session(), "Tell", shared->request_id(), shared->request_id().empty() ? "" : CanonicalBytes(*shared),
      [impl, shared, start_ns](LiveSession& live, v1::TellResponse* out) -> absl::StatusOr<Effects> {
        if (live.row.state != v1::Session::ACTIVE) return FailedPrecondition("session ", live.name().Full(), " is closed");
        const int64_t begin_ns = impl->context.clock->NowMonotonicNs();
        absl::StatusOr<Effects> effects = Effects{};
        if (shared->has_score()) {
          effects = ApplyScore(impl->context, live, shared->score(), out);
        } else {
          absl::Status told = live.family->Tell(live, *shared, out, &*effects);
          if (!told.ok()) effects = told;
        }
        out->mutable_timings()->set_queue_us((begin_ns - start_ns) / 1000);
        out->mutable_timings()->set_compute_us((impl->context.clock->NowMonotonicNs() - begin_ns) / 1000);
        return effects;
      },
      std::move(done));
}

void Engine::ListVersions(const Caller& caller, v1::ListVersionsRequest request, Done<v1::ListVersionsResponse> done) {
  Impl* impl = impl_.get();
  if (request.page_size() < 0 || request.page_size() > 1000)
    return done(InvalidArgument("page_size: ", request.page_size(), " is outside [0, 1000]"));
  const int64_t limit = request.page_size() == 0 ? 100 : request.page_size();
  const std::string filter = Cat(request.branch_only() ? "b" : "a", request.oldest_first() ? "o" : "n", ":");
  int64_t cursor = -1;
  if (const std::string& token = request.page_token(); !token.empty()) {
    if (token.rfind(filter, 0) != 0 || token.size() == filter.size() || token.size() > filter.size() + 18 ||
        token.find_first_not_of("0123456789", filter.size()) != std::string::npos)
      return done(InvalidArgument("page_token: not from a page of this list"));
    cursor = std::stoll(token.substr(filter.size()));
  }
  if (request.branch_only() && request.oldest_first()) return done(InvalidArgument("oldest_first: branches are listed newest first"));
  Read<v1::ListVersionsResponse>(
      caller, request.session(),
      [impl, request, limit, filter, cursor](LiveSession& live) -> absl::StatusOr<v1::ListVersionsResponse> {
        impl->WaitDurable(live);
        v1::ListVersionsResponse out;
        auto add = [&](const store::VersionRow& row) { *out.add_versions() = VersionFromRow(row, live.name()); };
        if (request.branch_only()) {
          int64_t at = cursor >= 0 ? cursor : live.row.head_version;
          while (at >= 0 && out.versions_size() < limit) {
            ASSIGN_OR_RETURN(store::VersionRow row, impl->context.store->GetVersion(live.row.uid, at));
            add(row);
            at = row.parent;
          }
          if (at >= 0) out.set_next_page_token(Cat(filter, at));
        } else if (request.oldest_first()) {
          const int64_t first = cursor >= 0 ? cursor : 0;
          ASSIGN_OR_RETURN(auto rows, impl->context.store->ListVersions(live.row.uid, first, live.row.version_count, limit));
          for (const auto& row : rows) add(row);
          if (!rows.empty() && rows.back().number + 1 < live.row.version_count) out.set_next_page_token(Cat(filter, rows.back().number + 1));
        } else {
          const int64_t end = cursor >= 0 ? cursor : live.row.version_count;
          const int64_t first = std::max<int64_t>(0, end - limit);
          ASSIGN_OR_RETURN(auto rows, impl->context.store->ListVersions(live.row.uid, first, end, limit));
          for (auto row = rows.rbegin(); row != rows.rend(); ++row) add(*row);
          if (first > 0) out.set_next_page_token(Cat(filter, first));
        }
        return out;
      },
      std::move(done));
}

void Engine::GetVersion(const Caller& caller, v1::GetVersionRequest request, Done<v1::Version> done) {
  Impl* impl = impl_.get();
  auto name = ParseVersionName(request.name(), caller, "name");
  if (!name.ok()) return done(name.status());
  Read<v1::Version>(
      caller, name->first.Full(),
      [impl, number = name->second](LiveSession& live) -> absl::StatusOr<v1::Version> {
        if (number >= live.row.version_count)
          return NotFound("version ", number, " does not exist; the session has versions 0 to ", live.row.version_count - 1);
        impl->WaitDurable(live);
        ASSIGN_OR_RETURN(store::VersionRow row, impl->context.store->GetVersion(live.row.uid, number));
        v1::Version out = VersionFromRow(row, live.name());
        RETURN_IF_ERROR(live.family->FillVersion(live, &out));
        return out;
      },
      std::move(done));
}

void Engine::ExportSession(const Caller& caller, v1::ExportSessionRequest request, std::function<bool(std::string)> sink, Done<bool> done) {
  struct Ends { int64_t uid, versions; v1::Session session; };
  Impl* impl = impl_.get();
  Read<Ends>(
      caller, request.session(),
      [](LiveSession& live) -> absl::StatusOr<Ends> { return Ends{live.row.uid, live.row.version_count, live.ToProto()}; },
      [impl, sink = std::move(sink), done = std::move(done)](absl::StatusOr<Ends> ends) mutable {
        if (!ends.ok()) return done(ends.status());
        impl->context.pool->Post([impl, sink = std::move(sink), done = std::move(done), ends = *std::move(ends)]() mutable {
          const SessionName name{ends.session.name().substr(6, ends.session.name().find('/', 6) - 6), ends.session.name().substr(ends.session.name().rfind('/') + 1)};
          auto line = [&](const std::string& kind, const google::protobuf::Message& message) {
            return sink("{\"" + kind + "\":" + CanonicalJson(message) + "}\n");
          };
          if (!sink("{\"format\":\"optod-session\",\"format_version\":1}\n") || !line("session", ends.session)) return done(false);
          for (int64_t first = 0; first < ends.versions; first += 1000) {
            auto rows = impl->context.store->ListVersions(ends.uid, first, ends.versions, 1000);
            if (!rows.ok()) return done(rows.status());
            for (const auto& row : *rows) {
              if (!line("version", VersionFromRow(row, name))) return done(false);
              if (!row.blob.empty() && !sink("{\"snapshot\":{\"version\":" + std::to_string(row.number) + ",\"sha256\":\"" + row.blob + "\"}}\n"))
                return done(false);
            }
          }
          auto scores = impl->context.store->ListObservations(ends.uid, "score", 0, ends.versions);
          if (!scores.ok()) return done(scores.status());
          for (const auto& row : *scores) {
            v1::ScoreTell tell;
            tell.ParseFromString(row.payload);
            if (!line("score", tell)) return done(false);
          }
          for (int64_t first = 0;;) {
            auto nodes = impl->context.store->ListNodes(ends.uid, first, 1000);
            if (!nodes.ok()) return done(nodes.status());
            if (nodes->empty()) break;
            for (const auto& row : *nodes) {
              v1::Node node;
              node.ParseFromString(row.payload);
              node.set_id(row.id);
              if (!line("node", node)) return done(false);
            }
            first = nodes->back().id + 1;
          }
          done(true);
        });
      });
}

}  // namespace optod::engine

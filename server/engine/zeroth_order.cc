// Zeroth-order sessions: handing out probes and turning told losses into versions. Replay and values are in
// zeroth_order_replay.cc.
#include "server/engine/zeroth_order.h"

#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "google/protobuf/util/time_util.h"
#include "optim/zo/stream.h"

namespace optod::engine {
namespace {

constexpr int64_t kMaxLeaseNs = 3'600'000'000'000;
constexpr int64_t kDefaultLeaseNs = 60'000'000'000;
constexpr uint64_t kPointBytes = 1u << 20;
constexpr int64_t kStoreValuesEvery = 1000;
constexpr int64_t kTailSteps = 4096, kTailQueries = 1 << 17;

double NumberOr(const v1::OptimizerSpec& spec, const char* name, double fallback) {
  auto it = spec.hyperparameters().find(name);
  return it == spec.hyperparameters().end() || !it->second.has_number() ? fallback : it->second.number();
}

std::string TextOr(const v1::OptimizerSpec& spec, const char* name, const char* fallback) {
  auto it = spec.hyperparameters().find(name);
  return it == spec.hyperparameters().end() || !it->second.has_text() ? fallback : it->second.text();
}

/// "<version>.<query>" taken apart; false when it is something else.
bool ParseProbeId(const std::string& text, int64_t* version, int64_t* query) {
  const size_t dot = text.find('.');
  if (dot == 0 || dot == std::string::npos || dot > 18 || text.size() - dot - 1 < 1 || text.size() - dot - 1 > 9)
    return false;
  int64_t parts[2] = {0, 0};
  for (size_t i = 0; i < text.size(); ++i) {
    if (i == dot) continue;
    if (text[i] < '0' || text[i] > '9') return false;
    int64_t& part = parts[i > dot];
    part = part * 10 + (text[i] - '0');
  }
  *version = parts[0];
  *query = parts[1];
  return true;
}

absl::Status CheckOffered(const v1::OptimizerSpec& spec) {
  const bool plain = spec.name() == "zo-sgd";
  const bool sign = spec.name() == "zo-sgd-sign" && TextOr(spec, "sign", "code") == "code";
  if (!plain && !sign)
    return Unimplemented("optimizer: ", spec.name(), spec.name() == "zo-sgd-sign" ? " with sign \"paper\"" : "",
                         " is not offered for sessions; zo-sgd and zo-sgd-sign (sign \"code\") are");
  if (TextOr(spec, "residue", "none") != "none")
    return Unimplemented("hyperparameters.residue: only \"none\" is offered for sessions");
  return absl::OkStatus();
}

absl::Status CheckFloat32(const Layout& layout, const std::string& field) {
  for (const optim::TensorSpec& spec : layout.specs()) {
    if (spec.dtype != optim::DType::kF32)
      return InvalidArgument(field, ": tensor \"", spec.name, "\" is ", optim::DTypeName(spec.dtype),
                             "; zeroth-order sessions hold values in float32 (or none: layout only)");
  }
  return absl::OkStatus();
}

absl::Status Create(Context& context, const v1::CreateSessionRequest& request, v1::Session* session,
                    store::VersionRow* version0, Effects*) {
  RETURN_IF_ERROR(CheckOffered(session->optimizer()));
  const Layout layout(session->layout());
  if (!request.initial().empty()) RETURN_IF_ERROR(CheckFloat32(layout, "initial"));
  if (session->durability().mode() == v1::Durability::MODE_UNSPECIFIED)
    session->mutable_durability()->set_mode(v1::Durability::EVERY_STEP);
  return StoreInitial(context, request, layout, session, version0);
}

absl::Status Fork(Context& context, LiveSession& source, int64_t version, LiveSession& fork,
                  store::VersionRow* version0, Effects*) {
  ASSIGN_OR_RETURN(const store::VersionRow row, context.store->GetVersion(source.row.uid, version));
  v1::Version initial;
  initial.set_kind("initial");
  initial.set_note(Cat("forked from ", source.name().Full(), "/versions/", version));
  version0->payload = initial.SerializeAsString();
  version0->step = row.step;  // schedules go on where they were
  version0->blob = row.blob;
  if (!fork.proto.has_values() || !row.blob.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(auto values, static_cast<ZerothOrder*>(source.family.get())->ParametersAt(source, version));
  ASSIGN_OR_RETURN(version0->blob, context.blobs->Put(values->bytes()));
  return absl::OkStatus();
}

}  // namespace

FamilyFactory ZerothOrderFactory() { return {{"zo-sgd", "zo-sgd-sign"}, &Create, &ZerothOrder::Load, &Fork}; }

ZerothOrder::ZerothOrder(Context& context, const LiveSession& session)
    : NumericFamily(session.proto.layout()),
      context_(context),
      spec_(session.proto.optimizer()),
      durability_(session.proto.durability()) {
  eps_ = NumberOr(spec_, "eps", 1e-3);
  weight_decay_ = NumberOr(spec_, "weight_decay", 0);
  two_side_ = TextOr(spec_, "perturbation", "two-side") == "two-side";
  sign_ = spec_.name() == "zo-sgd-sign";
  queries_.resize(static_cast<size_t>(NumberOr(spec_, "queries", 1)));
}

absl::StatusOr<std::unique_ptr<Family>> ZerothOrder::Load(Context& context, LiveSession& session) {
  RETURN_IF_ERROR(CheckOffered(session.proto.optimizer()));
  auto family = std::unique_ptr<ZerothOrder>(new ZerothOrder(context, session));
  const int64_t uid = session.row.uid, head = session.row.head_version;
  ASSIGN_OR_RETURN(const store::VersionRow row, context.store->GetVersion(uid, head));
  family->head_step_ = row.step;
  family->tail_base_ = head;
  ASSIGN_OR_RETURN(const auto jumps, context.store->ListObservations(uid, "jump", 0, INT64_MAX));
  for (const store::ObservationRow& jump : jumps) family->tree_.Add(jump.a, jump.b);
  ASSIGN_OR_RETURN(const auto partial, context.store->ListObservations(uid, "probe", head, head + 1));
  for (const store::ObservationRow& observation : partial) {
    v1::ProbeResult result;
    if (!result.ParseFromString(observation.payload) || observation.b < 0 || observation.b >= family->q()) continue;
    Query& query = family->queries_[static_cast<size_t>(observation.b)];
    query = {true, result.loss_plus(), result.loss_minus(), "", INT64_MIN};
    ++family->told_;
  }
  return std::unique_ptr<Family>(std::move(family));
}

void ZerothOrder::StartStep() {
  std::fill(queries_.begin(), queries_.end(), Query{});
  told_ = 0;
  next_ = 0;
}

double ZerothOrder::LrOfStep(int64_t step) const {
  const double base = NumberOr(spec_, "lr", 0);
  return spec_.has_schedule() ? ScheduledLr(spec_.schedule(), base, step) : base;
}

float ZerothOrder::DecayFactor(double lr) const {
  return weight_decay_ > 0 ? static_cast<float>(1.0 - lr * weight_decay_) : 1.0f;
}

// ---- ask

absl::StatusOr<v1::AskResponse> ZerothOrder::Ask(LiveSession& session, const v1::AskRequest& request, const Caller&) {
  if (request.count() < 0) return InvalidArgument("count: ", request.count(), " is negative");
  v1::AskResponse out;
  out.set_head_version(session.row.head_version);
  out.set_seq(session.row.seq);
  out.set_seed(spec_.seed());
  if (request.has_known_version()) RETURN_IF_ERROR(AddReplay(session, request.known_version(), &out));
  RETURN_IF_ERROR(AddProbes(session, request, &out));
  return out;
}

absl::Status ZerothOrder::AddProbes(LiveSession& session, const v1::AskRequest& request, v1::AskResponse* out) {
  int64_t lease_ns = kDefaultLeaseNs;
  if (request.has_lease()) {
    lease_ns = google::protobuf::util::TimeUtil::DurationToNanoseconds(request.lease());
    if (request.lease().seconds() < 0 || request.lease().seconds() > 3600 || lease_ns < 0 || lease_ns > kMaxLeaseNs)
      return InvalidArgument("lease: ", request.lease().seconds(), " s is outside [0, 3600]");
  }
  if (session.row.head_version > UINT32_MAX)
    return FailedPrecondition("session ", session.name().Full(), " has used up its 2^32 directions; fork it");
  const int64_t now_ns = context_.clock->NowMonotonicNs();
  const auto want = static_cast<size_t>(std::max(1, request.count()));
  std::vector<uint32_t> chosen;
  for (size_t i = 0; i < queries_.size() && chosen.size() < want; ++i) {
    const size_t at = (next_ + i) % queries_.size();
    if (!queries_[at].told && queries_[at].lease_until_ns <= now_ns) chosen.push_back(static_cast<uint32_t>(at));
  }
  if (chosen.empty() && !request.worker().empty()) {  // a worker that lost the answer gets its own probes again
    for (size_t at = 0; at < queries_.size() && chosen.size() < want; ++at)
      if (!queries_[at].told && queries_[at].worker == request.worker()) chosen.push_back(static_cast<uint32_t>(at));
  }
  for (const uint32_t query : chosen) RETURN_IF_ERROR(FillProbe(session, query, request.with_point(), out));
  for (const uint32_t query : chosen) {
    queries_[query].worker = request.worker();
    queries_[query].lease_until_ns = now_ns + lease_ns;
    next_ = query + 1;
  }
  return absl::OkStatus();
}

absl::Status ZerothOrder::FillProbe(LiveSession& session, uint32_t query, bool with_point, v1::AskResponse* out) {
  const int64_t head = session.row.head_version;
  v1::Probe* probe = out->add_probes();
  probe->set_probe_id(std::to_string(head) + "." + std::to_string(query));
  probe->set_base_version(head);
  probe->set_seed(spec_.seed());
  probe->set_step(static_cast<uint32_t>(head));
  probe->set_query(query);
  probe->set_eps(eps_);
  probe->set_two_side(two_side_);
  if (!with_point) return absl::OkStatus();
  if (layout_->total_bytes() > kPointBytes)
    return InvalidArgument("with_point: the parameters have ", layout_->total_bytes(), " bytes; at most ", kPointBytes,
                           "; perturb them at the worker");
  ASSIGN_OR_RETURN(const auto theta, ParametersAt(session, head));
  const auto shift = [&](float scale, google::protobuf::RepeatedPtrField<v1::Tensor>* point) -> absl::Status {
    auto moved = TensorBuffer::Copy(*theta);
    if (moved == nullptr) return ResourceExhausted("with_point: no memory");
    for (size_t t = 0; t < layout_->size() && scale != 0; ++t) {
      auto* values = reinterpret_cast<float*>(moved->data() + layout_->offset(t));
      zo::AddScaledNormal({spec_.seed(), static_cast<uint32_t>(head), query}, static_cast<uint32_t>(t), 0, scale,
                          {values, static_cast<size_t>(layout_->spec(t).elements())});
    }
    TensorsFromFlat(*layout_, moved->data(), point);
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(shift(static_cast<float>(eps_), probe->mutable_plus()));
  return shift(two_side_ ? -static_cast<float>(eps_) : 0.0f, probe->mutable_minus());
}

// ---- tell

absl::StatusOr<std::vector<ZerothOrder::Result>> ZerothOrder::Accept(LiveSession& session,
                                                                     const v1::LossTell& tell) const {
  if (tell.results().empty()) return InvalidArgument("losses.results: empty; send at least one");
  std::vector<Result> fresh;
  std::vector<bool> seen;
  int64_t current = 0;
  for (int i = 0; i < tell.results_size(); ++i) {
    const v1::ProbeResult& result = tell.results(i);
    int64_t version = 0, query = 0;
    if (!ParseProbeId(result.probe_id(), &version, &query))
      return InvalidArgument("losses.results[", i, "].probe_id: \"", result.probe_id(),
                             "\" is no probe; must be VERSION.QUERY as asked");
    if (version >= session.row.version_count || query >= q())
      return InvalidArgument("losses.results[", i, "].probe_id: \"", result.probe_id(),
                             "\" was never handed out; versions are 0 to ", session.row.version_count - 1,
                             ", queries 0 to ", q() - 1);
    if (version != session.row.head_version) continue;
    ++current;
    if (seen.empty()) seen.resize(queries_.size());
    const auto at = static_cast<size_t>(query);
    if (queries_[at].told || seen[at]) continue;
    seen[at] = true;
    fresh.push_back({static_cast<uint32_t>(query), result.loss_plus(), result.loss_minus()});
  }
  if (current == 0)
    return Aborted("losses.results[0].probe_id: \"", tell.results(0).probe_id(),
                   "\" is of another version than the head ", session.row.head_version, "; ask again");
  return fresh;
}

absl::Status ZerothOrder::Tell(LiveSession& session, const v1::TellRequest& request, v1::TellResponse* response,
                               Effects* effects) {
  if (!request.has_losses()) return InvalidArgument("losses: missing; ", spec_.name(), " sessions are told losses");
  ASSIGN_OR_RETURN(const std::vector<Result> fresh, Accept(session, request.losses()));
  if (session.row.version_count > UINT32_MAX)
    return FailedPrecondition("session ", session.name().Full(), " has used up its 2^32 directions; fork it");
  const bool completes = told_ + static_cast<int64_t>(fresh.size()) == q();
  for (const Result& result : fresh) {
    queries_[result.query] = {true, result.plus, result.minus, "", INT64_MIN};
    ++told_;
    if (completes) continue;  // the version row will hold all that is needed
    v1::ProbeResult kept;
    kept.set_loss_plus(result.plus);
    kept.set_loss_minus(result.minus);
    effects->mutations.push_back(store::PutObservation{
        {session.row.uid, "probe", session.row.head_version, result.query, kept.SerializeAsString(), ""}});
  }
  if (!fresh.empty())
    session.proto.mutable_usage()->set_evaluations(session.proto.usage().evaluations() +
                                                   static_cast<int64_t>(fresh.size()));
  effects->row_changed = completes;
  if (completes) RETURN_IF_ERROR(Complete(session, response, effects));
  response->set_head_version(session.row.head_version);
  response->set_seq(session.row.seq);
  response->set_pending(static_cast<int32_t>(q() - told_));
  ChooseDurability(session, response, effects);
  return absl::OkStatus();
}

/// Losses of all queries into projected gradients (double) and coefficients (float32), or a skipped version.
void ZerothOrder::FillScalars(v1::Version* version, v1::TellResponse* response) const {
  const double lr = version->lr(), count = static_cast<double>(q());
  double mean = 0;
  bool usable = true;
  for (size_t i = 0; i < queries_.size(); ++i) {
    const double g = (queries_[i].plus - queries_[i].minus) / (two_side_ ? 2 * eps_ : eps_);
    const double direction = sign_ ? static_cast<double>((g > 0) - (g < 0)) : g;
    const auto coefficient = static_cast<float>(lr * direction / count);
    usable = usable && std::isfinite(queries_[i].plus) && std::isfinite(queries_[i].minus) && std::isfinite(g) &&
             std::isfinite(coefficient);
    mean += g / count;
    v1::ReplayQuery* term = version->add_queries();
    term->set_step(static_cast<uint32_t>(version->parent()));
    term->set_query(static_cast<uint32_t>(i));
    term->set_coefficient(coefficient);
  }
  if (!usable) version->clear_queries();
  version->set_kind(usable ? "step" : "skipped");
  response->set_skipped(!usable);
  if (usable) response->set_projected_gradient(mean);
}

absl::Status ZerothOrder::Complete(LiveSession& session, v1::TellResponse* response, Effects* effects) {
  const int64_t base = session.row.head_version;
  v1::Version version;
  version.set_parent(base);
  version.set_loss(queries_[0].plus);
  version.set_lr(LrOfStep(head_step_ + 1));
  FillScalars(&version, response);
  store::VersionRow row = session.NewVersion(&version, head_step_, context_.clock->NowUnixMs());
  const v1::ReplayStep step = StepOf(row.number, version);
  if (theta_.version == base) {  // in use: follow, and store now and then so that a replay stays short
    if (!SoleOwner(theta_.flat)) theta_.flat = TensorBuffer::Copy(*theta_.flat);
    if (theta_.flat != nullptr && ApplyStep(step, theta_.flat.get()).ok()) {
      theta_.version = row.number;
      if (row.number - stored_version_ >= kStoreValuesEvery) {
        auto blob = context_.blobs->Put(theta_.flat->bytes());
        if (blob.ok()) row.blob = *std::move(blob);  // else the next step tries again
        if (!row.blob.empty()) stored_version_ = row.number;
      }
    } else {
      theta_ = {};
    }
  }
  if (tree_.Add(row.number, base))
    effects->mutations.push_back(store::PutObservation{{session.row.uid, "jump", row.number, base, "", ""}});
  if (row.number % 64 == 0)
    effects->mutations.push_back(store::DeleteObservations{session.row.uid, "probe", row.number});
  session.row.head_version = row.number;
  ++session.row.seq;
  session.proto.mutable_usage()->set_steps(session.proto.usage().steps() + 1);
  head_step_ = row.step;
  effects->mutations.push_back(store::InsertVersion{std::move(row)});
  Remember(session, step);
  StartStep();
  response->set_updated(true);
  response->set_lr(version.lr());
  return absl::OkStatus();
}

/// Keeps the newest steps at hand; those whose commit may still be under way are never dropped.
void ZerothOrder::Remember(LiveSession& session, v1::ReplayStep step) {
  tail_queries_ += step.queries_size();
  tail_.push_back(std::move(step));
  while ((static_cast<int64_t>(tail_.size()) > kTailSteps || tail_queries_ > kTailQueries) &&
         static_cast<int64_t>(tail_.size()) > session.commits_in_flight + 1) {
    tail_base_ = tail_.front().version();
    tail_queries_ -= tail_.front().queries_size();
    tail_.pop_front();
  }
}

void ZerothOrder::ChooseDurability(LiveSession& session, v1::TellResponse* response, Effects* effects) const {
  const bool every_n = durability_.mode() == v1::Durability::EVERY_N;
  if (!every_n && durability_.mode() != v1::Durability::ON_CHECKPOINT) {
    session.durable_version = session.row.version_count - 1;
  } else {
    const int64_t every = every_n                            ? durability_.n()
                          : durability_.snapshot_every() > 0 ? durability_.snapshot_every()
                                                             : 100;
    const bool waits = response->updated() && session.row.seq % std::max<int64_t>(1, every) == 0;
    effects->wait_for_commit = waits;
    // A commit makes one version at most, so all but the last `commits_in_flight` and this one are safe.
    const int64_t newest = session.row.version_count - 1;
    session.durable_version = std::max<int64_t>(
        0, waits ? newest : newest - session.commits_in_flight - (effects->mutations.empty() ? 0 : 1));
  }
  response->set_durable_version(session.durable_version);
}

absl::Status ZerothOrder::MoveHead(LiveSession& session, const store::VersionRow& version, Effects* effects) {
  if (version.number == session.row.head_version) return absl::OkStatus();
  effects->mutations.push_back(store::DeleteObservations{session.row.uid, "probe", version.number + 1});
  StartStep();
  tail_.clear();
  tail_queries_ = 0;
  tail_base_ = version.number;
  head_step_ = version.step;
  return absl::OkStatus();
}

absl::Status ZerothOrder::SetInitial(LiveSession& session, std::shared_ptr<TensorBuffer> values,
                                     const std::string& sha256, Effects* effects) {
  RETURN_IF_ERROR(CheckFloat32(*layout_, "layout"));
  RETURN_IF_ERROR(AttachInitial(context_, session, sha256, effects));
  theta_ = {0, std::move(values)};
  stored_version_ = 0;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<optim::OwnedTensor>> ZerothOrder::State(LiveSession&) {
  return std::vector<optim::OwnedTensor>{};
}

size_t ZerothOrder::ResidentBytes() const {
  size_t total = layout_->size() * 128 + queries_.size() * sizeof(Query) + tail_.size() * 96 +
                 static_cast<size_t>(tail_queries_) * 24;
  if (theta_.flat) total += theta_.flat->size();
  if (pulled_.flat) total += pulled_.flat->size();
  return total;
}

}  // namespace optod::engine

// Zeroth-order sessions: handing out probes and turning told losses into versions. Replay and values are in
// zeroth_order_replay.cc.
#include "server/engine/zeroth_order.h"

#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "google/protobuf/util/time_util.h"
#include "optim/zo/stream.h"
#include "optim/zo/support.h"
#include "server/engine/snapshot.h"

namespace optod::engine {
namespace {

constexpr int64_t kMaxLeaseNs = 3'600'000'000'000;
constexpr int64_t kDefaultLeaseNs = 60'000'000'000;
constexpr uint64_t kPointBytes = 1u << 20;
constexpr int64_t kStoreValuesEvery = 1000;
constexpr int64_t kTailSteps = 4096, kTailQueries = 1 << 17;

/// The session's hyperparameters, which CheckOptimizer has completed, as optim/zo takes them.
absl::StatusOr<zo::ZoHyper> HyperOf(const v1::OptimizerSpec& spec) {
  zo::ZoValues values;
  for (const auto& [name, value] : spec.hyperparameters()) {
    if (value.has_number()) values[name] = value.number();
    if (value.has_flag()) values[name] = value.flag();
    if (value.has_text()) values[name] = value.text();
  }
  return zo::ZoHyperFor(spec.name(), values);
}

absl::StatusOr<zo::ZoLayout> ZoLayoutOf(const Layout& layout, const zo::ZoHyper& hyper) {
  std::vector<zo::ZoTensor> tensors;
  for (size_t i = 0; i < layout.size(); ++i)
    tensors.push_back({layout.spec(i).name, static_cast<size_t>(layout.spec(i).elements()), !layout.no_decay(i)});
  return zo::Arrange(zo::ZoLayout(std::move(tensors)), hyper);
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

absl::Status CheckOffered(const v1::OptimizerSpec& spec, const Layout& layout) {
  ASSIGN_OR_RETURN(const zo::ZoHyper hyper, HyperOf(spec));
  if (hyper.residue != zo::Residue::kNone)
    return Unimplemented("hyperparameters.residue: only \"none\" is offered for sessions");
  return ZoLayoutOf(layout, hyper).status();
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
  const Layout layout(session->layout());
  RETURN_IF_ERROR(CheckOffered(session->optimizer(), layout));
  if (!request.initial().empty()) RETURN_IF_ERROR(CheckFloat32(layout, "initial"));
  if (session->durability().mode() == v1::Durability::MODE_UNSPECIFIED)
    session->mutable_durability()->set_mode(v1::Durability::EVERY_STEP);
  return StoreInitial(context, request, layout, session, version0);
}

absl::Status Fork(Context& context, LiveSession& source, int64_t version, LiveSession& fork,
                  store::VersionRow* version0, Effects*) {
  ASSIGN_OR_RETURN(const store::VersionRow row, context.store->GetVersion(source.row.uid, version));
  v1::Version from, initial;
  if (!from.ParseFromString(row.payload)) return DataLoss("version ", version, " cannot be parsed");
  initial.set_kind("initial");
  initial.set_note(Cat("forked from ", source.name().Full(), "/versions/", version));
  initial.set_rule_step(from.rule_step());
  version0->payload = initial.SerializeAsString();
  version0->step = row.step;  // schedules go on where they were
  version0->blob = row.blob;
  auto* family = static_cast<ZerothOrder*>(source.family.get());
  family->ForkDirections(source, version, fork);
  if (!fork.proto.has_values()) {
    if (family->has_state() && from.rule_step() > 0)
      return FailedPrecondition("version ", version, ": the moments of ", source.proto.optimizer().name(),
                                " live at the workers of this session (layout only); fork a session with values");
    return absl::OkStatus();
  }
  if (!row.blob.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(version0->blob, family->Save(source, version, row.step));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Adopted> AdoptZerothOrder(Context& context, const StateFile& file) {
  const Layout layout(file.layout);
  RETURN_IF_ERROR(CheckOffered(file.optimizer, layout));
  ASSIGN_OR_RETURN(const zo::ZoHyper hyper, HyperOf(file.optimizer));
  ASSIGN_OR_RETURN(const zo::ZoLayout zo_layout, ZoLayoutOf(layout, hyper));
  RETURN_IF_ERROR(CheckFloat32(layout, "file"));
  auto state = MomentsFromTensors(layout, zo_layout, hyper, file.state);
  if (!state.ok()) return InvalidArgument("file: ", state.status().message());
  const int64_t most = *std::max_element(state->counts.begin(), state->counts.end());
  if (!file.state.empty() && most != zo::UpdatesOfBlock(zo_layout, hyper, file.rule_step))
    return InvalidArgument("file: state \"t\" is ", most, "; __metadata__.rule_step is ", file.rule_step);
  Adopted out;
  out.initial.set_rule_step(file.rule_step);
  if (file.state.empty()) {
    ASSIGN_OR_RETURN(out.blob, context.blobs->Put(file.params->bytes()));
    return out;
  }
  ASSIGN_OR_RETURN(const auto snapshot, EncodeSnapshot(layout, file.params->data(), file.state, 0, file.step));
  ASSIGN_OR_RETURN(out.blob, context.blobs->Put(snapshot->bytes()));
  return out;
}

FamilyFactory ZerothOrderFactory() {
  return {{"zo-sgd", "zo-sgd-mmt", "zo-sgd-cons", "zo-sgd-sign", "zo-adam", "forward-grad"},
          &Create,
          &ZerothOrder::Load,
          &Fork};
}

ZerothOrder::ZerothOrder(Context& context, const LiveSession& session)
    : NumericFamily(session.proto.layout()),
      context_(context),
      spec_(session.proto.optimizer()),
      durability_(session.proto.durability()),
      first_direction_(session.proto.first_direction()),
      next_direction_(std::max<int64_t>(1, session.proto.next_direction())) {
  hyper_ = *HyperOf(spec_);  // Load has checked it
  zo_layout_ = *ZoLayoutOf(*layout_, hyper_);
  plain_.queries = hyper_.queries;
  plain_.mask_law = hyper_.mask_law;
  plain_.mask_every = hyper_.mask_every;
  queries_.resize(static_cast<size_t>(directions() + (conservative() ? 1 : 0)));
}

absl::StatusOr<std::unique_ptr<Family>> ZerothOrder::Load(Context& context, LiveSession& session) {
  RETURN_IF_ERROR(CheckOffered(session.proto.optimizer(), Layout(session.proto.layout())));
  auto family = std::unique_ptr<ZerothOrder>(new ZerothOrder(context, session));
  const int64_t uid = session.row.uid, head = session.row.head_version;
  ASSIGN_OR_RETURN(const store::VersionRow row, context.store->GetVersion(uid, head));
  v1::Version head_version;
  if (!head_version.ParseFromString(row.payload)) return DataLoss("version ", head, " cannot be parsed");
  family->head_step_ = row.step;
  family->head_rule_step_ = head_version.rule_step();
  family->tail_base_ = head;
  family->tree_head_ = head;
  ASSIGN_OR_RETURN(const auto jumps, context.store->ListObservations(uid, "jump", 0, INT64_MAX));
  for (const store::ObservationRow& jump : jumps) family->tree_.Add(jump.a, jump.b);
  ASSIGN_OR_RETURN(const auto partial, context.store->ListObservations(uid, "probe", head, head + 1));
  for (const store::ObservationRow& observation : partial) {
    v1::ProbeResult result;
    if (!result.ParseFromString(observation.payload) || observation.b < 0 || observation.b >= family->probes())
      continue;
    Query& query = family->queries_[static_cast<size_t>(observation.b)];
    query = {true, result.loss_plus(), result.loss_minus(), result.loss(), "", INT64_MIN};
    ++family->told_;
  }
  return std::unique_ptr<Family>(std::move(family));
}

void ZerothOrder::ForkDirections(const LiveSession& session, int64_t version, LiveSession& fork) const {
  const bool own = fork.proto.optimizer().seed() != spec_.seed();
  fork.proto.set_first_direction(own ? 0 : static_cast<uint32_t>(DirectionOf(version)));
  fork.proto.set_next_direction(own ? 1 : static_cast<uint32_t>(DirectionOf(session.row.version_count)));
}

void ZerothOrder::StartStep() {
  std::fill(queries_.begin(), queries_.end(), Query{});
  told_ = 0;
  next_ = 0;
}

double ZerothOrder::LrOfStep(int64_t step) const {
  return spec_.has_schedule() ? ScheduledLr(spec_.schedule(), hyper_.lr, step) : hyper_.lr;
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
  if (DirectionOf(session.row.head_version) > UINT32_MAX)
    return FailedPrecondition("session ", session.name().Full(), " has used up its 2^32 directions; fork it with another seed");
  const int64_t now_ns = context_.clock->NowMonotonicNs();
  const auto want = static_cast<size_t>(std::max(1, request.count()));
  // The candidates of zo-sgd-cons are defined once all directions are told.
  const size_t offered = static_cast<size_t>(conservative() && told_ < directions() ? directions() : probes());
  std::vector<uint32_t> chosen;
  for (size_t i = 0; i < offered && chosen.size() < want; ++i) {
    const size_t at = (next_ + i) % offered;
    if (!queries_[at].told && queries_[at].lease_until_ns <= now_ns) chosen.push_back(static_cast<uint32_t>(at));
  }
  if (chosen.empty() && !request.worker().empty()) {  // a worker that lost the answer gets its own probes again
    for (size_t at = 0; at < offered && chosen.size() < want; ++at)
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
  probe->set_step(static_cast<uint32_t>(DirectionOf(head)));
  probe->set_query(DirectionNumber(query));
  probe->set_eps(hyper_.eps);
  probe->set_two_side(hyper_.sides == zo::Sides::kTwo);
  if (forward()) probe->set_kind(v1::Probe::DERIVATIVE);
  const bool candidates = static_cast<int64_t>(query) == directions();
  if (candidates) {
    const v1::ReplayStep down = CandidateStep();
    probe->set_kind(v1::Probe::CANDIDATES);
    *probe->mutable_terms() = down.queries();
    probe->set_weight_decay_rate(down.weight_decay_rate());
  }
  return with_point ? FillPoint(session, probe) : absl::OkStatus();
}

absl::Status ZerothOrder::FillPoint(LiveSession& session, v1::Probe* probe) {
  const int64_t head = session.row.head_version;
  if (layout_->total_bytes() > kPointBytes)
    return InvalidArgument("with_point: the parameters have ", layout_->total_bytes(), " bytes; at most ", kPointBytes,
                           "; perturb them at the worker");
  ASSIGN_OR_RETURN(const auto theta, ParametersAt(session, head));
  const zo::Direction direction{spec_.seed(), probe->step(), probe->query()};
  using Tensors = google::protobuf::RepeatedPtrField<v1::Tensor>;
  const auto moved = [&](zo::UpdateScalars update, float sign, Tensors* point) -> absl::Status {
    Values values{head, TensorBuffer::Copy(*theta), {}};
    if (values.flat == nullptr) return ResourceExhausted("with_point: no memory");
    for (zo::Term& term : update.terms) term.coefficient *= sign;
    update.decay_rate *= sign;
    RETURN_IF_ERROR(zo::ApplyUpdate(zo_layout_, plain_, spec_.seed(), update, values.span(), nullptr));
    TensorsFromFlat(*layout_, values.flat->data(), point);
    return absl::OkStatus();
  };
  // theta +- eps z is an update with the one coefficient -+eps.
  const zo::UpdateScalars shift{{{direction.step, direction.query, static_cast<float>(-hyper_.eps)}}, 0, {}};
  if (probe->kind() == v1::Probe::CANDIDATES) {
    zo::UpdateScalars down{{}, probe->weight_decay_rate(), {}};
    for (const v1::ReplayQuery& term : probe->terms()) down.terms.push_back({term.step(), term.query(), term.coefficient()});
    RETURN_IF_ERROR(moved(down, 1, probe->mutable_plus()));
    RETURN_IF_ERROR(moved(down, -1, probe->mutable_minus()));
    return moved({}, 1, probe->mutable_stay());
  }
  if (forward()) {
    RETURN_IF_ERROR(moved({}, 1, probe->mutable_plus()));
    auto z = TensorBuffer::Make(layout_->total_bytes());
    if (z == nullptr) return ResourceExhausted("with_point: no memory");
    for (size_t t = 0; t < layout_->size(); ++t) {
      zo::FillNormal(direction, static_cast<uint32_t>(t), 0,
                     {reinterpret_cast<float*>(z->data() + layout_->offset(t)),
                      static_cast<size_t>(layout_->spec(t).elements())});
    }
    TensorsFromFlat(*layout_, z->data(), probe->mutable_direction());
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(moved(shift, 1, probe->mutable_plus()));
  return moved(hyper_.sides == zo::Sides::kTwo ? shift : zo::UpdateScalars{}, -1, probe->mutable_minus());
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
    if (version >= session.row.version_count || query >= probes() ||
        (version == session.row.head_version && query == directions() && told_ < directions()))
      return InvalidArgument("losses.results[", i, "].probe_id: \"", result.probe_id(),
                             "\" was never handed out; versions are 0 to ", session.row.version_count - 1,
                             ", queries 0 to ", directions() - 1);
    if (version != session.row.head_version) continue;
    if (forward() && !result.has_jvp())
      return InvalidArgument("losses.results[", i, "].jvp: missing; ", spec_.name(), " needs the derivative along z");
    if (query == directions() && !result.has_loss())
      return InvalidArgument("losses.results[", i, "].loss: missing; the candidates of ", spec_.name(),
                             " need the loss at theta too");
    ++current;
    if (seen.empty()) seen.resize(queries_.size());
    const auto at = static_cast<size_t>(query);
    if (queries_[at].told || seen[at]) continue;
    seen[at] = true;
    fresh.push_back({static_cast<uint32_t>(query), forward() ? result.jvp() : result.loss_plus(), result.loss_minus(),
                     result.has_loss() ? result.loss() : std::nan("")});
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
  if (DirectionOf(session.row.version_count) > UINT32_MAX)
    return FailedPrecondition("session ", session.name().Full(), " has used up its 2^32 directions; fork it with another seed");
  for (const Result& result : fresh) {
    queries_[result.query] = {true, result.plus, result.minus, result.loss, "", INT64_MIN};
    ++told_;
  }
  const bool completes = Completes();
  for (const Result& result : fresh) {
    if (completes) break;  // the version row will hold all that is needed
    v1::ProbeResult kept;
    kept.set_loss_plus(result.plus);
    kept.set_loss_minus(result.minus);
    kept.set_loss(result.loss);
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
  response->set_pending(static_cast<int32_t>(probes() - told_));
  ChooseDurability(session, response, effects);
  return absl::OkStatus();
}

bool ZerothOrder::Project(std::vector<double>* g) const {
  bool usable = true;
  g->clear();
  for (int64_t i = 0; i < directions(); ++i) {
    const Query& query = queries_[static_cast<size_t>(i)];
    g->push_back(forward() ? query.plus : zo::ProjectedGradient(query.plus, query.minus, hyper_.eps, hyper_.sides));
    usable = usable && std::isfinite(query.plus) && (forward() || std::isfinite(query.minus)) && std::isfinite(g->back());
  }
  return usable;
}

bool ZerothOrder::Completes() const {
  if (told_ == probes()) return true;
  if (!conservative() || told_ < directions()) return false;
  std::vector<double> g;
  v1::Version scratch;
  scratch.set_parent(0);
  return !Project(&g) || !Descent(g, LrOfStep(head_step_ + 1), &scratch);  // no candidate can be formed
}

bool ZerothOrder::Descent(const std::vector<double>& g, double lr, v1::Version* version) const {
  const bool rule = zo::NeedsRule(hyper_);
  bool usable = true;
  for (size_t i = 0; i < g.size(); ++i) {
    const double direction = hyper_.sign == zo::Sign::kScalar ? static_cast<double>((g[i] > 0) - (g[i] < 0)) : g[i];
    const auto coefficient = static_cast<float>(rule ? direction : lr * direction / static_cast<double>(hyper_.queries));
    usable = usable && std::isfinite(coefficient);
    v1::ReplayQuery* term = version->add_queries();
    term->set_step(static_cast<uint32_t>(DirectionOf(version->parent())));
    term->set_query(DirectionNumber(static_cast<uint32_t>(i)));
    term->set_coefficient(coefficient);
  }
  if (!rule) version->set_weight_decay_rate(static_cast<float>(lr * hyper_.weight_decay));
  return usable;
}

/// What theta - u of zo-sgd-cons is: the descent of the step under way.
v1::ReplayStep ZerothOrder::CandidateStep() const {
  std::vector<double> g;
  Project(&g);
  v1::Version version;
  version.set_parent(tree_head_);
  Descent(g, LrOfStep(head_step_ + 1), &version);
  v1::ReplayStep step;
  *step.mutable_queries() = version.queries();
  step.set_weight_decay_rate(version.weight_decay_rate());
  return step;
}

/// The candidate of zo-sgd-cons that is kept, written into the version that descends.
void ZerothOrder::Choose(v1::Version* version) const {
  const Query& told = queries_.back();
  const zo::Candidate chosen = zo::ChooseCandidate(told.loss, told.plus, told.minus);
  version->set_loss(told.plus);
  version->set_note(zo::CandidateName(chosen));
  if (chosen == zo::Candidate::kStay) {
    version->clear_queries();
    version->clear_weight_decay_rate();
  } else if (chosen == zo::Candidate::kAscent) {
    for (v1::ReplayQuery& term : *version->mutable_queries()) term.set_coefficient(-term.coefficient());
    version->set_weight_decay_rate(-version->weight_decay_rate());
  }
}

/// Losses of all queries into projected gradients (double) and coefficients (float32), or a skipped version.
void ZerothOrder::FillScalars(v1::Version* version, v1::TellResponse* response) const {
  std::vector<double> g;
  const bool usable = Project(&g) && Descent(g, version->lr(), version);
  version->set_kind(usable ? "step" : "skipped");
  version->set_rule_step(head_rule_step_ + (usable ? 1 : 0));
  response->set_skipped(!usable);
  if (!usable) {
    version->clear_queries();
    version->clear_weight_decay_rate();
    return;
  }
  double mean = 0;
  for (const double one : g) mean += one / static_cast<double>(directions());
  response->set_projected_gradient(mean);
  if (conservative()) Choose(version);
}

absl::Status ZerothOrder::Complete(LiveSession& session, v1::TellResponse* response, Effects* effects) {
  const int64_t base = session.row.head_version;
  v1::Version version;
  version.set_parent(base);
  version.set_loss(forward() ? queries_[0].loss : queries_[0].plus);
  version.set_lr(LrOfStep(head_step_ + 1));
  FillScalars(&version, response);
  store::VersionRow row = session.NewVersion(&version, head_step_, context_.clock->NowUnixMs());
  const v1::ReplayStep step = StepOf(row.number, version);
  if (theta_.version == base) {  // in use: follow, and store now and then so that a replay stays short
    if (!SoleOwner(theta_.flat)) theta_.flat = TensorBuffer::Copy(*theta_.flat);
    if (theta_.flat != nullptr && ApplyStep(step, &theta_).ok()) {
      theta_.version = row.number;
      if (row.number - stored_version_ >= kStoreValuesEvery) {
        auto blob = PutValues(theta_, row.step);
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
  head_rule_step_ = version.rule_step();
  tree_head_ = row.number;
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
  v1::Version parsed;
  if (!parsed.ParseFromString(version.payload)) return DataLoss("version ", version.number, " cannot be parsed");
  effects->mutations.push_back(store::DeleteObservations{session.row.uid, "probe", version.number + 1});
  StartStep();
  tail_.clear();
  tail_queries_ = 0;
  tail_base_ = version.number;
  head_step_ = version.step;
  head_rule_step_ = parsed.rule_step();
  tree_head_ = version.number;
  return absl::OkStatus();
}

absl::Status ZerothOrder::SetInitial(LiveSession& session, std::shared_ptr<TensorBuffer> values,
                                     const std::string& sha256, Effects* effects) {
  RETURN_IF_ERROR(CheckFloat32(*layout_, "layout"));
  RETURN_IF_ERROR(AttachInitial(context_, session, sha256, effects));
  theta_ = {0, std::move(values), zo::InitialState(zo_layout_, hyper_)};
  stored_version_ = 0;
  return absl::OkStatus();
}

void ZerothOrder::DescribeMemory(v1::MemoryReport* report) const {
  report->set_gradient_bytes(0);
  report->set_resident(theta_.flat != nullptr);
  const uint64_t moments = (hyper_.base == zo::Base::kAdam || hyper_.momentum > 0) + (hyper_.base == zo::Base::kAdam);
  for (size_t t = 0; t < layout_->size() && theta_.flat != nullptr; ++t)
    report->mutable_tensors(static_cast<int>(t))->set_state_bytes(moments * zo_layout_.tensor(t).size * sizeof(float));
  report->set_state_bytes((theta_.state.m.size() + theta_.state.v.size()) * sizeof(float));
}

size_t ZerothOrder::ResidentBytes() const {
  size_t total = layout_->size() * 128 + queries_.size() * sizeof(Query) + tail_.size() * 96 +
                 static_cast<size_t>(tail_queries_) * 24;
  if (theta_.flat) total += theta_.flat->size();
  if (pulled_.flat) total += pulled_.flat->size();
  for (const Values* values : {&theta_, &pulled_})
    total += (values->state.m.size() + values->state.v.size()) * sizeof(float);
  return total;
}

}  // namespace optod::engine

// First-order sessions: telling, which is checking, stepping and recording. Loading and rebuilding are in
// first_order_replay.cc.
#include "server/engine/first_order.h"

#include <cmath>
#include <cstring>

#include "base/status.h"
#include "server/engine/snapshot.h"

namespace optod::engine {
namespace {

constexpr int64_t kAnswersKept = 64;
constexpr int64_t kDefaultSnapshotEvery = 100;

}  // namespace

FirstOrder::FirstOrder(Context& context, const LiveSession& session)
    : NumericFamily(session.proto.layout()), context_(context), spec_(session.proto.optimizer()) {
  const v1::Durability& durability = session.proto.durability();
  mode_ = durability.mode() == v1::Durability::MODE_UNSPECIFIED ? v1::Durability::EVERY_STEP : durability.mode();
  cadence_ = durability.snapshot_every() > 0 ? durability.snapshot_every() : kDefaultSnapshotEvery;
  if (mode_ == v1::Durability::EVERY_N) cadence_ = std::max(1, durability.n());
}

absl::StatusOr<v1::AskResponse> FirstOrder::Ask(LiveSession& session, const v1::AskRequest& request, const Caller&) {
  v1::AskResponse out;
  out.set_head_version(session.row.head_version);
  out.set_seq(session.row.seq);
  v1::Point* point = out.add_points();
  point->set_version(session.row.head_version);
  if (!request.with_values()) return out;
  if (!head_) return FailedPrecondition("session ", session.name().Full(), " has no parameters yet; push them first");
  if (layout_->total_bytes() > kUnaryTensorBytes)
    return InvalidArgument("with_values: the parameters have ", layout_->total_bytes(), " bytes; at most ",
                           kUnaryTensorBytes, "; use PullParameters");
  TensorsFromFlat(*layout_, head_->params->data(), point->mutable_tensors());
  return out;
}

absl::Status FirstOrder::Precheck(LiveSession& session, const Told& told, v1::TellResponse* response, Effects* effects,
                                  bool* answered) {
  const int64_t last = session.row.seq;
  if (told.seq < 0) return InvalidArgument("seq: ", told.seq, " is negative");
  if (told.return_values && layout_->total_bytes() > kUnaryTensorBytes)
    return InvalidArgument("return_values: the parameters have ", layout_->total_bytes(), " bytes; at most ",
                           kUnaryTensorBytes, "; use StepStream or PullParameters");
  if (told.seq > 0 && told.seq <= last) {
    for (const auto& [seq, fingerprint, answer] : answers_) {
      if (seq != told.seq) continue;
      if (fingerprint != 0 && fingerprint != told.fingerprint)
        return Aborted("seq: ", seq, " was taken by a tell with other gradients; expected ", last + 1);
      if (!response->ParseFromString(answer)) return Internal("seq: stored answer of ", seq, " cannot be parsed");
      if (told.return_values && response->head_version() == session.row.head_version && head_)
        TensorsFromFlat(*layout_, head_->params->data(), response->mutable_values());
      effects->row_changed = false;
      *answered = true;
      return absl::OkStatus();
    }
    return FailedPrecondition("seq: ", told.seq, " was applied before and its answer is no longer kept; expected ",
                              last + 1);
  }
  if (told.seq > last + 1) return FailedPrecondition("seq: ", told.seq, " leaves a gap; expected ", last + 1);
  if (!head_) return FailedPrecondition("session ", session.name().Full(), " has no parameters yet; push them first");
  if (told.base_version != session.row.head_version)
    return Aborted("base_version: ", told.base_version, " is not the head ", session.row.head_version, "; ask again");
  return CheckBudget(session.proto, session.row.create_ms, context_.clock->NowUnixMs());
}

absl::Status FirstOrder::Tell(LiveSession& session, const v1::TellRequest& request, v1::TellResponse* response,
                              Effects* effects) {
  if (!request.has_gradients())
    return InvalidArgument("gradients: missing; ", spec_.name(), " sessions are told gradients");
  const v1::GradientTell& tell = request.gradients();
  ASSIGN_OR_RETURN(const Gradients gradients, GradientsFromTell(*layout_, tell));
  Told told{request.seq(), tell.base_version(), std::nullopt, tell.return_values(), Fingerprint(*layout_, gradients)};
  if (tell.has_loss() && !std::isnan(tell.loss())) told.loss = tell.loss();  // NaN = not given, here and in a replay
  bool answered = false;
  RETURN_IF_ERROR(Precheck(session, told, response, effects, &answered));
  if (answered) return absl::OkStatus();
  return Apply(
      session, told, gradients, [&] { return RecordTell(*context_.blobs, tell); }, response, effects);
}

absl::Status FirstOrder::TellFlat(LiveSession& session, const FlatStep& step, v1::TellResponse* response,
                                  Effects* effects) {
  ASSIGN_OR_RETURN(Gradients gradients, GradientsFromFlat(*layout_, step.gradients, step.form));
  gradients.finite = step.finite;
  Told told{step.seq, step.base_version, step.loss, false, Fingerprint(*layout_, gradients)};
  if (told.loss && std::isnan(*told.loss)) told.loss.reset();
  bool answered = false;
  RETURN_IF_ERROR(Precheck(session, told, response, effects, &answered));
  if (answered) return absl::OkStatus();
  return Apply(
      session, told, gradients, [&] { return RecordFlat(*context_.blobs, *step.gradients, step.form, step.blob); },
      response, effects);
}

bool FirstOrder::RecordsAsBlob(const LiveSession& session, uint64_t bytes) {
  const auto mode = session.proto.durability().mode();
  return bytes > kInlineGradientBytes &&
         (mode == v1::Durability::EVERY_STEP || mode == v1::Durability::MODE_UNSPECIFIED);
}

double FirstOrder::BaseLr() const {
  auto it = spec_.hyperparameters().find("lr");
  return it == spec_.hyperparameters().end() ? 0 : it->second.number();
}

std::optional<double> FirstOrder::LrOfStep(int64_t step, const std::vector<double>& told) const {
  if (!told.empty()) return told.front();
  if (!spec_.has_schedule()) return std::nullopt;
  return ScheduledLr(spec_.schedule(), BaseLr(), step);
}

/// One update in place, of the head or of a version that is being rebuilt. Errors change nothing.
absl::Status FirstOrder::StepOnce(Point* point, const Gradients& gradients, std::optional<double> loss,
                                  std::map<std::string, double>* figures) const {
  ASSIGN_OR_RETURN(const Prepared prepared, Prepare(*layout_, gradients, spec_.clip_value(), spec_.clip_norm()));
  if (!SoleOwner(point->params)) {  // somebody still reads these values: the step gets its own copy
    auto copy = TensorBuffer::Copy(*point->params);
    if (copy == nullptr) return ResourceExhausted("no memory for ", layout_->total_bytes(), " bytes of parameters");
    point->params = std::move(copy);
  }
  std::vector<void*> params(layout_->size());
  std::vector<std::pair<size_t, std::shared_ptr<TensorBuffer>>>
      staged;  // tensors whose place in the flat buffer is not aligned
  for (size_t i = 0; i < layout_->size(); ++i) {
    params[i] = point->params->data() + layout_->offset(i);
    if (layout_->offset(i) % optim::DTypeSize(layout_->spec(i).dtype) == 0) continue;
    auto copy = TensorBuffer::Make(layout_->spec(i).bytes());
    if (copy == nullptr) return ResourceExhausted("no memory for tensor \"", layout_->spec(i).name, "\"");
    std::memcpy(copy->data(), params[i], copy->size());
    params[i] = copy->data();
    staged.emplace_back(i, std::move(copy));
  }
  optim::StepInput input;
  input.grads = prepared.grads;
  input.grad_dtype = prepared.grad_dtype;
  input.grads_finite = prepared.finite;
  input.extra_finite = gradients.finite;
  input.lr = LrOfStep(point->step + 1, gradients.lr);
  input.loss = loss;
  for (const optim::OwnedTensor& extra : gradients.extra) input.extra[extra.spec.name] = &extra;
  ASSIGN_OR_RETURN(optim::StepReport report, point->rule->Step(params, input));
  for (const auto& [i, copy] : staged)
    std::memcpy(point->params->data() + layout_->offset(i), copy->data(), copy->size());
  ++point->step;
  ++point->since_snapshot;
  if (figures != nullptr) {
    *figures = std::move(report.figures);
    if (prepared.norm >= 0) (*figures)["grad_norm"] = prepared.norm;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> FirstOrder::PutSnapshot(const Point& point, int64_t version, int64_t step) const {
  ASSIGN_OR_RETURN(auto file, EncodeSnapshot(*layout_, point.params->data(), point.rule->ExportState(), version, step));
  return context_.blobs->Put(file->bytes());
}

absl::Status FirstOrder::Apply(LiveSession& session, const Told& told, const Gradients& gradients,
                               const std::function<absl::StatusOr<store::ObservationRow>()>& record,
                               v1::TellResponse* response, Effects* effects) {
  if (gradients.lr.size() > 1)
    return InvalidArgument("lr: ", gradients.lr.size(), " rates; the optimizer has one parameter group");
  std::optional<store::ObservationRow> gradient;
  if (every_step()) {
    ASSIGN_OR_RETURN(gradient, record());
  }
  const bool due = head_->since_snapshot + 1 >= cadence_;
  // Where the snapshot is what makes the step durable, a failure to write it must leave the session as it was.
  std::optional<std::pair<std::shared_ptr<TensorBuffer>, std::vector<optim::OwnedTensor>>> undo;
  const int64_t since = head_->since_snapshot;
  if (due && !every_step()) undo.emplace(head_->params, head_->rule->ExportState());
  std::map<std::string, double> figures;
  const absl::Status stepped = StepOnce(&*head_, gradients, told.loss, &figures);
  if (spec_.non_finite() == v1::SKIP && stepped.GetPayload(optim::kNotFinitePayload).has_value())
    return ApplySkipped(session, told, gradients.lr, response, effects);
  RETURN_IF_ERROR(stepped);
  std::string blob;
  if (due) {
    auto put = PutSnapshot(*head_, session.row.version_count, head_->step);
    if (put.ok()) {
      blob = *std::move(put);
    } else if (undo) {
      head_->params = undo->first;
      RETURN_IF_ERROR(head_->rule->ImportState(undo->second));
      --head_->step;
      head_->since_snapshot = since;
      return put.status();
    }  // else the gradient is durable: the next step tries again
  }
  v1::Version version;
  version.set_kind("step");
  version.set_loss(told.loss.value_or(std::nan("")));
  version.set_lr(LrOfStep(head_->step, gradients.lr).value_or(BaseLr()));
  store::VersionRow row = session.NewVersion(&version, head_->step - 1, context_.clock->NowUnixMs());
  row.blob = std::move(blob);
  response->set_lr(version.lr());
  for (const auto& [name, value] : figures) (*response->mutable_figures())[name] = value;
  Publish(session, std::move(row), std::move(gradient), told.fingerprint, response, effects);
  if (told.return_values) TensorsFromFlat(*layout_, head_->params->data(), response->mutable_values());
  return absl::OkStatus();
}

/// A version with the values of the one before. It has no snapshot of its own, whatever the cadence: the next step's
/// will do.
absl::Status FirstOrder::ApplySkipped(LiveSession& session, const Told& told, const std::vector<double>& told_lr,
                                      v1::TellResponse* response, Effects* effects) {
  ++head_->step;
  ++head_->since_snapshot;
  v1::Version version;
  version.set_kind("skipped");
  version.set_loss(told.loss.value_or(std::nan("")));
  version.set_lr(LrOfStep(head_->step, told_lr).value_or(BaseLr()));
  store::VersionRow row = session.NewVersion(&version, head_->step - 1, context_.clock->NowUnixMs());
  response->set_lr(version.lr());
  response->set_skipped(true);
  Publish(session, std::move(row), std::nullopt, told.fingerprint, response, effects);
  if (told.return_values) TensorsFromFlat(*layout_, head_->params->data(), response->mutable_values());
  return absl::OkStatus();
}

/// Moves the session to the new version and says what becomes durable, now or with the next snapshot.
void FirstOrder::Publish(LiveSession& session, store::VersionRow row, std::optional<store::ObservationRow> gradient,
                         int64_t fingerprint, v1::TellResponse* response, Effects* effects) {
  const int64_t uid = session.row.uid, number = row.number;
  const bool snapshot = !row.blob.empty();
  session.row.head_version = number;
  ++session.row.seq;
  session.proto.mutable_usage()->set_steps(session.proto.usage().steps() + 1);
  std::vector<store::Mutation> mutations;
  mutations.push_back(store::InsertVersion{std::move(row)});
  if (gradient) {
    gradient->session_uid = uid;
    gradient->a = number;
    mutations.push_back(store::PutObservation{*std::move(gradient)});
  }
  if (snapshot) {
    if (every_step()) mutations.push_back(store::DeleteObservations{uid, "gradient", head_->snapshot + 1});
    head_->snapshot = number;
    head_->since_snapshot = 0;
  }
  const bool durable = every_step() || snapshot;
  if (durable) {
    durable_before_ = every_step() ? number : session.durable_version;
    session.durable_version = number;
  }
  response->set_head_version(number);
  response->set_seq(session.row.seq);
  response->set_durable_version(durable ? number : DurableVersion(session));
  response->set_updated(true);
  store::ObservationRow answer{uid, "answer", session.row.seq, fingerprint, response->SerializeAsString(), ""};
  answers_.push_back({session.row.seq, fingerprint, answer.payload});
  if (answers_.size() > kAnswersKept) answers_.pop_front();
  mutations.push_back(store::PutObservation{std::move(answer)});
  if (session.row.seq % kAnswersKept == 0)
    mutations.push_back(store::DeleteObservations{uid, "answer", session.row.seq - kAnswersKept + 1});
  for (store::Mutation& mutation : mutations) pending_.push_back(std::move(mutation));
  if (durable) {
    effects->mutations = std::move(pending_);
    pending_.clear();
  } else {
    effects->row_changed = false;
    effects->wait_for_commit = false;
  }
}

/// The version that is safe whatever happens: a snapshot whose commit is still under way does not count.
int64_t FirstOrder::DurableVersion(const LiveSession& session) const {
  return session.commits_in_flight > 0 ? std::min(durable_before_, session.durable_version) : session.durable_version;
}

absl::Status FirstOrder::Flush(LiveSession& session, Effects* effects) {
  if (pending_.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(std::string blob, PutSnapshot(*head_, session.row.head_version, head_->step));
  for (store::Mutation& mutation : pending_) {
    auto* insert = std::get_if<store::InsertVersion>(&mutation);
    if (insert != nullptr && insert->row.number == session.row.head_version) insert->row.blob = blob;
  }
  head_->snapshot = session.row.head_version;
  head_->since_snapshot = 0;
  durable_before_ = session.durable_version;
  session.durable_version = session.row.version_count - 1;
  for (store::Mutation& mutation : pending_) effects->mutations.push_back(std::move(mutation));
  pending_.clear();
  return absl::OkStatus();
}

size_t FirstOrder::ResidentBytes() const {
  size_t total = layout_->size() * 128;
  if (head_) total += head_->params->size() + head_->rule->StateBytes();
  if (pulled_.second) total += pulled_.second->size();
  return total;
}

}  // namespace optod::engine

#include "clients/cpp/zo_worker.h"

#include <algorithm>
#include <cstring>

#include "base/status.h"
#include "optim/zo/stream.h"
#include "optim/zo/support.h"

namespace optod::client {
namespace {

std::span<float> TensorOf(std::span<float> flat, const Place& place) {
  return flat.subspan(place.offset / sizeof(float), static_cast<size_t>(place.elements));
}

}  // namespace

zo::UpdateScalars ScalarsOf(const v1::ReplayStep& step) {
  zo::UpdateScalars update;
  update.decay_rate = step.weight_decay_rate();
  for (const v1::ReplayQuery& term : step.queries())
    update.terms.push_back({term.step(), term.query(), term.coefficient()});
  if (!step.has_rule()) return update;
  const v1::ReplayRule& rule = step.rule();
  update.rule = {rule.t(), rule.lr(), rule.weight_decay(), rule.bias1(), rule.bias2()};
  return update;
}

absl::StatusOr<zo::ZoHyper> HyperOf(const v1::OptimizerSpec& optimizer) {
  zo::ZoValues values;
  for (const auto& [name, value] : optimizer.hyperparameters()) {
    if (value.has_number()) values[name] = value.number();
    if (value.has_flag()) values[name] = value.flag();
    if (value.has_text()) values[name] = value.text();
  }
  return zo::ZoHyperFor(optimizer.name(), values);
}

void Perturb(uint64_t seed, uint32_t step, uint32_t query, float scale, const std::vector<Place>& places,
             std::span<const float> theta, std::span<float> out) {
  if (!theta.empty() && out.data() != theta.data()) std::memcpy(out.data(), theta.data(), theta.size_bytes());
  for (size_t t = 0; t < places.size(); ++t)
    zo::AddScaledNormal({seed, step, query}, static_cast<uint32_t>(t), 0, scale, TensorOf(out, places[t]));
}

absl::StatusOr<std::unique_ptr<ZeroOrderWorker>> ZeroOrderWorker::Attach(Client& client, Options options) {
  std::unique_ptr<ZeroOrderWorker> worker(new ZeroOrderWorker(client, std::move(options)));
  v1::GetSessionRequest request;
  request.set_name(worker->options_.session);
  ASSIGN_OR_RETURN(worker->session_, client.GetSession(request));
  for (const v1::TensorSpec& spec : worker->session_.layout().tensors())
    if (spec.dtype() != v1::DTYPE_F32)
      return InvalidArgument("layout.", spec.name(), ": a C++ worker needs float32 tensors");
  ASSIGN_OR_RETURN(worker->places_, PlaceTensors(worker->session_.layout()));
  ASSIGN_OR_RETURN(worker->hyper_, HyperOf(worker->session_.optimizer()));
  if (worker->hyper_.rule == zo::Rule::kForwardGrad && !worker->options_.derivative)
    return InvalidArgument("derivative: missing; forward-grad evaluates derivatives along z");
  std::vector<zo::ZoTensor> tensors;
  for (int i = 0; i < worker->session_.layout().tensors_size(); ++i) {
    const Place& place = worker->places_[static_cast<size_t>(i)];
    tensors.push_back({worker->session_.layout().tensors(i).name(), static_cast<size_t>(place.elements), !place.no_decay});
  }
  ASSIGN_OR_RETURN(worker->layout_, zo::Arrange(zo::ZoLayout(std::move(tensors)), worker->hyper_));
  const size_t elements = worker->layout_.size();
  const auto& initial = worker->options_.initial;
  if (!initial.empty() && initial.size() != elements)
    return InvalidArgument("initial: ", initial.size(), " values; the layout has ", elements);
  if (initial.empty() && !worker->session_.has_values())
    return FailedPrecondition("initial: missing, and session ", worker->options_.session, " holds no values");
  worker->scratch_.resize(elements);
  RETURN_IF_ERROR(worker->Reload());
  return worker;
}

absl::Status ZeroOrderWorker::Reload() {
  state_ = zo::InitialState(layout_, hyper_);
  if (!session_.has_values()) {
    theta_ = options_.initial;
    version_ = 0;
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const Client::Tensors pulled, client_.PullParameters(options_.session));
  if (pulled.data.size() != scratch_.size() * sizeof(float))
    return DataLoss("pull: the size differs from the layout's");
  theta_.resize(scratch_.size());
  std::memcpy(theta_.data(), pulled.data.data(), pulled.data.size());
  version_ = pulled.version;
  return state_.m.empty() ? absl::OkStatus() : ReloadState();
}

/// The moments at version_. A step that comes between the two pulls is met by pulling both again.
absl::Status ZeroOrderWorker::ReloadState() {
  ASSIGN_OR_RETURN(const Client::Tensors pulled, client_.PullState(options_.session));
  if (pulled.version != version_) return Reload();
  ASSIGN_OR_RETURN(const std::vector<Place> places, PlaceTensors(pulled.index));
  for (int i = 0; i < pulled.index.tensors_size(); ++i) {
    const std::string& name = pulled.index.tensors(i).name();
    const Place& place = places[static_cast<size_t>(i)];
    if (name == "t") continue;  // every update brings its own count
    std::vector<float>& to = name.starts_with("m/") ? state_.m : state_.v;
    for (size_t t = 0; t < layout_.tensors(); ++t) {
      if (name.substr(2) != layout_.tensor(t).name) continue;
      const size_t bytes = layout_.tensor(t).size * sizeof(float);
      if (static_cast<size_t>(place.elements) * sizeof(float) != bytes || layout_.offset(t + 1) > to.size())
        return DataLoss("pull: state ", name, " does not fit the layout");
      std::memcpy(to.data() + layout_.offset(t), pulled.data.data() + place.offset, bytes);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::AskResponse> ZeroOrderWorker::AskAndFollow(v1::AskRequest request) {
  request.set_session(options_.session);
  request.set_worker(options_.worker);
  for (bool reloaded = false;;) {
    request.set_known_version(version_);
    ASSIGN_OR_RETURN(v1::AskResponse answer, client_.Ask(request));
    if (answer.resync()) {
      if (reloaded) return Internal("ask: the server asks for a resync again at version ", version_);
      RETURN_IF_ERROR(Reload());
      reloaded = true;
      continue;
    }
    for (const v1::ReplayStep& step : answer.replay()) {
      RETURN_IF_ERROR(zo::ApplyUpdate(layout_, hyper_, answer.seed(), ScalarsOf(step), theta_, &state_));
      version_ = step.version();
    }
    if (version_ == answer.head_version()) return answer;
    if (answer.replay().empty())
      return Internal("ask: no way from version ", version_, " to the head ", answer.head_version());
    reloaded = false;
  }
}

absl::Status ZeroOrderWorker::CatchUp() {
  // Asking is the one way to learn the replay; the lease is the shortest so that no probe is held back from the
  // workers.
  v1::AskRequest request;
  request.mutable_lease()->set_nanos(1'000'000);
  return AskAndFollow(std::move(request)).status();
}

absl::StatusOr<double> ZeroOrderWorker::LossOfCandidate(const v1::Probe& probe, float sign, const Loss& loss) {
  zo::UpdateScalars update;
  update.decay_rate = sign * probe.weight_decay_rate();
  for (const v1::ReplayQuery& term : probe.terms())
    update.terms.push_back({term.step(), term.query(), sign * term.coefficient()});
  scratch_ = theta_;
  RETURN_IF_ERROR(zo::ApplyUpdate(layout_, hyper_, probe.seed(), update, scratch_, nullptr));
  return loss(scratch_);
}

/// Everything that a probe asks for; `mean`: the loss as Outcome::loss defines it.
absl::Status ZeroOrderWorker::Evaluate(const v1::Probe& probe, const Loss& loss, v1::ProbeResult* result,
                                       double* mean) {
  if (probe.kind() == v1::Probe::DERIVATIVE) {
    std::fill(scratch_.begin(), scratch_.end(), 0.0f);
    Perturb(probe.seed(), probe.step(), probe.query(), 1.0f, places_, scratch_, scratch_);
    ASSIGN_OR_RETURN(const zo::Jvp value, options_.derivative(theta_, scratch_));
    result->set_loss(value.loss);
    result->set_jvp(value.value);
    *mean = value.loss;
    return absl::OkStatus();
  }
  double plus = 0, minus = 0;
  if (probe.kind() == v1::Probe::CANDIDATES) {
    ASSIGN_OR_RETURN(*mean, loss(theta_));
    ASSIGN_OR_RETURN(plus, LossOfCandidate(probe, 1, loss));
    ASSIGN_OR_RETURN(minus, LossOfCandidate(probe, -1, loss));
    result->set_loss(*mean);
  } else {
    const float eps = static_cast<float>(probe.eps());
    const zo::Direction direction{probe.seed(), probe.step(), probe.query()};
    scratch_ = theta_;
    zo::ShiftAlong(layout_, hyper_, direction, eps, scratch_);
    ASSIGN_OR_RETURN(plus, loss(scratch_));
    scratch_ = theta_;
    if (probe.two_side()) zo::ShiftAlong(layout_, hyper_, direction, -eps, scratch_);
    ASSIGN_OR_RETURN(minus, loss(probe.two_side() ? std::span<const float>(scratch_) : std::span<const float>(theta_)));
    *mean = probe.two_side() ? 0.5 * (plus + minus) : minus;
  }
  result->set_loss_plus(plus);
  result->set_loss_minus(minus);
  return absl::OkStatus();
}

absl::StatusOr<ZeroOrderWorker::Outcome> ZeroOrderWorker::Step(const Loss& loss, int count) {
  v1::AskRequest request;
  request.set_count(count);
  request.mutable_wait()->set_seconds(options_.wait.count() / 1000);
  request.mutable_wait()->set_nanos(static_cast<int32_t>(options_.wait.count() % 1000) * 1'000'000);
  ASSIGN_OR_RETURN(const v1::AskResponse answer, AskAndFollow(std::move(request)));
  Outcome outcome;
  outcome.head_version = answer.head_version();
  outcome.budget_spent = answer.budget_spent();
  if (answer.probes().empty()) return outcome;
  v1::TellRequest tell;
  tell.set_session(options_.session);
  for (const v1::Probe& probe : answer.probes()) {
    v1::ProbeResult* result = tell.mutable_losses()->add_results();
    result->set_probe_id(probe.probe_id());
    double mean = 0;
    RETURN_IF_ERROR(Evaluate(probe, loss, result, &mean));
    outcome.loss += mean / answer.probes_size();
  }
  outcome.probes = answer.probes_size();
  ASSIGN_OR_RETURN(const v1::TellResponse told, client_.Tell(tell));
  outcome.head_version = told.head_version();
  return outcome;
}

}  // namespace optod::client

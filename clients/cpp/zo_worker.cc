#include "clients/cpp/zo_worker.h"

#include <algorithm>
#include <cstring>

#include "base/status.h"
#include "optim/zo/stream.h"

namespace optod::client {
namespace {

std::span<float> TensorOf(std::span<float> flat, const Place& place) {
  return flat.subspan(place.offset / sizeof(float), static_cast<size_t>(place.elements));
}

}  // namespace

void ApplyReplayStep(const v1::ReplayStep& step, uint64_t seed, const std::vector<Place>& places,
                     std::span<float> theta) {
  const float decay = step.weight_decay_factor();
  for (size_t t = 0; t < places.size(); ++t) {
    const std::span<float> tensor = TensorOf(theta, places[t]);
    if (decay != 0 && decay != 1 && !places[t].no_decay)
      for (float& value : tensor) value *= decay;
    for (const v1::ReplayQuery& query : step.queries())
      zo::AddScaledNormal({seed, query.step(), query.query()}, static_cast<uint32_t>(t), 0, -query.coefficient(),
                          tensor);
  }
}

void Perturb(uint64_t seed, uint32_t step, uint32_t query, float scale, const std::vector<Place>& places,
             std::span<const float> theta, std::span<float> out) {
  if (!theta.empty()) std::memcpy(out.data(), theta.data(), theta.size_bytes());
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
  size_t elements = 0;
  for (const Place& place : worker->places_) elements += static_cast<size_t>(place.elements);
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
      ApplyReplayStep(step, answer.seed(), places_, theta_);
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
    const float eps = static_cast<float>(probe.eps());
    Perturb(probe.seed(), probe.step(), probe.query(), eps, places_, theta_, scratch_);
    ASSIGN_OR_RETURN(const double plus, loss(scratch_));
    if (probe.two_side()) Perturb(probe.seed(), probe.step(), probe.query(), -eps, places_, theta_, scratch_);
    ASSIGN_OR_RETURN(const double minus,
                     loss(probe.two_side() ? std::span<const float>(scratch_) : std::span<const float>(theta_)));
    result->set_loss_plus(plus);
    result->set_loss_minus(minus);
    outcome.loss += (probe.two_side() ? 0.5 * (plus + minus) : minus) / answer.probes_size();
  }
  outcome.probes = answer.probes_size();
  ASSIGN_OR_RETURN(const v1::TellResponse told, client_.Tell(tell));
  outcome.head_version = told.head_version();
  return outcome;
}

}  // namespace optod::client

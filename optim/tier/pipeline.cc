#include "optim/tier/pipeline.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/status.h"
#include "optim/zo/replay.h"

namespace optod::tier {

absl::StatusOr<std::unique_ptr<Pipeline>> Pipeline::Create(std::vector<Unit> units, const Plan& plan,
                                                           const PipelineOptions& options, Device* device,
                                                           std::unique_ptr<DirectFile> file, History history,
                                                           const InitialValues& initial) {
  if (plan.homes.size() != units.size())
    return InvalidArgument("plan: made for ", plan.homes.size(), " units, not for ", units.size());
  std::unique_ptr<Pipeline> pipeline(new Pipeline(std::move(units), plan, options, device, std::move(history)));
  RETURN_IF_ERROR(pipeline->CheckHyper());
  RETURN_IF_ERROR(pipeline->Begin(std::move(file), initial));
  return pipeline;
}

Pipeline::Pipeline(std::vector<Unit> units, const Plan& plan, const PipelineOptions& options, Device* device,
                   History history)
    : units_(std::move(units)),
      plan_(plan),
      options_(options),
      device_(device),
      history_(std::move(history)),
      team_(options.parallel ? options.parallel : MakeTileTeam(options.threads)),
      pass_(options.hyper, options.seed, history_, team_, options.mask, options.accelerator),
      pass_here_(options.hyper, options.seed, history_, MakeTileTeam(1), options.mask) {}

Pipeline::~Pipeline() { (void)device_->Drain(); }

absl::Status Pipeline::CheckHyper() const {
  const zo::ZoHyper& hyper = options_.hyper;
  RETURN_IF_ERROR(zo::CheckZoHyper(hyper));
  if (options_.accelerator != nullptr &&
      (options_.mask != nullptr || Conservative() || !options_.groups.empty() || hyper.rule == zo::Rule::kForwardGrad))
    return Unimplemented("tier: masks, zo-sgd-cons, forward-grad and block-wise estimation in an accelerator's memory; "
                         "train it on the CPU");
  if (hyper.rule == zo::Rule::kForwardGrad && hyper.residue == zo::Residue::kMezo)
    return Unimplemented("tier: optimizer.residue: mezo with forward-grad, which perturbs nothing; use none");
  const bool plain = hyper.rule == zo::Rule::kPlain && hyper.sides == zo::Sides::kTwo && hyper.queries == 1 &&
                     hyper.residue == zo::Residue::kNone && plan_.copies == 2;
  if (!options_.groups.empty() && !plain)
    return Unimplemented("tier: block-wise estimation needs two-sided estimates of one query, both copies at once, and residue none");
  if (options_.mask != nullptr && hyper.residue == zo::Residue::kMezo)
    return Unimplemented("tier: masks with optimizer.residue mezo; use none");
  if (Conservative() && (hyper.residue == zo::Residue::kMezo || zo::NeedsRule(hyper)))
    return Unimplemented("tier: zo-sgd-cons with residue mezo or signs element by element; train it resident");
  if (hyper.sides == zo::Sides::kOne && hyper.residue == zo::Residue::kMezo)
    return Unimplemented("tier: optimizer.residue: mezo with perturbation one-side; use two-side");
  return absl::OkStatus();
}

absl::Status Pipeline::Begin(std::unique_ptr<DirectFile> file, const InitialValues& initial) {
  ASSIGN_OR_RETURN(store_, UnitStore::Create(units_, plan_, options_.seed, std::move(file), history_.steps(), initial,
                                             options_.accelerator));
  size_t copy = 0;
  for (size_t u = 0; u < units_.size(); ++u) {
    home_progress_.push_back(store_->first_progress(u));
    if (!store_->InPlace(u)) moving_.push_back(u);
    if (units_[u].trainable) copy = std::max(copy, units_[u].floats());
  }
  for (size_t g = 0; g < options_.groups.size(); ++g) {
    for (uint32_t tensor : options_.groups[g].tensors) group_[tensor] = static_cast<int>(g);
  }
  RETURN_IF_ERROR(MakeCopies(copy));
  home_ready_.assign(units_.size(), kDone);
  const auto slots = static_cast<size_t>(plan_.slots);
  slot_free_.assign(slots, kDone);
  staging_free_.assign(slots, kDone);
  uploaded_.assign(slots, kDone);
  slot_progress_.resize(slots);
  if (moving_.empty()) return absl::OkStatus();
  if (slots > moving_.size()) return InvalidArgument("plan: ", slots, " slots for ", moving_.size(), " units that move");
  for (size_t visit = 0; visit < slots; ++visit) Issue(visit);
  return absl::OkStatus();
}

absl::Status Pipeline::MakeCopies(size_t floats) {
  const size_t aligned = RoundUp(floats, 64), all = static_cast<size_t>(plan_.copies) * aligned;
  if (options_.accelerator != nullptr) {
    ASSIGN_OR_RETURN(copies_there_, options_.accelerator->Allocate(all * sizeof(float)));
  } else {
    copies_here_.resize(all);
  }
  const std::span<float> copies = options_.accelerator != nullptr ? copies_there_.floats() : std::span(copies_here_);
  plus_ = copies.first(floats);
  if (plan_.copies == 2) minus_ = copies.subspan(aligned, floats);
  return absl::OkStatus();
}

// ---- scheduling

Event Pipeline::Submit(Queue queue, std::vector<Event> after, size_t unit, size_t visit, uint64_t bytes,
                       absl::AnyInvocable<absl::Status()> run, bool on_host) {
  Work work;
  work.queue = queue;
  work.after = std::move(after);
  work.unit = unit;
  work.visit = visit;
  work.slot = plan_.slots > 0 ? visit % static_cast<size_t>(plan_.slots) : 0;
  work.bytes = bytes;
  work.on_host = on_host;
  work.run = std::move(run);
  const Event event = device_->Submit(std::move(work));
  if (options_.serial) (void)device_->Wait(event);  // the error comes back at the next wait
  return event;
}

/// Brings the unit of moving visit `visit` into its slot.
void Pipeline::Issue(size_t visit) {
  if (upcoming_.empty()) upcoming_.assign(moving_.begin(), moving_.end());
  const size_t unit = upcoming_.front(), slot = visit % static_cast<size_t>(plan_.slots);
  upcoming_.pop_front();
  slot_progress_[slot] = home_progress_[unit];
  const uint64_t bytes = store_->layout(unit).record_bytes();
  if (store_->OnDisk(unit) && plan_.direct) {
    uploaded_[slot] = Submit(Queue::kRead, {slot_free_[slot], home_ready_[unit]}, unit, visit, bytes + kPage,
                             [=, this] { return store_->Read(unit, slot, visit); });
    return;
  }
  std::vector<Event> after = {slot_free_[slot], home_ready_[unit]};
  if (store_->OnDisk(unit))
    after[1] = Submit(Queue::kRead, {staging_free_[slot], home_ready_[unit]}, unit, visit, bytes + kPage,
                      [=, this] { return store_->Read(unit, slot, visit); });
  uploaded_[slot] = Submit(Queue::kUpload, after, unit, visit, bytes,
                           [=, this] { return store_->Upload(unit, slot, visit); });
  if (store_->OnDisk(unit)) staging_free_[slot] = uploaded_[slot];
}

Progress Pipeline::After(size_t unit, const Task& task) const {
  if (!units_[unit].trainable) return {};
  Progress now;
  now.updates = history_.steps();
  now.groups = history_.groups();
  if (options_.hyper.residue == zo::Residue::kMezo) now.passes = history_.steps() + (task.kind == Kind::kStep ? 1 : 0);
  return now;
}

bool Pipeline::WriteDue(size_t unit, const Task& task, Progress now) const {
  const Progress home = home_progress_[unit];
  if (!units_[unit].trainable || home == now || now.groups > 0) return false;
  if (task.kind == Kind::kFlush || !store_->OnDisk(unit) || now.passes > home.passes) return true;
  return now.updates - home.updates >= static_cast<uint32_t>(plan_.request.write_every);
}

Event Pipeline::VisitInPlace(size_t unit, const Task& task) {
  const Progress from = home_progress_[unit];
  home_progress_[unit] = After(unit, task);
  return Submit(Queue::kCompute, {}, unit, visits_, 0,
                [=, this] { return Carry(unit, store_->Floats(unit, 0), from, task); });
}

Event Pipeline::VisitMoving(size_t unit, const Task& task) {
  const size_t visit = visits_++, slot = visit % static_cast<size_t>(plan_.slots);
  const Progress from = slot_progress_[slot], now = After(unit, task);
  const bool write = WriteDue(unit, task, now);
  const Event computed = Submit(Queue::kCompute, {uploaded_[slot]}, unit, visit, 0, [=, this]() -> absl::Status {
    RETURN_IF_ERROR(store_->Check(unit, slot, visit));
    RETURN_IF_ERROR(Carry(unit, store_->Floats(unit, slot), from, task));
    return write ? absl::OkStatus() : MaybePoison(slot, Queue::kCompute);
  });
  slot_free_[slot] = computed;
  if (write) WriteBack(unit, visit, computed, now);
  Issue(visit + static_cast<size_t>(plan_.slots));
  return computed;
}

void Pipeline::WriteBack(size_t unit, size_t visit, Event computed, Progress now) {
  const size_t slot = visit % static_cast<size_t>(plan_.slots);
  const uint64_t bytes = store_->layout(unit).record_bytes();
  Event event = computed;
  if (!plan_.direct) {
    event = Submit(Queue::kOffload, {computed, staging_free_[slot]}, unit, visit, bytes, [=, this]() -> absl::Status {
      RETURN_IF_ERROR(store_->Offload(unit, slot, visit, now.updates));
      return MaybePoison(slot, Queue::kOffload);
    });
    slot_free_[slot] = event;
  }
  if (store_->OnDisk(unit)) {
    event = Submit(Queue::kWrite, {event}, unit, visit, bytes + kPage, [=, this]() -> absl::Status {
      RETURN_IF_ERROR(store_->Write(unit, slot, visit, now));
      return plan_.direct ? MaybePoison(slot, Queue::kWrite) : absl::OkStatus();
    });
    (plan_.direct ? slot_free_ : staging_free_)[slot] = event;
  }
  home_ready_[unit] = event;
  home_progress_[unit] = now;
}

absl::Status Pipeline::Sweep(const Task& task) {
  if (task.kind == Kind::kGroup) {
    if (FirstUnit(task) == task.from_unit) RETURN_IF_ERROR(task.compute->Branch());
  } else if (task.compute != nullptr) {
    RETURN_IF_ERROR(task.compute->Begin(CopiesOf(task.kind)));
  }
  if (task.compute != nullptr) RETURN_IF_ERROR(Gather(task));
  for (size_t unit = 0; unit < units_.size(); ++unit) {
    if (!Comes(unit, task)) continue;
    last_compute_ = store_->InPlace(unit) ? VisitInPlace(unit, task) : VisitMoving(unit, task);
  }
  absl::Status status = device_->Wait(last_compute_);
  if (!status.ok()) (void)device_->Drain();  // nothing of this sweep runs on: the model may go
  return status;
}

// ---- the public surface

int Pipeline::CopiesOf(Kind kind) const {
  if (kind == Kind::kCandidates) return 2;
  if (kind == Kind::kTangent) return options_.hyper.queries;
  return kind == Kind::kStep ? 2 * Evaluated() + (Conservative() ? 1 : 0) : 1;
}

absl::StatusOr<std::vector<double>> Pipeline::LossesOf(Kind kind, BlockCompute& compute) {
  RETURN_IF_ERROR(Sweep({kind, &compute}));
  ASSIGN_OR_RETURN(std::vector<double> losses, compute.Losses());
  if (losses.size() == static_cast<size_t>(CopiesOf(kind))) return losses;
  return Internal("tier: ", losses.size(), " losses for ", CopiesOf(kind), " copies");
}

absl::StatusOr<StepLosses> Pipeline::MeasureGroups(double lr, BlockCompute& compute) {
  RETURN_IF_ERROR(compute.Begin(3));
  for (size_t group = 0; group + 1 < options_.groups.size(); ++group) {
    for (size_t unit : moving_) {
      if (unit >= options_.groups[group].first_unit) upcoming_.push_back(unit);
    }
  }
  StepLosses result;
  result.loss = std::nan("");
  result.skipped = true;
  result.reason = "no group has finite losses";
  history_.Open({lr});
  Task task{Kind::kGroup, &compute};
  for (task.group = 0; task.group < options_.groups.size(); ++task.group) {
    RETURN_IF_ERROR(Sweep(task));
    task.from_unit = FirstUnit(task);
    ASSIGN_OR_RETURN(const std::vector<double> losses, compute.Losses());
    if (losses.size() < 2) return Internal("tier: ", losses.size(), " losses for 2 copies");
    const double g = zo::ProjectedGradient(losses[0], losses[1], options_.hyper.eps, options_.hyper.sides);
    history_.AddToOpen(g, options_.coordinate);
    result.plus.push_back(losses[0]);
    result.minus.push_back(losses[1]);
    if (!result.skipped || !std::isfinite(g)) continue;
    result.loss = losses[0];
    result.skipped = false;
    result.reason.clear();
  }
  result.g = history_.open().g;
  return result;
}

absl::StatusOr<StepLosses> Pipeline::MeasureSlopes(BlockCompute& compute) {
  RETURN_IF_ERROR(Sweep({Kind::kTangent, &compute}));
  ASSIGN_OR_RETURN(const LossSlopes found, compute.Slopes());
  if (found.slopes.size() != static_cast<size_t>(options_.hyper.queries) || found.losses.size() != found.slopes.size())
    return Internal("tier: ", found.slopes.size(), " slopes for ", options_.hyper.queries, " queries");
  StepLosses result;
  result.loss = found.losses.back();
  result.g = found.slopes;
  for (size_t q = 0; q < result.g.size(); ++q) {
    if (std::isfinite(result.g[q])) continue;
    result.skipped = true;
    result.reason = Cat("jvp[", q, "] is ", result.g[q]);
  }
  return result;
}

absl::StatusOr<StepLosses> Pipeline::Measure(double lr, BlockCompute& compute) {
  if (options_.hyper.rule == zo::Rule::kForwardGrad) return MeasureSlopes(compute);
  if (!options_.groups.empty()) return MeasureGroups(lr, compute);
  ASSIGN_OR_RETURN(const std::vector<double> losses, LossesOf(Kind::kStep, compute));
  StepLosses result;
  for (size_t c = 0; c < static_cast<size_t>(2 * Evaluated()); c += 2) {
    result.plus.push_back(losses[c]);
    result.minus.push_back(losses[c + 1]);
  }
  zo::ZoHyper hyper = options_.hyper;
  hyper.lr = lr;
  hyper.queries = Evaluated();
  ASSIGN_OR_RETURN(const zo::ProjectedGradients projected, zo::ProjectLosses(hyper, result.plus, result.minus));
  result.loss = result.plus[0];
  result.g = projected.g;
  result.skipped = !projected.usable;
  result.reason = projected.reason;
  if (Conservative() && !result.skipped) RETURN_IF_ERROR(MeasureCandidates(lr, compute, losses.back(), &result));
  return result;
}

absl::Status Pipeline::MeasureCandidates(double lr, BlockCompute& compute, double stay, StepLosses* losses) {
  history_.Open({lr, losses->g});
  ASSIGN_OR_RETURN(const std::vector<double> at, LossesOf(Kind::kCandidates, compute));
  losses->loss = at[0];
  losses->chosen = zo::ChooseCandidate(stay, at[0], at[1]);
  return absl::OkStatus();
}

absl::StatusOr<StepLosses> Pipeline::Step(double lr, BlockCompute& compute) {
  ASSIGN_OR_RETURN(StepLosses losses, Measure(lr, compute));
  StepRecord record{lr, losses.g, losses.skipped || losses.chosen == zo::Candidate::kStay};
  if (losses.chosen == zo::Candidate::kAscent) record.factor = -1;
  Finish(std::move(record));
  return losses;
}

absl::StatusOr<std::vector<double>> Pipeline::Evaluate(BlockCompute& compute) {
  RETURN_IF_ERROR(Sweep({Kind::kEvaluate, &compute}));
  return compute.Losses();
}

absl::Status Pipeline::ForEachUnit(const Visitor& visitor) { return Sweep({Kind::kVisit, nullptr, &visitor}); }

absl::Status Pipeline::Flush() {
  RETURN_IF_ERROR(Sweep({Kind::kFlush}));
  RETURN_IF_ERROR(device_->Drain());
  return store_->Sync();
}

absl::Status Pipeline::Snapshot(std::unique_ptr<DirectFile> file) {
  std::vector<RecordLayout> layouts;
  size_t largest = 0;
  for (const Unit& unit : units_) {
    layouts.emplace_back(unit, plan_.states, Codec::kNone);
    largest = std::max(largest, layouts.back().record_bytes());
  }
  ASSIGN_OR_RETURN(const auto out, UnitFile::Open(std::move(file), units_, layouts, history_.steps()));
  ASSIGN_OR_RETURN(const PageBuffer buffer, PageBuffer::Create(kPage + largest));
  RETURN_IF_ERROR(ForEachUnit([&](size_t unit, Progress progress, std::span<const float> slot) {
    const std::span<std::byte> record = buffer.bytes().first(kPage + layouts[unit].record_bytes());
    layouts[unit].ToRecord(slot, 0, 0, record.subspan(kPage));
    return out->Write(unit, progress, record);
  }));
  return out->Sync();
}

}  // namespace optod::tier

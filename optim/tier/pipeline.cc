#include "optim/tier/pipeline.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "optim/zo/projected_gradient.h"

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
      pass_(options.hyper, options.seed, history_, team_, options.accelerator),
      pass_here_(options.hyper, options.seed, history_, MakeTileTeam(1)) {}

Pipeline::~Pipeline() { (void)device_->Drain(); }

absl::Status Pipeline::CheckHyper() const {
  const zo::ZoHyper& hyper = options_.hyper;
  RETURN_IF_ERROR(zo::CheckZoHyper(hyper));
  if (hyper.rule != zo::Rule::kPlain)
    return Unimplemented("tier: zo-sgd-cons and forward-grad evaluate other points than theta +- eps z; train them resident");
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
    moving_slot_.push_back(moving_.size());
    if (!store_->InPlace(u)) moving_.push_back(u);
    if (units_[u].trainable) copy = std::max(copy, units_[u].floats());
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
  const size_t unit = moving_[visit % moving_.size()], slot = visit % static_cast<size_t>(plan_.slots);
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
  if (options_.hyper.residue == zo::Residue::kMezo) now.passes = history_.steps() + (task.kind == Kind::kStep ? 1 : 0);
  return now;
}

bool Pipeline::WriteDue(size_t unit, const Task& task, Progress now) const {
  const Progress home = home_progress_[unit];
  if (!units_[unit].trainable || home == now) return false;
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
  if (task.compute != nullptr) {
    const int copies = task.kind == Kind::kStep ? 2 * options_.hyper.queries : 1;
    RETURN_IF_ERROR(task.compute->Begin(copies));
    RETURN_IF_ERROR(Gather(*task.compute, task.kind));
  }
  for (size_t unit = 0; unit < units_.size(); ++unit)
    last_compute_ = store_->InPlace(unit) ? VisitInPlace(unit, task) : VisitMoving(unit, task);
  absl::Status status = device_->Wait(last_compute_);
  if (!status.ok()) (void)device_->Drain();  // nothing of this sweep runs on: the model may go
  return status;
}

// ---- computing

Values Pipeline::ValuesOf(size_t unit, size_t part, size_t offset, std::span<float> slot) const {
  const RecordLayout& layout = store_->layout(unit);
  const UnitPart& p = units_[unit].parts[part];
  Values values{p.number(), p.first, p.decay, layout.Section(slot, 0).subspan(offset, p.count), {}, {}};
  if (layout.states() > 0) values.m = layout.Section(slot, 1).subspan(offset, p.count);
  if (layout.states() > 1) values.v = layout.Section(slot, 2).subspan(offset, p.count);
  return values;
}

absl::Status Pipeline::Show(size_t unit, std::span<const float> slot, Progress progress, const Visitor& visitor) {
  ASSIGN_OR_RETURN(const std::span<const float> floats, store_->OnHost(slot));
  return visitor(unit, progress, floats);
}

absl::Status Pipeline::Carry(size_t unit, std::span<float> slot, Progress from, const Task& task) {
  const std::span<float> theta = slot.first(units_[unit].floats());
  if (!units_[unit].trainable) {
    const int copies = task.kind == Kind::kStep ? 2 * options_.hyper.queries : 1;
    if (task.compute != nullptr) RETURN_IF_ERROR(task.compute->Shared(unit, copies, theta));
    return task.visitor != nullptr ? Show(unit, slot, {}, *task.visitor) : absl::OkStatus();
  }
  if (task.kind == Kind::kStep) return Perturbed(unit, slot, from, *task.compute);
  size_t offset = 0;
  for (size_t part = 0; part < units_[unit].parts.size(); ++part) {
    pass_.CatchUp(ValuesOf(unit, part, offset, slot), from, history_.steps());
    offset += units_[unit].parts[part].count;
  }
  if (task.compute != nullptr) return task.compute->Forward(unit, 0, theta);
  if (task.visitor != nullptr) return Show(unit, slot, After(unit, task), *task.visitor);
  return absl::OkStatus();
}

absl::Status Pipeline::Perturbed(size_t unit, std::span<float> slot, Progress from, BlockCompute& compute) {
  const uint32_t step = history_.steps();
  const size_t floats = units_[unit].floats();
  const std::span<float> plus = plus_.first(floats), minus = plan_.copies == 2 ? minus_.first(floats) : plus;
  const bool two_sided = options_.hyper.sides == zo::Sides::kTwo;
  const auto form = [&](int query, Copies copies) {
    size_t offset = 0;
    for (size_t part = 0; part < units_[unit].parts.size(); ++part) {
      const size_t count = units_[unit].parts[part].count;
      pass_.Perturb(ValuesOf(unit, part, offset, slot), from, step, query, copies, plus.subspan(offset, count),
                    minus.subspan(offset, count));
      offset += count;
    }
    from.updates = step;
  };
  for (int query = 0; query < options_.hyper.queries; ++query) {
    form(query, two_sided && plan_.copies == 2 ? Copies::kBoth : Copies::kPlus);
    RETURN_IF_ERROR(compute.Forward(unit, 2 * query, plus));
    if (two_sided && plan_.copies == 1) form(query, Copies::kMinus);
    RETURN_IF_ERROR(compute.Forward(unit, 2 * query + 1, two_sided ? minus : slot.first(floats)));
  }
  return absl::OkStatus();
}

std::pair<size_t, size_t> Pipeline::PartOf(const Slice& slice) const {
  for (size_t unit = 0; unit < units_.size(); ++unit) {
    for (size_t p = 0; p < units_[unit].parts.size(); ++p) {
      const UnitPart& part = units_[unit].parts[p];
      if (part.uid == slice.uid && slice.first >= part.first && slice.first + slice.count <= part.first + part.count)
        return {unit, p};
    }
  }
  return {units_.size(), 0};
}

absl::Status Pipeline::Gather(BlockCompute& compute, Kind kind) {
  std::vector<Slice> slices = compute.Wanted();
  if (slices.empty()) return absl::OkStatus();
  std::vector<Event> after;
  std::vector<Progress> from;
  for (const Slice& slice : slices) {
    const size_t unit = PartOf(slice).first;
    if (unit == units_.size())
      return InvalidArgument("units: elements ", slice.first, " and ", slice.count, " on of tensor ", slice.uid,
                             " are not in one unit");
    after.push_back(home_ready_[unit]);
    from.push_back(home_progress_[unit]);
  }
  std::sort(after.begin(), after.end());
  after.erase(std::unique(after.begin(), after.end()), after.end());
  last_compute_ = Submit(Queue::kCompute, after, units_.size(), visits_, 0,
                         [this, slices = std::move(slices), from = std::move(from), &compute, kind] {
                           return GatherNow(slices, from, compute, kind);
                         },
                         /*on_host=*/true);
  return absl::OkStatus();
}

/// Copies of the slices go through what their units will go through, and are dropped.
absl::Status Pipeline::GatherNow(const std::vector<Slice>& slices, const std::vector<Progress>& from,
                                 BlockCompute& compute, Kind kind) {
  std::vector<size_t> begin = {0};
  for (const Slice& slice : slices) begin.push_back(begin.back() + slice.count);
  const size_t floats = begin.back(), states = static_cast<size_t>(plan_.states);
  std::vector<float> values((1 + states) * floats), plus(floats), minus(floats);
  const auto section = [&](size_t s, size_t i) { return std::span(values).subspan(s * floats + begin[i], slices[i].count); };
  for (size_t i = 0; i < slices.size(); ++i) {
    const auto [unit, part] = PartOf(slices[i]);
    for (int s = 0; s <= store_->layout(unit).states(); ++s)
      RETURN_IF_ERROR(store_->ReadSlice(unit, part, slices[i].first, slices[i].count, s, section(static_cast<size_t>(s), i)));
  }
  const uint32_t steps = history_.steps();
  const auto each = [&](auto body) {
    team_(slices.size(), [&](size_t first, size_t end) {
      for (size_t i = first; i < end; ++i) {
        const auto [unit, part] = PartOf(slices[i]);
        const UnitPart& p = units_[unit].parts[part];
        Values v{p.number(), slices[i].first, p.decay, section(0, i), {}, {}};
        if (store_->layout(unit).states() > 0) v.m = section(1, i);
        if (store_->layout(unit).states() > 1) v.v = section(2, i);
        body(i, unit, v);
      }
    });
  };
  if (kind != Kind::kStep) {
    each([&](size_t i, size_t unit, const Values& v) {
      if (units_[unit].trainable) pass_here_.CatchUp(v, from[i], steps);
    });
    return compute.Gathered(0, std::span(values).first(floats));
  }
  for (int query = 0; query < options_.hyper.queries; ++query) {
    each([&](size_t i, size_t unit, const Values& v) {
      const std::span<float> up = std::span(plus).subspan(begin[i], v.theta.size());
      const std::span<float> down = std::span(minus).subspan(begin[i], v.theta.size());
      if (!units_[unit].trainable) {
        std::copy(v.theta.begin(), v.theta.end(), up.begin());
        std::copy(v.theta.begin(), v.theta.end(), down.begin());
        return;
      }
      Progress progress = from[i];
      if (query > 0) progress.updates = steps;
      pass_here_.Perturb(v, progress, steps, query, Copies::kBoth, up, down);
      if (options_.hyper.sides == zo::Sides::kOne) std::copy(v.theta.begin(), v.theta.end(), down.begin());
    });
    RETURN_IF_ERROR(compute.Gathered(2 * query, plus));
    RETURN_IF_ERROR(compute.Gathered(2 * query + 1, minus));
  }
  return absl::OkStatus();
}

// ---- the public surface

absl::StatusOr<StepLosses> Pipeline::Step(double lr, BlockCompute& compute) {
  RETURN_IF_ERROR(Sweep({Kind::kStep, &compute}));
  ASSIGN_OR_RETURN(const std::vector<double> losses, compute.Losses());
  const auto copies = static_cast<size_t>(2 * options_.hyper.queries);
  if (losses.size() != copies) return Internal("tier: ", losses.size(), " losses for ", copies, " copies");
  StepLosses result;
  for (size_t c = 0; c < copies; c += 2) {
    result.plus.push_back(losses[c]);
    result.minus.push_back(losses[c + 1]);
  }
  zo::ZoHyper hyper = options_.hyper;
  hyper.lr = lr;
  ASSIGN_OR_RETURN(const zo::ProjectedGradients projected, zo::ProjectLosses(hyper, result.plus, result.minus));
  result.g = projected.g;
  result.skipped = !projected.usable;
  result.reason = projected.reason;
  history_.Add({lr, result.g, result.skipped});
  return result;
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

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

// ---- computing

Values Pipeline::ValuesOf(size_t unit, size_t part, size_t offset, std::span<float> slot) const {
  const RecordLayout& layout = store_->layout(unit);
  const UnitPart& p = units_[unit].parts[part];
  Values values{p.number(), p.first, p.decay, layout.Section(slot, 0).subspan(offset, p.count), {}, {}, GroupOf(p)};
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
  if (task.kind == Kind::kGroup) return Grouped(unit, slot, from, task);
  if (task.kind == Kind::kTangent) return Tangents(unit, slot, from, *task.compute);
  if (!units_[unit].trainable) {
    if (task.compute != nullptr) RETURN_IF_ERROR(task.compute->Shared(unit, CopiesOf(task.kind), theta));
    return task.visitor != nullptr ? Show(unit, slot, {}, *task.visitor) : absl::OkStatus();
  }
  if (task.kind == Kind::kStep) return Perturbed(unit, slot, from, *task.compute);
  if (task.kind == Kind::kCandidates) return Candidates(unit, slot, from, *task.compute);
  ForParts(unit, slot, [&](const Values& values, size_t) { pass_.CatchUp(values, from, history_.steps()); });
  if (task.compute != nullptr) return task.compute->Forward(unit, 0, theta);
  if (task.visitor != nullptr) return Show(unit, slot, After(unit, task), *task.visitor);
  return absl::OkStatus();
}

template <class Body>
void Pipeline::ForParts(size_t unit, std::span<float> slot, Body body) const {
  size_t offset = 0;
  for (size_t part = 0; part < units_[unit].parts.size(); ++part) {
    body(ValuesOf(unit, part, offset, slot), offset);
    offset += units_[unit].parts[part].count;
  }
}

absl::Status Pipeline::Perturbed(size_t unit, std::span<float> slot, Progress from, BlockCompute& compute) {
  const uint32_t step = history_.steps();
  const size_t floats = units_[unit].floats();
  const std::span<float> plus = plus_.first(floats), minus = plan_.copies == 2 ? minus_.first(floats) : plus;
  const bool two_sided = options_.hyper.sides == zo::Sides::kTwo;
  const auto form = [&](int query, Copies copies) {
    ForParts(unit, slot, [&](const Values& values, size_t offset) {
      pass_.Perturb(values, from, step, options_.first_query + query, copies, plus.subspan(offset, values.theta.size()),
                    minus.subspan(offset, values.theta.size()));
    });
    from.updates = step;
  };
  const bool by_parts = two_sided && plan_.copies == 2 && options_.hyper.residue == zo::Residue::kNone && compute.FormsParts(unit);
  for (int query = 0; query < Evaluated(); ++query) {
    if (by_parts) {
      RETURN_IF_ERROR(FormedPair(unit, slot, from, query, compute));
      continue;
    }
    form(query, two_sided && plan_.copies == 2 ? Copies::kBoth : Copies::kPlus);
    RETURN_IF_ERROR(compute.Forward(unit, 2 * query, plus));
    if (two_sided && plan_.copies == 1) form(query, Copies::kMinus);
    RETURN_IF_ERROR(compute.Forward(unit, 2 * query + 1, two_sided ? minus : slot.first(floats)));
  }
  return Conservative() ? compute.Forward(unit, 2 * Evaluated(), slot.first(floats)) : absl::OkStatus();
}

absl::Status Pipeline::FormedPair(size_t unit, std::span<float> slot, Progress from, int query, BlockCompute& compute) {
  const std::vector<UnitPart>& parts = units_[unit].parts;
  std::vector<size_t> offsets = {0}, formed(parts.size(), query == 0 ? 0 : ~size_t{0});  // elements that are caught up
  for (const UnitPart& part : parts) offsets.push_back(offsets.back() + part.count);
  const uint32_t step = history_.steps();
  const auto form = [&](size_t part, size_t first, size_t count, size_t at) {
    const Values values = ValuesOf(unit, part, offsets[part], slot).Range(first, count);
    const std::span<float> plus = std::span(plus_).subspan(at, count), minus = std::span(minus_).subspan(at, count);
    const bool fresh = first >= formed[part];
    pass_.Perturb(values, fresh ? from : Progress{step, 0, 0}, step, options_.first_query + query, Copies::kBoth, plus, minus);
    if (fresh) formed[part] = first + count;
    return std::pair<std::span<const float>, std::span<const float>>(plus, minus);
  };
  RETURN_IF_ERROR(compute.FormedPair(unit, 2 * query, form));
  for (size_t part = 0; part < parts.size() && query == 0; ++part) {  // what the model does not use
    if (formed[part] < parts[part].count)
      pass_.CatchUp(ValuesOf(unit, part, offsets[part], slot).Range(formed[part], parts[part].count - formed[part]), from, step);
  }
  return absl::OkStatus();
}

absl::Status Pipeline::Candidates(size_t unit, std::span<float> slot, Progress from, BlockCompute& compute) {
  const size_t floats = units_[unit].floats();
  const std::span<float> descent = std::span(plus_).first(floats);
  const std::span<float> ascent = plan_.copies == 2 ? std::span(minus_).first(floats) : descent;
  const bool both = plan_.copies == 2;
  for (int copy = 0; copy < 2; ++copy) {
    if (copy == 0 || !both) {
      ForParts(unit, slot, [&](const Values& values, size_t offset) {
        const size_t count = values.theta.size();
        const auto part = [&](std::span<float> copies, bool wanted) { return wanted ? copies.subspan(offset, count) : std::span<float>(); };
        pass_.Candidates(values, from, history_.steps(), part(descent, both || copy == 0), part(ascent, both || copy == 1));
      });
      from.updates = history_.steps();
    }
    RETURN_IF_ERROR(compute.Forward(unit, copy, copy == 0 ? descent : ascent));
  }
  return absl::OkStatus();
}

absl::Status Pipeline::Tangents(size_t unit, std::span<float> slot, Progress from, BlockCompute& compute) {
  const size_t floats = units_[unit].floats();
  const bool trained = units_[unit].trainable;
  if (trained) ForParts(unit, slot, [&](const Values& values, size_t) { pass_.CatchUp(values, from, history_.steps()); });
  const std::span<float> z = trained ? std::span(plus_).first(floats) : std::span<float>();
  for (int query = 0; query < options_.hyper.queries; ++query) {
    if (trained)
      ForParts(unit, slot, [&](const Values& values, size_t offset) {
        pass_.Direction(values, history_.steps(), query, z.subspan(offset, values.theta.size()));
      });
    RETURN_IF_ERROR(compute.Tangent(unit, query, slot.first(floats), z));
  }
  return absl::OkStatus();
}

absl::Status Pipeline::Grouped(size_t unit, std::span<float> slot, Progress from, const Task& task) {
  const size_t floats = units_[unit].floats(), first = FirstUnit(task);
  const std::span<float> theta = slot.first(floats);
  std::vector<uint8_t> moved;
  for (const UnitPart& part : units_[unit].parts)
    moved.push_back(units_[unit].trainable && GroupOf(part) == static_cast<int>(task.group));
  const bool any = std::find(moved.begin(), moved.end(), 1) != moved.end();
  if (units_[unit].trainable)
    ForParts(unit, slot, [&](const Values& values, size_t) { pass_.CatchUp(values, from, history_.steps()); });
  if (unit < first || units_[unit].resident) RETURN_IF_ERROR(task.compute->Forward(unit, 2, theta));
  if (unit < first && !units_[unit].resident) return absl::OkStatus();
  if (unit == first && task.from_unit < first) RETURN_IF_ERROR(task.compute->Branch());
  if (!any) return task.compute->Pair(unit, theta, theta, moved);
  const Progress now{history_.steps(), 0, history_.groups()};
  ForParts(unit, slot, [&](const Values& values, size_t offset) {
    const std::span<float> plus = std::span(plus_).subspan(offset, values.theta.size());
    const std::span<float> minus = std::span(minus_).subspan(offset, values.theta.size());
    if (values.group == static_cast<int>(task.group))
      return pass_.Perturb(values, now, history_.steps(), 0, Copies::kBoth, plus, minus);
    std::copy(values.theta.begin(), values.theta.end(), plus.begin());
    std::copy(values.theta.begin(), values.theta.end(), minus.begin());
  });
  return task.compute->Pair(unit, std::span(plus_).first(floats), std::span(minus_).first(floats), moved);
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

absl::Status Pipeline::Gather(const Task& task) {
  std::vector<Slice> slices = task.compute->Wanted();
  if (task.kind == Kind::kGroup && task.from_unit > 0) slices.clear();  // the walk is past them
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
                         [this, slices = std::move(slices), from = std::move(from), task] {
                           return GatherNow(slices, from, task);
                         },
                         /*on_host=*/true);
  return absl::OkStatus();
}

/// Copies of the slices go through what their units will go through, and are dropped.
absl::Status Pipeline::GatherNow(const std::vector<Slice>& slices, const std::vector<Progress>& from, const Task& task) {
  BlockCompute& compute = *task.compute;
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
        Values v{p.number(), slices[i].first, p.decay, section(0, i), {}, {}, GroupOf(p)};
        if (store_->layout(unit).states() > 0) v.m = section(1, i);
        if (store_->layout(unit).states() > 1) v.v = section(2, i);
        body(i, unit, v);
      }
    });
  };
  const auto of = [&](std::vector<float>& copy, size_t i) { return std::span(copy).subspan(begin[i], slices[i].count); };
  const auto frozen = [&](size_t i, size_t unit, const Values& v) {
    if (units_[unit].trainable) return false;
    for (std::vector<float>* copy : {&plus, &minus}) std::copy(v.theta.begin(), v.theta.end(), of(*copy, i).begin());
    return true;
  };
  if (task.kind == Kind::kGroup && FirstUnit(task) == 0) {
    each([&](size_t i, size_t unit, const Values& v) {
      if (frozen(i, unit, v)) return;
      if (v.group == static_cast<int>(task.group)) return pass_here_.Perturb(v, from[i], steps, 0, Copies::kBoth, of(plus, i), of(minus, i));
      pass_here_.CatchUp(v, from[i], steps);
      for (std::vector<float>* copy : {&plus, &minus}) std::copy(v.theta.begin(), v.theta.end(), of(*copy, i).begin());
    });
    RETURN_IF_ERROR(compute.Gathered(0, plus));
    return compute.Gathered(1, minus);
  }
  if (task.kind == Kind::kCandidates) {
    each([&](size_t i, size_t unit, const Values& v) {
      if (!frozen(i, unit, v)) pass_here_.Candidates(v, from[i], steps, of(plus, i), of(minus, i));
    });
    RETURN_IF_ERROR(compute.Gathered(0, plus));
    return compute.Gathered(1, minus);
  }
  if (task.kind != Kind::kStep) {
    each([&](size_t i, size_t unit, const Values& v) {
      if (units_[unit].trainable) pass_here_.CatchUp(v, from[i], steps);
    });
    if (task.kind == Kind::kTangent) {
      const bool trained = units_[PartOf(slices[0]).first].trainable;
      for (int query = 0; query < options_.hyper.queries; ++query) {
        if (trained) each([&](size_t i, size_t, const Values& v) { pass_here_.Direction(v, steps, query, of(plus, i)); });
        RETURN_IF_ERROR(compute.GatheredTangent(query, std::span(values).first(floats), trained ? std::span<const float>(plus) : std::span<const float>()));
      }
      return absl::OkStatus();
    }
    return compute.Gathered(task.kind == Kind::kGroup ? 2 : 0, std::span(values).first(floats));
  }
  for (int query = 0; query < Evaluated(); ++query) {
    each([&](size_t i, size_t unit, const Values& v) {
      if (frozen(i, unit, v)) return;
      Progress progress = from[i];
      if (query > 0) progress.updates = steps;
      pass_here_.Perturb(v, progress, steps, options_.first_query + query, Copies::kBoth, of(plus, i), of(minus, i));
      if (options_.hyper.sides == zo::Sides::kOne) std::copy(v.theta.begin(), v.theta.end(), of(minus, i).begin());
    });
    RETURN_IF_ERROR(compute.Gathered(2 * query, plus));
    RETURN_IF_ERROR(compute.Gathered(2 * query + 1, minus));
  }
  return Conservative() ? compute.Gathered(2 * Evaluated(), std::span(values).first(floats)) : absl::OkStatus();
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

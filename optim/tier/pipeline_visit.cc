// A visit to a unit: its updates, its points, and what the model computes with them; rows of tied tables that are wanted early.
#include <algorithm>
#include <cmath>
#include <utility>

#include "base/status.h"
#include "optim/tier/pipeline.h"
#include "optim/zo/replay.h"

namespace optod::tier {

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

}  // namespace optod::tier

#include "optim/tier/unit_store.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/status.h"

namespace optod::tier {
namespace {

std::span<float> AsFloats(std::span<std::byte> bytes, size_t floats) {
  return {reinterpret_cast<float*>(bytes.data()), floats};
}

}  // namespace

absl::StatusOr<std::unique_ptr<UnitStore>> UnitStore::Create(const std::vector<Unit>& units, const Plan& plan,
                                                             uint64_t seed, std::unique_ptr<DirectFile> file,
                                                             uint32_t steps, const InitialValues& initial) {
  std::unique_ptr<UnitStore> store(new UnitStore(plan, seed));
  for (const Unit& unit : units) store->layouts_.emplace_back(unit, plan.states, plan.request.codec);
  RETURN_IF_ERROR(store->Arrange(units, std::move(file), steps));
  for (size_t u = 0; u < units.size(); ++u) RETURN_IF_ERROR(store->Fill(u, initial));
  return store;
}

absl::Status UnitStore::Arrange(const std::vector<Unit>& units, std::unique_ptr<DirectFile> file, uint32_t steps) {
  memory_.resize(units.size());
  std::vector<Unit> on_disk;
  std::vector<RecordLayout> disk_layouts;
  size_t arena = 0, slot = 0, staging = 0;
  for (size_t u = 0; u < units.size(); ++u) {
    const size_t record = layouts_[u].record_bytes(), floats = RoundUp(layouts_[u].slot_floats() * sizeof(float));
    memory_[u].in_place = plan_.homes[u] == Home::kDevice || (plan_.direct && plan_.homes[u] == Home::kHost);
    if (plan_.homes[u] != Home::kDisk) {
      arena += memory_[u].in_place ? floats : record;
    } else {
      memory_[u].file = static_cast<int>(on_disk.size());
      on_disk.push_back(units[u]);
      disk_layouts.push_back(layouts_[u]);
      if (!plan_.direct) staging = std::max(staging, kPage + record);
    }
    if (!memory_[u].in_place) slot = std::max(slot, plan_.direct ? kPage + record : floats);
  }
  ASSIGN_OR_RETURN(arena_, PageBuffer::Create(arena));
  std::span<std::byte> left = arena_.bytes();
  for (size_t u = 0; u < units.size(); ++u) {
    if (plan_.homes[u] == Home::kDisk) continue;
    const size_t size =
        memory_[u].in_place ? RoundUp(layouts_[u].slot_floats() * sizeof(float)) : layouts_[u].record_bytes();
    memory_[u].bytes = left.first(size);
    left = left.subspan(size);
  }
  for (int s = 0; s < plan_.slots; ++s) {
    slots_.emplace_back();
    ASSIGN_OR_RETURN(slots_.back().buffer, PageBuffer::Create(slot));
    ASSIGN_OR_RETURN(slots_.back().staging, PageBuffer::Create(staging));
  }
  if (on_disk.empty()) return absl::OkStatus();
  if (file == nullptr) return InvalidArgument("tier.disk: the plan puts units on disk, and there is no block file");
  ASSIGN_OR_RETURN(file_, UnitFile::Open(std::move(file), on_disk, disk_layouts, steps));
  return absl::OkStatus();
}

// A unit that the file has is left alone. Slot 0 is the scratch of the others; no work has begun yet.
absl::Status UnitStore::Fill(size_t unit, const InitialValues& initial) {
  Memory& memory = memory_[unit];
  if (memory.file >= 0 && file_->Has(static_cast<size_t>(memory.file))) {
    memory.first = file_->progress(static_cast<size_t>(memory.file));
    return absl::OkStatus();
  }
  const std::span<float> floats = Floats(unit, 0);
  std::fill(floats.begin(), floats.end(), 0.0f);
  ASSIGN_OR_RETURN(memory.first, initial(unit, floats));
  if (memory.in_place) return absl::OkStatus();
  slots_[0].unit = unit;
  slots_[0].visit = 0;
  if (!plan_.direct) RETURN_IF_ERROR(Offload(unit, 0, 0, memory.first.updates));
  if (memory.file >= 0) RETURN_IF_ERROR(Write(unit, 0, 0, memory.first));
  return absl::OkStatus();
}

std::span<float> UnitStore::Floats(size_t unit, size_t slot) {
  const size_t floats = layouts_[unit].slot_floats();
  if (memory_[unit].in_place) return AsFloats(memory_[unit].bytes, floats);
  return AsFloats(plan_.direct ? slots_[slot].buffer.bytes().subspan(kPage) : slots_[slot].buffer.bytes(), floats);
}

absl::Status UnitStore::Read(size_t unit, size_t slot, size_t visit) {
  Slot& s = slots_[slot];
  const std::span<std::byte> buffer = (plan_.direct ? s.buffer : s.staging).bytes();
  if (plan_.direct) s.unit = unit, s.visit = visit;
  return file_->Read(static_cast<size_t>(memory_[unit].file), buffer.first(kPage + layouts_[unit].record_bytes()));
}

absl::Status UnitStore::Upload(size_t unit, size_t slot, size_t visit) {
  Slot& s = slots_[slot];
  const std::span<std::byte> record = memory_[unit].file >= 0 ? s.staging.bytes().subspan(kPage) : memory_[unit].bytes;
  s.unit = unit;
  s.visit = visit;
  layouts_[unit].ToSlot(record, Floats(unit, slot));
  return absl::OkStatus();
}

absl::Status UnitStore::Offload(size_t unit, size_t slot, size_t visit, uint32_t step) {
  RETURN_IF_ERROR(Check(unit, slot, visit));
  const std::span<std::byte> record =
      memory_[unit].file >= 0 ? slots_[slot].staging.bytes().subspan(kPage) : memory_[unit].bytes;
  layouts_[unit].ToRecord(Floats(unit, slot), seed_, step, record);
  return absl::OkStatus();
}

absl::Status UnitStore::Write(size_t unit, size_t slot, size_t visit, Progress progress) {
  if (plan_.direct) RETURN_IF_ERROR(Check(unit, slot, visit));
  Slot& s = slots_[slot];
  const std::span<std::byte> buffer = (plan_.direct ? s.buffer : s.staging).bytes();
  return file_->Write(static_cast<size_t>(memory_[unit].file), progress,
                      buffer.first(kPage + layouts_[unit].record_bytes()));
}

absl::Status UnitStore::Check(size_t unit, size_t slot, size_t visit) const {
  const Slot& s = slots_[slot];
  if (s.unit == unit && s.visit == visit) return absl::OkStatus();
  return Internal("tier: slot ", slot, " holds unit ", s.unit, " of visit ", s.visit, ", not unit ", unit, " of visit ",
                  visit);
}

absl::Status UnitStore::ReadSlice(size_t unit, size_t part, uint64_t first, size_t count, int section,
                                  std::span<float> out) {
  const RecordLayout& layout = layouts_[unit];
  if (memory_[unit].in_place) {
    // In place the bytes are a slot's: float32 whatever the codec.
    const RecordLayout::Range range = layout.RangeOf(part, first, count, section, Codec::kNone);
    std::memcpy(out.data(), memory_[unit].bytes.data() + range.begin, range.bytes);
    return absl::OkStatus();
  }
  const RecordLayout::Range range = layout.RangeOf(part, first, count, section, layout.codec());
  const Codec codec = section == 0 ? layout.codec() : Codec::kNone;
  if (memory_[unit].file < 0) {
    Decode(codec, memory_[unit].bytes.subspan(range.begin, range.bytes), layout.columns(part), out);
    return absl::OkStatus();
  }
  std::vector<std::byte> coded(range.bytes);
  RETURN_IF_ERROR(file_->ReadRange(static_cast<size_t>(memory_[unit].file), range, coded));
  Decode(codec, coded, layout.columns(part), out);
  return absl::OkStatus();
}

void UnitStore::Poison(size_t slot) {
  const std::span<std::byte> bytes = slots_[slot].buffer.bytes();
  const std::span<float> floats = AsFloats(bytes, bytes.size() / sizeof(float));
  std::fill(floats.begin(), floats.end(), std::numeric_limits<float>::quiet_NaN());
  slots_[slot].unit = slots_[slot].visit = ~size_t{0};
}

}  // namespace optod::tier

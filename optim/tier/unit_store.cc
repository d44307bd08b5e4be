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
                                                             uint32_t steps, const InitialValues& initial,
                                                             Accelerator* accelerator) {
  if (accelerator != nullptr && !plan.request.separate_device)
    return InvalidArgument("plan: made for one memory, and the device has its own");
  std::unique_ptr<UnitStore> store(new UnitStore(plan, seed, accelerator));
  for (const Unit& unit : units) store->layouts_.emplace_back(unit, plan.states, plan.request.codec);
  RETURN_IF_ERROR(store->Arrange(units, std::move(file), steps));
  for (size_t u = 0; u < units.size(); ++u) RETURN_IF_ERROR(store->Fill(u, initial));
  return store;
}

absl::Status UnitStore::Arrange(const std::vector<Unit>& units, std::unique_ptr<DirectFile> file, uint32_t steps) {
  memory_.resize(units.size());
  std::vector<Unit> on_disk;
  std::vector<RecordLayout> disk_layouts;
  size_t arena = 0, on_device = 0, slot = 0, staging = 0, coded = 0, scratch = 0;
  for (size_t u = 0; u < units.size(); ++u) {
    const size_t record = layouts_[u].record_bytes(), floats = RoundUp(layouts_[u].slot_floats() * sizeof(float));
    memory_[u].in_place = plan_.homes[u] == Home::kDevice || (plan_.direct && plan_.homes[u] == Home::kHost);
    scratch = std::max(scratch, floats);
    if (plan_.homes[u] != Home::kDisk) {
      (memory_[u].in_place && accelerator_ != nullptr ? on_device : arena) += memory_[u].in_place ? floats : record;
    } else {
      memory_[u].file = static_cast<int>(on_disk.size());
      on_disk.push_back(units[u]);
      disk_layouts.push_back(layouts_[u]);
      if (!plan_.direct) staging = std::max(staging, kPage + record);
    }
    if (memory_[u].in_place) continue;
    slot = std::max(slot, plan_.direct ? kPage + record : floats);
    if (!Lossless(layouts_[u].codec())) coded = std::max(coded, record);
  }
  RETURN_IF_ERROR(MakeArena(arena, on_device));
  RETURN_IF_ERROR(MakeSlots(slot, coded, staging));
  if (accelerator_ != nullptr) {
    ASSIGN_OR_RETURN(scratch_, PageBuffer::Create(scratch));
  }
  if (on_disk.empty()) return absl::OkStatus();
  if (file == nullptr) return InvalidArgument("tier.disk: the plan puts units on disk, and there is no block file");
  ASSIGN_OR_RETURN(file_, UnitFile::Open(std::move(file), on_disk, disk_layouts, steps));
  return absl::OkStatus();
}

absl::Status UnitStore::MakeArena(size_t bytes, size_t on_device) {
  ASSIGN_OR_RETURN(arena_, PageBuffer::Create(bytes));
  if (accelerator_ != nullptr) {
    ASSIGN_OR_RETURN(device_arena_, accelerator_->Allocate(on_device));
    arena_lock_ = accelerator_->Lock(arena_.bytes());
  }
  std::span<std::byte> host = arena_.bytes(), device = device_arena_.bytes;
  for (size_t u = 0; u < memory_.size(); ++u) {
    if (plan_.homes[u] == Home::kDisk) continue;
    const bool in_place = memory_[u].in_place;
    const size_t size = in_place ? RoundUp(layouts_[u].slot_floats() * sizeof(float)) : layouts_[u].record_bytes();
    std::span<std::byte>& left = in_place && accelerator_ != nullptr ? device : host;
    memory_[u].bytes = left.first(size);
    left = left.subspan(size);
  }
  return absl::OkStatus();
}

absl::Status UnitStore::MakeSlots(size_t floats, size_t coded, size_t staging) {
  for (int s = 0; s < plan_.slots; ++s) {
    Slot& slot = slots_.emplace_back();
    ASSIGN_OR_RETURN(slot.staging, PageBuffer::Create(staging));
    if (accelerator_ == nullptr) {
      ASSIGN_OR_RETURN(slot.buffer, PageBuffer::Create(floats));
      continue;
    }
    ASSIGN_OR_RETURN(slot.floats, accelerator_->Allocate(floats));
    ASSIGN_OR_RETURN(slot.coded, accelerator_->Allocate(coded));
    slot.lock = accelerator_->Lock(slot.staging.bytes());
  }
  return absl::OkStatus();
}

// A unit that the file has is left alone. Slot 0 is the scratch of the others; no work has begun yet.
absl::Status UnitStore::Fill(size_t unit, const InitialValues& initial) {
  Memory& memory = memory_[unit];
  if (memory.file >= 0 && file_->Has(static_cast<size_t>(memory.file))) {
    memory.first = file_->progress(static_cast<size_t>(memory.file));
    return absl::OkStatus();
  }
  const std::span<float> floats =
      accelerator_ == nullptr ? Floats(unit, 0) : AsFloats(scratch_.bytes(), layouts_[unit].slot_floats());
  std::fill(floats.begin(), floats.end(), 0.0f);
  ASSIGN_OR_RETURN(memory.first, initial(unit, floats));
  if (accelerator_ != nullptr) return Settle(unit, floats);
  if (memory.in_place) return absl::OkStatus();
  slots_[0].unit = unit;
  slots_[0].visit = 0;
  if (!plan_.direct) RETURN_IF_ERROR(Offload(unit, 0, 0, memory.first.updates));
  if (memory.file >= 0) RETURN_IF_ERROR(Write(unit, 0, 0, memory.first));
  return absl::OkStatus();
}

absl::Status UnitStore::Settle(size_t unit, std::span<const float> floats) {
  Memory& memory = memory_[unit];
  if (memory.in_place) return accelerator_->CopyToDevice(std::as_bytes(floats), memory.bytes);
  layouts_[unit].ToRecord(floats, seed_, memory.first.updates, RecordOf(unit, 0));
  return memory.file >= 0 ? Write(unit, 0, 0, memory.first) : absl::OkStatus();
}

std::span<std::byte> UnitStore::RecordOf(size_t unit, size_t slot) {
  return memory_[unit].file >= 0 ? slots_[slot].staging.bytes().subspan(kPage) : memory_[unit].bytes;
}

std::span<float> UnitStore::Floats(size_t unit, size_t slot) {
  const size_t floats = layouts_[unit].slot_floats();
  if (memory_[unit].in_place) return AsFloats(memory_[unit].bytes, floats);
  if (accelerator_ != nullptr) return slots_[slot].floats.floats().first(floats);
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
  s.unit = unit;
  s.visit = visit;
  if (accelerator_ != nullptr)
    return accelerator_->Upload(layouts_[unit], RecordOf(unit, slot), s.coded.bytes, Floats(unit, slot));
  layouts_[unit].ToSlot(RecordOf(unit, slot), Floats(unit, slot));
  return absl::OkStatus();
}

absl::Status UnitStore::Offload(size_t unit, size_t slot, size_t visit, uint32_t step) {
  RETURN_IF_ERROR(Check(unit, slot, visit));
  if (accelerator_ != nullptr)
    return accelerator_->Offload(layouts_[unit], Floats(unit, slot), seed_, step, slots_[slot].coded.bytes, RecordOf(unit, slot));
  layouts_[unit].ToRecord(Floats(unit, slot), seed_, step, RecordOf(unit, slot));
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
    const std::span<const std::byte> bytes = memory_[unit].bytes.subspan(range.begin, range.bytes);
    if (accelerator_ != nullptr) return accelerator_->CopyToHost(bytes, std::as_writable_bytes(out));
    std::memcpy(out.data(), bytes.data(), bytes.size());
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

absl::StatusOr<std::span<const float>> UnitStore::OnHost(std::span<const float> floats) {
  if (accelerator_ == nullptr) return floats;
  const std::span<float> host = AsFloats(scratch_.bytes(), floats.size());
  RETURN_IF_ERROR(accelerator_->CopyToHost(std::as_bytes(floats), std::as_writable_bytes(host)));
  return host;
}

absl::Status UnitStore::Poison(size_t slot, Queue queue) {
  slots_[slot].unit = slots_[slot].visit = ~size_t{0};
  if (accelerator_ != nullptr) return accelerator_->Poison(queue, slots_[slot].floats.floats());
  const std::span<std::byte> bytes = slots_[slot].buffer.bytes();
  const std::span<float> floats = AsFloats(bytes, bytes.size() / sizeof(float));
  std::fill(floats.begin(), floats.end(), std::numeric_limits<float>::quiet_NaN());
  return absl::OkStatus();
}

}  // namespace optod::tier

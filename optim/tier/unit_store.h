#pragma once
/// The memory of a tiered run: homes of the units, working slots, staging; and the bodies of the work that moves a unit.
///
///   one memory         arena (homes), slots, staging: the host's
///   an accelerator     device memory: homes there, slots, coded bytes of a slot; the host's, locked: arena, staging
///
/// Knows no order: which call may run when is the pipeline's matter (pipeline.h), and the tags tell when it was wrong.

#include <functional>
#include <memory>
#include <vector>

#include "optim/tier/accelerator.h"
#include "optim/tier/plan.h"
#include "optim/tier/unit_file.h"

namespace optod::tier {

/// Fills a slot (theta; m and v are zero at first) with what a new run starts from, and says how far that has come.
using InitialValues = std::function<absl::StatusOr<Progress>(size_t unit, std::span<float> slot)>;

class UnitStore {
 public:
  /// `file`: where units on disk are, nullptr without them; what it holds already is kept. `steps`: finished steps.
  /// `accelerator` (borrowed): units are computed on in its memory; the plan is of a separate device.
  static absl::StatusOr<std::unique_ptr<UnitStore>> Create(const std::vector<Unit>& units, const Plan& plan,
                                                           uint64_t seed, std::unique_ptr<DirectFile> file,
                                                           uint32_t steps, const InitialValues& initial,
                                                           Accelerator* accelerator = nullptr);

  const RecordLayout& layout(size_t unit) const { return layouts_[unit]; }
  /// Whether the unit is computed on where it lives.
  bool InPlace(size_t unit) const { return memory_[unit].in_place; }
  bool OnDisk(size_t unit) const { return memory_[unit].file >= 0; }
  /// How far the home's copy had come when the store was made.
  Progress first_progress(size_t unit) const { return memory_[unit].first; }

  /// The unit's floats: in its home, or in the working slot. Device memory, if there is an accelerator.
  std::span<float> Floats(size_t unit, size_t slot);
  /// Disk -> the slot (direct) or its staging.
  absl::Status Read(size_t unit, size_t slot, size_t visit);
  /// Host home or staging -> slot.
  absl::Status Upload(size_t unit, size_t slot, size_t visit);
  /// Slot -> host home or staging. `step` feeds a lossy codec's rounding.
  absl::Status Offload(size_t unit, size_t slot, size_t visit, uint32_t step);
  /// Slot (direct) or staging -> disk.
  absl::Status Write(size_t unit, size_t slot, size_t visit, Progress progress);
  /// INTERNAL when the slot holds another visit's unit: an edge is missing.
  absl::Status Check(size_t unit, size_t slot, size_t visit) const;
  /// The home's copy of whole rows of part `part`; section 0 theta, 1 m, 2 v.
  absl::Status ReadSlice(size_t unit, size_t part, uint64_t first, size_t count, int section, std::span<float> out);
  /// Floats of a unit where the host can read them, until the next call.
  absl::StatusOr<std::span<const float>> OnHost(std::span<const float> floats);
  absl::Status Sync() { return file_ == nullptr ? absl::OkStatus() : file_->Sync(); }
  /// Fills the slot with NaN: whoever still reads it will show. `queue`: of the work that does it.
  absl::Status Poison(size_t slot, Queue queue);

 private:
  struct Memory {
    bool in_place = false;
    int file = -1;               ///< number in the block file
    std::span<std::byte> bytes;  ///< in the arena: floats in place, or the record
    Progress first;
  };
  struct Slot {
    PageBuffer buffer;   ///< direct: a page, then the record; else floats
    PageBuffer staging;  ///< of the disk: a page, then the record
    DeviceBuffer floats, coded;  ///< with an accelerator, instead of `buffer`
    std::shared_ptr<void> lock;
    size_t unit = ~size_t{0}, visit = ~size_t{0};
  };
  UnitStore(Plan plan, uint64_t seed, Accelerator* accelerator)
      : plan_(std::move(plan)), seed_(seed), accelerator_(accelerator) {}
  absl::Status Arrange(const std::vector<Unit>& units, std::unique_ptr<DirectFile> file, uint32_t steps);
  absl::Status MakeArena(size_t bytes, size_t on_device);
  absl::Status MakeSlots(size_t floats, size_t coded, size_t staging);
  absl::Status Fill(size_t unit, const InitialValues& initial);
  /// Initial values from the host's memory go to the unit's home.
  absl::Status Settle(size_t unit, std::span<const float> floats);
  std::span<std::byte> RecordOf(size_t unit, size_t slot);

  Plan plan_;
  uint64_t seed_;
  std::vector<RecordLayout> layouts_;
  std::vector<Memory> memory_;
  Accelerator* accelerator_ = nullptr;
  PageBuffer arena_, scratch_;  // scratch_: one unit's floats, where device memory is out of reach
  DeviceBuffer device_arena_;
  std::shared_ptr<void> arena_lock_;
  std::vector<Slot> slots_;
  std::unique_ptr<UnitFile> file_;
};

}  // namespace optod::tier

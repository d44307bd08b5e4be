#pragma once
/// Units on disk, each in two places, so that a process killed in the middle of a write leaves the bytes of before.
///
///   page 0      magic, version, number of units, checksum of what they are          little-endian
///   unit u      | header page | record |   place A
///               | header page | record |   place B          Write goes to the place that Read would not read
///   header      magic, unit, updates, passes, bytes and crc32c of the record, crc32c of the header
///
/// A place counts when both checksums are right; of two, the one with more updates. Header and record go out in one
/// write in any order: a torn one fails its checksum. The reader and the writer of one unit must not overlap (the
/// pipeline's events see to that); different units may. Against a loss of power there is Sync: until the second write
/// after it, the synced bytes are there.

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/tier/direct_file.h"
#include "optim/tier/record.h"

namespace optod::tier {

class UnitFile {
 public:
  /// Makes the file, or takes over one of the same units. `units` and `layouts`: those on disk; `steps`: finished steps
  /// of the run, places that went further do not count (a step was cut short). RESOURCE_EXHAUSTED: `tier.disk: ...`;
  /// DATA_LOSS: `block file: of other units` (another model, codec or optimizer).
  static absl::StatusOr<std::unique_ptr<UnitFile>> Open(std::unique_ptr<DirectFile> file,
                                                        const std::vector<Unit>& units,
                                                        const std::vector<RecordLayout>& layouts, uint32_t steps);

  /// Whether place A or B of the unit holds something.
  bool Has(size_t unit) const { return states_[unit].place >= 0; }
  Progress progress(size_t unit) const { return states_[unit].progress; }

  /// `buffer`: kPage + record_bytes, the record behind a page of room; page-aligned. DATA_LOSS: `block file: unit
  /// "layers.3": its bytes changed underneath`.
  absl::Status Read(size_t unit, std::span<std::byte> buffer);
  /// Bytes begin .. of the record, without checking them; `out`: any place, any size.
  absl::Status ReadRange(size_t unit, RecordLayout::Range range, std::span<std::byte> out);
  absl::Status Write(size_t unit, Progress progress, std::span<std::byte> buffer);
  absl::Status Sync() { return file_->Sync(); }
  /// Of the whole file for such units.
  static uint64_t FileBytes(const std::vector<RecordLayout>& layouts);

 private:
  struct State {
    int place = -1;
    uint64_t offset = 0;  ///< of place A's header
    size_t record = 0;
    uint32_t crc = 0;
    Progress progress;
    std::string name;
  };
  explicit UnitFile(std::unique_ptr<DirectFile> file) : file_(std::move(file)) {}
  absl::Status Begin(uint32_t identity);
  absl::Status Recover(uint32_t steps);
  absl::Status Recover(size_t unit, int place, uint32_t steps, std::span<std::byte> buffer);
  uint64_t OffsetOf(const State& state, int place) const {
    return state.offset + static_cast<uint64_t>(place) * (kPage + state.record);
  }

  std::unique_ptr<DirectFile> file_;
  std::vector<State> states_;
};

}  // namespace optod::tier

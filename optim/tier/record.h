#pragma once
/// How one unit lies in memory and on disk, and how far it has come.
///
///   slot     | theta, float32 | m | v |                 part after part in each section; m, v as the optimizer has them
///   record   | theta, coded   | m | v |   padded to pages
///
/// With a lossless codec the two are the same bytes. Plain data and pure functions.

#include <cstdint>
#include <span>
#include <vector>

#include "optim/tier/codec.h"
#include "optim/tier/unit.h"

namespace optod::tier {

/// What has happened to a unit's bytes: the updates of steps 0 .. updates - 1, and, with Residue::kMezo, the rounding of
/// the perturbations of steps 0 .. passes - 1.
struct Progress {
  uint32_t updates = 0, passes = 0;
  uint32_t groups = 0;  ///< block-wise, in memory alone: groups that have had the update of step `updates` too
  bool operator==(const Progress&) const = default;
};

class RecordLayout {
 public:
  /// `states`: 0 (none), 1 (m) or 2 (m, v) floats beside each parameter of a trainable unit.
  RecordLayout(const Unit& unit, int states, Codec codec);

  size_t floats() const { return floats_; }
  size_t slot_floats() const { return floats_ * static_cast<size_t>(1 + states_); }
  size_t coded_bytes() const { return coded_; }
  /// Of a record: whole pages.
  size_t record_bytes() const;
  int states() const { return states_; }

  /// Sections of a slot: 0 theta, 1 m, 2 v.
  std::span<float> Section(std::span<float> slot, int section) const {
    return slot.subspan(static_cast<size_t>(section) * floats_, floats_);
  }
  /// Whole record -> slot and back. `step` and `seed` feed the rounding of lossy codecs.
  void ToSlot(std::span<const std::byte> record, std::span<float> slot) const;
  void ToRecord(std::span<const float> slot, uint64_t seed, uint32_t step, std::span<std::byte> record) const;

  /// Where elements first .. first + count - 1 (whole rows) of part p lie in a section of a record of this codec (of a
  /// slot: kNone).
  struct Range {
    size_t begin = 0, bytes = 0;
  };
  Range RangeOf(size_t part, uint64_t first, size_t count, int section, Codec codec) const;
  size_t columns(size_t part) const { return places_[part].part.columns; }
  size_t parts() const { return places_.size(); }
  const UnitPart& part(size_t p) const { return places_[p].part; }
  Codec codec() const { return codec_; }

 private:
  struct Place {
    UnitPart part;
    size_t floats_before = 0, coded_before = 0;
  };
  std::vector<Place> places_;
  size_t floats_ = 0, coded_ = 0;
  int states_ = 0;
  Codec codec_ = Codec::kNone;
};

}  // namespace optod::tier

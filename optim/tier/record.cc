#include "optim/tier/record.h"

#include <cstring>

#include "optim/tier/direct_file.h"

namespace optod::tier {

RecordLayout::RecordLayout(const Unit& unit, int states, Codec codec)
    : states_(unit.trainable ? states : 0), codec_(codec) {
  for (const UnitPart& part : unit.parts) {
    places_.push_back({part, floats_, coded_});
    floats_ += part.count;
    coded_ += CodedBytes(codec, part.count, part.columns);
  }
}

size_t RecordLayout::record_bytes() const {
  return RoundUp(coded_ + static_cast<size_t>(states_) * floats_ * sizeof(float));
}

void RecordLayout::ToSlot(std::span<const std::byte> record, std::span<float> slot) const {
  for (const Place& place : places_)
    Decode(codec_, record.subspan(place.coded_before, CodedBytes(codec_, place.part.count, place.part.columns)),
           place.part.columns, slot.subspan(place.floats_before, place.part.count));
  std::memcpy(slot.data() + floats_, record.data() + coded_, static_cast<size_t>(states_) * floats_ * sizeof(float));
}

void RecordLayout::ToRecord(std::span<const float> slot, uint64_t seed, uint32_t step,
                            std::span<std::byte> record) const {
  for (const Place& place : places_)
    Encode(codec_, slot.subspan(place.floats_before, place.part.count), place.part.columns,
           {seed, step, place.part.uid, place.part.first},
           record.subspan(place.coded_before, CodedBytes(codec_, place.part.count, place.part.columns)));
  std::memcpy(record.data() + coded_, slot.data() + floats_, static_cast<size_t>(states_) * floats_ * sizeof(float));
}

RecordLayout::Range RecordLayout::RangeOf(size_t part, uint64_t first, size_t count, int section, Codec codec) const {
  const Place& place = places_[part];
  const auto before = static_cast<size_t>(first - place.part.first);
  const size_t coded = codec == Codec::kNone ? floats_ * sizeof(float) : coded_;
  if (section == 0) {
    const size_t part_begin = codec == Codec::kNone ? place.floats_before * sizeof(float) : place.coded_before;
    return {part_begin + CodedBytes(codec, before, place.part.columns), CodedBytes(codec, count, place.part.columns)};
  }
  const size_t floats = static_cast<size_t>(section - 1) * floats_ + place.floats_before + before;
  return {coded + floats * sizeof(float), count * sizeof(float)};
}

}  // namespace optod::tier

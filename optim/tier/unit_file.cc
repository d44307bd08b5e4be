#include "optim/tier/unit_file.h"

#include <algorithm>
#include <cstring>

#include "base/crc32c.h"
#include "base/status.h"

namespace optod::tier {
namespace {

constexpr uint32_t kFileMagic = 0x4e55544f, kUnitMagic = 0x5055544f, kVersion = 1;  // "OTUN", "OTUP"

struct FileHeader {
  uint32_t magic = kFileMagic, version = kVersion;
  uint64_t units = 0;
  uint32_t identity = 0;
};

struct UnitHeader {
  uint32_t magic = kUnitMagic, version = kVersion;
  uint64_t unit = 0, record_bytes = 0;
  uint32_t updates = 0, passes = 0, record_crc = 0;
  uint32_t crc = 0;  // of the fields before
};
uint32_t CrcOf(const UnitHeader& header) { return Crc32c(&header, offsetof(UnitHeader, crc)); }

/// What the units are: names, shapes, codec and state, in one number.
uint32_t IdentityOf(const std::vector<Unit>& units, const std::vector<RecordLayout>& layouts) {
  uint32_t crc = 0;
  for (size_t u = 0; u < units.size(); ++u) {
    crc = Crc32c(units[u].name, crc);
    for (const UnitPart& part : units[u].parts) {
      const uint64_t fields[] = {part.uid, part.first, part.count, part.columns};
      crc = Crc32c(fields, sizeof fields, crc);
    }
    const uint64_t fields[] = {static_cast<uint64_t>(layouts[u].codec()), static_cast<uint64_t>(layouts[u].states())};
    crc = Crc32c(fields, sizeof fields, crc);
  }
  return crc;
}

}  // namespace

uint64_t UnitFile::FileBytes(const std::vector<RecordLayout>& layouts) {
  uint64_t bytes = kPage;
  for (const RecordLayout& layout : layouts) bytes += 2 * (kPage + layout.record_bytes());
  return bytes;
}

absl::StatusOr<std::unique_ptr<UnitFile>> UnitFile::Open(std::unique_ptr<DirectFile> file,
                                                         const std::vector<Unit>& units,
                                                         const std::vector<RecordLayout>& layouts, uint32_t steps) {
  std::unique_ptr<UnitFile> made(new UnitFile(std::move(file)));
  uint64_t offset = kPage;
  for (size_t u = 0; u < units.size(); ++u) {
    State state;
    state.offset = offset;
    state.record = layouts[u].record_bytes();
    state.name = units[u].name;
    offset += 2 * (kPage + state.record);
    made->states_.push_back(std::move(state));
  }
  ASSIGN_OR_RETURN(const uint64_t size, made->file_->Size());
  RETURN_IF_ERROR(made->Begin(IdentityOf(units, layouts)));
  RETURN_IF_ERROR(made->file_->Reserve(offset));
  if (size > 0) RETURN_IF_ERROR(made->Recover(steps));
  return made;
}

// Page 0 is written first and alone: a file without it is a new one.
absl::Status UnitFile::Begin(uint32_t identity) {
  ASSIGN_OR_RETURN(const PageBuffer page, PageBuffer::Create(kPage));
  ASSIGN_OR_RETURN(const uint64_t size, file_->Size());
  FileHeader want;
  want.units = states_.size();
  want.identity = identity;
  if (size >= kPage) {
    RETURN_IF_ERROR(file_->Read(0, page.bytes()));
    FileHeader found;
    std::memcpy(&found, page.bytes().data(), sizeof found);
    const bool blank = std::all_of(page.bytes().begin(), page.bytes().end(), [](std::byte b) { return b == std::byte{0}; });
    if (!blank && (found.magic != want.magic || found.version != want.version))
      return DataLoss("block file: not one of this version");
    if (!blank && (found.units != want.units || found.identity != want.identity))
      return DataLoss("block file: of other units (another model, codec, optimizer or cut)");
    if (!blank) return absl::OkStatus();
  }
  std::memcpy(page.bytes().data(), &want, sizeof want);
  return file_->Write(0, page.bytes());
}

absl::Status UnitFile::Recover(uint32_t steps) {
  ASSIGN_OR_RETURN(const uint64_t size, file_->Size());
  size_t largest = 0;
  for (const State& state : states_) largest = std::max(largest, state.record);
  ASSIGN_OR_RETURN(const PageBuffer buffer, PageBuffer::Create(kPage + largest));
  for (size_t u = 0; u < states_.size(); ++u) {
    for (int place : {0, 1}) {
      if (OffsetOf(states_[u], place) + kPage + states_[u].record <= size)
        RETURN_IF_ERROR(Recover(u, place, steps, buffer.bytes().first(kPage + states_[u].record)));
    }
  }
  return absl::OkStatus();
}

absl::Status UnitFile::Recover(size_t unit, int place, uint32_t steps, std::span<std::byte> buffer) {
  State& state = states_[unit];
  RETURN_IF_ERROR(file_->Read(OffsetOf(state, place), buffer.first(kPage)));
  UnitHeader header;
  std::memcpy(&header, buffer.data(), sizeof header);
  if (header.magic != kUnitMagic || header.crc != CrcOf(header) || header.unit != unit ||
      header.record_bytes != state.record)
    return absl::OkStatus();
  if (header.updates > steps || header.passes > steps) return absl::OkStatus();
  const bool better = state.place < 0 || header.updates > state.progress.updates ||
                      (header.updates == state.progress.updates && header.passes > state.progress.passes);
  if (!better) return absl::OkStatus();
  RETURN_IF_ERROR(file_->Read(OffsetOf(state, place), buffer));
  if (Crc32c(buffer.subspan(kPage)) != header.record_crc) return absl::OkStatus();
  state.place = place;
  state.crc = header.record_crc;
  state.progress = {header.updates, header.passes};
  return absl::OkStatus();
}

absl::Status UnitFile::Read(size_t unit, std::span<std::byte> buffer) {
  const State& state = states_[unit];
  if (state.place < 0) return Internal("block file: unit \"", state.name, "\" was never written");
  const absl::Status status = file_->Read(OffsetOf(state, state.place), buffer);
  if (!status.ok()) return absl::Status(status.code(), Cat("unit \"", state.name, "\": ", status.message()));
  if (Crc32c(buffer.subspan(kPage)) != state.crc)
    return DataLoss("block file: unit \"", state.name, "\": its bytes changed underneath");
  return absl::OkStatus();
}

absl::Status UnitFile::ReadRange(size_t unit, RecordLayout::Range range, std::span<std::byte> out) {
  const State& state = states_[unit];
  if (state.place < 0) return Internal("block file: unit \"", state.name, "\" was never written");
  const uint64_t begin = OffsetOf(state, state.place) + kPage + range.begin;
  const uint64_t first = begin / kPage * kPage, end = RoundUp(begin + range.bytes);
  ASSIGN_OR_RETURN(const PageBuffer pages, PageBuffer::Create(end - first));
  RETURN_IF_ERROR(file_->Read(first, pages.bytes()));
  std::memcpy(out.data(), pages.bytes().data() + (begin - first), range.bytes);
  return absl::OkStatus();
}

absl::Status UnitFile::Write(size_t unit, Progress progress, std::span<std::byte> buffer) {
  State& state = states_[unit];
  const int place = state.place == 0 ? 1 : 0;
  UnitHeader header;
  header.unit = unit;
  header.record_bytes = state.record;
  header.updates = progress.updates;
  header.passes = progress.passes;
  header.record_crc = Crc32c(buffer.subspan(kPage));
  header.crc = CrcOf(header);
  std::memset(buffer.data(), 0, kPage);
  std::memcpy(buffer.data(), &header, sizeof header);
  const absl::Status status = file_->Write(OffsetOf(state, place), buffer);
  if (!status.ok()) return absl::Status(status.code(), Cat("unit \"", state.name, "\": ", status.message()));
  state.place = place;
  state.crc = header.record_crc;
  state.progress = progress;
  return absl::OkStatus();
}

}  // namespace optod::tier

#include "optim/order/term_store.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "base/crc32c.h"
#include "base/status.h"

namespace optod::order {
namespace {

constexpr char kMagic[8] = {'o', 'p', 't', 'o', 'd', 't', 'm', '1'};
constexpr const char* kRecordNames[] = {"gradient", "curvature", "third"};

struct Header {
  char magic[8];
  uint64_t identity, n;
  uint32_t batch, first, count, records, storage, ratio, width, reserved;
  uint32_t checksum, reserved2;  // of the bytes before
};
static_assert(sizeof(Header) == 64);
constexpr size_t kChecked = offsetof(Header, checksum);

/// Squared sums over a segment, for each record: of the decoding error and of the exact numbers.
struct Sums {
  double error = 0.0, norm = 0.0;
};

size_t Pages(size_t n) { return (n + kPageElements - 1) / kPageElements; }
int64_t RecordBytes(const TermLayout& layout) {
  return static_cast<int64_t>(layout.codec.VectorBytes(layout.n) + 4 * Pages(layout.n));
}
int64_t TrailerBytes(const TermLayout& layout) { return layout.records * static_cast<int64_t>(sizeof(Sums)) + 4; }

Header MakeHeader(const TermLayout& layout, const TermStore::Segment& segment) {
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.identity = layout.identity;
  header.n = layout.n;
  header.batch = static_cast<uint32_t>(segment.batch);
  header.first = static_cast<uint32_t>(segment.first);
  header.count = static_cast<uint32_t>(segment.count);
  header.records = static_cast<uint32_t>(layout.records);
  header.storage = static_cast<uint32_t>(layout.codec.storage);
  header.ratio = static_cast<uint32_t>(layout.codec.ratio);
  header.width = layout.codec.precision == Precision::kFloat32 ? 4 : 8;
  header.checksum = Crc32c(&header, kChecked);
  return header;
}

/// One record's pages with their checksums, appended to `bytes`; the decoding error added to `sums`.
void EncodeRecord(const Codec& codec, const std::vector<double>& x, std::vector<std::byte>& bytes, Sums& sums) {
  std::vector<double> decoded;
  for (size_t page = 0; page < Pages(x.size()); ++page) {
    const size_t begin = page * kPageElements, count = std::min(kPageElements, x.size() - begin);
    const std::span<const double> exact(x.data() + begin, count);
    const size_t at = bytes.size(), coded = codec.PageBytes(count);
    bytes.resize(at + coded + 4);
    codec.Encode(page, exact, std::span(bytes).subspan(at, coded));
    const uint32_t checksum = Crc32c(bytes.data() + at, coded);
    std::memcpy(bytes.data() + at + coded, &checksum, 4);
    for (const double value : exact) sums.norm += value * value;
    if (codec.lossless()) continue;
    decoded.resize(count);
    codec.Decode(page, std::span<const std::byte>(bytes).subspan(at, coded), decoded);
    for (size_t i = 0; i < count; ++i) sums.error += (decoded[i] - exact[i]) * (decoded[i] - exact[i]);
  }
}

absl::Status CheckFinite(const std::vector<double>& x, int t, int l, int record) {
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isfinite(x[i])) continue;
    return FailedPrecondition("terms[", t, "][", l, "].", kRecordNames[record], "[", i, "]: ", x[i], " is not finite");
  }
  return absl::OkStatus();
}

}  // namespace

int64_t TermLayout::CellBytes() const { return records * RecordBytes(*this); }
int TermLayout::segment_cells() const {
  return static_cast<int>(std::clamp<int64_t>(segment_bytes / std::max<int64_t>(CellBytes(), 1), 1, positions));
}
int TermLayout::segments_of_batch() const { return (positions + segment_cells() - 1) / segment_cells(); }
int64_t TermLayout::FileBytes(int cells) const {
  return static_cast<int64_t>(sizeof(Header)) + cells * CellBytes() + TrailerBytes(*this);
}
int64_t TermLayout::TotalBytes() const {
  return static_cast<int64_t>(positions) * batches * CellBytes() +
         static_cast<int64_t>(segments()) * (static_cast<int64_t>(sizeof(Header)) + TrailerBytes(*this));
}

TermStore::TermStore(Fs& fs, std::string directory, const TermLayout& layout)
    : fs_(fs), directory_(std::move(directory)), layout_(layout), filled_(layout.segments(), 0) {}

TermStore::Segment TermStore::segment(int index) const {
  const int first = index % layout_.segments_of_batch() * layout_.segment_cells();
  return {index / layout_.segments_of_batch(), first, std::min(layout_.segment_cells(), layout_.positions - first)};
}

std::string TermStore::PathOf(int index) const {
  char name[48];
  std::snprintf(name, sizeof name, "/terms-%05d-%05d.bin", segment(index).batch, segment(index).first);
  return directory_ + name;
}

bool TermStore::Filled(int index) const {
  const std::lock_guard lock(mutex_);
  return filled_[index] != 0;
}

int TermStore::filled() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int>(std::count(filled_.begin(), filled_.end(), 1));
}

absl::StatusOr<std::unique_ptr<TermStore>> TermStore::Open(Fs& fs, std::string directory, const TermLayout& layout) {
  std::unique_ptr<TermStore> store(new TermStore(fs, std::move(directory), layout));
  for (int index = 0; index < layout.segments(); ++index) {
    if (const std::string path = store->PathOf(index); fs.Exists(path)) RETURN_IF_ERROR(store->Look(index, path));
  }
  return store;
}

absl::Status TermStore::Look(int index, const std::string& path) {
  const std::string name = path.substr(path.rfind('/') + 1);
  ASSIGN_OR_RETURN(const int64_t size, fs_.FileSize(path));
  const Segment part = segment(index);
  const Header want = MakeHeader(layout_, part);
  Header found{};
  if (size >= static_cast<int64_t>(sizeof found)) {
    RETURN_IF_ERROR(fs_.ReadRange(path, 0, std::as_writable_bytes(std::span(&found, 1))));
  }
  if (std::memcmp(found.magic, kMagic, sizeof kMagic) != 0 || found.checksum != Crc32c(&found, kChecked)) {
    return DataLoss(name, ": no header of a term file; remove it and fill again");
  }
  if (std::memcmp(&found, &want, sizeof want) != 0) {
    return FailedPrecondition(name, ": belongs to another study or other options");
  }
  if (size != layout_.FileBytes(part.count)) {
    return DataLoss(name, ": ", size, " bytes; must be ", layout_.FileBytes(part.count), "; remove it and fill again");
  }
  filled_[index] = 1;
  return absl::OkStatus();
}

absl::Status TermStore::Write(int index, const Producer& produce) {
  const Segment part = segment(index);
  const Header header = MakeHeader(layout_, part);
  ASSIGN_OR_RETURN(const auto file, fs_.Stage(directory_));
  RETURN_IF_ERROR(file->Append(std::as_bytes(std::span(&header, 1))));
  std::vector<std::vector<double>> records(layout_.records, std::vector<double>(layout_.n));
  std::vector<Sums> sums(layout_.records);
  std::vector<std::byte> bytes;
  for (int t = part.first; t < part.first + part.count; ++t) {
    RETURN_IF_ERROR(produce(t, records));
    bytes.clear();
    for (int r = 0; r < layout_.records; ++r) {
      RETURN_IF_ERROR(CheckFinite(records[r], t, part.batch, r));
      EncodeRecord(layout_.codec, records[r], bytes, sums[r]);
    }
    RETURN_IF_ERROR(file->Append(bytes));
  }
  const uint32_t checksum = Crc32c(std::as_bytes(std::span(sums)));
  RETURN_IF_ERROR(file->Append(std::as_bytes(std::span(sums))));
  RETURN_IF_ERROR(file->Append(std::as_bytes(std::span(&checksum, 1))));
  RETURN_IF_ERROR(file->Commit(PathOf(index)));
  const std::lock_guard lock(mutex_);
  filled_[index] = 1;
  return absl::OkStatus();
}

int64_t TermStore::RecordOffset(Record record, int t) const {
  return static_cast<int64_t>(sizeof(Header)) + (t % layout_.segment_cells()) * layout_.CellBytes() +
         record * RecordBytes(layout_);
}

absl::Status TermStore::Read(Record record, int t, int l, size_t begin, std::span<double> out) const {
  const std::string name = Cat("terms[", t, "][", l, "].", kRecordNames[record]);
  if (record >= layout_.records) return FailedPrecondition(name, ": this study stores none");
  if (!Has(t, l))
    return FailedPrecondition(name, ": missing; ", filled(), " of ", layout_.segments(),
                              " files are filled: precompute first");
  const size_t full = layout_.codec.PageBytes(kPageElements) + 4, first = begin / kPageElements;
  std::vector<std::byte> bytes(Pages(out.size()) * full);
  if (const size_t rest = out.size() % kPageElements; rest > 0) {
    bytes.resize(bytes.size() - full + layout_.codec.PageBytes(rest) + 4);
  }
  RETURN_IF_ERROR(
      fs_.ReadRange(PathOf(IndexOf(t, l)), RecordOffset(record, t) + static_cast<int64_t>(first * full), bytes));
  for (size_t page = 0; page < Pages(out.size()); ++page) {
    const std::span<double> part =
        out.subspan(page * kPageElements, std::min(kPageElements, out.size() - page * kPageElements));
    const std::span<const std::byte> coded =
        std::span<const std::byte>(bytes).subspan(page * full, layout_.codec.PageBytes(part.size()));
    uint32_t checksum;
    std::memcpy(&checksum, coded.data() + coded.size(), 4);
    if (checksum != Crc32c(coded)) {
      return DataLoss(name, ": the checksum of page ", first + page, " does not match; remove ",
                      PathOf(IndexOf(t, l)).substr(directory_.size() + 1), " and fill again");
    }
    layout_.codec.Decode(first + page, coded, part);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::byte>> TermStore::ReadPage(Record record, int t, int l, size_t page) const {
  if (record >= layout_.records || page >= Pages(layout_.n)) return InvalidArgument("page: ", page, " is not there");
  if (!Has(t, l)) return FailedPrecondition("terms[", t, "][", l, "]: missing");
  const size_t count = std::min(kPageElements, layout_.n - page * kPageElements);
  std::vector<std::byte> bytes(layout_.codec.PageBytes(count) + 4);
  const size_t full = layout_.codec.PageBytes(kPageElements) + 4;
  RETURN_IF_ERROR(
      fs_.ReadRange(PathOf(IndexOf(t, l)), RecordOffset(record, t) + static_cast<int64_t>(page * full), bytes));
  uint32_t checksum;
  std::memcpy(&checksum, bytes.data() + bytes.size() - 4, 4);
  bytes.resize(bytes.size() - 4);
  if (checksum != Crc32c(std::span<const std::byte>(bytes)))
    return DataLoss("terms[", t, "][", l, "]: checksum of page ", page);
  return bytes;
}

absl::StatusOr<std::vector<double>> TermStore::DecodeErrors() const {
  std::vector<Sums> total(layout_.records);
  for (int index = 0; index < layout_.segments(); ++index) {
    if (!Filled(index)) continue;
    std::vector<std::byte> bytes(TrailerBytes(layout_));
    RETURN_IF_ERROR(
        fs_.ReadRange(PathOf(index), layout_.FileBytes(segment(index).count) - TrailerBytes(layout_), bytes));
    std::vector<Sums> sums(layout_.records);
    std::memcpy(sums.data(), bytes.data(), bytes.size() - 4);
    uint32_t checksum;
    std::memcpy(&checksum, bytes.data() + bytes.size() - 4, 4);
    if (checksum != Crc32c(bytes.data(), bytes.size() - 4)) {
      return DataLoss("terms of batch ", segment(index).batch, ": the checksum of the error sums does not match");
    }
    for (int r = 0; r < layout_.records; ++r) {
      total[r].error += sums[r].error;
      total[r].norm += sums[r].norm;
    }
  }
  std::vector<double> errors;
  for (const Sums& sum : total) errors.push_back(sum.norm > 0.0 ? std::sqrt(sum.error / sum.norm) : 0.0);
  return errors;
}

}  // namespace optod::order

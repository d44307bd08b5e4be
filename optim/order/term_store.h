#pragma once
/// The numbers a study keeps: for every reference position t and every batch l the gradient at theta_t, and depending
/// on the curvature a diagonal and its slope. A file is a run of positions of one batch and appears whole or not at
/// all, so an interrupted fill goes on with the files that are missing.
///
///   terms-LLLLL-TTTTT.bin   header (64 bytes) | cells, positions TTTTT.. of batch LLLLL | error sums | CRC-32C of
///   those cell                    records (gradient, curvature, third) | pages of 4096 numbers, each coded + its
///   CRC-32C
///
/// Thread-safe: any number of readers, one writer a segment.

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/fs.h"
#include "optim/order/codec.h"

namespace optod::order {

/// What a term is made of; the records are stored in this order.
enum Record { kGradient = 0, kCurvature = 1, kThird = 2 };

struct TermLayout {
  size_t n = 0;
  int positions = 0, batches = 0;
  int records = 1;
  Codec codec;
  int64_t segment_bytes = int64_t{16} << 20;
  uint64_t identity = 0;  ///< of the study; files of another are refused

  int64_t CellBytes() const;
  int segment_cells() const;  ///< positions a file holds; >= 1
  int segments_of_batch() const;
  int segments() const { return segments_of_batch() * batches; }
  int64_t FileBytes(int cells) const;
  int64_t TotalBytes() const;  ///< of all files
};

class TermStore {
 public:
  /// Looks which files are there. DATA_LOSS for one of the wrong size or header, FAILED_PRECONDITION for one of another
  /// study; both name the file.
  static absl::StatusOr<std::unique_ptr<TermStore>> Open(Fs& fs, std::string directory, const TermLayout& layout);

  const TermLayout& layout() const { return layout_; }

  struct Segment {
    int batch, first, count;
  };
  Segment segment(int index) const;
  bool Filled(int index) const;
  int filled() const;
  bool Has(int t, int l) const { return Filled(IndexOf(t, l)); }

  /// Writes one segment: `produce(t, records)` is called for its positions in order and fills layout().records vectors
  /// of n numbers. Numbers that are not finite are refused. RESOURCE_EXHAUSTED when the disk is full; nothing is left
  /// then.
  using Producer = std::function<absl::Status(int t, std::span<std::vector<double>> records)>;
  absl::Status Write(int index, const Producer& produce);

  /// Decoded numbers [begin, begin + out.size()) of one record; begin and the end are multiples of kPageElements (or
  /// the end is n). FAILED_PRECONDITION when missing, DATA_LOSS when a checksum does not match.
  absl::Status Read(Record record, int t, int l, size_t begin, std::span<double> out) const;
  /// The coded bytes of one page, for inner products of sketches.
  absl::StatusOr<std::vector<std::byte>> ReadPage(Record record, int t, int l, size_t page) const;

  /// |decoded - exact| / |exact| in norm over all that was written, for each record; 0 for lossless storage. Read from
  /// the files' own sums.
  absl::StatusOr<std::vector<double>> DecodeErrors() const;

 private:
  TermStore(Fs& fs, std::string directory, const TermLayout& layout);
  int IndexOf(int t, int l) const { return l * layout_.segments_of_batch() + t / layout_.segment_cells(); }
  std::string PathOf(int index) const;
  absl::Status Look(int index, const std::string& path);
  int64_t RecordOffset(Record record, int t) const;

  Fs& fs_;
  const std::string directory_;
  const TermLayout layout_;
  mutable std::mutex mutex_;
  std::vector<char> filled_;
};

}  // namespace optod::order

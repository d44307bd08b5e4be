#pragma once
/// The log that is a zeroth-order run's checkpoint (MeZO, Malladi et al., 2023, section 2.1): for every step the
/// learning rate and the projected gradients. With the initial weights and the seed it gives back the parameters after
/// any step, bit for bit. 20,000 steps of one direction are 800 kB.
///
///   header (line of JSON: seed, optimizer, queries, first words of the layout), '\n'
///   record: step u32, flags u32, lr f64, loss f64, g f64 x queries, crc32c of what is before it u32     little-endian
///
/// Only complete records with a right checksum count: a torn end is cut off when the log is opened.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace optod::train {

struct ReplayRecord {
  enum Flags : uint32_t {
    kSkipped = 1,
    kStay = 2,
    kDescent = 4,
    kAscent = 8
  };  ///< the last three: zo-sgd-cons' choice
  uint32_t step = 0;
  uint32_t flags = 0;
  double lr = 0, loss = 0;
  std::vector<double> g;
};

class ReplayLog {
 public:
  /// Opens `path` for appending, made with `header` when absent. DATA_LOSS: `replay.log: written by another run` when
  /// the header differs.
  static absl::StatusOr<ReplayLog> Open(const std::string& path, const std::string& header, size_t queries);
  ReplayLog(ReplayLog&& other) noexcept;
  ReplayLog& operator=(ReplayLog&& other) noexcept;
  ~ReplayLog();

  /// The records found at opening and those appended since.
  const std::vector<ReplayRecord>& records() const { return records_; }
  /// One write(2), so that a killed process loses nothing. RESOURCE_EXHAUSTED: the disk is full; then nothing was
  /// added.
  absl::Status Append(const ReplayRecord& record);
  /// fsync.
  absl::Status Sync();

 private:
  ReplayLog() = default;
  int fd_ = -1;
  int64_t size_ = 0;
  size_t queries_ = 1;
  std::vector<ReplayRecord> records_;
};

/// The complete records of the bytes of a log; `header` and `valid_bytes` are set when given. Total function.
std::vector<ReplayRecord> ParseReplayLog(const std::string& bytes, size_t queries, std::string* header,
                                         size_t* valid_bytes);

}  // namespace optod::train

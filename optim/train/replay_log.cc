#include "optim/train/replay_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/crc32c.h"
#include "base/fs.h"
#include "base/status.h"

namespace optod::train {
namespace {

size_t RecordBytes(size_t queries) { return 4 + 4 + 8 + 8 + 8 * queries + 4; }

template <typename T>
void Put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(T));
}
template <typename T>
T Take(const char*& at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  at += sizeof(T);
  return value;
}

uint32_t Checksum(const char* data, size_t size) { return Crc32c(std::as_bytes(std::span(data, size))); }

}  // namespace

std::vector<ReplayRecord> ParseReplayLog(const std::string& bytes, size_t queries, std::string* header,
                                         size_t* valid_bytes) {
  std::vector<ReplayRecord> records;
  const size_t line = bytes.find('\n');
  if (valid_bytes != nullptr) *valid_bytes = 0;
  if (line == std::string::npos) return records;
  if (header != nullptr) *header = bytes.substr(0, line);
  size_t at = line + 1;
  const size_t size = RecordBytes(queries);
  while (bytes.size() - at >= size) {
    const char* cursor = bytes.data() + at;
    ReplayRecord record;
    record.step = Take<uint32_t>(cursor);
    record.flags = Take<uint32_t>(cursor);
    record.lr = Take<double>(cursor);
    record.loss = Take<double>(cursor);
    for (size_t q = 0; q < queries; ++q) record.g.push_back(Take<double>(cursor));
    if (Take<uint32_t>(cursor) != Checksum(bytes.data() + at, size - 4) || record.step != records.size()) break;
    records.push_back(std::move(record));
    at += size;
  }
  if (valid_bytes != nullptr) *valid_bytes = at;
  return records;
}

absl::StatusOr<ReplayLog> ReplayLog::Open(const std::string& path, const std::string& header, size_t queries) {
  ReplayLog log;
  log.queries_ = queries;
  std::string bytes = PosixFs().ReadFile(path).value_or(""), found;
  size_t valid = 0;
  log.records_ = ParseReplayLog(bytes, queries, &found, &valid);
  if (valid > 0 && found != header) return DataLoss("replay.log: written by another run");
  log.fd_ = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  if (log.fd_ < 0) return Internal("replay.log: cannot be opened: ", std::strerror(errno));
  if (ftruncate(log.fd_, static_cast<off_t>(valid)) != 0 || lseek(log.fd_, 0, SEEK_END) < 0)
    return Internal("replay.log: ", std::strerror(errno));
  log.size_ = static_cast<int64_t>(valid);
  if (valid == 0) {
    const std::string line = header + "\n";
    if (write(log.fd_, line.data(), line.size()) != static_cast<ssize_t>(line.size()))
      return ResourceExhausted("replay.log: cannot be written: ", std::strerror(errno));
    log.size_ = static_cast<int64_t>(line.size());
  }
  return log;
}

ReplayLog::ReplayLog(ReplayLog&& other) noexcept { *this = std::move(other); }
ReplayLog& ReplayLog::operator=(ReplayLog&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(size_, other.size_);
  std::swap(queries_, other.queries_);
  std::swap(records_, other.records_);
  return *this;
}
ReplayLog::~ReplayLog() {
  if (fd_ >= 0) close(fd_);
}

absl::Status ReplayLog::Append(const ReplayRecord& record) {
  std::string bytes;
  Put(bytes, record.step);
  Put(bytes, record.flags);
  Put(bytes, record.lr);
  Put(bytes, record.loss);
  for (size_t q = 0; q < queries_; ++q) Put(bytes, q < record.g.size() ? record.g[q] : 0.0);
  Put(bytes, Checksum(bytes.data(), bytes.size()));
  const ssize_t wrote = write(fd_, bytes.data(), bytes.size());
  if (wrote != static_cast<ssize_t>(bytes.size())) {
    const int error = wrote < 0 ? errno : ENOSPC;
    if (ftruncate(fd_, size_) == 0) lseek(fd_, 0, SEEK_END);  // a torn record would be cut off anyway
    return error == ENOSPC ? ResourceExhausted("replay.log: the disk is full")
                           : Internal("replay.log: ", std::strerror(error));
  }
  size_ += wrote;
  records_.push_back(record);
  return absl::OkStatus();
}

absl::Status ReplayLog::Sync() {
  if (fdatasync(fd_) != 0) return DataLoss("replay.log: fsync: ", std::strerror(errno));
  return absl::OkStatus();
}

}  // namespace optod::train

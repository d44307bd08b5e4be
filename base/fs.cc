#include "base/fs.h"

#include <cstring>

#include "base/status.h"

namespace optod {

absl::Status Fs::ReadRange(const std::string& path, int64_t offset, std::span<std::byte> out) {
  ASSIGN_OR_RETURN(const std::string content, ReadFile(path));
  if (offset < 0 || static_cast<uint64_t>(offset) + out.size() > content.size()) {
    return DataLoss("read a range: the file has ", content.size(), " bytes; ", offset + out.size(), " were expected");
  }
  if (!out.empty()) std::memcpy(out.data(), content.data() + offset, out.size());
  return absl::OkStatus();
}

absl::Status Fs::AppendFile(const std::string& path, std::span<const std::byte> data, int mode) {
  std::string content;
  if (auto before = ReadFile(path); before.ok()) {
    content = *std::move(before);
  } else if (!absl::IsNotFound(before.status())) {
    return before.status();
  }
  content.append(reinterpret_cast<const char*>(data.data()), data.size());
  return WriteFileAtomic(path, BytesOf(content), mode);
}

namespace {

/// Fs::Stage over WriteFileAtomic.
class CollectedFile final : public StagedFile {
 public:
  CollectedFile(Fs& fs, int mode) : fs_(fs), mode_(mode) {}
  absl::Status Append(std::span<const std::byte> data) override {
    content_.append(reinterpret_cast<const char*>(data.data()), data.size());
    return absl::OkStatus();
  }
  absl::Status Commit(const std::string& path) override { return fs_.WriteFileAtomic(path, BytesOf(content_), mode_); }

 private:
  Fs& fs_;
  const int mode_;
  std::string content_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StagedFile>> Fs::Stage(const std::string&, int mode) {
  return std::make_unique<CollectedFile>(*this, mode);
}

absl::StatusOr<int> Fs::FileMode(const std::string& path) {
  return Unimplemented("mode of ", path, ": this file system keeps no permissions");
}

}  // namespace optod

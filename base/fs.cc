#include "base/fs.h"

#include "base/status.h"

namespace optod {

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

absl::StatusOr<int> Fs::FileMode(const std::string& path) {
  return Unimplemented("mode of ", path, ": this file system keeps no permissions");
}

}  // namespace optod

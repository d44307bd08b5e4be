#pragma once
/// The safetensors file format: 8 bytes header length (little-endian), a JSON header, tensor data. Every claim of the
/// header is checked against the file before anything is read through it: overlapping, truncated or lying entries are
/// refused with the tensor's name. Format: huggingface/safetensors, "Format". Reading is thread-safe.

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/nn/dtype.h"
#include "optim/nn/mapped_file.h"

namespace optod::nn {

struct FileTensor {
  std::string name;
  FileType type = FileType::kF32;
  std::vector<int64_t> shape;
  size_t begin = 0, end = 0;  ///< in the data part (of `bytes` where one is at hand)
};

struct SafetensorsHeader {
  std::vector<FileTensor> tensors;  ///< by name
  std::map<std::string, std::string> metadata;
  size_t data_begin = 0;  ///< of the data part in the file
};

/// Largest header taken: 100 MB, as the reference implementation.
inline constexpr uint64_t kMaxHeaderBytes = 100'000'000;

/// `file` is the whole file. INVALID_ARGUMENT, e.g. `safetensors: header length 900 is beyond the file's 64 bytes`,
/// `safetensors: tensor "w": data_offsets [0, 16] do not fit F32 [2, 3] (24 bytes)`.
absl::StatusOr<SafetensorsHeader> ParseSafetensors(std::span<const std::byte> file);

/// One file, mapped.
class Safetensors {
 public:
  static absl::StatusOr<Safetensors> Open(const std::string& path);
  const SafetensorsHeader& header() const { return header_; }
  std::span<const std::byte> bytes(const FileTensor& tensor) const {
    return file_.bytes().subspan(header_.data_begin + tensor.begin, tensor.end - tensor.begin);
  }
  void Drop() const { file_.Drop(); }

 private:
  MappedFile file_;
  SafetensorsHeader header_;
};

struct TensorToWrite {
  std::string name;
  FileType type = FileType::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> data;  ///< borrowed
};

/// A file written piece by piece: the tensors' data in their order, without all of it in memory.
class SafetensorsWriter {
 public:
  /// `tensors`: names, types and shapes; their `data` is not looked at.
  static absl::StatusOr<SafetensorsWriter> Create(const std::string& path, const std::vector<TensorToWrite>& tensors,
                                                  const std::map<std::string, std::string>& metadata);
  SafetensorsWriter(SafetensorsWriter&& other) noexcept;
  ~SafetensorsWriter();  ///< without Commit, nothing is left
  absl::Status Append(std::span<const std::byte> data);
  /// fsync and rename. INTERNAL when more or less was appended than the header says.
  absl::Status Commit();

 private:
  SafetensorsWriter() = default;
  absl::Status Named(absl::Status status) const;
  std::string path_, temporary_;
  int fd_ = -1;
  uint64_t left_ = 0;
};

/// Writes `path` (temporary file, fsync, rename): an existing file is replaced whole or not at all.
absl::Status WriteSafetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                              const std::map<std::string, std::string>& metadata);

}  // namespace optod::nn

#pragma once
/// GGUF files (ggml-org/ggml, docs/gguf.md): metadata, tensors, and the block formats that packaged weights use,
/// widened to float32. Everything the file claims is checked before it is read. Reading is thread-safe.

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/nn/mapped_file.h"

namespace optod::nn {

/// Scalars are widened; arrays hold one kind.
using GgufValue = std::variant<int64_t, uint64_t, double, bool, std::string, std::vector<std::string>,
                               std::vector<double>, std::vector<int64_t>>;

struct GgufTensor {
  std::string name;
  std::vector<int64_t> shape;    ///< row-major, outermost first (the file stores them innermost first)
  uint32_t type = 0;             ///< ggml type number
  size_t offset = 0, bytes = 0;  ///< in the data part
  int64_t elements() const;
};

struct GgufHeader {
  std::map<std::string, GgufValue> metadata;
  std::vector<GgufTensor> tensors;
  size_t data_begin = 0;
};

/// INVALID_ARGUMENT: `gguf: tensor "w": data ends at 96, the file at 64: truncated`; UNIMPLEMENTED: an unknown version
/// or a block format that is not read here (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q6_K are).
absl::StatusOr<GgufHeader> ParseGguf(std::span<const std::byte> file);

/// Widens a tensor's blocks: out.size() = tensor.elements(), data.size() = tensor.bytes.
void DequantizeGguf(uint32_t type, std::span<const std::byte> data, std::span<float> out);

class Gguf {
 public:
  static absl::StatusOr<Gguf> Open(const std::string& path);
  const GgufHeader& header() const { return header_; }
  const GgufTensor* Find(const std::string& name) const;
  /// Elements first .. first + out.size() - 1: whole rows, which blocks never cross.
  void ReadRows(const GgufTensor& tensor, uint64_t first, std::span<float> out) const;
  void Drop() const { file_.Drop(); }

 private:
  MappedFile file_;
  GgufHeader header_;
};

}  // namespace optod::nn

#pragma once
/// Named tensors and text metadata as the bytes of a safetensors file:
///
///   8 bytes: length of the header, little-endian | JSON header, padded with spaces so that data starts at a multiple of 64 | data
///
/// Pure functions.

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "optim/rules/tensor.h"
#include "server/engine/tensor_buffer.h"

namespace optod::engine {

/// A tensor to be written; borrowed. data holds spec.bytes().
struct TensorBytes {
  std::string name;
  const optim::TensorSpec* spec;  ///< dtype and shape
  const std::byte* data;
};
using TensorMetadata = std::vector<std::pair<std::string, std::string>>;

/// Data in the order given, without gaps. RESOURCE_EXHAUSTED when there is no memory for the file.
absl::StatusOr<std::shared_ptr<TensorBuffer>> WriteTensorFile(const TensorMetadata& metadata,
                                                              std::span<const TensorBytes> tensors);

/// A file taken apart; points into the bytes that were parsed.
struct TensorFile {
  struct Entry {
    optim::TensorSpec spec;
    std::span<const std::byte> data;
  };
  std::map<std::string, std::string> metadata;
  std::vector<Entry> entries;  ///< sorted by name
};
/// Accepts any bytes. INVALID_ARGUMENT: no safetensors file, a dtype that tensors here cannot have, a size that does not
/// fit its shape, a tensor outside the data; says which.
absl::StatusOr<TensorFile> ParseTensorFile(std::span<const std::byte> bytes);

}  // namespace optod::engine

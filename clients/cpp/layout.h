#pragma once
/// Layouts on the client's side: the names, types and shapes of tensors and their place in one flat buffer. Pure
/// functions, thread-safe.

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "optod/v1/tensor.pb.h"

namespace optod::client {

/// Bytes of one element; 0 for DTYPE_UNSPECIFIED.
int64_t ElementBytes(v1::DType dtype);

/// Elements of a shape (1 for a scalar). INVALID_ARGUMENT: a negative size, or more than 2^62 elements.
absl::StatusOr<int64_t> ElementCount(const v1::TensorSpec& spec);

/// Where one tensor lies in the flat buffer.
struct Place {
  int64_t elements = 0;  ///< in this tensor
  uint64_t offset = 0;   ///< bytes from the start
  uint64_t bytes = 0;
  bool no_decay = false;
};

/// Places of all tensors, in order, packed without gaps. INVALID_ARGUMENT: a bad shape or dtype, or total_bytes (when
/// not 0) differs.
absl::StatusOr<std::vector<Place>> PlaceTensors(const v1::TensorIndex& index);

/// One float32 tensor of a layout to build: {"w", {64, 10}}.
struct Float32Tensor {
  std::string name;
  std::vector<int64_t> shape;
  bool no_decay = false;
};
v1::TensorIndex Float32Layout(const std::vector<Float32Tensor>& tensors);

}  // namespace optod::client

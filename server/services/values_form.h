#pragma once
/// Parameters on their way back to a client that wants them in half precision: float32 tensors rounded to nearest even,
/// everything else as it is. Pure functions.

#include <cstddef>

#include "absl/status/status.h"
#include "server/engine/layout.h"

namespace optod::services {

/// OK for kUnspecified (as the layout), kBF16 and kF16. INVALID_ARGUMENT otherwise.
absl::Status CheckValuesDtype(const engine::Layout& layout, optim::DType dtype);
/// Bytes of all tensors when float32 ones have `dtype`.
uint64_t ValuesBytes(const engine::Layout& layout, optim::DType dtype);
/// Writes ValuesBytes(layout, dtype) bytes to `to`, tensor after tensor.
void WriteValues(const engine::Layout& layout, const engine::TensorBuffer& values, optim::DType dtype, std::byte* to);

}  // namespace optod::services

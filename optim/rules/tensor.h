#pragma once
/// Tensors as optod's numeric layers see them: a name, a dtype, a shape, and bytes somewhere. Row-major, little-endian,
/// contiguous.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace optod::optim {

/// Numbers equal protos/optod/v1/tensor.proto DType.
enum class DType : uint8_t {
  kUnspecified = 0,
  kF32 = 1,
  kF64 = 2,
  kF16 = 3,
  kBF16 = 4,
  kI8 = 5,
  kI32 = 6,
  kI64 = 7,
  kU8 = 8,
  kBool = 9,
  kF8E4M3 = 10
};

/// Bytes of one element; 0 for kUnspecified.
constexpr size_t DTypeSize(DType dtype) {
  switch (dtype) {
    case DType::kF64:
    case DType::kI64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kI8:
    case DType::kU8:
    case DType::kBool:
    case DType::kF8E4M3:
      return 1;
    case DType::kUnspecified:
      return 0;
  }
  return 0;
}

/// "float32", "bfloat16", ... as NumPy and safetensors users write them.
std::string_view DTypeName(DType dtype);

struct TensorSpec {
  std::string name;  ///< unique within a layout
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  ///< [] is a scalar; every size >= 0
  bool no_decay = false;       ///< weight decay skips this tensor
  int64_t elements() const {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return n;
  }
  size_t bytes() const { return static_cast<size_t>(elements()) * DTypeSize(dtype); }
};

/// A tensor that owns its bytes (optimizer state on its way in or out of a file).
struct OwnedTensor {
  TensorSpec spec;
  std::vector<std::byte> data;
};

}  // namespace optod::optim

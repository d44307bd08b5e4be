#include "clients/cpp/layout.h"

#include "base/status.h"

namespace optod::client {

int64_t ElementBytes(v1::DType dtype) {
  switch (dtype) {
    case v1::DTYPE_F64:
    case v1::DTYPE_I64:
      return 8;
    case v1::DTYPE_F32:
    case v1::DTYPE_I32:
      return 4;
    case v1::DTYPE_F16:
    case v1::DTYPE_BF16:
      return 2;
    case v1::DTYPE_I8:
    case v1::DTYPE_U8:
    case v1::DTYPE_BOOL:
    case v1::DTYPE_F8_E4M3:
      return 1;
    default:
      return 0;
  }
}

absl::StatusOr<int64_t> ElementCount(const v1::TensorSpec& spec) {
  int64_t count = 1;
  for (const int64_t size : spec.shape()) {
    if (size < 0) return InvalidArgument("layout.", spec.name(), ": size ", size, " is negative");
    if (size != 0 && count > (int64_t{1} << 62) / size)
      return InvalidArgument("layout.", spec.name(), ": more than 2^62 elements");
    count *= size;
  }
  return count;
}

absl::StatusOr<std::vector<Place>> PlaceTensors(const v1::TensorIndex& index) {
  std::vector<Place> places;
  uint64_t offset = 0;
  for (const v1::TensorSpec& spec : index.tensors()) {
    if (ElementBytes(spec.dtype()) == 0) return InvalidArgument("layout.", spec.name(), ": no dtype");
    ASSIGN_OR_RETURN(const int64_t elements, ElementCount(spec));
    const uint64_t bytes = static_cast<uint64_t>(elements) * static_cast<uint64_t>(ElementBytes(spec.dtype()));
    places.push_back({elements, offset, bytes, spec.no_decay()});
    offset += bytes;
  }
  if (index.total_bytes() != 0 && index.total_bytes() != offset)
    return InvalidArgument("layout: total_bytes is ", index.total_bytes(), "; the tensors have ", offset);
  return places;
}

v1::TensorIndex Float32Layout(const std::vector<Float32Tensor>& tensors) {
  v1::TensorIndex index;
  for (const Float32Tensor& tensor : tensors) {
    v1::TensorSpec* spec = index.add_tensors();
    spec->set_name(tensor.name);
    spec->set_dtype(v1::DTYPE_F32);
    spec->set_no_decay(tensor.no_decay);
    for (const int64_t size : tensor.shape) spec->add_shape(size);
  }
  return index;
}

}  // namespace optod::client

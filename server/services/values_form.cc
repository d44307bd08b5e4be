#include "server/services/values_form.h"

#include <cstring>

#include "base/status.h"
#include "optim/rules/half.h"
#include "server/services/shared_memory.h"

namespace optod::services {
namespace {

using optim::DType;

template <typename Convert>
void Round(const std::byte* from, int64_t n, std::byte* to, Convert convert) {
  // Byte addresses: neither side need be aligned.
  for (int64_t i = 0; i < n; ++i) {
    float value;
    std::memcpy(&value, from + 4 * i, sizeof(value));
    const uint16_t half = convert(value);
    std::memcpy(to + 2 * i, &half, sizeof(half));
  }
}

}  // namespace

absl::Status CheckValuesDtype(const engine::Layout&, DType dtype) {
  if (dtype == DType::kUnspecified || dtype == DType::kBF16 || dtype == DType::kF16) return absl::OkStatus();
  return InvalidArgument("open.values_dtype: ", optim::DTypeName(dtype), "; must be bf16, f16 or unspecified");
}

uint64_t ValuesBytes(const engine::Layout& layout, DType dtype) {
  if (dtype == DType::kUnspecified) return layout.total_bytes();
  uint64_t total = 0;
  for (const optim::TensorSpec& spec : layout.specs())
    total += spec.dtype == DType::kF32 ? static_cast<uint64_t>(spec.elements()) * 2 : spec.bytes();
  return total;
}

void WriteValues(const engine::Layout& layout, const engine::TensorBuffer& values, DType dtype, std::byte* to) {
  if (dtype == DType::kUnspecified) return CopyBytes(to, values.data(), values.size());
  for (size_t i = 0; i < layout.size(); ++i) {
    const optim::TensorSpec& spec = layout.spec(i);
    const std::byte* from = values.data() + layout.offset(i);
    const int64_t n = spec.elements();
    if (spec.dtype != DType::kF32) {
      if (n > 0) std::memcpy(to, from, spec.bytes());
      to += spec.bytes();
      continue;
    }
    if (dtype == DType::kBF16) {
      Round(from, n, to, [](float value) { return optim::half::ToBf16(value); });
    } else {
      Round(from, n, to, [](float value) { return optim::half::ToF16(value); });
    }
    to += 2 * n;
  }
}

}  // namespace optod::services

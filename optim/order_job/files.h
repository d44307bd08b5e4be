#pragma once
/// Arrays as files that NumPy, PyTorch and transformers read: .npy (format 1.0) and safetensors, little-endian,
/// row-major.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/fs.h"
#include "optim/order/model.h"

namespace optod::order {

enum class ArrayFormat { kNpy, kSafetensors };

/// A part of a flat vector that has a name and a shape of its own.
struct NamedPart {
  std::string name;
  std::vector<int64_t> shape;
};

/// The bytes in front of the numbers: .npy of one array, or safetensors of consecutive parts. `narrow`: float32
/// follows, else float64. The length is a multiple of 64 (npy) or 8.
std::string NpyHeader(const std::vector<int64_t>& shape, const char* dtype);
std::string SafetensorsHeader(std::span<const NamedPart> parts, bool narrow);

/// Appends the numbers, rounded to float32 when `narrow`.
void AppendNumbers(std::span<const double> values, bool narrow, std::string* out);

/// Whole files, durable.
absl::Status WriteNpy(Fs& fs, const std::string& path, std::span<const double> values,
                      const std::vector<int64_t>& shape);
absl::Status WriteNpy(Fs& fs, const std::string& path, std::span<const int> values, const std::vector<int64_t>& shape);

}  // namespace optod::order

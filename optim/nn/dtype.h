#pragma once
/// Element types of model files, and their conversion to float32. Pure functions.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace optod::nn {

enum class FileType { kF32, kF16, kBF16, kF64, kI64, kI32, kI16, kI8, kU8, kBool };

/// Bytes of one element.
size_t ElementBytes(FileType type);
/// "F32", "F16", ...: as safetensors writes it.
const char* FileTypeName(FileType type);

/// IEEE binary16 to float32, exact (subnormals, infinities and NaN too).
inline float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1f, mantissa = half & 0x3ff;
  uint32_t bits;
  if (exponent == 0x1f) {
    bits = sign | 0x7f800000u | (mantissa << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else {
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
    std::memcpy(&bits, &magnitude, sizeof(bits));
    bits |= sign;
  }
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float BFloatToFloat(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

/// float32 to bfloat16, to nearest, ties to even; NaN stays NaN.
inline uint16_t FloatToBFloat(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/// out[i] = element i of `bytes`, which holds out.size() elements of a floating type. False for integer types.
bool ToFloat32(FileType type, std::span<const std::byte> bytes, std::span<float> out);

}  // namespace optod::nn

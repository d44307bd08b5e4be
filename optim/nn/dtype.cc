#include "optim/nn/dtype.h"

namespace optod::nn {
namespace {

template <typename Word, typename Convert>
void Each(std::span<const std::byte> bytes, std::span<float> out, Convert convert) {
  for (size_t i = 0; i < out.size(); ++i) {
    Word word;
    std::memcpy(&word, bytes.data() + i * sizeof(Word), sizeof(Word));  // files need not be aligned
    out[i] = convert(word);
  }
}

}  // namespace

size_t ElementBytes(FileType type) {
  switch (type) {
    case FileType::kF64:
    case FileType::kI64:
      return 8;
    case FileType::kF32:
    case FileType::kI32:
      return 4;
    case FileType::kF16:
    case FileType::kBF16:
    case FileType::kI16:
      return 2;
    default:
      return 1;
  }
}

const char* FileTypeName(FileType type) {
  static constexpr const char* kNames[] = {"F32", "F16", "BF16", "F64", "I64", "I32", "I16", "I8", "U8", "BOOL"};
  return kNames[static_cast<size_t>(type)];
}

bool ToFloat32(FileType type, std::span<const std::byte> bytes, std::span<float> out) {
  switch (type) {
    case FileType::kF32:
      std::memcpy(out.data(), bytes.data(), out.size() * sizeof(float));
      return true;
    case FileType::kF16:
      Each<uint16_t>(bytes, out, HalfToFloat);
      return true;
    case FileType::kBF16:
      Each<uint16_t>(bytes, out, BFloatToFloat);
      return true;
    case FileType::kF64:
      Each<double>(bytes, out, [](double v) { return static_cast<float>(v); });
      return true;
    default:
      return false;
  }
}

}  // namespace optod::nn

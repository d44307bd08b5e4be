#include "optim/tier/codec.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "base/status.h"
#include "optim/rules/half.h"
#include "optim/zo/stream.h"

namespace optod::tier {
namespace {

constexpr uint32_t kRoundingQuery = 0xfffffffeu;  // no direction has it
constexpr size_t kTile = 1024;
constexpr float kLargestFp8 = 448.0f;

// Rounded at random, exact for what float16 holds: a random fraction of one step is added, with so few bits that the sum
// of it and a whole number of steps is exact in float32.
uint16_t ToF16Stochastic(float value, uint32_t word) {
  const uint32_t u = optim::half::FloatToBits(value), a = u & 0x7fffffffu;
  const auto sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  if (a >= 0x7f800000u) return optim::half::ToF16(value);
  if (a < 0x38800000u) {  // below 2^-14: steps of 2^-24
    const float scaled = optim::half::BitsToFloat(a) * 0x1p24f;
    return sign | static_cast<uint16_t>(std::floor(scaled + static_cast<float>(word >> 19) * 0x1p-13f));
  }
  const uint32_t rounded = (a + (word & 0x1fffu) - 0x38000000u) >> 13;
  return sign | static_cast<uint16_t>(std::min<uint32_t>(rounded, 0x7c00u));
}

// e4m3: sign, 4 bits of exponent (bias 7), 3 of mantissa; 0x7f is NaN.
uint8_t ToFp8Stochastic(float value, uint32_t word) {
  const auto sign = static_cast<uint8_t>(std::signbit(value) ? 0x80u : 0u);
  const float a = std::min(std::fabs(value), kLargestFp8);
  if (!(a >= 0)) return 0x7f;
  const int exponent = std::max(a > 0 ? std::ilogb(a) : -6, -6);
  const float steps = std::ldexp(a, 3 - exponent);  // 8 .. 16 for normal values
  const auto rounded = static_cast<int>(std::floor(steps + static_cast<float>(word >> 13) * 0x1p-19f));
  const int code = std::min((exponent + 6) * 8 + rounded, 0x7e);  // 16 steps carry into the exponent by themselves
  return sign | static_cast<uint8_t>(code);
}

float FromFp8(uint8_t code) {
  const int magnitude = code & 0x7f;
  if (magnitude == 0x7f) return NAN;
  const int exponent = magnitude >> 3, mantissa = magnitude & 7;
  const float a = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (code & 0x80) != 0 ? -a : a;
}
const std::array<float, 256>& Fp8Table() {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> t;
    for (int i = 0; i < 256; ++i) t[static_cast<size_t>(i)] = FromFp8(static_cast<uint8_t>(i));
    return t;
  }();
  return table;
}

template <class Code, class Round>
void EncodeTiles(std::span<const float> values, const Rounding& r, Round round, std::byte* out) {
  std::array<uint32_t, kTile> words;
  for (size_t at = 0; at < values.size(); at += kTile) {
    const size_t n = std::min(kTile, values.size() - at);
    zo::FillBits({r.seed, r.step, kRoundingQuery}, r.uid, r.first + at, {words.data(), n});
    for (size_t i = 0; i < n; ++i) {
      const Code code = round(values[at + i], words[i]);
      std::memcpy(out + (at + i) * sizeof(Code), &code, sizeof code);
    }
  }
}

// A power of two, so that dividing by it and multiplying again are exact; top / scale <= 448 = 1.75 * 2^8.
float RowScale(float top) {
  if (!(top > 0) || !std::isfinite(top)) return 1.0f;
  const int exponent = std::ilogb(top);
  return std::ldexp(1.0f, exponent - 8 + (top > std::ldexp(1.75f, exponent) ? 1 : 0));
}

void EncodeRowsFp8(std::span<const float> values, size_t columns, Rounding r, std::byte* out) {
  for (size_t at = 0; at < values.size(); at += columns, r.first += columns, out += sizeof(float) + columns) {
    const std::span<const float> row = values.subspan(at, columns);
    float top = 0;
    for (float x : row) top = std::max(top, std::fabs(x));
    const float scale = RowScale(top);
    std::memcpy(out, &scale, sizeof scale);
    EncodeTiles<uint8_t>(row, r, [scale](float x, uint32_t word) { return ToFp8Stochastic(x / scale, word); },
                         out + sizeof scale);
  }
}

}  // namespace

absl::StatusOr<Codec> ParseCodec(const std::string& name) {
  for (Codec codec : {Codec::kNone, Codec::kBf16, Codec::kF16, Codec::kFp8}) {
    if (name == CodecName(codec)) return codec;
  }
  return InvalidArgument("codec: \"", name, "\" is not one of none, bf16, fp16, fp8");
}

const char* CodecName(Codec codec) {
  switch (codec) {
    case Codec::kNone:
      return "none";
    case Codec::kBf16:
      return "bf16";
    case Codec::kF16:
      return "fp16";
    case Codec::kFp8:
      return "fp8";
  }
  return "";
}

size_t CodedBytes(Codec codec, size_t elements, size_t columns) {
  switch (codec) {
    case Codec::kNone:
      return elements * sizeof(float);
    case Codec::kBf16:
    case Codec::kF16:
      return elements * 2;
    case Codec::kFp8:
      return elements + elements / columns * sizeof(float);
  }
  return 0;
}

void Encode(Codec codec, std::span<const float> values, size_t columns, const Rounding& rounding,
            std::span<std::byte> out) {
  switch (codec) {
    case Codec::kNone:
      std::memcpy(out.data(), values.data(), values.size_bytes());
      return;
    case Codec::kBf16:
      return EncodeTiles<uint16_t>(values, rounding, &optim::half::ToBf16Stochastic, out.data());
    case Codec::kF16:
      return EncodeTiles<uint16_t>(values, rounding, &ToF16Stochastic, out.data());
    case Codec::kFp8:
      return EncodeRowsFp8(values, columns, rounding, out.data());
  }
}

void Decode(Codec codec, std::span<const std::byte> coded, size_t columns, std::span<float> values) {
  if (codec == Codec::kNone) {
    std::memcpy(values.data(), coded.data(), values.size_bytes());
    return;
  }
  if (codec == Codec::kFp8) {
    const std::byte* at = coded.data();
    for (size_t first = 0; first < values.size(); first += columns, at += sizeof(float) + columns) {
      float scale;
      std::memcpy(&scale, at, sizeof scale);
      for (size_t i = 0; i < columns; ++i)
        values[first + i] = Fp8Table()[std::to_integer<uint8_t>(at[sizeof scale + i])] * scale;
    }
    return;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t code;
    std::memcpy(&code, coded.data() + 2 * i, sizeof code);
    values[i] = codec == Codec::kBf16 ? optim::half::FromBf16(code) : optim::half::FromF16(code);
  }
}

}  // namespace optod::tier

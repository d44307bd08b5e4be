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

constexpr size_t kTile = 1024;

const std::array<float, 256>& Fp8Table() {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> t;
    for (int i = 0; i < 256; ++i) t[static_cast<size_t>(i)] = element::FromFp8(static_cast<uint8_t>(i));
    return t;
  }();
  return table;
}

template <class Code, class Round>
void EncodeTiles(std::span<const float> values, const Rounding& r, Round round, std::byte* out) {
  std::array<uint32_t, kTile> words;
  for (size_t at = 0; at < values.size(); at += kTile) {
    const size_t n = std::min(kTile, values.size() - at);
    zo::FillBits({r.seed, r.step, kCodecQuery}, r.uid, r.first + at, {words.data(), n});
    for (size_t i = 0; i < n; ++i) {
      const Code code = round(values[at + i], words[i]);
      std::memcpy(out + (at + i) * sizeof(Code), &code, sizeof code);
    }
  }
}

void EncodeRowsFp8(std::span<const float> values, size_t columns, Rounding r, std::byte* out) {
  for (size_t at = 0; at < values.size(); at += columns, r.first += columns, out += sizeof(float) + columns) {
    const std::span<const float> row = values.subspan(at, columns);
    float top = 0;
    for (float x : row) top = std::max(top, std::fabs(x));
    const float scale = element::RowScale(top);
    std::memcpy(out, &scale, sizeof scale);
    EncodeTiles<uint8_t>(row, r, [scale](float x, uint32_t word) { return element::ToFp8Stochastic(x / scale, word); },
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

void Encode(Codec codec, std::span<const float> values, size_t columns, const Rounding& rounding,
            std::span<std::byte> out) {
  switch (codec) {
    case Codec::kNone:
      std::memcpy(out.data(), values.data(), values.size_bytes());
      return;
    case Codec::kBf16:
      return EncodeTiles<uint16_t>(values, rounding, &optim::half::ToBf16Stochastic, out.data());
    case Codec::kF16:
      return EncodeTiles<uint16_t>(values, rounding, &element::ToF16Stochastic, out.data());
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

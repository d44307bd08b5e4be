// Layouts as ggml defines them (ggml-org/ggml, src/ggml-common.h): d and m are float16 scales, q small integers.
#include "optim/nn/gguf_blocks.h"

#include <cstring>

#include "optim/nn/dtype.h"
#include "optim/nn/gguf.h"

namespace optod::nn {
namespace {

uint16_t Word(const std::byte* at) {
  uint16_t word;
  std::memcpy(&word, at, 2);
  return word;
}
float Half(const std::byte* at) { return HalfToFloat(Word(at)); }
int Byte(const std::byte* at, int i) { return static_cast<int>(at[i]); }

void F32(const std::byte* b, float* out) { std::memcpy(out, b, 4); }
void F16(const std::byte* b, float* out) { *out = Half(b); }
void BF16(const std::byte* b, float* out) { *out = BFloatToFloat(Word(b)); }

/// 32 values, the low nibbles first: x = (q - 8) d.
void Q4_0(const std::byte* b, float* out) {
  const float d = Half(b);
  for (int j = 0; j < 16; ++j) {
    out[j] = static_cast<float>((Byte(b + 2, j) & 15) - 8) * d;
    out[j + 16] = static_cast<float>((Byte(b + 2, j) >> 4) - 8) * d;
  }
}

/// x = q d + m.
void Q4_1(const std::byte* b, float* out) {
  const float d = Half(b), m = Half(b + 2);
  for (int j = 0; j < 16; ++j) {
    out[j] = static_cast<float>(Byte(b + 4, j) & 15) * d + m;
    out[j + 16] = static_cast<float>(Byte(b + 4, j) >> 4) * d + m;
  }
}

/// The fifth bits of the 32 values are one word in front.
void Fifth(const std::byte* bits, const std::byte* nibbles, int j, int* low, int* high) {
  uint32_t word;
  std::memcpy(&word, bits, 4);
  *low = (Byte(nibbles, j) & 15) | static_cast<int>(((word >> j) & 1) << 4);
  *high = (Byte(nibbles, j) >> 4) | static_cast<int>(((word >> (j + 16)) & 1) << 4);
}
void Q5_0(const std::byte* b, float* out) {
  const float d = Half(b);
  for (int j = 0, low, high; j < 16; ++j) {
    Fifth(b + 2, b + 6, j, &low, &high);
    out[j] = static_cast<float>(low - 16) * d;
    out[j + 16] = static_cast<float>(high - 16) * d;
  }
}
void Q5_1(const std::byte* b, float* out) {
  const float d = Half(b), m = Half(b + 2);
  for (int j = 0, low, high; j < 16; ++j) {
    Fifth(b + 4, b + 8, j, &low, &high);
    out[j] = static_cast<float>(low) * d + m;
    out[j + 16] = static_cast<float>(high) * d + m;
  }
}

void Q8_0(const std::byte* b, float* out) {
  const float d = Half(b);
  for (int j = 0; j < 32; ++j) out[j] = static_cast<float>(static_cast<int8_t>(b[2 + j])) * d;
}

/// Scale and minimum number j of the 8 of a Q4_K block: 6 bits each, packed in 12 bytes.
void ScaleMin(const std::byte* packed, int j, int* scale, int* minimum) {
  if (j < 4) {
    *scale = Byte(packed, j) & 63;
    *minimum = Byte(packed, j + 4) & 63;
  } else {
    *scale = (Byte(packed, j + 4) & 15) | ((Byte(packed, j - 4) >> 6) << 4);
    *minimum = (Byte(packed, j + 4) >> 4) | ((Byte(packed, j) >> 6) << 4);
  }
}

/// 256 values in 8 groups of 32: x = d scale q - dmin minimum.
void Q4_K(const std::byte* b, float* out) {
  const float d = Half(b), dmin = Half(b + 2);
  for (int group = 0; group < 8; ++group) {
    int scale, minimum;
    ScaleMin(b + 4, group, &scale, &minimum);
    const float step = d * static_cast<float>(scale), base = dmin * static_cast<float>(minimum);
    const std::byte* q = b + 16 + group / 2 * 32;
    for (int j = 0; j < 32; ++j) {
      const int value = group % 2 == 0 ? Byte(q, j) & 15 : Byte(q, j) >> 4;
      out[group * 32 + j] = step * static_cast<float>(value) - base;
    }
  }
}

/// 256 values in 16 groups of 16: x = d scale (q - 32); q has 4 low bits in ql, 2 high bits in qh.
void Q6_K(const std::byte* b, float* out) {
  const float d = Half(b + 208);
  for (int half = 0; half < 2; ++half) {
    const std::byte *ql = b + half * 64, *qh = b + 128 + half * 32, *scales = b + 192 + half * 8;
    for (int quarter = 0; quarter < 4; ++quarter) {
      for (int l = 0; l < 32; ++l) {
        const int low = quarter < 2 ? Byte(ql, l + quarter * 32) & 15 : Byte(ql, l + (quarter - 2) * 32) >> 4;
        const int q = (low | (((Byte(qh, l) >> (2 * quarter)) & 3) << 4)) - 32;
        const int scale = static_cast<int8_t>(scales[quarter * 2 + l / 16]);
        out[half * 128 + quarter * 32 + l] = d * static_cast<float>(scale) * static_cast<float>(q);
      }
    }
  }
}

constexpr BlockFormat kFormats[] = {
    {0, "F32", 1, 4, &F32},     {1, "F16", 1, 2, &F16},        {2, "Q4_0", 32, 18, &Q4_0},
    {3, "Q4_1", 32, 20, &Q4_1}, {6, "Q5_0", 32, 22, &Q5_0},    {7, "Q5_1", 32, 24, &Q5_1},
    {8, "Q8_0", 32, 34, &Q8_0}, {12, "Q4_K", 256, 144, &Q4_K}, {14, "Q6_K", 256, 210, &Q6_K},
    {30, "BF16", 1, 2, &BF16},
};

}  // namespace

const BlockFormat* FindBlockFormat(uint32_t type) {
  for (const BlockFormat& format : kFormats) {
    if (format.type == type) return &format;
  }
  return nullptr;
}

void DequantizeGguf(uint32_t type, std::span<const std::byte> data, std::span<float> out) {
  const BlockFormat* format = FindBlockFormat(type);
  if (format == nullptr) return;
  const std::byte* at = data.data();
  for (size_t i = 0; i < out.size(); i += format->elements, at += format->bytes) format->widen(at, out.data() + i);
}

}  // namespace optod::nn

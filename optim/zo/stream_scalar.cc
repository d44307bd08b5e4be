// The reference of the stream: plain C++, one block at a time. Compiled without contraction of a*b+c (see
// CMakeLists.txt).
#include <bit>
#include <cmath>

#include "optim/zo/normal_constants.h"
#include "optim/zo/stream.h"
#include "optim/zo/stream_kernels.h"
#include "optim/zo/stream_slices.h"

namespace optod::zo {

using namespace constants;

std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t product0 = uint64_t{kMul0} * counter[0];
    const uint64_t product1 = uint64_t{kMul1} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(product0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

namespace {

template <size_t n>
float Horner(const float (&c)[n], float x) {
  float p = c[n - 1];
  for (size_t k = n - 1; k-- > 0;) p = p * x + c[k];
  return p;
}

// Box-Muller on two words, as normal_constants.h defines it.
void NormalPair(uint32_t radius_word, uint32_t angle_word, float* z_even, float* z_odd) {
  const float u = (static_cast<float>(static_cast<int32_t>(radius_word >> 1)) + 1.0f) * kTwoToMinus31;
  const int32_t bits = std::bit_cast<int32_t>(u);
  const int32_t exponent = (bits - kSqrtHalfBits) >> 23;
  const float f = std::bit_cast<float>(bits - exponent * (1 << 23)) - 1.0f;
  float r = std::sqrt(static_cast<float>(exponent) * kMinusTwoLn2 + f * Horner(kLog, f));
  r = std::bit_cast<float>(std::bit_cast<uint32_t>(r) ^ (radius_word << 31));
  const float y = static_cast<float>(static_cast<int32_t>(angle_word)) * kTwoToMinus31;
  const float y2 = y * y;
  *z_even = r * Horner(kCos, y2);
  *z_odd = r * (y * Horner(kSin, y2));
}

void Block(const kernels::StreamKey& key, uint32_t block, float z[4]) {
  const auto x = Philox4x32({block, key.word1, key.query, key.step}, {key.key0, key.key1});
  NormalPair(x[0], x[1], &z[0], &z[1]);
  NormalPair(x[2], x[3], &z[2], &z[3]);
}

void Fill(const kernels::StreamKey& key, uint32_t block, size_t blocks, float* z) {
  for (size_t b = 0; b < blocks; ++b) Block(key, block + static_cast<uint32_t>(b), z + 4 * b);
}

void Add(const kernels::StreamKey& key, uint32_t block, size_t blocks, float scale, const float* in, float* out) {
  for (size_t b = 0; b < blocks; ++b) {
    float z[4];
    Block(key, block + static_cast<uint32_t>(b), z);
    kernels::AddScaled(scale, z, in + 4 * b, out + 4 * b, 4);
  }
}

void Pair(const kernels::StreamKey& key, uint32_t block, size_t blocks, float scale, const float* in, float* plus,
          float* minus) {
  for (size_t b = 0; b < blocks; ++b) {
    float z[4];
    Block(key, block + static_cast<uint32_t>(b), z);
    kernels::AddScaledPair(scale, z, in + 4 * b, plus + 4 * b, minus + 4 * b, 4);
  }
}

}  // namespace

namespace kernels {

void AddScaled(float scale, const float* z, const float* in, float* out, size_t n) {
  for (size_t i = 0; i < n; ++i) out[i] = in[i] + scale * z[i];
}

void AddScaledPair(float scale, const float* z, const float* in, float* plus, float* minus, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    const float step = scale * z[i];
    plus[i] = in[i] + step;
    minus[i] = in[i] - step;
  }
}

const Kernels& Scalar() {
  static constexpr Kernels kScalar = {"scalar", 1, &Fill, &Add, &Pair};
  return kScalar;
}

}  // namespace kernels

void FillNormalScalar(const Direction& direction, uint32_t tensor, uint64_t first, std::span<float> z) {
  for (size_t i = 0; i < z.size(); ++i) {
    const uint64_t element = first + i;
    const uint64_t block = element / 4;
    const uint32_t word1 = tensor + (static_cast<uint32_t>(block >> 32) << 24);
    float of_block[4];
    Block({static_cast<uint32_t>(direction.seed), static_cast<uint32_t>(direction.seed >> 32), word1, direction.query,
           direction.step},
          static_cast<uint32_t>(block), of_block);
    z[i] = of_block[element % 4];
  }
}

}  // namespace optod::zo

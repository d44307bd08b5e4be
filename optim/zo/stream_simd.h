#pragma once
/// Internal to optim/zo: the stream on vectors, written once over a vector type V (stream_avx2.cc, stream_avx512.cc
/// define one each). Everything lives in an unnamed namespace on purpose (see stream_kernels.h).
///
/// Philox: one block per 64-bit lane, the word in its low half; the high half may hold anything, because V::MulWide
/// reads low halves only. So a round is two multiplications, two shifts and two three-way xors, with no shuffle. Lane
/// 2i holds block i and lane 2i+1 block i + half, so that the unpack of (z_even, z_odd) at the end puts every block's
/// four values side by side, in order, over two vectors.

#include <iterator>

#include "optim/zo/normal_constants.h"
#include "optim/zo/stream_kernels.h"

namespace optod::zo::kernels {
namespace {

/// What all blocks of a run share. The last three counter words are the same for all of them, so half of the first two
/// rounds is computed once: the words after round 1 are functions of the first product alone.
template <class V>
struct RoundKeys {
  typename V::I k0[constants::kRounds], k1[constants::kRounds];
  typename V::I word2;         // of round 0, but for the high half of the first product
  typename V::I word0;         // of round 1, but for the high half of the second product
  typename V::I word2_second;  // of round 1, but for the low half of the first product
  typename V::I word3_second;  // of round 1
  explicit RoundKeys(const StreamKey& key) {
    uint32_t a = key.key0, b = key.key1;
    for (int round = 0; round < constants::kRounds; ++round) {
      k0[round] = Same(a);
      k1[round] = Same(b);
      a += constants::kWeyl0;
      b += constants::kWeyl1;
    }
    const uint64_t query = uint64_t{key.query} * constants::kMul1;
    const uint32_t first = High(query) ^ key.word1 ^ key.key0;
    const uint64_t second = uint64_t{first} * constants::kMul0;
    word2 = Same(key.step ^ key.key1);
    word0 = Same(static_cast<uint32_t>(query) ^ (key.key0 + constants::kWeyl0));
    word2_second = Same(High(second) ^ (key.key1 + constants::kWeyl1));
    word3_second = Same(static_cast<uint32_t>(second));
  }
  static typename V::I Same(uint32_t x) { return V::SetInt(static_cast<int32_t>(x)); }
  static uint32_t High(uint64_t x) { return static_cast<uint32_t>(x >> 32); }
};

// Radius words and angle words of n * V::kGroup blocks, pairs (x0, x1) in even and (x2, x3) in odd 32-bit lanes. A
// round waits for two multiplications; independent groups side by side fill that time.
template <class V, int n>
inline void Philox(const RoundKeys<V>& keys, const typename V::I (&block)[n], typename V::I (&radius)[n],
                   typename V::I (&angle)[n]) {
  using I = typename V::I;
  const I mul0 = RoundKeys<V>::Same(constants::kMul0), mul1 = RoundKeys<V>::Same(constants::kMul1);
  I c0[n], c1[n], c2[n], c3[n];
  for (int u = 0; u < n; ++u) {
    const I product0 = V::MulWide(block[u], mul0);
    const I product1 = V::MulWide(V::Xor(V::HighHalf(product0), keys.word2), mul1);
    c0[u] = V::Xor(V::HighHalf(product1), keys.word0);
    c1[u] = product1;
    c2[u] = V::Xor(product0, keys.word2_second);
    c3[u] = keys.word3_second;
  }
  for (int round = 2; round < constants::kRounds; ++round) {
    for (int u = 0; u < n; ++u) {
      const I product0 = V::MulWide(c0[u], mul0), product1 = V::MulWide(c2[u], mul1);
      c0[u] = V::Xor3(V::HighHalf(product1), c1[u], keys.k0[round]);
      c1[u] = product1;
      c2[u] = V::Xor3(V::HighHalf(product0), c3[u], keys.k1[round]);
      c3[u] = product0;
    }
  }
  for (int u = 0; u < n; ++u) {
    radius[u] = V::JoinLow(c0[u], c2[u]);
    angle[u] = V::JoinLow(c1[u], c3[u]);
  }
}

// One step of Horner's rule for n polynomials side by side: a step waits for a product and a sum.
template <class V, int n>
inline void HornerStep(float c, const typename V::F (&x)[n], typename V::F (&p)[n]) {
  for (int u = 0; u < n; ++u) p[u] = V::Add(V::Mul(p[u], x[u]), V::Set(c));
}
template <class V, int n>
inline void HornerStart(float c, typename V::F (&p)[n]) {
  for (int u = 0; u < n; ++u) p[u] = V::Set(c);
}

// Box-Muller on n groups, operation for operation as in normal_constants.h.
template <class V, int n>
inline void NormalPairs(const typename V::I (&radius)[n], const typename V::I (&angle)[n], typename V::F (&z_even)[n],
                        typename V::F (&z_odd)[n]) {
  using F = typename V::F;
  using I = typename V::I;
  constexpr int kLog = std::size(constants::kLog), kArc = std::size(constants::kSin);
  const F one = V::Set(1.0f), scale = V::Set(constants::kTwoToMinus31);
  F f[n], logarithm[n], y[n], y2[n], log[n], sine[n], cosine[n];
  for (int u = 0; u < n; ++u) {
    const I bits = V::Bits(V::Mul(V::Add(V::ToFloat(V::template ShiftRight<1>(radius[u])), one), scale));
    const I exponent = V::template ShiftRightSigned<23>(V::SubInt(bits, V::SetInt(constants::kSqrtHalfBits)));
    f[u] = V::Sub(V::FromBits(V::SubInt(bits, V::template ShiftLeft<23>(exponent))), one);
    logarithm[u] = V::Mul(V::ToFloat(exponent), V::Set(constants::kMinusTwoLn2));
    y[u] = V::Mul(V::ToFloat(angle[u]), scale);
    y2[u] = V::Mul(y[u], y[u]);
  }
  HornerStart<V, n>(constants::kLog[kLog - 1], log);
  HornerStart<V, n>(constants::kSin[kArc - 1], sine);
  HornerStart<V, n>(constants::kCos[kArc - 1], cosine);
  for (int k = kLog - 2; k >= 0; --k) {
    HornerStep<V, n>(constants::kLog[k], f, log);
    if (k < kLog - kArc) continue;
    HornerStep<V, n>(constants::kSin[k - (kLog - kArc)], y2, sine);
    HornerStep<V, n>(constants::kCos[k - (kLog - kArc)], y2, cosine);
  }
  for (int u = 0; u < n; ++u) {
    const I length = V::Bits(V::Sqrt(V::Add(logarithm[u], V::Mul(f[u], log[u]))));
    const F r = V::FromBits(V::Xor(length, V::template ShiftLeft<31>(radius[u])));
    z_even[u] = V::Mul(r, cosine[u]);
    z_odd[u] = V::Mul(r, V::Mul(y[u], sine[u]));
  }
}

// Calls sink(offset, z) with the values of n * V::kGroup blocks that start at block + b, V::kLanes values at a time.
template <class V, int n, class Sink>
inline void GenerateGroups(const RoundKeys<V>& keys, uint32_t block, size_t b, const Sink& sink) {
  using F = typename V::F;
  using I = typename V::I;
  I blocks[n], radius[n], angle[n];
  for (int u = 0; u < n; ++u) {
    const uint32_t start = block + static_cast<uint32_t>(b + u * V::kGroup);
    blocks[u] = V::AddInt(RoundKeys<V>::Same(start), V::BlockOffsets());
  }
  Philox<V, n>(keys, blocks, radius, angle);
  F z_even[n], z_odd[n];
  NormalPairs<V, n>(radius, angle, z_even, z_odd);
  for (int u = 0; u < n; ++u) {
    const size_t offset = 4 * (b + u * V::kGroup);
    sink(offset, V::UnpackLow(z_even[u], z_odd[u]));
    sink(offset + V::kLanes, V::UnpackHigh(z_even[u], z_odd[u]));
  }
}

// All of [block, block + blocks), in order: V::kUnroll groups side by side, then one by one.
template <class V, class Sink>
inline void Generate(const StreamKey& key, uint32_t block, size_t blocks, const Sink& sink) {
  const RoundKeys<V> keys(key);
  const size_t stride = V::kUnroll * V::kGroup;
  size_t b = 0;
  for (; b + stride <= blocks; b += stride) GenerateGroups<V, V::kUnroll>(keys, block, b, sink);
  for (; b < blocks; b += V::kGroup) GenerateGroups<V, 1>(keys, block, b, sink);
}

template <class V>
void FillBlocks(const StreamKey& key, uint32_t block, size_t blocks, float* z) {
  Generate<V>(key, block, blocks, [z](size_t offset, typename V::F value) { V::Store(z + offset, value); });
}

template <class V>
void AddBlocks(const StreamKey& key, uint32_t block, size_t blocks, float scale, const float* in, float* out) {
  const typename V::F factor = V::Set(scale);
  Generate<V>(key, block, blocks, [=](size_t offset, typename V::F value) {
    V::Store(out + offset, V::Add(V::Load(in + offset), V::Mul(factor, value)));
  });
}

template <class V>
void PairBlocks(const StreamKey& key, uint32_t block, size_t blocks, float scale, const float* in, float* plus,
                float* minus) {
  const typename V::F factor = V::Set(scale);
  Generate<V>(key, block, blocks, [=](size_t offset, typename V::F value) {
    const typename V::F theta = V::Load(in + offset), step = V::Mul(factor, value);
    V::Store(plus + offset, V::Add(theta, step));
    V::Store(minus + offset, V::Sub(theta, step));
  });
}

}  // namespace
}  // namespace optod::zo::kernels

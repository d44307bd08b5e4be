#pragma once
/// Internal to optim/zo: the stream on vectors, written once over a vector type V (stream_avx2.cc, stream_avx512.cc
/// define one each). Everything lives in an unnamed namespace on purpose (see stream_kernels.h).
///
/// Philox: one block per 64-bit lane, the word in its low half; the high half may hold anything, because V::MulWide
/// reads low halves only. So a round is two multiplications, two shifts and two three-way xors, with no shuffle. Lane
/// 2i holds block i and lane 2i+1 block i + half, so that the unpack of (z_even, z_odd) at the end puts every block's
/// four values side by side, in order, over two vectors.

#include "optim/zo/normal_constants.h"
#include "optim/zo/stream_kernels.h"

namespace optod::zo::kernels {
namespace {

template <class V, int n>
inline typename V::F Horner(const float (&c)[n], typename V::F x) {
  typename V::F p = V::Set(c[n - 1]);
  for (int k = n - 2; k >= 0; --k) p = V::Add(V::Mul(p, x), V::Set(c[k]));
  return p;
}

template <class V>
struct RoundKeys {
  typename V::I k0[constants::kRounds], k1[constants::kRounds];
  explicit RoundKeys(const StreamKey& key) {
    uint32_t a = key.key0, b = key.key1;
    for (int round = 0; round < constants::kRounds; ++round) {
      k0[round] = V::SetInt(static_cast<int32_t>(a));
      k1[round] = V::SetInt(static_cast<int32_t>(b));
      a += constants::kWeyl0;
      b += constants::kWeyl1;
    }
  }
};

// Radius words and angle words of n * V::kGroup blocks, pairs (x0, x1) in even and (x2, x3) in odd 32-bit lanes. A
// round waits for two multiplications; independent groups side by side fill that time.
template <class V, int n>
inline void Philox(const RoundKeys<V>& keys, typename V::I (&c0)[n], typename V::I word1, typename V::I query,
                   typename V::I step, typename V::I (&radius)[n], typename V::I (&angle)[n]) {
  using I = typename V::I;
  const I mul0 = V::SetInt(static_cast<int32_t>(constants::kMul0)),
          mul1 = V::SetInt(static_cast<int32_t>(constants::kMul1));
  I c1[n], c2[n], c3[n];
  for (int u = 0; u < n; ++u) c1[u] = word1, c2[u] = query, c3[u] = step;
  for (int round = 0; round < constants::kRounds; ++round) {
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

// Box-Muller, operation for operation as in normal_constants.h.
template <class V>
inline void NormalPairs(typename V::I radius, typename V::I angle, typename V::F* z_even, typename V::F* z_odd) {
  using F = typename V::F;
  using I = typename V::I;
  const F one = V::Set(1.0f), scale = V::Set(constants::kTwoToMinus31);
  const F u = V::Mul(V::Add(V::ToFloat(V::template ShiftRight<1>(radius)), one), scale);
  const I bits = V::Bits(u);
  const I exponent = V::template ShiftRightSigned<23>(V::SubInt(bits, V::SetInt(constants::kSqrtHalfBits)));
  const F f = V::Sub(V::FromBits(V::SubInt(bits, V::template ShiftLeft<23>(exponent))), one);
  const F minus_two_log =
      V::Add(V::Mul(V::ToFloat(exponent), V::Set(constants::kMinusTwoLn2)), V::Mul(f, Horner<V>(constants::kLog, f)));
  const F r = V::FromBits(V::Xor(V::Bits(V::Sqrt(minus_two_log)), V::template ShiftLeft<31>(radius)));
  const F y = V::Mul(V::ToFloat(angle), scale);
  const F y2 = V::Mul(y, y);
  *z_even = V::Mul(r, Horner<V>(constants::kCos, y2));
  *z_odd = V::Mul(r, V::Mul(y, Horner<V>(constants::kSin, y2)));
}

// Calls sink(offset, z) with the values of n * V::kGroup blocks that start at block + b, V::kLanes values at a time.
template <class V, int n, class Sink>
inline void GenerateGroups(const RoundKeys<V>& keys, const StreamKey& key, uint32_t block, size_t b, const Sink& sink) {
  using F = typename V::F;
  using I = typename V::I;
  I c0[n], radius[n], angle[n];
  for (int u = 0; u < n; ++u) {
    const uint32_t start = block + static_cast<uint32_t>(b + u * V::kGroup);
    c0[u] = V::AddInt(V::SetInt(static_cast<int32_t>(start)), V::BlockOffsets());
  }
  Philox<V, n>(keys, c0, V::SetInt(static_cast<int32_t>(key.word1)), V::SetInt(static_cast<int32_t>(key.query)),
               V::SetInt(static_cast<int32_t>(key.step)), radius, angle);
  for (int u = 0; u < n; ++u) {
    F z_even, z_odd;
    NormalPairs<V>(radius[u], angle[u], &z_even, &z_odd);
    const size_t offset = 4 * (b + u * V::kGroup);
    sink(offset, V::UnpackLow(z_even, z_odd));
    sink(offset + V::kLanes, V::UnpackHigh(z_even, z_odd));
  }
}

// All of [block, block + blocks), in order: V::kUnroll groups side by side, then one by one.
template <class V, class Sink>
inline void Generate(const StreamKey& key, uint32_t block, size_t blocks, const Sink& sink) {
  const RoundKeys<V> keys(key);
  const size_t stride = V::kUnroll * V::kGroup;
  size_t b = 0;
  for (; b + stride <= blocks; b += stride) GenerateGroups<V, V::kUnroll>(keys, key, block, b, sink);
  for (; b < blocks; b += V::kGroup) GenerateGroups<V, 1>(keys, key, block, b, sink);
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

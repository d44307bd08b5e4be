// The stream on AVX2: 4 blocks, 16 values, at a time. Compiled for that instruction set; reached only when the CPU has
// it.
#include <immintrin.h>

#include "optim/zo/stream_simd.h"

namespace optod::zo::kernels {
namespace {

struct V256 {
  using F = __m256;
  using I = __m256i;
  static constexpr size_t kLanes = 8, kGroup = 4;
  static constexpr int kUnroll = 4;  // fastest of 1..4 on Zen 4
  static F Set(float x) { return _mm256_set1_ps(x); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Sqrt(F a) { return _mm256_sqrt_ps(a); }
  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, F a) { _mm256_storeu_ps(p, a); }
  static F UnpackLow(F a, F b) { return _mm256_unpacklo_ps(a, b); }
  static F UnpackHigh(F a, F b) { return _mm256_unpackhi_ps(a, b); }
  static F FromBits(I a) { return _mm256_castsi256_ps(a); }
  static I Bits(F a) { return _mm256_castps_si256(a); }
  static F ToFloat(I a) { return _mm256_cvtepi32_ps(a); }
  static I SetInt(int32_t x) { return _mm256_set1_epi32(x); }
  static I AddInt(I a, I b) { return _mm256_add_epi32(a, b); }
  static I SubInt(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I Xor(I a, I b) { return _mm256_xor_si256(a, b); }
  static I Xor3(I a, I b, I c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
  static I MulWide(I a, I b) { return _mm256_mul_epu32(a, b); }
  static I HighHalf(I a) { return _mm256_srli_epi64(a, 32); }
  static I JoinLow(I low, I high) { return _mm256_blend_epi32(low, _mm256_slli_epi64(high, 32), 0xAA); }
  static I BlockOffsets() { return _mm256_set_epi64x(3, 1, 2, 0); }
  template <int n>
  static I ShiftRight(I a) {
    return _mm256_srli_epi32(a, n);
  }
  template <int n>
  static I ShiftRightSigned(I a) {
    return _mm256_srai_epi32(a, n);
  }
  template <int n>
  static I ShiftLeft(I a) {
    return _mm256_slli_epi32(a, n);
  }
};

}  // namespace

constexpr Kernels kAvx2Kernels = {"avx2", V256::kGroup, &FillBlocks<V256>, &AddBlocks<V256>, &PairBlocks<V256>};

}  // namespace optod::zo::kernels

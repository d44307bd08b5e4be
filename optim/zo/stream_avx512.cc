// The stream on AVX-512 (F, DQ): 8 blocks, 32 values, at a time. Compiled for that instruction set; reached only when
// the CPU has it.
#include <immintrin.h>

#include "optim/zo/stream_simd.h"

namespace optod::zo::kernels {
namespace {

struct V512 {
  using F = __m512;
  using I = __m512i;
  static constexpr size_t kLanes = 16, kGroup = 8;
  static constexpr int kUnroll = 4;  // fastest of 1..4 on Zen 4
  static F Set(float x) { return _mm512_set1_ps(x); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Sqrt(F a) { return _mm512_sqrt_ps(a); }
  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, F a) { _mm512_storeu_ps(p, a); }
  static F UnpackLow(F a, F b) { return _mm512_unpacklo_ps(a, b); }
  static F UnpackHigh(F a, F b) { return _mm512_unpackhi_ps(a, b); }
  static F FromBits(I a) { return _mm512_castsi512_ps(a); }
  static I Bits(F a) { return _mm512_castps_si512(a); }
  static F ToFloat(I a) { return _mm512_cvtepi32_ps(a); }
  static I SetInt(int32_t x) { return _mm512_set1_epi32(x); }
  static I AddInt(I a, I b) { return _mm512_add_epi32(a, b); }
  static I SubInt(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I Xor(I a, I b) { return _mm512_xor_si512(a, b); }
  static I Xor3(I a, I b, I c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
  static I MulWide(I a, I b) { return _mm512_mul_epu32(a, b); }
  static I HighHalf(I a) { return _mm512_srli_epi64(a, 32); }
  static I JoinLow(I low, I high) { return _mm512_mask_shuffle_epi32(low, 0xAAAA, high, _MM_PERM_CCAA); }
  static I BlockOffsets() { return _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0); }
  template <int n>
  static I ShiftRight(I a) {
    return _mm512_srli_epi32(a, n);
  }
  template <int n>
  static I ShiftRightSigned(I a) {
    return _mm512_srai_epi32(a, n);
  }
  template <int n>
  static I ShiftLeft(I a) {
    return _mm512_slli_epi32(a, n);
  }
};

}  // namespace

constexpr Kernels kAvx512Kernels = {"avx512", V512::kGroup, &FillBlocks<V512>, &AddBlocks<V512>, &PairBlocks<V512>};

}  // namespace optod::zo::kernels

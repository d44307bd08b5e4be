// Whole vectors of the 8-bit code (dynamic_code.h) for the instruction set that OPTOD_VECTOR_LANES stands for: 16 =
// AVX-512, 8 = AVX2, none = nothing. Included by kernels_body.h inside its unnamed namespace; <immintrin.h> is included
// there. The operations are those of DynamicValue and DynamicNearest, in their order. Both return how many of the n
// elements they did; tables of eight are looked up by a permutation whose index counts modulo eight.

#if OPTOD_VECTOR_LANES == 16

inline __m512 Eight(const float* table) { return _mm512_broadcast_f32x8(_mm256_loadu_ps(table)); }

template <bool kSigned>
inline int64_t DecodeVectors(const DynamicDecades& t, const uint8_t* codes, float scale, float* y, int64_t n) {
  const __m512 first = Eight(t.first), span = Eight(t.span), one = _mm512_set1_ps(1), factor = _mm512_set1_ps(scale);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i)));
    const __m512i signed_place = _mm512_add_epi32(code, _mm512_set1_epi32(kSigned ? -127 : 1));
    const __m512i place = _mm512_abs_epi32(signed_place);
    const __m512i bits = _mm512_castps_si512(_mm512_cvtepi32_ps(place));
    const __m512i d = _mm512_sub_epi32(_mm512_srli_epi32(bits, 23), _mm512_set1_epi32(kSigned ? 127 : 128));
    const __m512i mantissa =
        _mm512_or_si512(_mm512_and_si512(bits, _mm512_set1_epi32(0x7fffff)), _mm512_set1_epi32(0x3f800000));
    const __m512 fraction = _mm512_sub_ps(_mm512_castsi512_ps(mantissa), one);
    __m512 value =
        _mm512_add_ps(_mm512_permutexvar_ps(d, first), _mm512_mul_ps(_mm512_permutexvar_ps(d, span), fraction));
    value = _mm512_maskz_mov_ps(_mm512_cmpge_epi32_mask(place, _mm512_set1_epi32(kSigned ? 1 : 2)), value);
    if (kSigned) {
      const __m512i sign = _mm512_and_si512(signed_place, _mm512_set1_epi32(static_cast<int>(0x80000000u)));
      value = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(value), sign));
    }
    _mm512_storeu_ps(y + i, _mm512_mul_ps(factor, value));
  }
  return i;
}

template <bool kSigned>
inline int64_t EncodeVectors(const DynamicDecades& t, const float* x, float inverse, uint8_t* codes, int64_t n) {
  const __m512 low = Eight(t.low), rate = Eight(t.rate), factor = _mm512_set1_ps(inverse);
  const __m512i one = _mm512_set1_epi32(1), zero = _mm512_setzero_si512();
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512 value = _mm512_mul_ps(_mm512_loadu_ps(x + i), factor);
    const __m512 a = _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(value), _mm512_set1_epi32(0x7fffffff)));
    __m512i d = zero;
#pragma GCC unroll 7
    for (int k = 1; k < 8; ++k)
      d = _mm512_mask_add_epi32(d, _mm512_cmp_ps_mask(a, _mm512_set1_ps(t.from[k]), _CMP_GT_OQ), d, one);
    const __m512i base = _mm512_sllv_epi32(one, kSigned ? d : _mm512_add_epi32(d, one));
    const __m512 at = _mm512_mul_ps(_mm512_sub_ps(a, _mm512_permutexvar_ps(d, low)), _mm512_permutexvar_ps(d, rate));
    __m512i part = _mm512_max_epi32(_mm512_cvttps_epi32(at), zero);
    part = _mm512_min_epi32(part, _mm512_sub_epi32(base, one));
    const __mmask16 not_zero = _mm512_cmp_ps_mask(a, _mm512_set1_ps(t.from[0]), _CMP_GT_OQ);
    __m512i place = _mm512_mask_add_epi32(kSigned ? zero : one, not_zero, base, part);
    if (kSigned) {
      const __mmask16 down = _mm512_cmp_ps_mask(value, _mm512_setzero_ps(), _CMP_LT_OQ);
      place = _mm512_mask_sub_epi32(place, down, zero, _mm512_min_epi32(place, _mm512_set1_epi32(127)));
    }
    place = _mm512_add_epi32(place, _mm512_set1_epi32(kSigned ? 127 : -1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), _mm512_cvtepi32_epi8(place));
  }
  return i;
}

#elif OPTOD_VECTOR_LANES == 8

template <bool kSigned>
inline int64_t DecodeVectors(const DynamicDecades& t, const uint8_t* codes, float scale, float* y, int64_t n) {
  const __m256 first = _mm256_loadu_ps(t.first), span = _mm256_loadu_ps(t.span), one = _mm256_set1_ps(1),
               factor = _mm256_set1_ps(scale);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i)));
    const __m256i signed_place = _mm256_add_epi32(code, _mm256_set1_epi32(kSigned ? -127 : 1));
    const __m256i place = _mm256_abs_epi32(signed_place);
    const __m256i bits = _mm256_castps_si256(_mm256_cvtepi32_ps(place));
    const __m256i d = _mm256_sub_epi32(_mm256_srli_epi32(bits, 23), _mm256_set1_epi32(kSigned ? 127 : 128));
    const __m256i mantissa =
        _mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi32(0x7fffff)), _mm256_set1_epi32(0x3f800000));
    const __m256 fraction = _mm256_sub_ps(_mm256_castsi256_ps(mantissa), one);
    __m256 value = _mm256_add_ps(_mm256_permutevar8x32_ps(first, d),
                                 _mm256_mul_ps(_mm256_permutevar8x32_ps(span, d), fraction));
    const __m256i keep = _mm256_cmpgt_epi32(place, _mm256_set1_epi32(kSigned ? 0 : 1));
    value = _mm256_and_ps(value, _mm256_castsi256_ps(keep));
    if (kSigned) {
      const __m256i sign = _mm256_and_si256(signed_place, _mm256_set1_epi32(static_cast<int>(0x80000000u)));
      value = _mm256_xor_ps(value, _mm256_castsi256_ps(sign));
    }
    _mm256_storeu_ps(y + i, _mm256_mul_ps(factor, value));
  }
  return i;
}

template <bool kSigned>
inline int64_t EncodeVectors(const DynamicDecades& t, const float* x, float inverse, uint8_t* codes, int64_t n) {
  const __m256 low = _mm256_loadu_ps(t.low), rate = _mm256_loadu_ps(t.rate), factor = _mm256_set1_ps(inverse);
  const __m256i one = _mm256_set1_epi32(1), zero = _mm256_setzero_si256();
  const __m256i low_bytes = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                             0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 value = _mm256_mul_ps(_mm256_loadu_ps(x + i), factor);
    const __m256 a = _mm256_and_ps(value, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
    __m256i d = zero;
#pragma GCC unroll 7
    for (int k = 1; k < 8; ++k)
      d = _mm256_sub_epi32(d, _mm256_castps_si256(_mm256_cmp_ps(a, _mm256_set1_ps(t.from[k]), _CMP_GT_OQ)));
    const __m256i base = _mm256_sllv_epi32(one, kSigned ? d : _mm256_add_epi32(d, one));
    const __m256 at = _mm256_mul_ps(_mm256_sub_ps(a, _mm256_permutevar8x32_ps(low, d)), _mm256_permutevar8x32_ps(rate, d));
    __m256i part = _mm256_max_epi32(_mm256_cvttps_epi32(at), zero);
    part = _mm256_min_epi32(part, _mm256_sub_epi32(base, one));
    const __m256i not_zero = _mm256_castps_si256(_mm256_cmp_ps(a, _mm256_set1_ps(t.from[0]), _CMP_GT_OQ));
    __m256i place = _mm256_blendv_epi8(kSigned ? zero : one, _mm256_add_epi32(base, part), not_zero);
    if (kSigned) {
      const __m256i down = _mm256_castps_si256(_mm256_cmp_ps(value, _mm256_setzero_ps(), _CMP_LT_OQ));
      const __m256i negative = _mm256_sub_epi32(zero, _mm256_min_epi32(place, _mm256_set1_epi32(127)));
      place = _mm256_blendv_epi8(place, negative, down);
    }
    place = _mm256_shuffle_epi8(_mm256_add_epi32(place, _mm256_set1_epi32(kSigned ? 127 : -1)), low_bytes);
    const int32_t bytes[2] = {_mm256_extract_epi32(place, 0), _mm256_extract_epi32(place, 4)};
    __builtin_memcpy(codes + i, bytes, 8);
  }
  return i;
}

#else

template <bool kSigned>
inline int64_t DecodeVectors(const DynamicDecades&, const uint8_t*, float, float*, int64_t) {
  return 0;
}
template <bool kSigned>
inline int64_t EncodeVectors(const DynamicDecades&, const float*, float, uint8_t*, int64_t) {
  return 0;
}

#endif

// Whole vectors of the 8-bit code (dynamic_code.h) for the instruction set that OPTOD_VECTOR_LANES stands for: 16 =
// AVX-512, 8 = AVX2, none = nothing. Included by kernels_body.h inside its unnamed namespace; <immintrin.h> is included
// there. The results are those of DynamicValue and DynamicNearest, bit for bit. Both return how many of the n elements
// they did.

#if OPTOD_VECTOR_LANES == 16

/// The lines of a code in the order in which vectors look them up.
struct DynamicTables {
  // By octave: decades are ten apart, so [2^e, 2^(e + 1)) holds at most one threshold. The index is the exponent's low
  // five bits; magnitudes below 2^-24 count as it.
  float from[32];     ///< the threshold inside the octave, infinite when it has none
  int32_t piece[32];  ///< of magnitudes in the octave up to `from`; one more above it
  // By the low four bits of a place's number of leading zeros.
  float value_slope[16], value_start[16];
};

constexpr DynamicTables MakeDynamicTables(const DynamicDecades& t, bool is_signed) {
  DynamicTables out = {};
  float begin = 1.0f / 16777216;
  for (int e = -24; e < 8; ++e, begin *= 2) {
    const int at = (e + 127) & 31;
    out.from[at] = __builtin_huge_valf();
    for (float from : t.from) {
      if (from < begin) ++out.piece[at];
      if (from >= begin && from < 2 * begin) out.from[at] = from;
    }
  }
  for (int bits = 0; bits < 10; ++bits) {
    const int k = is_signed ? bits : bits - 1;
    if (k < 0 || k > 8) continue;
    out.value_slope[(32 - bits) & 15] = t.value_slope[k];
    out.value_start[(32 - bits) & 15] = t.value_start[k];
  }
  return out;
}
constexpr DynamicTables kTablesSigned = MakeDynamicTables(kDynamicSigned, true),
                        kTablesUnsigned = MakeDynamicTables(kDynamicUnsigned, false);

/// Sixteen codes to factor times their values.
template <bool kSigned>
struct Decoder {
  static constexpr const DynamicTables& kTables = kSigned ? kTablesSigned : kTablesUnsigned;
  __m512 slope = _mm512_loadu_ps(kTables.value_slope), start = _mm512_loadu_ps(kTables.value_start);

  __attribute__((always_inline)) __m512 operator()(const uint8_t* codes, __m512 factor) const {
    const __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    const __m512i signed_place = _mm512_add_epi32(code, _mm512_set1_epi32(kSigned ? -127 : 1));
    const __m512i place = kSigned ? _mm512_abs_epi32(signed_place) : signed_place;
    const __m512i zeros = _mm512_lzcnt_epi32(place);
    __m512 value = _mm512_add_ps(_mm512_permutexvar_ps(zeros, start),
                                 _mm512_mul_ps(_mm512_permutexvar_ps(zeros, slope), _mm512_cvtepi32_ps(place)));
    if (kSigned) {  // value ^ (signed_place & sign)
      value = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(value), signed_place,
                                                            _mm512_set1_epi32(static_cast<int>(0x80000000u)), 0x78));
    }
    return _mm512_mul_ps(factor, value);
  }
};

/// Sixteen times the code nearest to x * inverse.
template <bool kSigned>
struct Encoder {
  static constexpr const DynamicTables& kTables = kSigned ? kTablesSigned : kTablesUnsigned;
  static constexpr const DynamicDecades& kDecades = kSigned ? kDynamicSigned : kDynamicUnsigned;
  __m512 from0 = _mm512_loadu_ps(kTables.from), from1 = _mm512_loadu_ps(kTables.from + 16);
  __m512i piece0 = _mm512_loadu_si512(kTables.piece), piece1 = _mm512_loadu_si512(kTables.piece + 16);
  __m512 rate = _mm512_loadu_ps(kDecades.rate), start = _mm512_loadu_ps(kDecades.start);
  __m512 last = _mm512_cvtepi32_ps(_mm512_loadu_si512(kDecades.last));

  __attribute__((always_inline)) void operator()(__m512 x, __m512 inverse, uint8_t* codes) const {
    const __m512 value = _mm512_mul_ps(x, inverse);
    constexpr int kLargerMagnitude = 0b1011;  // of the two, without its sign; a NaN is not taken
    const __m512 a = _mm512_range_ps(value, _mm512_set1_ps(1.0f / 16777216), kLargerMagnitude);
    const __m512i octave = _mm512_srli_epi32(_mm512_castps_si512(a), 23);
    const __mmask16 above = _mm512_cmp_ps_mask(a, _mm512_permutex2var_ps(from0, octave, from1), _CMP_GT_OQ);
    __m512i k = _mm512_permutex2var_epi32(piece0, octave, piece1);
    k = _mm512_mask_add_epi32(k, above, k, _mm512_set1_epi32(1));
    __m512 exact =
        _mm512_add_ps(_mm512_permutexvar_ps(k, start), _mm512_mul_ps(_mm512_permutexvar_ps(k, rate), a));
    exact = _mm512_min_ps(exact, _mm512_permutexvar_ps(k, last));  // the last place, too, where the line is NaN: at infinity
    if (kSigned) {  // exact | (value & sign): truncation is the same on both sides of zero
      exact = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(exact), _mm512_castps_si512(value),
                                                            _mm512_set1_epi32(static_cast<int>(0x80000000u)), 0xf8));
    }
    __m512i place = _mm512_cvttps_epi32(exact);
    if (kSigned) place = _mm512_max_epi32(place, _mm512_set1_epi32(-127));  // there is no -1
    // A place's code: 127 above it (signed), 1 below it.
    place = _mm512_add_epi32(place, _mm512_set1_epi32(kSigned ? 127 : -1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm512_cvtepi32_epi8(place));
  }
};

template <bool kSigned>
inline int64_t DecodeVectors(const DynamicDecades&, const uint8_t* codes, float scale, float* y, int64_t n) {
  const Decoder<kSigned> decode;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) _mm512_storeu_ps(y + i, decode(codes + i, _mm512_set1_ps(scale)));
  return i;
}

template <bool kSigned>
inline int64_t EncodeVectors(const DynamicDecades&, const float* x, float inverse, uint8_t* codes, int64_t n) {
  const Encoder<kSigned> encode;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) encode(_mm512_loadu_ps(x + i), _mm512_set1_ps(inverse), codes + i);
  return i;
}

#elif OPTOD_VECTOR_LANES == 8

// Tables of eight are looked up by a permutation whose index counts modulo eight: pieces 1 to 8, zero apart.
template <bool kSigned>
inline int64_t DecodeVectors(const DynamicDecades& t, const uint8_t* codes, float scale, float* y, int64_t n) {
  const __m256 slope = _mm256_loadu_ps(t.value_slope + 1), start = _mm256_loadu_ps(t.value_start + 1), factor = _mm256_set1_ps(scale);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i)));
    const __m256i signed_place = _mm256_add_epi32(code, _mm256_set1_epi32(kSigned ? -127 : 1));
    const __m256i place = _mm256_abs_epi32(signed_place);
    const __m256 exact = _mm256_cvtepi32_ps(place);
    const __m256i k = _mm256_sub_epi32(_mm256_srli_epi32(_mm256_castps_si256(exact), 23), _mm256_set1_epi32(kSigned ? 127 : 128));
    __m256 value =
        _mm256_add_ps(_mm256_permutevar8x32_ps(start, k), _mm256_mul_ps(_mm256_permutevar8x32_ps(slope, k), exact));
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
  const __m256 rate = _mm256_loadu_ps(t.rate + 1), start = _mm256_loadu_ps(t.start + 1), factor = _mm256_set1_ps(inverse);
  const __m256i last = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(t.last + 1));
  const __m256i zero = _mm256_setzero_si256();
  const __m256i low_bytes = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                             0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 value = _mm256_mul_ps(_mm256_loadu_ps(x + i), factor);
    const __m256 a = _mm256_and_ps(value, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
    __m256i k = zero;
#pragma GCC unroll 7
    for (int j = 1; j < 8; ++j)
      k = _mm256_sub_epi32(k, _mm256_castps_si256(_mm256_cmp_ps(a, _mm256_set1_ps(t.from[j]), _CMP_GT_OQ)));
    const __m256 exact =
        _mm256_add_ps(_mm256_permutevar8x32_ps(start, k), _mm256_mul_ps(_mm256_permutevar8x32_ps(rate, k), a));
    __m256i place = _mm256_min_epi32(_mm256_cvttps_epi32(exact), _mm256_permutevar8x32_epi32(last, k));
    const __m256i not_zero = _mm256_castps_si256(_mm256_cmp_ps(a, _mm256_set1_ps(t.from[0]), _CMP_GT_OQ));
    place = _mm256_blendv_epi8(kSigned ? zero : _mm256_set1_epi32(1), place, not_zero);
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

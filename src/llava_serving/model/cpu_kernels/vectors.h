// Vectors of 32-bit lanes: 16 lanes with AVX-512 VNNI, 8 with AVX2.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__) && !defined(LLAVA_AVX2)
#define LANES 16
typedef __m512i ints;
typedef __m512 floats;
static inline ints load(const void *p) { return _mm512_loadu_si512(p); }
static inline void store(void *p, ints v) { _mm512_storeu_si512(p, v); }
static inline ints same(int32_t v) { return _mm512_set1_epi32(v); }
static inline ints zero(void) { return _mm512_setzero_si512(); }
static inline ints add32(ints a, ints b) { return _mm512_add_epi32(a, b); }
static inline ints mul32(ints a, ints b) { return _mm512_mullo_epi32(a, b); }
static inline ints add8(ints a, ints b) { return _mm512_add_epi8(a, b); }
static inline ints sub8(ints a, ints b) { return _mm512_sub_epi8(a, b); }
static inline ints mul16(ints a, ints b) { return _mm512_mullo_epi16(a, b); }
static inline ints and_bits(ints a, ints b) { return _mm512_and_si512(a, b); }
static inline ints right16(ints v, int bits) { return _mm512_srli_epi16(v, bits); }
static inline ints left32(ints v, int bits) { return _mm512_slli_epi32(v, bits); }
static inline ints bytes_to_lanes(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p)); }
static inline floats as_floats(ints v) { return _mm512_castsi512_ps(v); }
static inline ints as_ints(floats v) { return _mm512_castps_si512(v); }
static inline floats multiply_add(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
#elif defined(__AVX2__) && defined(__FMA__)
#define LANES 8
typedef __m256i ints;
typedef __m256 floats;
static inline ints load(const void *p) { return _mm256_loadu_si256(p); }
static inline void store(void *p, ints v) { _mm256_storeu_si256(p, v); }
static inline ints same(int32_t v) { return _mm256_set1_epi32(v); }
static inline ints zero(void) { return _mm256_setzero_si256(); }
static inline ints add32(ints a, ints b) { return _mm256_add_epi32(a, b); }
static inline ints mul32(ints a, ints b) { return _mm256_mullo_epi32(a, b); }
static inline ints add8(ints a, ints b) { return _mm256_add_epi8(a, b); }
static inline ints sub8(ints a, ints b) { return _mm256_sub_epi8(a, b); }
static inline ints mul16(ints a, ints b) { return _mm256_mullo_epi16(a, b); }
static inline ints and_bits(ints a, ints b) { return _mm256_and_si256(a, b); }
static inline ints right16(ints v, int bits) { return _mm256_srli_epi16(v, bits); }
static inline ints left32(ints v, int bits) { return _mm256_slli_epi32(v, bits); }
static inline ints bytes_to_lanes(const uint8_t *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p)); }
static inline floats as_floats(ints v) { return _mm256_castsi256_ps(v); }
static inline ints as_ints(floats v) { return _mm256_castps_si256(v); }
static inline floats multiply_add(floats a, floats b, floats c) { return _mm256_fmadd_ps(a, b, c); }
#else
#error "these kernels need AVX2 and FMA"
#endif

// Adds, per lane, the products of four unsigned bytes of w with four signed bytes of x. Exact: nothing saturates.
static inline ints dot_bytes(ints sum, ints w, ints x) {
#if LANES == 16
    return _mm512_dpbusd_epi32(sum, w, x);
#elif defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sum, w, x);
#else
    // maddubs adds two products in 16 bits and saturates, so each call gets only every second byte of w.
    const ints low = _mm256_set1_epi16(0x00ff), ones = _mm256_set1_epi16(1);
    ints even = _mm256_maddubs_epi16(_mm256_and_si256(w, low), x);
    ints odd = _mm256_maddubs_epi16(_mm256_andnot_si256(low, w), x);
    return add32(sum, add32(_mm256_madd_epi16(even, ones), _mm256_madd_epi16(odd, ones)));
#endif
}

// Adds, per lane, the products of two bfloat16 of w with two of x, to a sum in float32.
static inline ints dot_bfloat16(ints sum, ints w, ints x) {
#if LANES == 16 && defined(__AVX512BF16__)
    return as_ints(_mm512_dpbf16_ps(as_floats(sum), (__m512bh)w, (__m512bh)x));
#else
    const ints high = same((int32_t)0xffff0000);
    floats first = multiply_add(as_floats(left32(w, 16)), as_floats(left32(x, 16)), as_floats(sum));
    return as_ints(multiply_add(as_floats(and_bits(w, high)), as_floats(and_bits(x, high)), first));
#endif
}

static inline float from_bfloat16(uint16_t value) {
    uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

// Rounds to nearest, ties to even, as torch does.
static inline uint16_t to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)(value != value ? 0x7fc0 : rounded);
}

/* Arithmetic on vectors of 16 floats: the three kinds of dot products, exp, GELU, transposition.
 *
 * Compiled for AVX-512 F, BW, DQ and VL. VNNI and BF16 are used in the kinds that are named after them only, which a
 * caller asks for after it has looked at the processor.
 */
#ifndef DISTILBERT_VECTOR_H
#define DISTILBERT_VECTOR_H

#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

/* What products multiply. Four bytes of a row hold 1, 2 or 4 numbers; one instruction multiplies 16 times so many. */
enum kind { FLOAT, BFLOAT16, BYTE };

INLINE int group_of(enum kind kind) { return kind == FLOAT ? 1 : kind == BFLOAT16 ? 2 : 4; }

INLINE size_t size_of(enum kind kind) { return 4 / group_of(kind); }

INLINE __mmask16 first_lanes(int count) {
    return count >= LANES ? 0xFFFF : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}

/* sum + a . b: four bytes at a, with each four bytes of b. Sums of bytes are integers in the same registers. */
INLINE __m512 dot(const enum kind kind, __m512 sum, const void *a, __m512i b) {
    if (kind == FLOAT) return _mm512_fmadd_ps(_mm512_set1_ps(*(const float *)a), _mm512_castsi512_ps(b), sum);
    __m512i four = _mm512_set1_epi32(*(const int32_t *)a);
    if (kind == BFLOAT16) return _mm512_dpbf16_ps(sum, (__m512bh)four, (__m512bh)b);
    return _mm512_castsi512_ps(_mm512_dpbusd_epi32(_mm512_castps_si512(sum), four, b));
}

INLINE __m512 from_bfloat16(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

/* Up to 16 numbers, as FLOAT or BFLOAT16. */
INLINE __m512 load_numbers(enum kind kind, const void *from, __mmask16 lanes) {
    if (kind == FLOAT) return _mm512_maskz_loadu_ps(lanes, from);
    return from_bfloat16(_mm256_maskz_loadu_epi16(lanes, from));
}

INLINE void store_numbers(enum kind kind, void *to, __mmask16 lanes, __m512 x) {
    if (kind == FLOAT) _mm512_mask_storeu_ps(to, lanes, x);
    else _mm256_mask_storeu_epi16(to, lanes, (__m256i)_mm512_cvtneps_pbh(x));
}

/* 2^x for x <= 0, by a polynomial of that degree: 6 for floats, 4 where the result becomes bfloat16. NaN for NaN. */
INLINE __m512 exp2_negative(__m512 x, const int degree) {
    static const float powers[] = {1.f,
                                   6.93147181e-1f,
                                   2.40226507e-1f, /* of ln 2, over factorials */
                                   5.55041087e-2f,
                                   9.61812911e-3f,
                                   1.33335581e-3f,
                                   1.54035304e-4f};
    x = _mm512_max_ps(_mm512_set1_ps(-200.f), x); /* where the result is 0 already; NaN stays */
    __m512 n = _mm512_roundscale_ps(x, 8), rest = _mm512_sub_ps(x, n), y = _mm512_set1_ps(powers[degree]);
#pragma GCC unroll 6
    for (int i = degree - 1; i >= 0; i--) y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(powers[i]));
    return _mm512_scalef_ps(y, n);
}

/* GELU(x) = max(x, 0) + q(|x|), where q(a) = -a / 2 erfc(a / sqrt 2) is smooth and vanishes: it is taken for -1e-7
 * from LIMIT on.
 * q is a polynomial in each of 16 intervals, computed once from the C library's erfc. */
#define GELU_DEGREE 5
#define GELU_LIMIT 5.5
static float gelu_table[GELU_DEGREE + 1][LANES];

/* Interpolates q at the Chebyshev points of each interval; a polynomial's variable runs from 0 to 1 there. */
static void fill_gelu_table(void) {
    const double width = GELU_LIMIT / LANES, pi = 3.14159265358979323846;
    for (int interval = 0; interval < LANES; interval++) {
        double at[GELU_DEGREE + 1], value[GELU_DEGREE + 1], power[GELU_DEGREE + 1] = {0};
        for (int i = 0; i <= GELU_DEGREE; i++) {
            at[i] = 0.5 + 0.5 * cos(pi * (2 * i + 1) / (2 * (GELU_DEGREE + 1)));
            double a = (interval + at[i]) * width;
            value[i] = -0.5 * a * erfc(a * sqrt(0.5));
        }
        for (int order = 1; order <= GELU_DEGREE; order++) /* divided differences */
            for (int i = GELU_DEGREE; i >= order; i--) value[i] = (value[i] - value[i - 1]) / (at[i] - at[i - order]);
        for (int i = GELU_DEGREE; i >= 0; i--) { /* Newton's form to powers */
            for (int j = GELU_DEGREE; j > 0; j--) power[j] = power[j - 1] - at[i] * power[j];
            power[0] = value[i] - at[i] * power[0];
        }
        for (int i = 0; i <= GELU_DEGREE; i++) gelu_table[i][interval] = (float)power[i];
    }
}

INLINE __m512 gelu(__m512 x) {
    __m512 at = _mm512_min_ps(_mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(LANES / (float)GELU_LIMIT)),
                              _mm512_set1_ps(LANES - 1e-5f));
    __m512i interval = _mm512_cvttps_epi32(at);
    at = _mm512_sub_ps(at, _mm512_cvtepi32_ps(interval));
    __m512 y = _mm512_permutexvar_ps(interval, _mm512_loadu_ps(gelu_table[GELU_DEGREE]));
#pragma GCC unroll 5
    for (int i = GELU_DEGREE - 1; i >= 0; i--)
        y = _mm512_fmadd_ps(y, at, _mm512_permutexvar_ps(interval, _mm512_loadu_ps(gelu_table[i])));
    return _mm512_add_ps(_mm512_max_ps(_mm512_setzero_ps(), x), y); /* max gives x where x is NaN */
}

/* 16 rows of 16 numbers of 4 bytes to 16 columns, in place. */
INLINE void transpose(__m512i x[LANES]) {
    __m512i y[LANES];
#pragma GCC unroll 8
    for (int i = 0; i < LANES; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < LANES; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
        y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xDD);
        y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xDD);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
        x[i + 4] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0x88);
        x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xDD);
        x[i + 12] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0xDD);
    }
}

#endif

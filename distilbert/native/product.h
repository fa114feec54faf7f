/* Products of rows with packed weights: y = rows . weight^T, and what is done with y before it is stored.
 *
 * A tile of up to 14 rows and 32 columns stays in 28 registers while the inner dimension is run through. Each number
 * of y is summed in one order, whatever the other rows are and whichever thread computes it.
 */
#ifndef DISTILBERT_PRODUCT_H
#define DISTILBERT_PRODUCT_H

#include "vector.h"

#define TILE_ROWS 14
#define PANEL 32       /* columns of a tile */
#define EACH_COUNT(DO) /* of a tile's rows, which has to be known when it is compiled */ \
    DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14)
#define STEP_BYTES 128 /* of a panel, for four bytes of each row */

/* Rows as products take them: `stride` bytes from one to the next; their ends are zeros up to whole steps.
 * Rows of bytes stand for scale * byte + low. */
struct rows {
    char *data;
    size_t stride;
    float *scale, *low;
};

/* A weight (out, in), packed: panel after panel, and in a panel step after step, the step of each of its columns. */
struct weight {
    enum kind kind;
    int in, out, steps, panels;
    char *data;
    float *bias, *scale, *sums; /* (panels * PANEL); scale of a column's bytes, and their sum times it */
};

enum activation { IDENTITY, GELU, RELU };

/* Where a product goes: + bias, activation, + residual, stored as floats or bfloat16. */
struct target {
    enum kind kind;
    enum activation activation;
    char *data;
    size_t stride;
    const float *residual; /* floats, in the same places; or NULL */
};

INLINE void multiply(const enum kind kind, const int rows, const char *a, size_t stride, const char *b, int steps,
                     __m512 sums[TILE_ROWS][2]) {
#pragma GCC unroll 14
    for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    for (int step = 0; step < steps; step++, a += 4, b += STEP_BYTES) {
        __m512i left = _mm512_loadu_si512(b), right = _mm512_loadu_si512(b + 64);
        _mm_prefetch(b + 24 * STEP_BYTES, _MM_HINT_T0);
        _mm_prefetch(b + 24 * STEP_BYTES + 64, _MM_HINT_T0);
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++) {
            sums[r][0] = dot(kind, sums[r][0], a + r * stride, left);
            sums[r][1] = dot(kind, sums[r][1], a + r * stride, right);
        }
    }
}

INLINE void store(const struct target *to, int row, int column, int columns, __m512 y) {
    __mmask16 lanes = first_lanes(columns);
    if (to->activation == GELU) y = gelu(y);
    else if (to->activation == RELU) y = _mm512_max_ps(_mm512_setzero_ps(), y);
    char *place = to->data + row * to->stride + column * size_of(to->kind);
    if (to->residual) {
        const char *residual = (const char *)to->residual + row * to->stride + column * sizeof(float);
        y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(lanes, residual));
    }
    store_numbers(to->kind, place, lanes, y);
}

INLINE void tile(const enum kind kind, const int count, const struct rows *x, int row, const struct weight *w,
                 int panel, const struct target *to) {
    __m512 sums[TILE_ROWS][2];
    multiply(kind, count, x->data + row * x->stride, x->stride, w->data + (size_t)panel * w->steps * STEP_BYTES,
             w->steps, sums);
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        int column = panel * PANEL + half * LANES;
        __m512 bias = _mm512_loadu_ps(w->bias + column), scale = bias, low = bias;
        if (kind == BYTE) scale = _mm512_loadu_ps(w->scale + column), low = _mm512_loadu_ps(w->sums + column);
#pragma GCC unroll 14
        for (int r = 0; r < count; r++) {
            __m512 y = sums[r][half];
            if (kind == BYTE) {
                __m512 base = _mm512_fmadd_ps(_mm512_set1_ps(x->low[row + r]), low, bias);
                y = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_castps_si512(y)), scale);
                y = _mm512_fmadd_ps(_mm512_set1_ps(x->scale[row + r]), y, base);
            } else {
                y = _mm512_add_ps(y, bias);
            }
            store(to, row + r, column, w->out - column, y);
        }
    }
}

/* One panel for rows from `row` to `end`, in tiles as equal as may be. */
#define TILE(n) \
    case n: tile(kind, n, x, row, w, panel, to); break;
INLINE void panel_of_kind(const enum kind kind, const struct rows *x, int row, int end, const struct weight *w,
                          int panel, const struct target *to) {
    for (int tiles = (end - row + TILE_ROWS - 1) / TILE_ROWS; tiles > 0; tiles--) {
        int count = (end - row + tiles - 1) / tiles;
        switch (count) { EACH_COUNT(TILE) }
        row += count;
    }
}
#undef TILE

static __attribute__((noinline)) void float_panel(const struct rows *x, int row, int end, const struct weight *w,
                                                  int panel, const struct target *to) {
    panel_of_kind(FLOAT, x, row, end, w, panel, to);
}

static __attribute__((noinline)) void bfloat16_panel(const struct rows *x, int row, int end, const struct weight *w,
                                                     int panel, const struct target *to) {
    panel_of_kind(BFLOAT16, x, row, end, w, panel, to);
}

static __attribute__((noinline)) void byte_panel(const struct rows *x, int row, int end, const struct weight *w,
                                                 int panel, const struct target *to) {
    panel_of_kind(BYTE, x, row, end, w, panel, to);
}

static void panel_product(const struct rows *x, int row, int end, const struct weight *w, int panel,
                          const struct target *to) {
    if (w->kind == FLOAT) float_panel(x, row, end, w, panel, to);
    else if (w->kind == BFLOAT16) bfloat16_panel(x, row, end, w, panel, to);
    else byte_panel(x, row, end, w, panel, to);
}

#endif

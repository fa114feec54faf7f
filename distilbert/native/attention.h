/* Scaled dot-product attention of one head within one sequence, by the same tiles as the products. */
#ifndef DISTILBERT_ATTENTION_H
#define DISTILBERT_ATTENTION_H

#include "product.h"

#define LOG2_E 1.44269504f

/* Where one thread keeps a head's keys and values, packed as weights are, and a tile's scores and probabilities. */
struct attention {
    char *keys, *values, *probabilities;
    float *scores;
    size_t stride; /* bytes from one row of scores or probabilities to the next */
};

INLINE int panels_of(int columns) { return (columns + PANEL - 1) / PANEL; }

INLINE int steps_of(enum kind kind, int width) { return (width + group_of(kind) - 1) / group_of(kind); }

/* Bytes that one thread needs for sequences up to `length`. */
static size_t attention_bytes(int length, int head_dim) {
    size_t wide = (size_t)panels_of(length) * PANEL, head = (size_t)panels_of(head_dim) * PANEL;
    return 2 * wide * head * sizeof(float) + 2 * TILE_ROWS * (wide * sizeof(float) + 64);
}

static struct attention attention_at(char *place, int length, int head_dim) {
    size_t wide = (size_t)panels_of(length) * PANEL, head = (size_t)panels_of(head_dim) * PANEL;
    struct attention a = {.stride = wide * sizeof(float) + 64};
    a.keys = place;
    a.values = a.keys + wide * head * sizeof(float);
    a.probabilities = a.values + wide * head * sizeof(float);
    a.scores = (float *)(a.probabilities + TILE_ROWS * a.stride);
    return a;
}

/* Up to 16 rows as columns of one half of a panel, (count, width) of numbers of the kind. */
INLINE void pack_half(enum kind kind, char *half, const char *rows, size_t stride, int count, int width) {
    int steps = steps_of(kind, width), bytes = width * (int)size_of(kind);
    for (int step = 0; step < steps; step += LANES) {
        __m512i block[LANES];
        __mmask64 inside = bytes - 4 * step >= 64 ? ~0ull : (1ull << (bytes - 4 * step)) - 1;
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            block[i] = _mm512_maskz_loadu_epi8(i < count ? inside : 0, rows + i * stride + 4 * step);
        transpose(block);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (step + i < steps) _mm512_store_si512(half + (size_t)(step + i) * STEP_BYTES, block[i]);
    }
}

/* Keys (length, head_dim) as the weight of scores: a column for each key. */
INLINE void pack_keys(enum kind kind, char *to, const char *keys, size_t stride, int length, int head_dim) {
    size_t panel = (size_t)steps_of(kind, head_dim) * STEP_BYTES;
    for (int key = 0; key < length; key += LANES)
        pack_half(kind, to + key / PANEL * panel + key % PANEL * 4, keys + key * stride, stride, length - key,
                  head_dim);
}

/* Values (length, head_dim) as the weight of the context: a column for each feature, keys along the inner dimension. */
INLINE void pack_values(enum kind kind, char *to, const char *values, size_t stride, int length, int head_dim) {
    int steps = steps_of(kind, length);
    for (int column = 0; column < head_dim; column += LANES) {
        __mmask16 lanes = first_lanes(head_dim - column);
        char *half = to + (size_t)(column / PANEL) * steps * STEP_BYTES + column % PANEL * 4;
        const char *from = values + column * size_of(kind);
        for (int step = 0; step < steps; step++, half += STEP_BYTES) {
            if (kind == FLOAT) {
                _mm512_store_si512(half, _mm512_maskz_loadu_epi32(lanes, from + step * stride));
                continue;
            }
            const char *pair = from + 2 * step * stride;
            __mmask16 second = 2 * step + 1 < length ? lanes : 0;
            __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, pair));
            __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second, pair + stride));
            _mm512_store_si512(half, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
    }
}

/* Scores to what softmax has above the line, in place or as bfloat16; returns 1 over what it has below. */
INLINE float soften(enum kind kind, float *scores, char *probabilities, int length, float scale) {
    __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (int i = 0; i < length; i += LANES)
        most = _mm512_max_ps(most, _mm512_mask_loadu_ps(most, first_lanes(length - i), scores + i));
    most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (int i = 0; i < length; i += LANES) {
        __mmask16 lanes = first_lanes(length - i);
        __m512 rest = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + i), most), _mm512_set1_ps(scale));
        __m512 y = _mm512_maskz_mov_ps(lanes, exp2_negative(rest, kind == FLOAT ? 6 : 4));
        sum = _mm512_add_ps(sum, y);
        store_numbers(kind, probabilities + i * size_of(kind), 0xFFFF, y);
    }
    return 1 / _mm512_reduce_add_ps(sum);
}

INLINE void attend_tile(const enum kind kind, const int count, const struct attention *a, const char *queries,
                        size_t stride, int length, int head_dim, char *context, enum kind context_kind,
                        size_t context_stride) {
    __m512 sums[TILE_ROWS][2];
    float inverse[TILE_ROWS];
    int steps = steps_of(kind, head_dim);
    for (int panel = 0; panel < panels_of(length); panel++) {
        multiply(kind, count, queries, stride, a->keys + (size_t)panel * steps * STEP_BYTES, steps, sums);
#pragma GCC unroll 14
        for (int r = 0; r < count; r++) {
            float *row = (float *)((char *)a->scores + r * a->stride) + panel * PANEL;
            _mm512_storeu_ps(row, sums[r][0]);
            _mm512_storeu_ps(row + LANES, sums[r][1]);
        }
    }
    for (int r = 0; r < count; r++)
        inverse[r] = soften(kind, (float *)((char *)a->scores + r * a->stride), a->probabilities + r * a->stride,
                            length, LOG2_E / sqrtf((float)head_dim));
    steps = steps_of(kind, length);
    for (int panel = 0; panel < panels_of(head_dim); panel++) {
        multiply(kind, count, a->probabilities, a->stride, a->values + (size_t)panel * steps * STEP_BYTES, steps, sums);
#pragma GCC unroll 14
        for (int r = 0; r < count; r++)
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++) {
                int column = panel * PANEL + half * LANES;
                store_numbers(context_kind, context + r * context_stride + column * size_of(context_kind),
                              first_lanes(head_dim - column), _mm512_mul_ps(sums[r][half], _mm512_set1_ps(inverse[r])));
            }
    }
}

/* The context of the first `count` queries of a sequence. qkv: its first row, at the head's queries; keys and values
 * lie `apart` and twice `apart` bytes after them. */
#define TILE(n) \
    case n: attend_tile(kind, n, a, at, stride, length, head_dim, context, context_kind, context_stride); break;
INLINE void attend_kind(const enum kind kind, const struct attention *a, const char *qkv, size_t stride, size_t apart,
                        int length, int count, int head_dim, char *context, enum kind context_kind,
                        size_t context_stride) {
    pack_keys(kind, a->keys, qkv + apart, stride, length, head_dim);
    pack_values(kind, a->values, qkv + 2 * apart, stride, length, head_dim);
    int first = 0;
    for (int tiles = (count + TILE_ROWS - 1) / TILE_ROWS; tiles > 0; tiles--) {
        const char *at = qkv + first * stride;
        int rows = (count - first + tiles - 1) / tiles;
        switch (rows) { EACH_COUNT(TILE) }
        first += rows;
        context += rows * context_stride;
    }
}
#undef TILE

static __attribute__((noinline)) void attend_floats(const struct attention *a, const char *qkv, size_t stride,
                                                    size_t apart, int length, int count, int head_dim, char *context,
                                                    enum kind context_kind, size_t context_stride) {
    attend_kind(FLOAT, a, qkv, stride, apart, length, count, head_dim, context, context_kind, context_stride);
}

static __attribute__((noinline)) void attend_bfloat16(const struct attention *a, const char *qkv, size_t stride,
                                                      size_t apart, int length, int count, int head_dim, char *context,
                                                      enum kind context_kind, size_t context_stride) {
    attend_kind(BFLOAT16, a, qkv, stride, apart, length, count, head_dim, context, context_kind, context_stride);
}

#endif

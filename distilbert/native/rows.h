/* What is computed row by row: embeddings, LayerNorm, and rows in the form that products take. */
#ifndef DISTILBERT_ROWS_H
#define DISTILBERT_ROWS_H

#include <float.h>

#include "product.h"

struct norm {
    float *weight, *bias; /* (width) */
    float epsilon;
};

/* Rows of an embedding; those of bytes stand for scale * byte + low. */
struct table {
    enum kind kind;
    int count, width;
    char *data;
    float *scale, *low;
};

#define EACH_VECTOR(column, lanes, width)                   \
    for (int column = 0; column < (width); column += LANES) \
        for (__mmask16 lanes = first_lanes((width) - column), once = 1; once; once = 0)

/* bytes, scale and low of a row, so that x = scale * byte + low to half a scale; all NaN if one of x is. */
static void quantize_row(const float *x, int width, uint8_t *bytes, float *scale, float *low) {
    __m512 least = _mm512_set1_ps(x[0]), most = least;
    __mmask16 nan = 0;
    EACH_VECTOR (i, lanes, width) {
        __m512 part = _mm512_mask_loadu_ps(least, lanes, x + i);
        nan |= _mm512_cmp_ps_mask(part, part, _CMP_UNORD_Q);
        least = _mm512_min_ps(least, part);
        most = _mm512_max_ps(most, _mm512_mask_mov_ps(most, lanes, part));
    }
    *low = _mm512_reduce_min_ps(least);
    float span = _mm512_reduce_max_ps(most) - *low;
    *scale = span / 255;
    if (nan) *low = NAN;
    __m512 inverse = _mm512_set1_ps(span > FLT_MIN ? 255 / span : 0), base = _mm512_set1_ps(*low);
    EACH_VECTOR (i, lanes, width) {
        __m512 part = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, x + i), base), inverse);
        _mm512_mask_cvtusepi32_storeu_epi8(bytes + i, lanes, _mm512_cvtps_epi32(part));
    }
}

/* A row of floats as a row of an operand. */
static void set_row(enum kind kind, const struct rows *to, int row, const float *x, int width) {
    char *place = to->data + row * to->stride;
    if (kind == BYTE) {
        quantize_row(x, width, (uint8_t *)place, to->scale + row, to->low + row);
    } else {
        EACH_VECTOR (i, lanes, width)
            store_numbers(kind, place + i * size_of(kind), lanes, _mm512_maskz_loadu_ps(lanes, x + i));
    }
}

/* LayerNorm in place, with the variance of what is left after the mean. */
static void normalize_row(const struct norm *norm, float *x, int width) {
    __m512 sum = _mm512_setzero_ps(), squares = sum;
    EACH_VECTOR (i, lanes, width) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes, x + i));
    __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / width);
    EACH_VECTOR (i, lanes, width) {
        __m512 rest = _mm512_maskz_sub_ps(lanes, _mm512_maskz_loadu_ps(lanes, x + i), mean);
        squares = _mm512_fmadd_ps(rest, rest, squares);
    }
    __m512 factor = _mm512_set1_ps(1 / sqrtf(_mm512_reduce_add_ps(squares) / width + norm->epsilon));
    EACH_VECTOR (i, lanes, width) {
        __m512 rest = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, x + i), mean), factor);
        __m512 weight = _mm512_maskz_loadu_ps(lanes, norm->weight + i),
               bias = _mm512_maskz_loadu_ps(lanes, norm->bias + i);
        _mm512_mask_storeu_ps(x + i, lanes, _mm512_fmadd_ps(rest, weight, bias));
    }
}

INLINE __m512 table_numbers(const struct table *table, int row, int column, __mmask16 lanes) {
    size_t place = (size_t)row * table->width + column;
    if (table->kind != BYTE) return load_numbers(table->kind, table->data + place * size_of(table->kind), lanes);
    __m512 bytes = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(lanes, table->data + place)));
    return _mm512_fmadd_ps(bytes, _mm512_set1_ps(table->scale[row]), _mm512_set1_ps(table->low[row]));
}

static void embed_row(const struct table *words, const struct table *positions, int word, int position, float *x) {
    EACH_VECTOR (i, lanes, words->width)
        _mm512_mask_storeu_ps(
            x + i, lanes,
            _mm512_add_ps(table_numbers(words, word, i, lanes), table_numbers(positions, position, i, lanes)));
}

#endif

/* Weights as a call reads them: copied, converted and packed once, by all threads of a call. */
#ifndef DISTILBERT_MEMORY_H
#define DISTILBERT_MEMORY_H

#include <stdlib.h>
#include <string.h>

#include "attention.h"
#include "pages.h"
#include "rows.h"
#include "team.h"

#define LARGEST_CODE 127 /* of a weight's bytes */

/* Bytes from one row to the next. Never a power of two, so that rows do not share their places in a cache. */
static size_t stride_of(size_t bytes) { return rounded(bytes, ALIGNMENT) + ALIGNMENT; }

static float *copied(const float *from, int count) {
    float *to = new_memory(count * sizeof(float));
    return to ? memcpy(to, from, count * sizeof(float)) : NULL;
}

static int new_norm(struct norm *norm, const float *weight, const float *bias, int width, float epsilon) {
    *norm = (struct norm){copied(weight, width), copied(bias, width), epsilon};
    return norm->weight && norm->bias ? 0 : -1;
}

static void free_norm(struct norm *norm) {
    free_memory(norm->weight);
    free_memory(norm->bias);
}

static int new_weight(struct weight *w, enum kind kind, int in, int out) {
    *w = (struct weight){.kind = kind, .in = in, .out = out, .steps = steps_of(kind, in), .panels = panels_of(out)};
    w->data = new_memory((size_t)w->panels * w->steps * STEP_BYTES);
    w->bias = new_memory(3 * (size_t)w->panels * PANEL * sizeof(float));
    if (!w->data || !w->bias) return -1;
    w->scale = w->bias + w->panels * PANEL;
    w->sums = w->scale + w->panels * PANEL;
    return 0;
}

static void free_weight(struct weight *w) {
    free_memory(w->data);
    free_memory(w->bias);
}

static int new_table(struct table *table, enum kind kind, int count, int width) {
    *table = (struct table){.kind = kind, .count = count, .width = width};
    table->data = new_memory((size_t)count * width * size_of(kind));
    table->scale = new_memory(2 * (size_t)count * sizeof(float));
    if (!table->data || !table->scale) return -1;
    table->low = table->scale + count;
    return 0;
}

static void free_table(struct table *table) {
    free_memory(table->data);
    free_memory(table->scale);
}

/* Numbers for some of a weight's outputs, from `first` on: weight (out, in), bias (out) or NULL for none. */
struct source {
    struct weight *to;
    int first, out;
    const float *weight, *bias;
};

/* A weight's row as signed bytes with one scale. */
static void quantize_weight(const float *from, int width, int8_t *bytes, float *scale, float *sum) {
    __m512 most = _mm512_setzero_ps();
    __m512i total = _mm512_setzero_si512();
    EACH_VECTOR (i, lanes, width) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(lanes, from + i)));
    *scale = _mm512_reduce_max_ps(most) / LARGEST_CODE;
    __m512 inverse = _mm512_set1_ps(*scale > FLT_MIN ? 1 / *scale : 0);
    EACH_VECTOR (i, lanes, width) {
        __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, from + i), inverse));
        total = _mm512_add_epi32(total, code);
        _mm512_mask_cvtsepi32_storeu_epi8(bytes + i, lanes, code);
    }
    *sum = (float)_mm512_reduce_add_epi32(total) * *scale;
}

/* Up to 16 outputs of a source, from `row` on, in their places in the panels. `room` holds 16 rows of operands. */
static void pack_outputs(const struct source *source, int row, char *room) {
    struct weight *w = source->to;
    int count = source->out - row < LANES ? source->out - row : LANES;
    struct rows rows = {room, stride_of(w->in * size_of(w->kind)), NULL, NULL};
    for (int i = 0; i < count; i++) {
        const float *from = source->weight + (size_t)(row + i) * w->in;
        int column = source->first + row + i;
        if (w->kind == BYTE)
            quantize_weight(from, w->in, (int8_t *)room + i * rows.stride, w->scale + column, w->sums + column);
        else set_row(w->kind, &rows, i, from, w->in);
        w->bias[column] = source->bias ? source->bias[row + i] : 0;
    }
    for (int i = 0; i < count; i++) { /* columns of one half of a panel, unless `first` lies within one */
        int column = source->first + row + i;
        char *to = w->data + (size_t)(column / PANEL) * w->steps * STEP_BYTES + column % PANEL * 4;
        const char *from = room + i * rows.stride;
        if (i == 0 && count == LANES && column % LANES == 0) {
            pack_half(w->kind, to, from, rows.stride, LANES, w->in);
            break;
        }
        for (int step = 0; step < w->steps; step++) memcpy(to + (size_t)step * STEP_BYTES, from + step * 4, 4);
    }
}

struct packing {
    const struct source *sources;
    int count;
    _Atomic int failed;
};

static void pack_sources(void *argument, int thread) {
    struct packing *packing = argument;
    (void)thread;
    for (int i = 0; i < packing->count; i++) {
        const struct source *source = packing->sources + i;
        char *room = new_memory(LANES * stride_of(source->to->in * size_of(source->to->kind)));
        if (!room) packing->failed = -1;
        SHARE(task, (source->out + LANES - 1) / LANES, if (room) pack_outputs(source, task * LANES, room));
        free_memory(room);
    }
}

/* Packs all of them. 0, or -1 without memory. */
static int pack(const struct source *sources, int count, int threads) {
    struct packing packing = {sources, count, 0};
    together(begin(threads), pack_sources, &packing);
    end();
    return packing.failed;
}

struct filling {
    struct table *table;
    const float *from;
};

static void fill_rows(void *argument, int thread) {
    const struct filling *filling = argument;
    const struct table *table = filling->table;
    struct rows rows = {table->data, table->width * size_of(table->kind), table->scale, table->low};
    (void)thread;
    SHARE_ROWS(row, table->count,
               set_row(table->kind, &rows, row, filling->from + (size_t)row * table->width, table->width));
}

/* An embedding (count, width). 0, or -1 without memory. */
static int set_table(struct table *table, enum kind kind, const float *from, int count, int width, int threads) {
    if (new_table(table, kind, count, width)) return -1;
    struct filling filling = {table, from};
    together(begin(threads), fill_rows, &filling);
    end();
    return 0;
}

#endif

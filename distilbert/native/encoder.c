/* The encoder of DistilBERT on unpadded tokens: embeddings and post-norm layers in one call, on several threads.
 *
 * The stream between layers is float32, and so are LayerNorm, softmax and all sums but those of bytes, which are exact.
 * Sources: Sanh et al. 2019, arXiv 1910.01108; Goto and van de Geijn 2008, doi 10.1145/1356052.1356053 (products by
 * packed panels); Khudia et al. 2021, arXiv 2101.05615 (bytes with a scale and a minimum per row).
 */
#include "encoder.h"

#include "memory.h"

/* Rows that are multiplied together stay in a core's cache: the most bytes of them, and the most tiles. */
#define BLOCK_BYTES ((size_t)320 << 10)
#define BLOCK_TILES 8
#define GROUP 4 /* panels of one task, where there are several blocks */

struct layer {
    int n_heads;
    struct weight qkv, out_lin, lin1, lin2;
    struct norm sa_layer_norm, output_layer_norm;
};

/* What is between the products of a call; grows to the largest call, and is kept for the next. */
struct workspace {
    int tokens, length, threads;
    struct rows operand; /* of the next product */
    char *wide;          /* queries, keys and values; then what is between the two layers of the feed-forward part */
    float *context;      /* of attention, where it has to be quantized afterwards */
    char *attention;     /* of each thread */
};

struct encoder {
    enum kind kind, between; /* of products; of queries, keys and values */
    enum activation activation;
    int layers, dim, hidden_dim, head_dim;
    struct table words, positions;
    struct norm norm;
    struct layer *layer;
    struct workspace workspace;
};

/* One call, as all its threads see it. */
struct call {
    struct encoder *encoder;
    const int32_t *ids, *positions, *lengths, *starts;
    int sequences, total, first_only;
    float *x;
};

/* Of queries, keys and values: attention has no products of bytes, and pairs of bfloat16 only where there are pairs. */
static enum kind kind_between(enum kind kind, int head_dim) {
    if (kind != BYTE) return kind;
    return distilbert_kinds() & 1 << BFLOAT16 && head_dim % 2 == 0 ? BFLOAT16 : FLOAT;
}

struct encoder *distilbert_new(int kind, int layers, int dim, int hidden_dim, int head_dim, int activation,
                               float epsilon) {
    struct encoder *encoder = calloc(1, sizeof *encoder);
    if (!encoder) return NULL;
    encoder->layer = calloc(layers, sizeof *encoder->layer);
    encoder->kind = kind;
    encoder->between = kind_between(kind, head_dim);
    encoder->activation = activation;
    encoder->layers = layers;
    encoder->dim = dim;
    encoder->hidden_dim = hidden_dim;
    encoder->head_dim = head_dim;
    encoder->norm.epsilon = epsilon;
    if (!encoder->layer) distilbert_free(encoder), encoder = NULL;
    return encoder;
}

/* Forgets before it frees: a child of fork, if it comes in between, finds an empty workspace. */
static void free_workspace(struct workspace *workspace) {
    struct workspace old = *workspace, *w = &old;
    *workspace = (struct workspace){0};
    atomic_signal_fence(memory_order_seq_cst);
    free_memory(w->operand.data);
    free_memory(w->operand.scale);
    free_memory(w->wide);
    free_memory(w->context);
    free_memory(w->attention);
}

void distilbert_free(struct encoder *encoder) {
    for (int i = 0; encoder->layer && i < encoder->layers; i++) {
        struct layer *layer = encoder->layer + i;
        free_weight(&layer->qkv);
        free_weight(&layer->out_lin);
        free_weight(&layer->lin1);
        free_weight(&layer->lin2);
        free_norm(&layer->sa_layer_norm);
        free_norm(&layer->output_layer_norm);
    }
    free_table(&encoder->words);
    free_table(&encoder->positions);
    free_norm(&encoder->norm);
    free_workspace(&encoder->workspace);
    free(encoder->layer);
    free(encoder);
}

int distilbert_set_embeddings(struct encoder *encoder, const float *words, int vocab_size, const float *positions,
                              int count, const float *weight, const float *bias, int threads) {
    int dim = encoder->dim;
    int failed = set_table(&encoder->words, encoder->kind, words, vocab_size, dim, threads);
    failed |= set_table(&encoder->positions, FLOAT, positions, count, dim, threads);
    return failed | new_norm(&encoder->norm, weight, bias, dim, encoder->norm.epsilon);
}

int distilbert_set_layer(struct encoder *encoder, int number, int n_heads, const float *const weights[16],
                         int threads) {
    struct layer *layer = encoder->layer + number;
    enum kind kind = encoder->kind;
    int dim = encoder->dim, hidden_dim = encoder->hidden_dim, features = n_heads * encoder->head_dim;
    float epsilon = encoder->norm.epsilon;
    layer->n_heads = n_heads;
    if (new_weight(&layer->qkv, kind, dim, 3 * features) || new_weight(&layer->out_lin, kind, features, dim) ||
        new_weight(&layer->lin1, kind, dim, hidden_dim) || new_weight(&layer->lin2, kind, hidden_dim, dim) ||
        new_norm(&layer->sa_layer_norm, weights[8], weights[9], dim, epsilon) ||
        new_norm(&layer->output_layer_norm, weights[14], weights[15], dim, epsilon))
        return -1;
    struct source sources[] = {
        {&layer->qkv, 0, features, weights[0], weights[1]},
        {&layer->qkv, features, features, weights[2], weights[3]},
        {&layer->qkv, 2 * features, features, weights[4], weights[5]},
        {&layer->out_lin, 0, dim, weights[6], weights[7]},
        {&layer->lin1, 0, hidden_dim, weights[10], weights[11]},
        {&layer->lin2, 0, dim, weights[12], weights[13]},
    };
    return pack(sources, 6, threads);
}

static int largest(int a, int b) { return a > b ? a : b; }

/* Widths of the workspace's parts, over all layers. */
static int most_features(const struct encoder *encoder) {
    int features = 0;
    for (int i = 0; i < encoder->layers; i++)
        features = largest(features, encoder->layer[i].n_heads * encoder->head_dim);
    return features;
}

static size_t wide_stride(const struct encoder *encoder, int width) {
    return stride_of(width * size_of(encoder->between));
}

static int make_room(struct encoder *encoder, int tokens, int length, int threads) {
    struct workspace *w = &encoder->workspace;
    if (tokens <= w->tokens && length <= w->length && threads <= w->threads) return 0;
    tokens = largest(tokens, w->tokens);
    length = largest(length, w->length);
    threads = largest(threads, w->threads);
    free_workspace(w);
    int features = most_features(encoder), inner = largest(encoder->dim, features);
    inner = encoder->kind == BYTE ? largest(inner, encoder->hidden_dim) : inner;
    w->operand.stride = stride_of(inner * size_of(encoder->kind));
    w->operand.data = new_memory(tokens * w->operand.stride);
    w->operand.scale = new_memory(2 * (size_t)tokens * sizeof(float));
    size_t wide = stride_of(encoder->hidden_dim * size_of(encoder->kind == BYTE ? FLOAT : encoder->kind));
    size_t qkv = wide_stride(encoder, 3 * features);
    w->wide = new_memory(tokens * (wide > qkv ? wide : qkv));
    w->context = new_memory(encoder->kind == BYTE ? tokens * stride_of(features * sizeof(float)) : 0);
    w->attention = new_memory(threads * attention_bytes(length, encoder->head_dim));
    if (!w->operand.data || !w->operand.scale || !w->wide || !w->context || !w->attention) {
        free_workspace(w);
        return -1;
    }
    w->operand.low = w->operand.scale + tokens;
    w->tokens = tokens;
    w->length = length;
    w->threads = threads;
    return 0;
}

/* One product, its blocks of rows and groups of panels shared by the threads. */
static void product(const struct rows *x, int count, const struct weight *w, struct target to) {
    int tiles = largest(1, (int)(BLOCK_BYTES / (x->stride * TILE_ROWS)));
    int most = TILE_ROWS * (tiles < BLOCK_TILES ? tiles : BLOCK_TILES);
    int blocks = (count + most - 1) / most, group = blocks == 1 ? 1 : GROUP;
    int groups = (w->panels + group - 1) / group;
    SHARE(task, blocks * groups, {
        int block = task / groups, panel = task % groups * group;
        int row = (int)((int64_t)count * block / blocks), end = (int)((int64_t)count * (block + 1) / blocks);
        for (int last = panel + group; panel < last && panel < w->panels; panel++)
            panel_product(x, row, end, w, panel, &to);
    });
}

static void normalize(struct encoder *encoder, const struct norm *norm, float *x, int count) {
    SHARE_ROWS(row, count, {
        float *place = x + (size_t)row * encoder->dim;
        normalize_row(norm, place, encoder->dim);
        set_row(encoder->kind, &encoder->workspace.operand, row, place, encoder->dim);
    });
}

static void quantize(struct encoder *encoder, const char *x, size_t stride, int count, int width) {
    SHARE_ROWS(row, count, set_row(BYTE, &encoder->workspace.operand, row, (const float *)(x + row * stride), width));
}

/* Attention of all sequences and heads: queries, keys and values in `wide`, its result in the operand. */
static void attend(const struct call *call, const struct layer *layer, int thread, int first_only) {
    struct encoder *encoder = call->encoder;
    struct workspace *w = &encoder->workspace;
    int features = layer->n_heads * encoder->head_dim, bytes = encoder->kind == BYTE;
    size_t size = size_of(encoder->between), stride = wide_stride(encoder, 3 * features);
    enum kind kind = bytes ? FLOAT : encoder->kind;
    char *context = bytes ? (char *)w->context : w->operand.data;
    size_t context_stride = bytes ? stride_of(features * sizeof(float)) : w->operand.stride;
    char *memory = w->attention + thread * attention_bytes(w->length, encoder->head_dim);
    struct attention a = attention_at(memory, w->length, encoder->head_dim);
    SHARE(task, call->sequences * layer->n_heads, {
        int sequence = task / layer->n_heads, head = task % layer->n_heads * encoder->head_dim;
        int start = call->starts[sequence], length = call->lengths[sequence];
        const char *at = w->wide + start * stride + head * size;
        char *to = context + (first_only ? sequence : start) * context_stride + head * size_of(kind);
        (encoder->between == FLOAT ? attend_floats : attend_bfloat16)(&a, at, stride, features * size, length,
                                                                      first_only ? 1 : length, encoder->head_dim, to,
                                                                      kind, context_stride);
    });
    if (bytes) quantize(encoder, context, context_stride, first_only ? call->sequences : call->total, features);
}

static void run_layer(const struct call *call, const struct layer *layer, int thread, int first_only) {
    struct encoder *encoder = call->encoder;
    struct workspace *w = &encoder->workspace;
    int count = call->total, dim = encoder->dim;
    struct target qkv = {encoder->between, IDENTITY, w->wide, wide_stride(encoder, layer->qkv.out), NULL};
    product(&w->operand, count, &layer->qkv, qkv);
    attend(call, layer, thread, first_only);
    if (first_only) {
        SHARE(task, 1,
              for (int i = 0; i < call->sequences; i++)
                  memmove(call->x + (size_t)i * dim, call->x + (size_t)call->starts[i] * dim, dim * sizeof(float)));
        count = call->sequences;
    }
    struct target x = {FLOAT, IDENTITY, (char *)call->x, dim * sizeof(float), call->x};
    product(&w->operand, count, &layer->out_lin, x);
    normalize(encoder, &layer->sa_layer_norm, call->x, count);
    enum kind kind = encoder->kind == BYTE ? FLOAT : encoder->kind;
    struct target inner = {kind, encoder->activation, w->wide, stride_of(encoder->hidden_dim * size_of(kind)), NULL};
    product(&w->operand, count, &layer->lin1, inner);
    struct rows wide = {w->wide, inner.stride, NULL, NULL};
    if (encoder->kind == BYTE) quantize(encoder, w->wide, inner.stride, count, encoder->hidden_dim);
    product(encoder->kind == BYTE ? &w->operand : &wide, count, &layer->lin2, x);
    normalize(encoder, &layer->output_layer_norm, call->x, count);
}

static void run(void *argument, int thread) {
    const struct call *call = argument;
    struct encoder *encoder = call->encoder;
    SHARE_ROWS(row, call->total, {
        float *place = call->x + (size_t)row * encoder->dim;
        embed_row(&encoder->words, &encoder->positions, call->ids[row], call->positions[row], place);
        normalize_row(&encoder->norm, place, encoder->dim);
        set_row(encoder->kind, &encoder->workspace.operand, row, place, encoder->dim);
    });
    for (int i = 0; i < encoder->layers; i++)
        run_layer(call, encoder->layer + i, thread, call->first_only && i == encoder->layers - 1);
}

int distilbert_encode(struct encoder *encoder, const int32_t *ids, const int32_t *positions, const int32_t *lengths,
                      int sequences, int first_only, int threads, float *out) {
    int32_t *starts = malloc((sequences + 1) * sizeof *starts);
    if (!starts) return -1;
    starts[0] = 0;
    for (int i = 0; i < sequences; i++) starts[i + 1] = starts[i] + lengths[i];
    struct call call = {encoder, ids, positions, lengths, starts, sequences, starts[sequences], first_only, out};
    threads = begin(threads);
    int failed = make_room(encoder, call.total, lengths[0], threads);
    if (!failed) together(threads, run, &call);
    end();
    free(starts);
    return failed;
}

struct linear {
    struct weight weight;
    enum activation activation;
};

struct linear *distilbert_new_linear(int kind, int in, int out, int activation, const float *weight, const float *bias,
                                     int threads) {
    struct linear *linear = calloc(1, sizeof *linear);
    if (!linear) return NULL;
    linear->activation = activation;
    struct source source = {&linear->weight, 0, out, weight, bias};
    if (!new_weight(&linear->weight, kind, in, out) && !pack(&source, 1, threads)) return linear;
    distilbert_free_linear(linear);
    return NULL;
}

void distilbert_free_linear(struct linear *linear) {
    free_weight(&linear->weight);
    free(linear);
}

/* A call of `distilbert_linear`, as all its threads see it. */
struct application {
    const struct linear *linear;
    const float *x;
    int count;
    struct rows operand;
    float *out;
};

static void apply(void *argument, int thread) {
    const struct application *call = argument;
    const struct weight *w = &call->linear->weight;
    (void)thread;
    SHARE_ROWS(row, call->count, set_row(w->kind, &call->operand, row, call->x + (size_t)row * w->in, w->in));
    struct target out = {FLOAT, call->linear->activation, (char *)call->out, w->out * sizeof(float), NULL};
    product(&call->operand, call->count, w, out);
}

int distilbert_linear(const struct linear *linear, const float *x, int count, int threads, float *out) {
    struct application call = {
        linear, x, count, {.stride = stride_of(linear->weight.in * size_of(linear->weight.kind))}, out};
    call.operand.data = new_memory(count * call.operand.stride);
    call.operand.scale = new_memory(2 * (size_t)count * sizeof(float));
    call.operand.low = call.operand.scale ? call.operand.scale + count : NULL;
    int failed = call.operand.data && call.operand.scale ? 0 : -1;
    if (!failed) together(begin(threads), apply, &call), end();
    free_memory(call.operand.data);
    free_memory(call.operand.scale);
    return failed;
}

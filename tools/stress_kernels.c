/* Encoders of all kinds and many shapes, called by two threads at once, for sanitizers to watch: see `make sanitize`.
 * Results must be those of one thread, bit for bit. Exit code 1 where they are not.
 */
#define DISTILBERT_PAGES_H /* memory whose ends a sanitizer knows, instead of pages.h */
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 64

static size_t rounded(size_t size, size_t to) { return (size + to - 1) / to * to; }

static void *new_memory(size_t size) {
    void *memory = aligned_alloc(ALIGNMENT, rounded(size + 1, ALIGNMENT));
    return memory ? memset(memory, 0, rounded(size + 1, ALIGNMENT)) : NULL;
}

static void free_memory(void *memory) { free(memory); }

#include "../distilbert/native/encoder.c"
#include "../distilbert/native/kinds.c"

#include <stdio.h>

#define SEQUENCES 7
#define TOTAL 150

static _Atomic int failures;

static float *noise(int count, unsigned *state) {
    float *x = malloc(count * sizeof *x);
    for (int i = 0; i < count; i++) {
        *state = *state * 1664525u + 1013904223u;
        x[i] = ((int)(*state >> 16) - 32768) / 65536.f;
    }
    return x;
}

static struct encoder *new_encoder(int kind, int dim, int heads, int hidden_dim, int vocab_size) {
    unsigned state = kind + dim;
    struct encoder *encoder = distilbert_new(kind, 2, dim, hidden_dim, dim / heads, GELU, 1e-12f);
    float *words = noise(vocab_size * dim, &state), *positions = noise(64 * dim, &state), *norm = noise(dim, &state);
    if (distilbert_set_embeddings(encoder, words, vocab_size, positions, 64, norm, norm, 3)) failures++;
    for (int layer = 0; layer < 2; layer++) {
        int out[] = {dim, dim, dim, dim, 1, hidden_dim, dim, 1}, in[] = {dim, dim, dim, dim, dim, dim, hidden_dim, dim};
        float *weights[16];
        for (int i = 0; i < 8; i++) {
            weights[2 * i] = noise(out[i] * in[i], &state);
            weights[2 * i + 1] = noise(out[i] == 1 ? in[i] : out[i], &state);
        }
        if (distilbert_set_layer(encoder, layer, heads, (const float *const *)weights, 2)) failures++;
        for (int i = 0; i < 16; i++) free(weights[i]);
    }
    free(words);
    free(positions);
    free(norm);
    return encoder;
}

static void *call(void *argument) {
    struct encoder *encoder = argument;
    int dim = encoder->dim;
    int32_t ids[TOTAL], positions[TOTAL], lengths[SEQUENCES] = {64, 33, 30, 15, 5, 2, 1};
    float *wanted = malloc(TOTAL * dim * sizeof *wanted), *found = malloc(TOTAL * dim * sizeof *found);
    for (int i = 0; i < TOTAL; i++) ids[i] = i * 7 % 50, positions[i] = i % 64;
    for (int first_only = 0; first_only < 2; first_only++) {
        int count = first_only ? SEQUENCES : TOTAL;
        if (distilbert_encode(encoder, ids, positions, lengths, SEQUENCES, first_only, 1, wanted)) failures++;
        for (int threads = 1; threads < 6; threads++) {
            if (distilbert_encode(encoder, ids, positions, lengths, SEQUENCES, first_only, threads, found)) failures++;
            if (memcmp(wanted, found, count * dim * sizeof *found)) failures++;
        }
    }
    free(wanted);
    free(found);
    return NULL;
}

int main(void) {
    int sizes[][3] = {{32, 2, 64}, {24, 2, 7}, {96, 3, 200}, {160, 2, 33}, {20, 5, 50}};
    for (int kind = FLOAT; kind <= BYTE; kind++) {
        if (!(distilbert_kinds() >> kind & 1)) continue;
        for (int size = 0; size < 5; size++) {
            struct encoder *encoder = new_encoder(kind, sizes[size][0], sizes[size][1], sizes[size][2], 50);
            pthread_t other;
            pthread_create(&other, NULL, call, encoder);
            call(encoder);
            pthread_join(other, NULL);
            distilbert_free(encoder);
        }
    }
    printf("%d failures\n", failures);
    return failures != 0;
}

/* What Python calls, by ctypes. No function keeps a pointer that it is given. */
#ifndef DISTILBERT_ENCODER_H
#define DISTILBERT_ENCODER_H

#include <stdint.h>

#define DISTILBERT_INTERFACE 1 /* changes with the declarations below */

struct encoder;

/* The interface that the library was compiled with. */
int distilbert_interface(void);

/* Whether this processor multiplies bfloat16 and bytes in units of its own (AMX). */
int distilbert_has_matrix_units(void);

/* Kinds of products that this processor has, as bits: 1 float32, 2 bfloat16, 4 bytes. */
int distilbert_kinds(void);

/* An encoder without weights; NULL if there is no memory. kind: 0 float32, 1 bfloat16, 2 bytes; activation: 1 GELU,
 * 2 ReLU. */
struct encoder *distilbert_new(int kind, int layers, int dim, int hidden_dim, int head_dim, int activation,
                               float epsilon);

void distilbert_free(struct encoder *encoder);

/* Copies the embeddings: words (vocab_size, dim), positions (count, dim), LayerNorm (dim). 0, or -1 without memory. */
int distilbert_set_embeddings(struct encoder *encoder, const float *words, int vocab_size, const float *positions,
                              int count, const float *weight, const float *bias, int threads);

/* Copies a layer's weights: weight and bias of q_lin, k_lin, v_lin, out_lin, sa_layer_norm, lin1, lin2 and
 * output_layer_norm, in this order; weights are (out, in). 0, or -1 without memory. */
int distilbert_set_layer(struct encoder *encoder, int layer, int n_heads, const float *const weights[16], int threads);

/* Hidden states of sequences that stand one after the other, the longest first. ids, positions: (total), and out
 * (total, dim); lengths: (sequences). With first_only those of first tokens alone, in the first rows of out.
 * 0, or -1 without memory. */
int distilbert_encode(struct encoder *encoder, const int32_t *ids, const int32_t *positions, const int32_t *lengths,
                      int sequences, int first_only, int threads, float *out);

struct linear;

/* activation(x weight^T + bias), weight (out, in), bias (out) or NULL; NULL without memory. activation: 0 none, 1 GELU,
 * 2 ReLU. */
struct linear *distilbert_new_linear(int kind, int in, int out, int activation, const float *weight, const float *bias,
                                     int threads);

void distilbert_free_linear(struct linear *linear);

/* x: (count, in); out: (count, out). 0, or -1 without memory. */
int distilbert_linear(const struct linear *linear, const float *x, int count, int threads, float *out);

#endif

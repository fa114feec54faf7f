"""DistilBERT in Keras 3 on TensorFlow. Twins: distilbert/pt/model.py and distilbert/flax/model.py.

Source: Sanh et al. 2019, arXiv 1910.01108. Axes: batch, seq, dim, n_heads, head_dim, hidden_dim.
"""

# Keras types the results of its operations as optional and its initializers as strings: neither is so.
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOptionalOperand=false
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import ml_dtypes
import tensorflow as tf
from keras import ops

from distilbert.checks import check_inputs, check_no_unknown, check_pooling_mask
from distilbert.config import LAYER_NORM_EPS, DistilBertConfig, PoolingConfig
from distilbert.outputs import BaseModelOutput, SentenceEmbeddingOutput
from distilbert.positions import sinusoidal_table
from distilbert.tf.pretrained import PretrainedModel, as_tensor, unpack, values

Tensor = Any  # a tf.Tensor, or Keras's symbolic one
Shape = Any

# GELU is written out: TensorFlow's own rounds its constants to float32, which shows in float64.
ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1.0 + ops.erf(x / math.sqrt(2.0))),
    "gelu_new": lambda x: 0.5 * x * (1.0 + ops.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x))),
    "quick_gelu": lambda x: x * ops.sigmoid(1.702 * x),
    "relu": ops.relu,
    "silu": ops.silu,
    "swish": ops.silu,
    "tanh": ops.tanh,
}


def normal(config: DistilBertConfig) -> keras.initializers.Initializer:
    """N(0, initializer_range)."""
    return keras.initializers.RandomNormal(stddev=config.initializer_range)


class FixedTable(keras.layers.Embedding):
    """A table that is not trained, whatever is said of the model that holds it."""

    def build(self, input_shape: Shape = None) -> None:
        super().build(input_shape)
        self.embeddings.trainable = False

    @property
    def trainable(self) -> bool:
        return False

    @trainable.setter
    def trainable(self, value: bool) -> None:
        pass


def linear(config: DistilBertConfig, out_features: int, name: str, dtype: Any) -> keras.layers.Dense:
    """A dense layer with N(0, initializer_range) kernel and zero bias."""
    return keras.layers.Dense(out_features, kernel_initializer=normal(config), name=name, dtype=dtype)


def embedding(
    config: DistilBertConfig, rows: int, name: str, dtype: Any, kind: type = keras.layers.Embedding
) -> keras.layers.Embedding:
    """A table of (rows, dim) drawn from N(0, initializer_range)."""
    return kind(rows, config.dim, embeddings_initializer=normal(config), name=name, dtype=dtype)


def layer_norm(config: DistilBertConfig, name: str, dtype: Any) -> keras.layers.LayerNormalization:  # noqa: ARG001 - as in the twins
    """LayerNorm over dim, with statistics in float32 or better."""
    return keras.layers.LayerNormalization(epsilon=LAYER_NORM_EPS, name=name, dtype=dtype)


def keep_mask(attention_mask: Tensor | None) -> Tensor | None:
    """Which keys each query sees: (batch, 1 or n_heads, 1 or seq, seq) of bool. None keeps all."""
    if attention_mask is None:
        return None
    keep = ops.cast(attention_mask, "bool")
    if len(keep.shape) == 2:
        return keep[:, None, None, :]
    return keep[:, None] if len(keep.shape) == 3 else keep


def lowest(x: Tensor) -> Tensor:
    """The finite minimum of the dtype of x."""
    dtype = keras.backend.standardize_dtype(x.dtype)
    return ops.convert_to_tensor(ml_dtypes.finfo(dtype).min, dtype=dtype)


class Embeddings(keras.layers.Layer):
    """dropout(LayerNorm(word + position)). input_ids, position_ids: (batch, seq); result: (batch, seq, dim)."""

    def __init__(self, config: DistilBertConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config, dtype = config, self.dtype_policy
        self.word_embeddings = embedding(config, config.vocab_size, "word_embeddings", dtype)
        kind = FixedTable if config.sinusoidal_pos_embds else keras.layers.Embedding
        self.position_embeddings = embedding(config, config.max_position_embeddings, "position_embeddings", dtype, kind)
        self.LayerNorm = layer_norm(config, "LayerNorm", dtype)
        self.dropout = keras.layers.Dropout(config.dropout, dtype=dtype)

    def build(self, input_shape: Shape = None) -> None:
        config = self.config
        self.word_embeddings.build(input_shape)
        self.position_embeddings.build(input_shape)
        self.LayerNorm.build((None, None, config.dim))
        if config.pad_token_id is not None:
            table = self.word_embeddings.embeddings
            table.assign(table * ops.cast(ops.arange(config.vocab_size) != config.pad_token_id, table.dtype)[:, None])
        if config.sinusoidal_pos_embds:
            table = sinusoidal_table(config.max_position_embeddings, config.dim)
            self.position_embeddings.embeddings.assign(table)

    def call(self, input_ids: Any, position_ids: Any, inputs_embeds: Any) -> Tensor:
        word = inputs_embeds if input_ids is None else self.word_embeddings(input_ids)  # (batch, seq, dim)
        if position_ids is None:
            position_ids = ops.arange(ops.shape(word)[1])[None, :]  # (1, seq)
        position = self.position_embeddings(position_ids)  # (batch or 1, seq, dim)
        return self.dropout(self.LayerNorm(word + position))


class MultiHeadSelfAttention(keras.layers.Layer):
    """Scaled dot-product attention in n_heads heads. Source: Vaswani et al. 2017, section 3.2.

    x and result: (batch, seq, dim); probabilities: (batch, n_heads, seq, seq), or None when not asked for.
    """

    def __init__(self, config: DistilBertConfig, layer: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config, dtype = config, self.dtype_policy
        self.head_dim = config.head_dim
        self.n_heads = config.n_heads - len(config.pruned_heads.get(layer, ()))
        self.q_lin = linear(config, self.n_heads * self.head_dim, "q_lin", dtype)
        self.k_lin = linear(config, self.n_heads * self.head_dim, "k_lin", dtype)
        self.v_lin = linear(config, self.n_heads * self.head_dim, "v_lin", dtype)
        self.out_lin = linear(config, config.dim, "out_lin", dtype)
        self.dropout = keras.layers.Dropout(config.attention_dropout, dtype=dtype)

    def build(self, input_shape: Shape = None) -> None:
        del input_shape
        for layer in (self.q_lin, self.k_lin, self.v_lin):
            layer.build((None, None, self.config.dim))
        self.out_lin.build((None, None, self.n_heads * self.head_dim))

    def call(
        self, x: Tensor, keep: Tensor | None, head_mask: Tensor | None, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = self.split(self.q_lin(x)), self.split(self.k_lin(x)), self.split(self.v_lin(x))
        context, probabilities = self.attend(q, k, v, keep, head_mask)
        context = ops.transpose(context, (0, 2, 1, 3))
        context = ops.reshape(context, (*ops.shape(x)[:2], self.n_heads * self.head_dim))  # (batch, seq, ...)
        return self.out_lin(context), probabilities if output_attentions else None

    def split(self, x: Tensor) -> Tensor:
        x = ops.reshape(x, (*ops.shape(x)[:2], self.n_heads, self.head_dim))
        return ops.transpose(x, (0, 2, 1, 3))  # (batch, n_heads, seq, head_dim)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, head_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        scores = ops.matmul(q * self.head_dim**-0.5, ops.transpose(k, (0, 1, 3, 2)))  # (batch, n_heads, seq, seq)
        if keep is not None:  # replaced, not added to: a row without a key becomes uniform
            scores = ops.where(keep, scores, lowest(scores))
        softmax_dtype = keras.backend.result_type(scores.dtype, "float32")
        probabilities = self.dropout(ops.cast(tf.nn.softmax(ops.cast(scores, softmax_dtype)), q.dtype))
        if head_mask is not None:
            probabilities = probabilities * head_mask[:, None, None]
        return ops.matmul(probabilities, v), probabilities  # (batch, n_heads, seq, head_dim)


class FFN(keras.layers.Layer):
    """Feed-forward of one block: dropout(lin2(activation(lin1(x)))).

    x and result: (batch, seq, dim). Source: Vaswani et al. 2017, eq. 2, with BERT's erf GELU.
    """

    def __init__(self, config: DistilBertConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config, dtype = config, self.dtype_policy
        self.lin1 = linear(config, config.hidden_dim, "lin1", dtype)
        self.lin2 = linear(config, config.dim, "lin2", dtype)
        self.dropout = keras.layers.Dropout(config.dropout, dtype=dtype)
        self.activation = ACTIVATIONS[config.activation]

    def build(self, input_shape: Shape = None) -> None:
        del input_shape
        self.lin1.build((None, None, self.config.dim))
        self.lin2.build((None, None, self.config.hidden_dim))

    def call(self, x: Tensor) -> Tensor:
        x = self.activation(self.lin1(x))  # (batch, seq, hidden_dim)
        return self.dropout(self.lin2(x))  # (batch, seq, dim)


class TransformerBlock(keras.layers.Layer):
    """One post-norm layer: attention and feed-forward, each with a residual and a LayerNorm after it."""

    def __init__(self, config: DistilBertConfig, layer: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config, dtype = config, self.dtype_policy
        self.attention = MultiHeadSelfAttention(config, layer, name="attention", dtype=dtype)
        self.sa_layer_norm = layer_norm(config, "sa_layer_norm", dtype)
        self.ffn = FFN(config, name="ffn", dtype=dtype)
        self.output_layer_norm = layer_norm(config, "output_layer_norm", dtype)

    def build(self, input_shape: Shape = None) -> None:
        del input_shape
        for layer in (self.attention, self.sa_layer_norm, self.ffn, self.output_layer_norm):
            layer.build((None, None, self.config.dim))

    def call(
        self, x: Tensor, keep: Tensor | None, head_mask: Tensor | None, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None]:
        attended, probabilities = self.attention(x, keep=keep, head_mask=head_mask, output_attentions=output_attentions)
        x = self.sa_layer_norm(attended + x)
        x = self.output_layer_norm(self.ffn(x) + x)
        return x, probabilities


class Transformer(keras.layers.Layer):
    """The stack of n_layers blocks. x: (batch, seq, dim)."""

    def __init__(self, config: DistilBertConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        dtype = self.dtype_policy
        self.layer = [TransformerBlock(config, i, name=f"layer_{i}", dtype=dtype) for i in range(config.n_layers)]

    def build(self, input_shape: Shape = None) -> None:
        for block in self.layer:
            block.build(input_shape)

    def call(
        self,
        x: Tensor,
        keep: Tensor | None,
        head_mask: Tensor | None,
        output_hidden_states: bool,
        output_attentions: bool,
    ) -> BaseModelOutput:
        hidden_states, attentions = (x,), ()
        for i, block in enumerate(self.layer):
            x, probabilities = block(
                x,
                keep=keep,
                head_mask=None if head_mask is None else head_mask[i],
                output_attentions=output_attentions,
            )
            hidden_states += (x,)
            attentions += (probabilities,)
        return BaseModelOutput(
            x, hidden_states if output_hidden_states else (), attentions if output_attentions else ()
        )


class Pooling(keras.layers.Layer):
    """One vector per row from the token vectors that the mask keeps; zeros for a row without any, but in mode cls.

    hidden: (batch, seq, dim); attention_mask: (batch, seq); result: (batch, dim). Source: Reimers and Gurevych 2019.
    """

    def __init__(self, pooling: PoolingConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = pooling

    def call(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        x = ops.cast(hidden, keras.backend.result_type(hidden.dtype, "float32"))
        keep = ops.ones_like(x[:, :, 0]) if attention_mask is None else attention_mask
        keep = ops.cast(ops.cast(keep, "bool"), x.dtype)[:, :, None]
        count = ops.sum(keep, 1)  # (batch, 1)
        if self.config.mode == "cls":
            x = x[:, 0]
        elif self.config.mode == "max":
            x = ops.max(ops.where(keep != 0, x, lowest(x)), 1) * ops.cast(count != 0, x.dtype)
        else:
            x = ops.sum(x * keep, 1) / ops.maximum(count if self.config.mode == "mean" else ops.sqrt(count), 1e-9)
        if self.config.normalize:
            x = x / ops.sqrt(
                ops.maximum(ops.sum(x * x, -1, keepdims=True), 1e-24)
            )  # not norm(x): its gradient at 0 is NaN
        return ops.cast(x, hidden.dtype)  # (batch, dim)


@keras.saving.register_keras_serializable(package="distilbert")
class DistilBertModel(PretrainedModel):
    """The encoder without a head.

    Example:
        model = DistilBertModel.from_pretrained("folder")
        hidden = model(input_ids, attention_mask).last_hidden_state  # (batch, seq, dim)
    """

    def __init__(self, config: DistilBertConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.embeddings = Embeddings(config, name="embeddings", dtype=self.dtype_policy)
        self.transformer = Transformer(config, name="transformer", dtype=self.dtype_policy)
        self.build()

    def build(self, input_shape: Shape = None) -> None:
        self.embeddings.build(input_shape)
        self.transformer.build(input_shape)

    def call(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        head_mask: Any = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        training: bool | None = None,
        **unknown: Any,
    ) -> BaseModelOutput:
        """Encode a batch.

        Args:
            input_ids: (batch, seq), int32 or int64, below vocab_size. Either this or `inputs_embeds`. Keras's
                `fit` and `predict` pass a dict of the arguments here.
            attention_mask: 1 keep, 0 drop; (batch, seq), (batch, seq, seq) or (batch, 1 or n_heads, seq, seq).
            position_ids: (batch, seq) or (1, seq), below max_position_embeddings; default 0 to seq-1.
            inputs_embeds: (batch, seq, dim), in place of the word embeddings.
            head_mask: (n_heads,) or (n_layers, n_heads), multiplies the attention probabilities.
            output_hidden_states: return n_layers + 1 tensors of (batch, seq, dim).
            output_attentions: return n_layers tensors of (batch, n_heads, seq, seq).
            training: whether dropout acts.
            unknown: refused by name.

        Raises:
            ValueError: an argument does not fit the config or another argument.
            TypeError: an argument that DistilBERT does not have.
        """
        if isinstance(input_ids, Mapping):
            return self(
                **unpack(
                    input_ids,
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                    inputs_embeds=inputs_embeds,
                    head_mask=head_mask,
                    output_hidden_states=output_hidden_states,
                    output_attentions=output_attentions,
                    **unknown,
                ),
                training=training,
            )
        check_no_unknown(unknown)
        input_ids, position_ids = as_tensor(input_ids), as_tensor(position_ids)
        attention_mask = as_tensor(attention_mask)
        inputs_embeds = as_tensor(inputs_embeds, self.compute_dtype)
        head_mask = as_tensor(head_mask, self.compute_dtype)
        check_inputs(self.config, input_ids, attention_mask, position_ids, inputs_embeds, head_mask, values)
        if head_mask is not None:
            head_mask = ops.broadcast_to(head_mask, (self.config.n_layers, self.config.n_heads))
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        x = self.embeddings(input_ids, position_ids=position_ids, inputs_embeds=inputs_embeds)  # (batch, seq, dim)
        return self.transformer(
            x,
            keep=keep_mask(attention_mask),
            head_mask=head_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )


@keras.saving.register_keras_serializable(package="distilbert")
class DistilBertForSentenceEmbedding(PretrainedModel):
    """The encoder and a pooling: one vector per text, as sentence-transformers computes it.

    Example:
        model = DistilBertForSentenceEmbedding.from_pretrained("folder")
        vectors = model(input_ids, attention_mask).embeddings  # (batch, dim)
    """

    def __init__(self, config: DistilBertConfig, pooling: PoolingConfig | None = None, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.distilbert = DistilBertModel(config, name="distilbert", dtype=self.dtype_policy)
        self.pooling = Pooling(pooling or PoolingConfig(), name="pooling", dtype=self.dtype_policy)
        self.build()

    def build(self, input_shape: Shape = None) -> None:
        self.pooling.build(input_shape)

    def call(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        head_mask: Any = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        training: bool | None = None,
        **unknown: Any,
    ) -> SentenceEmbeddingOutput:
        """Embed a batch. Arguments as for `DistilBertModel`; attention_mask only as (batch, seq)."""
        if isinstance(input_ids, Mapping):
            return self(
                **unpack(
                    input_ids,
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                    inputs_embeds=inputs_embeds,
                    head_mask=head_mask,
                    output_hidden_states=output_hidden_states,
                    output_attentions=output_attentions,
                    **unknown,
                ),
                training=training,
            )
        check_no_unknown(unknown)
        attention_mask = as_tensor(attention_mask)
        check_pooling_mask(attention_mask)
        output = self.distilbert(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            head_mask=head_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            training=training,
        )
        embeddings = self.pooling(output.last_hidden_state, attention_mask=attention_mask)  # (batch, dim)
        return SentenceEmbeddingOutput(embeddings, output.hidden_states, output.attentions)

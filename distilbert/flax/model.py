"""DistilBERT in Flax NNX. Twins: distilbert/pt/model.py and distilbert/tf/model.py.

Source: Sanh et al. 2019, arXiv 1910.01108. Axes: batch, seq, dim, n_heads, head_dim, hidden_dim.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from distilbert.checks import check_inputs, check_no_unknown, check_pooling_mask
from distilbert.config import LAYER_NORM_EPS, DistilBertConfig, PoolingConfig
from distilbert.flax.pretrained import PretrainedModel, as_array, values
from distilbert.outputs import BaseModelOutput, SentenceEmbeddingOutput
from distilbert.positions import sinusoidal_table

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


class FixedTable(nnx.Variable[Any]):
    """A table that is not trained: no nnx.Param, so gradients and optimizers pass it by."""


def linear(config: DistilBertConfig, in_features: int, out_features: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer with N(0, initializer_range) kernel and zero bias."""
    normal = nnx.initializers.normal(config.initializer_range)
    return nnx.Linear(in_features, out_features, kernel_init=normal, rngs=rngs)


def embedding(config: DistilBertConfig, rows: int, *, rngs: nnx.Rngs) -> nnx.Embed:
    """A table of (rows, dim) drawn from N(0, initializer_range)."""
    normal = nnx.initializers.normal(config.initializer_range)
    layer = nnx.Embed(rows, config.dim, embedding_init=normal, rngs=rngs)
    layer.dtype = None  # the table's, also after the table was replaced by one of another dtype
    return layer


def layer_norm(config: DistilBertConfig, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over dim, with two-pass statistics in float32 or better."""
    return nnx.LayerNorm(config.dim, epsilon=LAYER_NORM_EPS, use_fast_variance=False, rngs=rngs)


def keep_mask(attention_mask: Array | None) -> Array | None:
    """Which keys each query sees: (batch, 1 or n_heads, 1 or seq, seq) of bool. None keeps all."""
    if attention_mask is None:
        return None
    keep = jnp.asarray(attention_mask) != 0
    if keep.ndim == 2:
        return keep[:, None, None, :]
    return keep[:, None] if keep.ndim == 3 else keep


class Embeddings(nnx.Module):
    """dropout(LayerNorm(word + position)). input_ids, position_ids: (batch, seq); result: (batch, seq, dim)."""

    def __init__(self, config: DistilBertConfig, *, rngs: nnx.Rngs) -> None:
        self.word_embeddings = embedding(config, config.vocab_size, rngs=rngs)
        self.position_embeddings = embedding(config, config.max_position_embeddings, rngs=rngs)
        self.LayerNorm = layer_norm(config, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)
        if config.pad_token_id is not None:
            table = self.word_embeddings.embedding
            table[...] = table[...].at[config.pad_token_id].set(0.0)
        if config.sinusoidal_pos_embds:
            table = sinusoidal_table(config.max_position_embeddings, config.dim)
            setattr(self.position_embeddings, "embedding", FixedTable(jnp.asarray(table)))  # noqa: B010 - not the Param that it declares

    def __call__(self, input_ids: Any, position_ids: Any, inputs_embeds: Any) -> Array:
        word = inputs_embeds if input_ids is None else self.word_embeddings(input_ids)  # (batch, seq, dim)
        if position_ids is None:
            position_ids = jnp.arange(word.shape[1])[None, :]  # (1, seq)
        position = self.position_embeddings(position_ids)  # (batch or 1, seq, dim)
        return self.dropout(self.LayerNorm(word + position))


class MultiHeadSelfAttention(nnx.Module):
    """Scaled dot-product attention in n_heads heads. Source: Vaswani et al. 2017, section 3.2.

    x and result: (batch, seq, dim); probabilities: (batch, n_heads, seq, seq), or None when not asked for.
    """

    def __init__(self, config: DistilBertConfig, layer: int, *, rngs: nnx.Rngs) -> None:
        self.head_dim = config.head_dim
        self.n_heads = config.n_heads - len(config.pruned_heads.get(layer, ()))
        self.q_lin = linear(config, config.dim, self.n_heads * self.head_dim, rngs=rngs)
        self.k_lin = linear(config, config.dim, self.n_heads * self.head_dim, rngs=rngs)
        self.v_lin = linear(config, config.dim, self.n_heads * self.head_dim, rngs=rngs)
        self.out_lin = linear(config, self.n_heads * self.head_dim, config.dim, rngs=rngs)
        self.dropout = nnx.Dropout(config.attention_dropout, rngs=rngs)

    def __call__(
        self, x: Array, keep: Array | None, head_mask: Array | None, output_attentions: bool
    ) -> tuple[Array, Array | None]:
        q, k, v = self.split(self.q_lin(x)), self.split(self.k_lin(x)), self.split(self.v_lin(x))
        context, probabilities = self.attend(q, k, v, keep, head_mask)
        context = context.swapaxes(1, 2).reshape(*x.shape[:2], -1)  # (batch, seq, n_heads * head_dim)
        return self.out_lin(context), probabilities if output_attentions else None

    def split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.n_heads, self.head_dim).swapaxes(1, 2)  # (batch, n_heads, seq, head_dim)

    def attend(self, q: Array, k: Array, v: Array, keep: Array | None, head_mask: Array | None) -> tuple[Array, Array]:
        scores = (q * self.head_dim**-0.5) @ k.swapaxes(-1, -2)  # (batch, n_heads, seq, seq)
        if keep is not None:  # replaced, not added to: a row without a key becomes uniform
            scores = jnp.where(keep, scores, jnp.finfo(scores.dtype).min)
        softmax_dtype = jnp.promote_types(scores.dtype, jnp.float32)
        probabilities = self.dropout(jax.nn.softmax(scores.astype(softmax_dtype)).astype(q.dtype))
        if head_mask is not None:
            probabilities = probabilities * head_mask[:, None, None]
        return probabilities @ v, probabilities  # (batch, n_heads, seq, head_dim)


class FFN(nnx.Module):
    """Feed-forward of one block: dropout(lin2(activation(lin1(x)))).

    x and result: (batch, seq, dim). Source: Vaswani et al. 2017, eq. 2, with BERT's erf GELU.
    """

    def __init__(self, config: DistilBertConfig, *, rngs: nnx.Rngs) -> None:
        self.lin1 = linear(config, config.dim, config.hidden_dim, rngs=rngs)
        self.lin2 = linear(config, config.hidden_dim, config.dim, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)
        self.activation = ACTIVATIONS[config.activation]

    def __call__(self, x: Array) -> Array:
        x = self.activation(self.lin1(x))  # (batch, seq, hidden_dim)
        return self.dropout(self.lin2(x))  # (batch, seq, dim)


class TransformerBlock(nnx.Module):
    """One post-norm layer: attention and feed-forward, each with a residual and a LayerNorm after it."""

    def __init__(self, config: DistilBertConfig, layer: int, *, rngs: nnx.Rngs) -> None:
        self.attention = MultiHeadSelfAttention(config, layer, rngs=rngs)
        self.sa_layer_norm = layer_norm(config, rngs=rngs)
        self.ffn = FFN(config, rngs=rngs)
        self.output_layer_norm = layer_norm(config, rngs=rngs)

    def __call__(
        self, x: Array, keep: Array | None, head_mask: Array | None, output_attentions: bool
    ) -> tuple[Array, Array | None]:
        attended, probabilities = self.attention(x, keep, head_mask, output_attentions)
        x = self.sa_layer_norm(attended + x)
        x = self.output_layer_norm(self.ffn(x) + x)
        return x, probabilities


class Transformer(nnx.Module):
    """The stack of n_layers blocks. x: (batch, seq, dim)."""

    def __init__(self, config: DistilBertConfig, *, rngs: nnx.Rngs) -> None:
        self.layer = nnx.List(TransformerBlock(config, i, rngs=rngs) for i in range(config.n_layers))

    def __call__(
        self,
        x: Array,
        keep: Array | None,
        head_mask: Array | None,
        output_hidden_states: bool,
        output_attentions: bool,
    ) -> BaseModelOutput:
        hidden_states, attentions = (x,), ()
        for i, block in enumerate(self.layer):
            x, probabilities = block(x, keep, None if head_mask is None else head_mask[i], output_attentions)
            hidden_states += (x,)
            attentions += (probabilities,)
        return BaseModelOutput(
            x, hidden_states if output_hidden_states else (), attentions if output_attentions else ()
        )


class Pooling(nnx.Module):
    """One vector per row from the token vectors that the mask keeps; zeros for a row without any, but in mode cls.

    hidden: (batch, seq, dim); attention_mask: (batch, seq); result: (batch, dim). Source: Reimers and Gurevych 2019.
    """

    def __init__(self, pooling: PoolingConfig) -> None:
        self.config = pooling

    def __call__(self, hidden: Array, attention_mask: Array | None) -> Array:
        x = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
        keep = jnp.ones(x.shape[:2], x.dtype) if attention_mask is None else jnp.asarray(attention_mask)
        keep = (keep != 0).astype(x.dtype)[:, :, None]
        count = keep.sum(1)  # (batch, 1)
        if self.config.mode == "cls":
            x = x[:, 0]
        elif self.config.mode == "max":
            x = jnp.where(keep != 0, x, jnp.finfo(x.dtype).min).max(1) * (count != 0)
        else:
            x = (x * keep).sum(1) / jnp.maximum(count if self.config.mode == "mean" else jnp.sqrt(count), 1e-9)
        if self.config.normalize:
            x = x / jnp.sqrt(
                jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24)
            )  # not norm(x): its gradient at 0 is NaN
        return x.astype(hidden.dtype)  # (batch, dim)


class DistilBertModel(PretrainedModel):
    """The encoder without a head.

    Example:
        model = DistilBertModel.from_pretrained("folder")
        hidden = model(input_ids, attention_mask).last_hidden_state  # (batch, seq, dim)
    """

    def __init__(self, config: DistilBertConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config, rngs=rngs)
        self.transformer = Transformer(config, rngs=rngs)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        head_mask: Any = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **unknown: Any,
    ) -> BaseModelOutput:
        """Encode a batch.

        Args:
            input_ids: (batch, seq), int32 or int64, below vocab_size. Either this or `inputs_embeds`.
            attention_mask: 1 keep, 0 drop; (batch, seq), (batch, seq, seq) or (batch, 1 or n_heads, seq, seq).
            position_ids: (batch, seq) or (1, seq), below max_position_embeddings; default 0 to seq-1.
            inputs_embeds: (batch, seq, dim), in place of the word embeddings.
            head_mask: (n_heads,) or (n_layers, n_heads), multiplies the attention probabilities.
            output_hidden_states: return n_layers + 1 tensors of (batch, seq, dim).
            output_attentions: return n_layers tensors of (batch, n_heads, seq, seq).
            unknown: refused by name.

        Raises:
            ValueError: an argument does not fit the config or another argument.
            TypeError: an argument that DistilBERT does not have.
        """
        check_no_unknown(unknown)
        input_ids, position_ids = as_array(input_ids), as_array(position_ids)
        attention_mask = as_array(attention_mask)
        inputs_embeds, head_mask = as_array(inputs_embeds, self.dtype), as_array(head_mask, self.dtype)
        check_inputs(self.config, input_ids, attention_mask, position_ids, inputs_embeds, head_mask, values)
        if head_mask is not None:
            head_mask = jnp.broadcast_to(head_mask, (self.config.n_layers, self.config.n_heads))
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        x = self.embeddings(input_ids, position_ids, inputs_embeds)  # (batch, seq, dim)
        return self.transformer(x, keep_mask(attention_mask), head_mask, output_hidden_states, output_attentions)


class DistilBertForSentenceEmbedding(PretrainedModel):
    """The encoder and a pooling: one vector per text, as sentence-transformers computes it.

    Example:
        model = DistilBertForSentenceEmbedding.from_pretrained("folder")
        vectors = model(input_ids, attention_mask).embeddings  # (batch, dim)
    """

    def __init__(self, config: DistilBertConfig, pooling: PoolingConfig | None = None, *, rngs: nnx.Rngs) -> None:
        super().__init__(config)
        self.distilbert = DistilBertModel(config, rngs=rngs)
        self.pooling = Pooling(pooling or PoolingConfig())

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        head_mask: Any = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **unknown: Any,
    ) -> SentenceEmbeddingOutput:
        """Embed a batch. Arguments as for `DistilBertModel`; attention_mask only as (batch, seq)."""
        check_no_unknown(unknown)
        attention_mask = as_array(attention_mask)
        check_pooling_mask(attention_mask)
        output = self.distilbert(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            head_mask=head_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        embeddings = self.pooling(output.last_hidden_state, attention_mask)  # (batch, dim)
        return SentenceEmbeddingOutput(embeddings, output.hidden_states, output.attentions)

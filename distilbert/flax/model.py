"""The encoder in Flax NNX. Twins: pt/model.py and tf/model.py.

Source: Sanh et al. 2019, arXiv 1910.01108. Axes: batch, seq, dim, n_heads, head_dim, hidden_dim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from distilbert.checks import check_inputs, check_no_unknown
from distilbert.config import LAYER_NORM_EPS, DistilBertConfig
from distilbert.flax.attention import KERNELS, attend, attend_fused, keep_mask
from distilbert.flax.pretrained import PretrainedModel, as_array, values
from distilbert.outputs import BaseModelOutput
from distilbert.positions import sinusoidal_table


def rounded_once(formula: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The formula in float32 or better: half precision is rounded at its end only, not at each of its steps."""
    return functools.partial(in_float32, formula)


def in_float32(formula: Callable[[Array], Array], x: Array) -> Array:
    """What `rounded_once` computes; a function of the module, so that a model can be pickled."""
    return formula(x.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype)


def gelu(x: Array) -> Array:
    """X times the normal distribution function at x. Source: Hendrycks and Gimpel 2016, arXiv 1606.08415."""
    return jax.nn.gelu(x, approximate=False)


def gelu_new(x: Array) -> Array:
    """The tanh approximation of `gelu`."""
    return jax.nn.gelu(x, approximate=True)


def quick_gelu(x: Array) -> Array:
    """The sigmoid approximation of `gelu`."""
    return x * jax.nn.sigmoid(1.702 * x)


def identity(x: Array) -> Array:
    """No activation."""
    return x


ACTIVATIONS = {
    "gelu": rounded_once(gelu),
    "gelu_new": rounded_once(gelu_new),
    "quick_gelu": rounded_once(quick_gelu),
    "relu": jax.nn.relu,
    "silu": rounded_once(jax.nn.silu),
    "swish": rounded_once(jax.nn.silu),
    "tanh": jnp.tanh,
    "identity": identity,
}


class FixedTable(nnx.Variable[Any]):
    """A table that is not trained: no nnx.Param, so gradients and optimizers pass it by."""


class PaddedTable(nnx.Embed):
    """A table with a row for padding, which starts as zero and gets no gradient from being looked up."""

    def __init__(self, rows: int, dim: int, padding: int | None, **options: Any) -> None:
        super().__init__(rows, dim, **options)
        self.padding = padding
        if padding is not None:
            self.embedding[...] = self.embedding[...].at[padding].set(0.0)

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        rows = super().__call__(inputs, out_sharding)
        if self.padding is None:
            return rows
        return jnp.where((inputs == self.padding)[..., None], jax.lax.stop_gradient(rows), rows)


def linear(
    config: DistilBertConfig, in_features: int, out_features: int, *, bias: bool = True, rngs: nnx.Rngs
) -> nnx.Linear:
    """A dense layer with N(0, initializer_range) kernel and zero bias, or none."""
    normal = nnx.initializers.normal(config.initializer_range)
    return nnx.Linear(in_features, out_features, use_bias=bias, kernel_init=normal, rngs=rngs)


def embedding(config: DistilBertConfig, rows: int, padding: int | None = None, *, rngs: nnx.Rngs) -> nnx.Embed:
    """A table of (rows, dim) drawn from N(0, initializer_range); the row `padding` is zero and not trained."""
    normal = nnx.initializers.normal(config.initializer_range)
    layer = PaddedTable(rows, config.dim, padding, embedding_init=normal, rngs=rngs)
    layer.dtype = None  # the table's, also after the table was replaced by one of another dtype
    return layer


def layer_norm(config: DistilBertConfig, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over dim, with two-pass statistics in float32 or better."""
    return nnx.LayerNorm(config.dim, epsilon=LAYER_NORM_EPS, use_fast_variance=False, rngs=rngs)


def recomputed(block: TransformerBlock) -> Callable[..., Any]:
    """The block, whose inside is computed again for the gradient, with the same dropout, instead of being kept."""
    graph, state = nnx.split(block)
    dropouts = (block.attention.dropout, block.ffn.dropout)

    @functools.partial(jax.checkpoint, static_argnums=4)
    def result(state: nnx.State[Any, Any], x: Array, keep: Any, head_mask: Any, output_attentions: bool) -> Any:
        copy = nnx.merge(graph, state)
        return copy(x, keep, head_mask, output_attentions), nnx.state(copy, nnx.RngCount)

    def run(*arguments: Any) -> tuple[Array, Array | None]:
        found, counts = result(state, *arguments)
        if any(dropout.rate > 0 and not dropout.deterministic for dropout in dropouts):
            nnx.update(block, counts)  # nnx.remat would do so at every call, which JAX's own transforms refuse
        return found

    return run


class Embeddings(nnx.Module):
    """dropout(LayerNorm(word + position)). input_ids, position_ids: (batch, seq); result: (batch, seq, dim)."""

    def __init__(self, config: DistilBertConfig, *, rngs: nnx.Rngs) -> None:
        self.word_embeddings = embedding(config, config.vocab_size, config.pad_token_id, rngs=rngs)
        self.position_embeddings = embedding(config, config.max_position_embeddings, rngs=rngs)
        self.LayerNorm = layer_norm(config, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)
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

    attn_implementation = KERNELS[0]  # see PretrainedModel.set_attn_implementation

    def __init__(self, config: DistilBertConfig, layer: int, *, rngs: nnx.Rngs) -> None:
        self.head_dim = config.head_dim
        self.n_heads = config.heads_of(layer)
        self.q_lin = linear(config, config.dim, self.n_heads * self.head_dim, rngs=rngs)
        self.k_lin = linear(config, config.dim, self.n_heads * self.head_dim, rngs=rngs)
        self.v_lin = linear(config, config.dim, self.n_heads * self.head_dim, rngs=rngs)
        self.out_lin = linear(config, self.n_heads * self.head_dim, config.dim, rngs=rngs)
        self.dropout = nnx.Dropout(config.attention_dropout, rngs=rngs)

    def __call__(
        self, x: Array, keep: Array | None, head_mask: Array | None, output_attentions: bool
    ) -> tuple[Array, Array | None]:
        q, k, v = self.split(self.q_lin(x)), self.split(self.k_lin(x)), self.split(self.v_lin(x))
        drops, probabilities = self.dropout.rate > 0 and not self.dropout.deterministic, None
        if self.attn_implementation == "eager" or head_mask is not None or output_attentions or drops:
            context, probabilities = attend(q, k, v, keep, head_mask, self.dropout)
        else:
            context = attend_fused(q, k, v, keep, self.attn_implementation)
        context = context.swapaxes(1, 2).reshape(*x.shape[:2], -1)  # (batch, seq, n_heads * head_dim)
        return self.out_lin(context), probabilities if output_attentions else None

    def split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.n_heads, self.head_dim).swapaxes(1, 2)  # (batch, n_heads, seq, head_dim)


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
        self.gradient_checkpointing = False  # see PretrainedModel.gradient_checkpointing_enable

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
            run = recomputed(block) if self.gradient_checkpointing else block
            x, probabilities = run(x, keep, None if head_mask is None else head_mask[i], output_attentions)
            hidden_states += (x,)
            attentions += (probabilities,)
        return BaseModelOutput(
            x, hidden_states if output_hidden_states else (), attentions if output_attentions else ()
        )


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
        input_ids, position_ids = as_array("input_ids", input_ids), as_array("position_ids", position_ids)
        attention_mask = as_array("attention_mask", attention_mask)
        inputs_embeds, head_mask = (
            as_array("inputs_embeds", inputs_embeds, self.dtype),
            as_array("head_mask", head_mask, self.dtype),
        )
        check_inputs(self.config, input_ids, attention_mask, position_ids, inputs_embeds, head_mask, values)
        if head_mask is not None:
            head_mask = jnp.broadcast_to(head_mask, (self.config.n_layers, self.config.n_heads))
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        x = self.embeddings(input_ids, position_ids, inputs_embeds)  # (batch, seq, dim)
        return self.transformer(x, keep_mask(attention_mask), head_mask, output_hidden_states, output_attentions)

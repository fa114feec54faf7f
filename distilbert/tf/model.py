"""The encoder in Keras 3 on TensorFlow. Twins: pt/model.py and flax/model.py.

Source: Sanh et al. 2019, arXiv 1910.01108. Axes: batch, seq, dim, n_heads, head_dim, hidden_dim.
"""

# Keras types the results of its operations as optional and its initializers as strings: neither is so.
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false, reportOptionalOperand=false
# pyright: reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from distilbert.checks import check_inputs, check_no_unknown
from distilbert.config import LAYER_NORM_EPS, DistilBertConfig
from distilbert.outputs import BaseModelOutput
from distilbert.positions import sinusoidal_table
from distilbert.tf.attention import attend, keep_mask
from distilbert.tf.pretrained import PretrainedModel, as_tensor, values

Tensor = Any  # a tf.Tensor, or Keras's symbolic one
Shape = Any


def rounded_once(formula: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The formula in float32 or better: half precision is rounded at its end only, not at each of its steps."""
    return functools.partial(in_float32, formula)


def in_float32(formula: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What `rounded_once` computes; a function of the module, so that a model can be pickled."""
    return ops.cast(formula(ops.cast(x, keras.backend.result_type(x.dtype, "float32"))), x.dtype)


def gelu(x: Tensor) -> Tensor:
    """X times the normal distribution function at x. Source: Hendrycks and Gimpel 2016, arXiv 1606.08415.

    Written out: TensorFlow's own rounds its constants to float32, which shows in float64.
    """
    return 0.5 * x * (1.0 + ops.erf(x / math.sqrt(2.0)))


def gelu_new(x: Tensor) -> Tensor:
    """The tanh approximation of `gelu`."""
    return 0.5 * x * (1.0 + ops.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of `gelu`."""
    return x * ops.sigmoid(1.702 * x)


def identity(x: Tensor) -> Tensor:
    """No activation."""
    return x


ACTIVATIONS = {
    "gelu": rounded_once(gelu),
    "gelu_new": rounded_once(gelu_new),
    "quick_gelu": rounded_once(quick_gelu),
    "relu": ops.relu,
    "silu": rounded_once(ops.silu),
    "swish": rounded_once(ops.silu),
    "tanh": ops.tanh,
    "identity": identity,
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


class PaddedTable(keras.layers.Embedding):
    """A table with a row for padding, which starts as zero and gets no gradient from being looked up."""

    def __init__(self, rows: int, dim: int, padding: int | None, **options: Any) -> None:
        super().__init__(rows, dim, **options)
        self.padding = padding

    def build(self, input_shape: Shape = None) -> None:
        super().build(input_shape)
        if self.padding is not None:
            kept = ops.cast(ops.arange(self.input_dim) != self.padding, self.embeddings.dtype)
            self.embeddings.assign(self.embeddings * kept[:, None])

    def call(self, inputs: Tensor) -> Tensor:
        rows = super().call(inputs)
        if self.padding is None:
            return rows
        return ops.where(ops.equal(inputs, self.padding)[..., None], ops.stop_gradient(rows), rows)


class Dropout(keras.layers.Dropout):
    """Keras's dropout, which can be told its seed, so that a step can be computed again."""

    drawn: Tensor | None = None

    def draw(self, training: bool | None) -> Tensor | None:
        """The seed of one call, drawn ahead; None when nothing will be dropped."""
        return self.seed_generator.next() if training and self.rate > 0 else None

    def call(self, inputs: Tensor, training: bool | None = False) -> Tensor:
        if not training or self.rate == 0:
            return inputs
        seed = self.seed_generator.next() if self.drawn is None else self.drawn
        return tf.nn.experimental.stateless_dropout(inputs, rate=self.rate, seed=tf.cast(seed, tf.int32))


def linear(
    config: DistilBertConfig, out_features: int, name: str, dtype: Any, *, bias: bool = True
) -> keras.layers.Dense:
    """A dense layer with N(0, initializer_range) kernel and zero bias, or none."""
    return keras.layers.Dense(out_features, use_bias=bias, kernel_initializer=normal(config), name=name, dtype=dtype)


def embedding(
    config: DistilBertConfig, rows: int, padding: int | None, name: str, dtype: Any, *, fixed: bool = False
) -> keras.layers.Embedding:
    """A table of (rows, dim) drawn from N(0, initializer_range); the row `padding` is zero and not trained."""
    options = {"embeddings_initializer": normal(config), "name": name, "dtype": dtype}
    if fixed:
        return FixedTable(rows, config.dim, **options)
    return PaddedTable(rows, config.dim, padding, **options)


def layer_norm(config: DistilBertConfig, name: str, dtype: Any) -> keras.layers.LayerNormalization:  # noqa: ARG001 - as in the twins
    """LayerNorm over dim, with statistics in float32 or better."""
    return keras.layers.LayerNormalization(epsilon=LAYER_NORM_EPS, name=name, dtype=dtype)


def recomputed(block: TransformerBlock, training: bool | None) -> Callable[..., Any]:
    """The block, whose inside is computed again for the gradient, with the same dropout, instead of being kept."""
    dropouts = (block.attention.dropout, block.ffn.dropout)
    seeds = [dropout.draw(training) for dropout in dropouts]

    def run(x: Tensor, head_mask: Tensor | None, **arguments: Any) -> tuple[Tensor, Tensor | None]:
        @tf.recompute_grad
        def result(x: Tensor, *head_mask: Tensor) -> Any:
            for dropout, seed in zip(dropouts, seeds, strict=True):
                dropout.drawn = seed
            given = {"head_mask": head_mask[0] if head_mask else None, **arguments}
            x, probabilities = block(x, **given, training=training)
            for dropout in dropouts:
                dropout.drawn = None
            return x if probabilities is None else (x, probabilities)

        found = result(x) if head_mask is None else result(x, head_mask)  # what has a gradient; None is no tensor
        return found if isinstance(found, tuple) else (found, None)

    return run


class Embeddings(keras.layers.Layer):
    """dropout(LayerNorm(word + position)). input_ids, position_ids: (batch, seq); result: (batch, seq, dim)."""

    def __init__(self, config: DistilBertConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config, dtype = config, self.dtype_policy
        self.word_embeddings = embedding(config, config.vocab_size, config.pad_token_id, "word_embeddings", dtype)
        self.position_embeddings = embedding(
            config,
            config.max_position_embeddings,
            None,
            "position_embeddings",
            dtype,
            fixed=config.sinusoidal_pos_embds,
        )
        self.LayerNorm = layer_norm(config, "LayerNorm", dtype)
        self.dropout = Dropout(config.dropout, dtype=dtype)

    def build(self, input_shape: Shape = None) -> None:
        config = self.config
        self.word_embeddings.build(input_shape)
        self.position_embeddings.build(input_shape)
        self.LayerNorm.build((None, None, config.dim))
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
        self.n_heads = config.heads_of(layer)
        self.q_lin = linear(config, self.n_heads * self.head_dim, "q_lin", dtype)
        self.k_lin = linear(config, self.n_heads * self.head_dim, "k_lin", dtype)
        self.v_lin = linear(config, self.n_heads * self.head_dim, "v_lin", dtype)
        self.out_lin = linear(config, config.dim, "out_lin", dtype)
        self.dropout = Dropout(config.attention_dropout, dtype=dtype)

    def build(self, input_shape: Shape = None) -> None:
        del input_shape
        for layer in (self.q_lin, self.k_lin, self.v_lin):
            layer.build((None, None, self.config.dim))
        self.out_lin.build((None, None, self.n_heads * self.head_dim))

    def call(
        self, x: Tensor, keep: Tensor | None, head_mask: Tensor | None, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = self.split(self.q_lin(x)), self.split(self.k_lin(x)), self.split(self.v_lin(x))
        context, probabilities = attend(q, k, v, keep, head_mask, self.dropout)
        context = ops.transpose(context, (0, 2, 1, 3))
        context = ops.reshape(context, (*ops.shape(x)[:2], self.n_heads * self.head_dim))  # (batch, seq, ...)
        return self.out_lin(context), probabilities if output_attentions else None

    def split(self, x: Tensor) -> Tensor:
        x = ops.reshape(x, (*ops.shape(x)[:2], self.n_heads, self.head_dim))
        return ops.transpose(x, (0, 2, 1, 3))  # (batch, n_heads, seq, head_dim)


class FFN(keras.layers.Layer):
    """Feed-forward of one block: dropout(lin2(activation(lin1(x)))).

    x and result: (batch, seq, dim). Source: Vaswani et al. 2017, eq. 2, with BERT's erf GELU.
    """

    def __init__(self, config: DistilBertConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config, dtype = config, self.dtype_policy
        self.lin1 = linear(config, config.hidden_dim, "lin1", dtype)
        self.lin2 = linear(config, config.dim, "lin2", dtype)
        self.dropout = Dropout(config.dropout, dtype=dtype)
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
        self.gradient_checkpointing = False  # see PretrainedModel.gradient_checkpointing_enable

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
        training: bool | None = None,
    ) -> BaseModelOutput:
        hidden_states, attentions = (x,), ()
        for i, block in enumerate(self.layer):
            run = recomputed(block, training) if self.gradient_checkpointing else block
            x, probabilities = run(
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
            input_ids: (batch, seq), int32 or int64, below vocab_size. Either this or `inputs_embeds`. Also a dict of
                all arguments, as Keras's `fit` and `predict` pass it.
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
        check_no_unknown(unknown)
        input_ids, position_ids = as_tensor("input_ids", input_ids), as_tensor("position_ids", position_ids)
        attention_mask = as_tensor("attention_mask", attention_mask)
        inputs_embeds = as_tensor("inputs_embeds", inputs_embeds, self.compute_dtype)
        head_mask = as_tensor("head_mask", head_mask, self.compute_dtype)
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
            training=training,
        )

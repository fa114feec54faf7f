"""Fast inference in TensorFlow: a frozen copy of a model on unpadded tokens. Twins: pt/inference.py, flax/inference.py.

One graph for batches of unlike lengths and one for batches of one length, whatever their sizes. Results are float32.
Axes: batch, seq, total, rows, dim, width (of a head's result for one token or row).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from distilbert.checkpoint.tensors import Array
from distilbert.checks import no_array
from distilbert.config import DistilBertConfig, PoolingConfig
from distilbert.inference import (
    ANSWERS,
    EMBEDDING,
    MASKED_LM,
    MODEL,
    OUTPUTS,
    TOKEN_CLASSIFICATION,
    Description,
    FrozenModel,
    Tokens,
    check_finite,
    check_model,
    check_precision,
    identity,
)
from distilbert.native.model import OwnKernels, reason_against
from distilbert.processors import recommended_threads
from distilbert.tf.losses import unit
from distilbert.tf.pretrained import PretrainedModel, as_tensor
from distilbert.tf.products import LayerNorm, Linear, QuantizedLinear, new_linear
from distilbert.tf.unpadded import GROUPS, Encoder, Rows, cheapest_cuts, layer_norm, linear

Tensor = Any  # a tf.Tensor, known or traced
Projection = Linear | QuantizedLinear

LARGE = 88  # tokens from which on oneDNN packs float32 weights otherwise, as measured
BUDGET = 1024  # tokens of one pass: what is between products then stays in the processor's cache


def optimize(
    model: PretrainedModel, precision: str = "float32", *, keep_model: bool = True, native: bool | None = None
) -> OptimizedModel:
    """The model's weights as they are now, in the form that computes fastest.

    Args:
        model: of any of the seven classes and any dtype; float64 is rounded to float32.
        precision: of the products: float32, bfloat16 or int8. What is between them is float32, and so are the results.
        keep_model: keep the model too, for the calls that the fast path does not take.
        native: whether this package's own kernels compute instead of TensorFlow's; default where they are faster.

    Raises:
        ValueError: there is no such precision; int8, and a weight that is not finite; native, and its kernels are not
            there. TypeError: it is no model.
    """
    check_model(model)
    cpu = not tf.config.list_logical_devices("GPU")
    reason = reason_against(native, model.config, check_precision(precision), cpu=cpu, framework_has_units=True)
    if not reason:
        return NativeModel(model, precision, keep_model=keep_model)
    return FrameworkModel(model, precision, reason, keep_model=keep_model)


class OptimizedModel(FrozenModel[PretrainedModel]):
    """What `optimize` returns; see `FrozenModel`. Calls that go to the model give results in its dtype."""

    @property
    def programs(self) -> int:
        """How many graphs there are."""
        return 0

    def _to_host(self, name: str, value: Any) -> Array | None:
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            return value
        try:
            tensor = as_tensor(name, value)
            return None if tensor is None else tensor.numpy()
        except (AttributeError, NotImplementedError) as error:
            raise ValueError(no_array(name, value)) from error

    def _call_model(self, model: PretrainedModel, **arguments: Any) -> Any:
        return model(**arguments, training=False)


class NativeModel(OwnKernels[PretrainedModel], OptimizedModel):
    """By this package's own kernels."""

    backend = "tf"

    def __init__(self, model: PretrainedModel, precision: str, *, keep_model: bool) -> None:
        kept = model if keep_model else None
        super().__init__(*identity(model), precision, kept, model.weights_by_name())

    def _threads(self) -> int:
        return told_threads() or recommended_threads()

    def _from_host(self, array: Array) -> Tensor:
        return tf.convert_to_tensor(array)


class FrameworkModel(OptimizedModel):
    """By TensorFlow's kernels; `reason` says why not by this package's own."""

    def __init__(self, model: PretrainedModel, precision: str, reason: str, *, keep_model: bool) -> None:
        super().__init__(*identity(model), precision, model if keep_model else None)
        self._reason = reason
        weights = model.weights_by_name()
        check_finite(weights.values(), precision)
        self._encoder = Encoder(self.config, weights, precision)
        self._layer = head_layer(self.head, model, weights, self._encoder, precision)
        self._programs = {least: self._program(fewest) for least, fewest in sizes(precision).items()}

    @property
    def programs(self) -> int:
        """How many graphs there are: two in float32, where few tokens have one of their own, else one."""
        return sum(program.experimental_get_tracing_count() for program in self._programs.values())

    def describe(self) -> Description:
        """What it uses: precision, kernels, fallbacks."""
        gpus = tf.config.list_logical_devices("GPU")
        layer = self._encoder.layers[0]
        kernels = {
            "products": layer.lin1.kernel,
            "LayerNorm": layer.sa_layer_norm.kernel,
            "attention": f"rows in {GROUPS} groups of similar length at most, softmax in float32",
            "batches": f"real tokens only, about {BUDGET} in one pass",
        }
        own = f"this package's own kernels: {self._reason}"
        missing = *layer.lin1.fallbacks, *layer.sa_layer_norm.fallbacks, *unwanted_threads()
        device = "gpu" if gpus else "cpu"
        return Description(
            "tf", self.head, self.precision, device, threads(), kernels, (*missing, own, self._model_calls)
        )

    def _compute(self, tokens: Tokens, choices: int | None) -> Any:
        parts = [self._pass(part) for part in tokens.chunks(budget(tokens))]
        flat = parts[0] if len(parts) == 1 else tf.concat([tf.zeros((0, self._layer.width)), *parts], 0)
        result = by_row(flat, tokens) if self._layer.per_row else by_place(flat, tokens)
        if self.head == ANSWERS:
            return OUTPUTS[ANSWERS](result[..., 0], result[..., 1])
        return OUTPUTS[self.head](result if choices is None else tf.reshape(result, (-1, choices)))

    def _pass(self, tokens: Tokens) -> Tensor:
        """The head's result for each token, or for each row, in their order: (total or rows, width)."""
        least = max(least for least in self._programs if least <= len(tokens.ids))
        cuts = np.array(cheapest_cuts(tokens.lengths, GROUPS), np.int32)
        return self._programs[least](tokens.ids, tokens.positions, tokens.lengths, cuts)

    def _program(self, fewest: int) -> Any:
        """A graph, traced at its first call. Layers that need first tokens only get `fewest` tokens at least."""
        numbers = tf.TensorSpec((None,), tf.int32)

        def program(ids: Tensor, positions: Tensor, lengths: Tensor, cuts: Tensor) -> Tensor:
            rows = Rows(lengths, cuts)
            if not self._reads_first_token:
                return self._layer(self._encoder(ids, positions, rows), lengths)
            firsts = tf.cumsum(lengths, exclusive=True)
            more = tf.zeros(tf.maximum(fewest - tf.size(firsts), 0), tf.int32)
            x = self._encoder(ids, positions, rows, tf.concat([firsts, more], 0))
            return self._layer(x, lengths)[: tf.size(lengths)]

        return tf.function(program, input_signature=[numbers] * 4, autograph=False)


def sizes(precision: str) -> dict[int, int]:
    """For each graph the least tokens that it is for, and how many rows of a product use the layout of its weights.

    oneDNN packs float32 weights for 7 to 87 rows otherwise than for more, and a graph packs its weights once.
    """
    return {1: 7, LARGE: LARGE} if precision == "float32" else {1: 1}


def threads() -> int:
    """That TensorFlow computes one operator with: as told, else all it may use."""
    every = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return told_threads() or every


def told_threads() -> int:
    """What TensorFlow's setting says, else its variable; 0 if neither does."""
    told = os.environ.get("TF_NUM_INTRAOP_THREADS", "0")
    return tf.config.threading.get_intra_op_parallelism_threads() or (int(told) if told.isdecimal() else 0)


def unwanted_threads() -> tuple[str, ...]:
    """What to say where TensorFlow has more threads than there are processors: it fixes their number at its start."""
    wanted = recommended_threads()
    if threads() <= wanted:
        return ()
    return (f"{wanted} threads are faster: set TF_NUM_INTRAOP_THREADS={wanted} before TensorFlow is imported",)


def budget(tokens: Tokens) -> int:
    """Tokens of one pass: as many passes as BUDGET asks for, and as equal as whole rows let them be."""
    total = len(tokens.ids)
    return -(-total // max(1, round(total / BUDGET))) + int(tokens.lengths.max(initial=0))


def by_place(flat: Tensor, tokens: Tokens) -> Tensor:
    """(total, width) to (batch, seq, width), 0 at dropped positions."""
    batch, seq = tokens.shape
    if not tokens.dense:
        flat = tf.scatter_nd(tokens.places[:, None], flat, (batch * seq, flat.shape[1]))
    return tf.reshape(flat, (batch, seq, flat.shape[1]))


def by_row(flat: Tensor, tokens: Tokens) -> Tensor:
    """(rows, width) in the order of the batch."""
    return flat if tokens.dense else tf.gather(flat, np.argsort(tokens.rows))


class HeadLayer:
    """What follows the encoder: from hidden states to a result of a `width` for each token or, `per_row`, each row.

    x: (total, dim), or (rows, dim) where the head reads first tokens only; lengths: (rows,).
    """

    per_row = False

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The hidden states themselves, for the encoder without a head."""
        del lengths
        return x


class TokenLogits(HeadLayer):
    """Logits of every token."""

    def __init__(self, layer: Projection) -> None:
        super().__init__(layer.width)
        self.layer = layer

    def __call__(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The logits of each token."""
        del lengths
        return tf.cast(self.layer(x), tf.float32)


class VocabLogits(TokenLogits):
    """Logits of every token over the vocabulary."""

    def __init__(self, transform: Projection, norm: LayerNorm, projector: Projection, activation: str) -> None:
        super().__init__(projector)
        self.transform, self.norm, self.activation = transform, norm, activation

    def __call__(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The logits of each token."""
        x = tf.cast(self.transform(x, self.activation), tf.float32)
        return super().__call__(self.norm(x), lengths)


class RowLogits(HeadLayer):
    """Logits of every row, from its first token."""

    per_row = True

    def __init__(self, pre_classifier: Projection, classifier: Projection) -> None:
        super().__init__(classifier.width)
        self.pre_classifier, self.classifier = pre_classifier, classifier

    def __call__(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The logits of each row."""
        del lengths
        return self.classifier(self.pre_classifier(x, "relu"))


class Pooling(HeadLayer):
    """One vector for every row. See `heads.Pooling`."""

    per_row = True

    def __init__(self, config: PoolingConfig, dim: int, dense: Projection | None) -> None:
        super().__init__(config.width(dim))
        self.config, self.dense = config, dense

    def __call__(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The vector of each row."""
        row = tf.repeat(tf.range(tf.size(lengths)), lengths)  # (total,)
        count = tf.cast(lengths, tf.float32)[:, None]
        if self.config.mode == "max":
            x = tf.math.segment_max(x, row)
        elif self.config.mode != "cls":
            x = tf.math.segment_sum(x, row) / (count if self.config.mode == "mean" else tf.sqrt(count))
        if self.dense is not None and self.config.dense is not None:
            x = self.dense(x, self.config.dense.activation)
        return unit(x) if self.config.normalize else x


def head_layer(
    head: str, model: PretrainedModel, weights: Mapping[str, Array], encoder: Encoder, precision: str
) -> HeadLayer:
    """What follows the encoder in a model of the class `head`. All but the layers over the vocabulary is float32."""
    config: DistilBertConfig = model.config
    exact = functools.partial(linear, weights, precision="float32")
    if head == MASKED_LM:
        bias = weights["vocab_projector.bias"]
        shared = config.tie_word_embeddings and precision != "int8"
        table = encoder.words if shared else weights["vocab_projector.weight"]
        transform = linear(weights, "vocab_transform", precision)
        norm = layer_norm(weights, "vocab_layer_norm")
        return VocabLogits(transform, norm, new_linear(table, bias, precision), config.activation)
    if head in (ANSWERS, TOKEN_CLASSIFICATION):
        return TokenLogits(exact("qa_outputs" if head == ANSWERS else "classifier"))
    if head == EMBEDDING:
        pooling: PoolingConfig = model.pooling.config
        return Pooling(pooling, config.dim, exact("pooling.dense") if pooling.dense else None)
    if head == MODEL:
        return HeadLayer(config.dim)
    return RowLogits(exact("pre_classifier"), exact("classifier"))

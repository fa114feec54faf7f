"""Fast inference in JAX: `optimize` freezes a model into programs for packed rows. Twins: pt/ and tf/inference.py.

What the three share is in distilbert/inference.py. Axes: batch, seq, dim, tokens, rows, segments, sequences,
width (of a head's result for one token or sequence).
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from distilbert.checkpoint.tensors import Array as HostArray
from distilbert.config import DistilBertConfig, PoolingConfig
from distilbert.flax.losses import unit
from distilbert.flax.model import ACTIVATIONS
from distilbert.flax.pretrained import PretrainedModel, as_array
from distilbert.flax.products import Product, has_units
from distilbert.flax.unpadded import (
    Arithmetic,
    Encoder,
    Norm,
    Rows,
    Shapes,
    activate,
    dense,
    encoder,
    jax_attention,
    members,
    norm,
    plain_attention,
    segment_cells,
)
from distilbert.inference import (
    ANSWERS,
    EMBEDDING,
    FIRST_TOKEN_HEADS,
    MASKED_LM,
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
from distilbert.native.engine import aligned_zeros
from distilbert.native.model import OwnKernels, reason_against
from distilbert.processors import recommended_threads
from distilbert.tokenization.checks import check_count

BUDGETS = {"cpu": 1024}  # tokens of the largest program: what is between products then stays in the cache
LARGE_BUDGET = 16384  # on accelerators


def optimize(
    model: PretrainedModel,
    precision: str = "float32",
    *,
    keep_model: bool = True,
    native: bool | None = None,
    token_budget: int | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> OptimizedModel:
    """The model's weights as they are now, in the form that computes fastest on their device. Results are float32.

    Args:
        model: of any class and dtype; its weights are copied and it is not changed.
        precision: of the products. "float32" gives the model's results. "bfloat16" keeps residuals, LayerNorm and
            softmax in float32. "int8" quantizes weights with a scale for each output, and activations, when they come,
            with a scale and a middle for each token; embeddings are bfloat16. Heads but the masked LM's are float32.
        keep_model: for the calls that only the model itself can answer; without it its memory can be freed.
        native: whether this package's own kernels compute instead of XLA's; default where they are faster.
        token_budget: of the largest program; default 1024 on CPUs and 16384 elsewhere. Own kernels need no programs.
        cache: a folder for compiled programs, see `compilation_cache`.

    Raises:
        ValueError: there is no such precision, or the budget is not positive; int8, and a weight that is not finite;
            native, and its kernels are not there. TypeError: it is no model.
    """
    check_model(model)
    if token_budget is not None:
        check_count("token_budget", token_budget, 1)
    if cache is not None:
        compilation_cache(cache)
    cpu = device_of(model).platform == "cpu"
    reason = reason_against(native, model.config, check_precision(precision), cpu=cpu, framework_has_units=False)
    if not reason:
        return NativeModel(model, precision, keep_model=keep_model)
    return FrameworkModel(model, precision, reason, keep_model=keep_model, token_budget=token_budget)


def compilation_cache(folder: str | os.PathLike[str]) -> None:
    """Keep compiled programs in a folder, where later processes find them. It holds for all of JAX in this process.

    JAX runs what it finds there: give a folder that nobody else can write to.
    """
    from jax.experimental.compilation_cache import compilation_cache as cache

    jax.config.update("jax_compilation_cache_dir", str(Path(folder).absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    cache.reset_cache()  # programs that were compiled before have closed it


class OptimizedModel(FrozenModel[PretrainedModel]):
    """What `optimize` returns; see `FrozenModel`. A call inside `jax.jit` is refused: there are no lengths to pack by.

    Example:
        fast = optimize(DistilBertModel.from_pretrained("folder"))
        hidden = fast([[101, 7592, 102], [101, 102]]).last_hidden_state  # (2, 3, dim)
        fast.warm_up([(1, 16), (4, 128)])  # so that the first call does not wait for the compiler
    """

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """All (rows, length) that programs may be compiled for, whatever comes; none where nothing is compiled."""
        return ()

    @property
    def programs(self) -> tuple[tuple[int, int], ...]:
        """The (rows, length) that programs were compiled for, in order; each once, if JAX's configuration stays."""
        return ()

    def warm_up(self, shapes: Iterable[tuple[int, int]]) -> None:
        """Compile programs before they are needed, or read them from the cache; nothing where none are compiled.

        Args:
            shapes: some of `shapes`, such as the `programs` of an earlier process with such texts.

        Raises:
            ValueError: there are programs, but never one of that shape.
        """

    def _to_host(self, name: str, value: Any) -> HostArray | None:
        array = as_array(name, value)
        if isinstance(array, Tracer):
            raise ValueError(f"{name} is being traced, and packing needs its values: call the model outside jax.jit.")  # noqa: TRY004 - as for any array that does not fit
        return None if array is None else np.asarray(array)

    def _call_model(self, model: PretrainedModel, **arguments: Any) -> Any:
        with model.evaluating() as evaluated:
            return evaluated(**arguments)


class NativeModel(OwnKernels[PretrainedModel], OptimizedModel):
    """By this package's own kernels."""

    backend = "flax"

    def __init__(self, model: PretrainedModel, precision: str, *, keep_model: bool) -> None:
        kept = model if keep_model else None
        super().__init__(*identity(model), precision, kept, model.weights_by_name())
        self._device = device_of(model)

    def _threads(self) -> int:
        return told_threads() or recommended_threads()

    def _from_host(self, array: HostArray) -> Array:
        return jax.device_put(array, self._device)


class FrameworkModel(OptimizedModel):
    """By programs that XLA compiles; `reason` says why not by this package's own kernels."""

    def __init__(
        self, model: PretrainedModel, precision: str, reason: str, *, keep_model: bool, token_budget: int | None
    ) -> None:
        super().__init__(*identity(model), precision, model if keep_model else None)
        self._reason = reason
        self._device = device_of(model)
        budget = BUDGETS.get(self._device.platform, LARGE_BUDGET) if token_budget is None else token_budget
        self._shapes = Shapes(self.config.max_position_embeddings, budget)
        weights = model.weights_by_name()
        check_finite(weights.values(), precision)
        frozen = jax.device_put(encoder(self.config, weights, precision), self._device)
        self._arithmetic = arithmetic(self.config, precision, self._device.platform)
        self._head = head_layer(self.head, model, weights, frozen, precision, self._arithmetic)
        self._weights = frozen, jax.device_put(self._head.weights, self._device)
        self._traced: list[tuple[int, int]] = []
        self._ready: set[tuple[int, int]] = set()
        self._lock = threading.Lock()
        self._program = jax.jit(self._trace)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """See `OptimizedModel`."""
        return self._shapes.all()

    @property
    def programs(self) -> tuple[tuple[int, int], ...]:
        """See `OptimizedModel`."""
        return tuple(self._traced)

    def warm_up(self, shapes: Iterable[tuple[int, int]]) -> None:
        """See `OptimizedModel`."""
        for shape in shapes:
            if shape not in self.shapes:
                raise ValueError(f"there is no program of the shape {shape}: see `shapes`.")
            jax.block_until_ready(self._run(np.full((3, *shape), -1, np.int32)))

    def describe(self) -> Description:
        """What it uses: precision, kernels, fallbacks."""
        lacks_units = self.precision == "bfloat16" and not self._arithmetic.units
        products = {
            "float32": "float32",
            "bfloat16": "float32 of numbers rounded to bfloat16" if lacks_units else "bfloat16, sums in float32",
            "int8": "int8 with a scale for each output, a scale and a middle for each token, exact sums",
        }
        kernels = {
            "tokens": f"packed into rows, at most {len(self.shapes)} programs, {len(self.programs)} compiled",
            "products": f"XLA, {products[self.precision]}",
            "attention": "XLA, plain" if self._device.platform == "cpu" else "jax.nn.dot_product_attention",
            "heads": "float32",
        }
        threads, useful = thread_count(), recommended_threads()
        fallbacks = [f"this package's own kernels: {self._reason}", self._model_calls]
        if lacks_units:
            fallbacks.append(
                "this processor does not multiply bfloat16 faster than float32: less memory, the same time"
            )
        if self._device.platform == "cpu" and threads > useful:
            fallbacks.append(
                f"{useful} threads would do, and JAX cannot change them: set NPROC={useful} before it starts"
            )
        device = f"{self._device.platform} ({self._device.device_kind})"
        return Description("flax", self.head, self.precision, device, threads, kernels, tuple(fallbacks))

    def _compute(self, tokens: Tokens, choices: int | None) -> Any:
        runs = [(rows, self._run(rows.inputs)) for rows in self._shapes.pack(tokens)]
        result = self._by_row(runs, tokens) if self._head.per_row else self._by_place(runs, tokens)
        if choices is not None:
            result = result.reshape(-1, choices)
        parts = (result[..., 0], result[..., 1]) if self.head == ANSWERS else (result,)
        return OUTPUTS[self.head](*(jax.device_put(part, self._device) for part in parts))

    def _run(self, inputs: HostArray) -> Array:
        """The head's result for packed rows; the first time of each shape one thread compiles and others wait."""
        shape = inputs.shape[1:]
        if shape in self._ready:
            return self._program(self._weights, inputs)
        with self._lock:
            result = self._program(self._weights, inputs)
            self._ready.add(shape)
        return result

    def _trace(self, weights: tuple[Encoder, Any], inputs: Array) -> Array:
        """What `_program` compiles for each shape: (rows, length, width), or (rows * segments, width)."""
        rows, length = inputs.shape[1:]
        self._traced.append((rows, length))
        x = self._arithmetic.encode(weights[0], inputs, firsts=self._reads_first_token)
        result = self._head.apply(weights[1], x, inputs[2]).T
        return result if self._head.per_row else result.reshape(rows, length, -1)

    def _by_place(self, runs: list[tuple[Rows, Array]], tokens: Tokens) -> Any:
        """Results of tokens in their places, 0 elsewhere: (batch, seq, width)."""
        batch, seq = tokens.shape
        if tokens.dense and len(runs) == 1 and runs[0][1].shape[:2] == tokens.shape:
            return runs[0][1]
        padded = aligned_zeros((batch * seq, self._head.width))
        for rows, result in runs:
            padded[rows.places] = np.asarray(result).reshape(-1, self._head.width)[rows.cells]
        return padded.reshape(batch, seq, self._head.width)

    def _by_row(self, runs: list[tuple[Rows, Array]], tokens: Tokens) -> HostArray:
        """Results of sequences in the order of the batch: (batch, width)."""
        result = aligned_zeros((tokens.shape[0], self._head.width))
        for rows, found in runs:
            result[rows.rows] = np.asarray(found)[rows.segments]
        return result


def device_of(model: Any) -> Any:
    """Where the model's weights are; the first device of several."""
    table = getattr(model, "distilbert", model).embeddings.word_embeddings.embedding[...]
    return min(table.devices(), key=lambda device: device.id)


def arithmetic(config: DistilBertConfig, precision: str, platform: str) -> Arithmetic:
    """How programs compute on a platform."""
    kernel = plain_attention
    if platform != "cpu":
        dtype = jnp.float32 if precision == "float32" else jnp.bfloat16
        cudnn = platform == "gpu" and dtype == jnp.bfloat16 and config.head_dim % 8 == 0 and config.head_dim <= 128
        kernel = functools.partial(jax_attention, implementation="cudnn" if cudnn else None, dtype=dtype)
    attention = functools.partial(kernel, head_dim=config.head_dim)
    return Arithmetic(config.activation, attention, has_units(platform))


def thread_count() -> int:
    """That XLA computes with on a CPU: one for each processor it may run on, or what NPROC said when JAX started."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return told_threads() or processors


def told_threads() -> int:
    """What NPROC says; 0 if it says nothing."""
    wanted = os.environ.get("NPROC", "").strip()
    return max(1, int(wanted)) if wanted.isdecimal() else 0


class HeadLayer(NamedTuple):
    """What follows the encoder.

    Attributes:
        width: of a result.
        per_row: whether there is one for each segment of each row, instead of each token.
        weights: its weights, in float32 unless over the vocabulary.
        apply: (weights, x, segments) to (width, tokens) or (width, rows * segments), where x is (dim, tokens), or (dim,
            rows * segments) for a head that reads first tokens only; segments: (rows, length).
    """

    width: int
    per_row: bool
    weights: Any
    apply: Callable[[Any, Array, Array], Array]


def head_layer(
    head: str, model: Any, weights: Mapping[str, HostArray], frozen: Encoder, precision: str, arithmetic: Arithmetic
) -> HeadLayer:
    """What follows the encoder in a model of the class `head`."""
    if head == MASKED_LM:
        return vocab_logits(model.config, weights, frozen, precision, arithmetic)
    if head in (ANSWERS, TOKEN_CLASSIFICATION):
        layer = dense(weights, "qa_outputs" if head == ANSWERS else "classifier", "float32")
        return HeadLayer(len(layer.kernel), False, layer, lambda layer, x, _: layer(x, units=False))
    if head == EMBEDDING:
        return pooling(model.pooling.config, model.config.dim, weights)
    if head in FIRST_TOKEN_HEADS:
        return row_logits(weights)
    return HeadLayer(model.config.dim, False, (), lambda _, x, __: x)


def vocab_logits(
    config: DistilBertConfig,
    weights: Mapping[str, HostArray],
    frozen: Encoder,
    precision: str,
    arithmetic: Arithmetic,
) -> HeadLayer:
    """Logits of each token over the vocabulary."""
    projector = Product(frozen.word_embeddings, weights["vocab_projector.bias"].astype(np.float32))
    if not config.tie_word_embeddings:
        projector = dense(weights, "vocab_projector", precision)
    layers = dense(weights, "vocab_transform", precision), norm(weights, "vocab_layer_norm"), projector

    def apply(layers: tuple[Product, Norm, Product], x: Array, _: Array) -> Array:
        transform, layer_norm, projector = layers
        x = activate(arithmetic.activation, transform(x, units=arithmetic.units))  # (dim, tokens)
        return projector(layer_norm(x), units=arithmetic.units)

    return HeadLayer(config.vocab_size, False, layers, apply)


def row_logits(weights: Mapping[str, HostArray]) -> HeadLayer:
    """Logits of each sequence, from its first token."""
    layers = dense(weights, "pre_classifier", "float32"), dense(weights, "classifier", "float32")

    def apply(layers: tuple[Product, Product], x: Array, _: Array) -> Array:
        pre_classifier, classifier = layers
        return classifier(jax.nn.relu(pre_classifier(x, units=False)), units=False)

    return HeadLayer(len(layers[1].kernel), True, layers, apply)


def pooling(config: PoolingConfig, dim: int, weights: Mapping[str, HostArray]) -> HeadLayer:
    """One vector for each sequence. See `heads.Pooling`."""
    layer = None if config.dense is None else dense(weights, "pooling.dense", "float32")

    def apply(layer: Product | None, x: Array, segments: Array) -> Array:
        if config.mode != "cls":
            x = pooled(config.mode, x, segments)
        if config.dense is not None and layer is not None:
            x = ACTIVATIONS[config.dense.activation](layer(x, units=False))
        return unit(x.T).T if config.normalize else x

    return HeadLayer(config.width(dim), True, layer, apply)


def pooled(mode: str, x: Array, segments: Array) -> Array:
    """The tokens of each segment in one vector: (dim, tokens) to (dim, rows * segments)."""
    belongs = members(segments)  # (rows, segments, length)
    if mode == "max":
        return jax.ops.segment_max(x.T, segment_cells(segments), belongs.shape[0] * belongs.shape[1]).T
    x = x.reshape(-1, *segments.shape)  # (dim, rows, length)
    total = jnp.einsum("drl,rsl->drs", x, belongs.astype(jnp.float32), precision="highest")
    count = jnp.maximum(belongs.sum(-1), 1).astype(jnp.float32)  # (rows, segments)
    return (total / (count if mode == "mean" else jnp.sqrt(count))).reshape(len(x), -1)

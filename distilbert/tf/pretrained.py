"""Arrays into Keras variables and back: construction from a seed or a checkpoint, and saving.

Twins: pt/pretrained.py and flax/pretrained.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import keras
import tensorflow as tf

from distilbert import resizing, weight_map
from distilbert.checkpoint.loading import LoadReport
from distilbert.checkpoint.opening import open_checkpoint
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.checkpoint.tensors import Array, check_dtype
from distilbert.checks import check_weights, no_array
from distilbert.config import DistilBertConfig, PoolingConfig
from distilbert.initialization import initial_weights
from distilbert.tf.attention import KERNELS, check_kernel

LAYOUT = weight_map.KERAS


class PretrainedModel(keras.Model):
    """What every model has: a config, and the ways in and out."""

    load_report: LoadReport | None = None  # of the checkpoint that the weights came from
    attn_implementation = KERNELS[0]

    def __init__(self, config: DistilBertConfig, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)  # targets are not rounded to the dtype of compute
        self.config = config

    def __call__(self, input_ids: Any = None, attention_mask: Any = None, **named: Any) -> Any:
        """Call the model; Keras's `fit`, `evaluate` and `predict` pass a dict of the arguments as the first."""
        if not hasattr(attention_mask, "shape"):  # Keras itself takes no lists as its first arguments
            attention_mask = as_tensor("attention_mask", attention_mask)
        if not isinstance(input_ids, Mapping):
            input_ids = input_ids if hasattr(input_ids, "shape") else as_tensor("input_ids", input_ids)
            return super().__call__(input_ids, attention_mask, **named)
        return super().__call__(**unpack(input_ids, attention_mask=attention_mask, **named))

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The head's own loss, when `fit` is given the targets among the inputs; else that of `compile`."""
        if y is None and sample_weight is None and hasattr(y_pred, "loss"):
            return y_pred.loss
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    @classmethod
    def from_config(  # pyright: ignore[reportIncompatibleMethodOverride] - Keras's own use is kept
        cls, config: DistilBertConfig | dict[str, Any], *, seed: int = 0, **settings: Any
    ) -> Self:
        """A model whose weights are a function of (config, seed), equal in every framework.

        `settings` are further arguments of the class, such as `pooling`. Keras calls this too, with the dict that
        `get_config` made, when it loads a .keras file; the weights then come from that file.
        """
        if not isinstance(config, DistilBertConfig):
            return cls._from_keras_config(dict(config))
        model = cls(config, **settings)
        model.assign(initial_weights(config, cls.__name__, seed=seed, pooling=settings.get("pooling")))
        return model

    @classmethod
    def _from_keras_config(cls, values: dict[str, Any]) -> Self:
        pooling = values.pop("pooling", None)
        settings = {} if pooling is None else {"pooling": PoolingConfig.from_dict(pooling)}
        return cls(DistilBertConfig.from_dict(values.pop("config")), **settings, **values)

    def get_config(self) -> dict[str, Any]:
        """What Keras stores to build the model again."""
        values = {"config": self.config.to_dict(), "name": self.name, "trainable": self.trainable}
        values["dtype"] = self.dtype_policy.name
        if hasattr(self, "pooling"):
            values["pooling"] = dataclasses.asdict(self.pooling.config)
        return values

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike[str],
        *,
        dtype: str | tf.DType | None = None,
        strict: bool = True,
        new_head: bool = False,
        revision: str | None = None,
        local_files_only: bool = False,
        attn_implementation: str | None = None,
        **config_overrides: Any,
    ) -> Self:
        """A model with the weights of a checkpoint, in any format; no other framework is needed.

        Args:
            folder_or_hub_id: a folder, or the id of a model on the hub (needs the extra `hub`).
            dtype: of weights and compute; default float32.
            strict: refuse tensors that the class does not know.
            new_head: allow a head that the checkpoint lacks or has in another size; it gets initial weights. Other
                labels than the file's (`num_labels`, `id2label`) allow it too.
            revision: of the hub model: a branch, a tag or a commit hash; default its main branch. A model that is in
                the cache is taken from there, whole, without asking the hub for a newer one.
            local_files_only: take a hub model from the cache, without the network.
            attn_implementation: the attention kernel, see `set_attn_implementation`.
            config_overrides: config fields that win over the file.

        Raises:
            CheckpointError: the files are not a checkpoint of this class. ConfigError: config.json is wrong.
            ValueError: a dtype or kernel that does not exist, or that this machine does not have.
        """
        kernel = attn_implementation or KERNELS[0]
        check_kernel(kernel)
        source = open_checkpoint(
            folder_or_hub_id, cls.__name__, dtype=dtype_name(dtype), strict=strict, new_head=new_head,
            revision=revision, local_files_only=local_files_only, **config_overrides,
        )  # fmt: skip
        weights = dict(source)  # all read and checked before the first is assigned
        model = cls(source.config, dtype=dtype_name(dtype), **source.settings)
        model.assign(weights)
        model.load_report = source.report
        return model.set_attn_implementation(kernel)

    def assign(self, weights: Mapping[str, Array]) -> None:
        """Set variables to canonical arrays, cast to the model's dtype."""
        specs, tied = self.tensor_specs(), weight_map.tied(self.config, type(self).__name__)
        check_weights({n: spec.shape for n, spec in specs.items()}, weights, tied, weight_map.WORD_EMBEDDINGS)
        for name, spec in specs.items():
            if name not in tied:
                self._replace(spec, weights[name])

    def _replace(self, spec: weight_map.TensorSpec, canonical: Array) -> None:
        """Give a variable a new value; one of another size takes a new variable."""
        owner, value = weight_map.find_owner(self, spec), spec.to_layout(canonical, LAYOUT)
        if tuple(self._parameter(spec).shape) != value.shape:
            renew_variable(owner, spec.spelling(LAYOUT).name, value.shape)
        self._parameter(spec).assign(value)

    def weights_by_name(self) -> dict[str, Array]:
        """All variables as NumPy arrays, by canonical name in canonical orientation."""
        specs = {name: self._source(spec) for name, spec in self.tensor_specs().items()}
        return {name: spec.from_layout(self._parameter(spec).numpy(), LAYOUT) for name, spec in specs.items()}

    @contextlib.contextmanager
    def evaluating(self) -> Generator[Self]:
        """The model as it is outside of training: here always, since Keras says `training` at each call."""
        yield self

    def resize_token_embeddings(
        self, new_num_tokens: int, pad_to_multiple_of: int | None = None, *, seed: int = 0
    ) -> Self:
        """Change the vocabulary's size. Rows that stay keep their bits; new ones are N(0, initializer_range).

        The masked LM's projector and its bias (new entries 0) follow, and so does the config. Make optimizers anew.

        Raises:
            ValueError: a size is not positive, or pad_token_id would lie outside.
        """
        head = type(self).__name__
        sizes = (new_num_tokens, pad_to_multiple_of, seed)
        return self._take_over(*resizing.resize_vocabulary(self.config, head, self.weights_by_name(), *sizes))

    def resize_position_embeddings(self, new_num_position_embeddings: int, *, seed: int = 0) -> Self:
        """Change the number of positions. Rows that stay keep their bits.

        New rows are N(0, initializer_range), or the sinusoid's where the config asks for it. Make optimizers anew.

        Raises:
            ValueError: the size is not positive.
        """
        head, size = type(self).__name__, new_num_position_embeddings
        return self._take_over(*resizing.resize_positions(self.config, head, self.weights_by_name(), size, seed))

    def prune_heads(self, heads: Mapping[int, Iterable[int]]) -> Self:
        """Remove attention heads: layer -> heads, numbered as in the unpruned model. The config remembers them.

        Raises:
            ConfigError: there is no such layer or head, or a layer would be left without one.
        """
        return self._take_over(*resizing.prune_heads(self.config, type(self).__name__, self.weights_by_name(), heads))

    def _take_over(self, config: DistilBertConfig, changed: Mapping[str, Array]) -> Self:
        """Take over a changed config and the tensors that change with it."""
        for layer in (self, *self._flatten_layers()):
            if isinstance(getattr(layer, "config", None), DistilBertConfig):
                layer.config = config
        for layer, block in enumerate(self._encoder().transformer.layer):
            block.attention.n_heads = config.heads_of(layer)
        specs, tied = self.tensor_specs(), weight_map.tied(config, type(self).__name__)
        for name in changed.keys() - {*tied}:
            self._replace(specs[name], changed[name])
        self._forget_traces()
        return self

    def gradient_checkpointing_enable(self) -> Self:
        """Save memory in training: keep each block's result only, and compute its inside again for the gradient."""
        return self._set_gradient_checkpointing(True)

    def gradient_checkpointing_disable(self) -> Self:
        """Keep everything for the gradient again."""
        return self._set_gradient_checkpointing(False)

    def _set_gradient_checkpointing(self, value: bool) -> Self:
        self._encoder().transformer.gradient_checkpointing = value
        self._forget_traces()
        return self

    def _forget_traces(self) -> None:
        """Let `fit`, `evaluate` and `predict` trace the model anew, as it now is."""
        self.train_function = self.test_function = self.predict_function = None

    def _encoder(self) -> Any:
        """The `DistilBertModel`, which a head holds and a bare encoder is."""
        return getattr(self, "distilbert", self)

    def _pooling(self) -> PoolingConfig | None:
        """The settings of a sentence embedding; other classes have none."""
        return getattr(getattr(self, "pooling", None), "config", None)

    def tensor_specs(self) -> dict[str, weight_map.TensorSpec]:
        """Every tensor of this model by canonical name."""
        return weight_map.tensor_specs(self.config, type(self).__name__, self._pooling())

    def _source(self, spec: weight_map.TensorSpec) -> weight_map.TensorSpec:
        """The tensor itself, or the word embeddings where it is tied to them."""
        is_tied = spec.name in weight_map.tied(self.config, type(self).__name__)
        return self.tensor_specs()[weight_map.WORD_EMBEDDINGS] if is_tied else spec

    def _parameter(self, spec: weight_map.TensorSpec) -> keras.Variable:
        spec = self._source(spec)
        return getattr(weight_map.find_owner(self, spec), spec.spelling(LAYOUT).name)

    def trained_parameters(self) -> dict[str, keras.Variable]:
        """The parameters that training changes, by canonical name: no sinusoidal table, a tied projector not twice."""
        specs = weight_map.trained(self.config, type(self).__name__, self._pooling())
        return {name: self._parameter(spec) for name, spec in specs.items()}

    def save_pretrained(self, folder: str | os.PathLike[str], format: str = "safetensors") -> None:  # noqa: A002
        """Write weights and config.json into `folder`, all files at once, in a format of `distilbert convert`.

        Raises:
            CheckpointError: there is no such format, or the folder holds weights in another.
        """
        head, weights = type(self).__name__, self.weights_by_name()
        save_checkpoint(Path(folder), format, head, self.config, weights, self._pooling())

    def set_attn_implementation(self, attn_implementation: str) -> Self:
        """Choose the attention kernel: "eager" (plain) is the only one here.

        Raises:
            ValueError: there is no such kernel.
        """
        check_kernel(attn_implementation)
        return self


def dtype_name(dtype: str | tf.DType | None) -> str:
    """The dtype's name, such as "bfloat16"; float32 for None."""
    return check_dtype("float32" if dtype is None else str(getattr(dtype, "name", dtype)))


def as_tensor(name: str, x: Any, dtype: str | None = None) -> Any:
    """The argument `name` as a tensor; None stays None."""
    if x is None:
        return None
    try:
        tensor: Any = keras.ops.convert_to_tensor(x, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(no_array(name, x)) from error
    if tensor.dtype == tf.string:
        raise ValueError(no_array(name, x))
    return tensor


def renew_variable(layer: Any, name: str, shape: tuple[int, ...]) -> None:
    """Put a variable of another shape in place of a built layer's own, as Keras's quantization does."""
    old, tracked = getattr(layer, name), layer._trainable_variables  # noqa: SLF001 - holds the frozen ones too
    place = next(i for i, variable in enumerate(tracked) if variable is old)
    attribute = f"_{name}" if isinstance(getattr(type(layer), name, None), property) else name
    layer._untrack_variable(old)  # noqa: SLF001 - Keras has no public way to change a built layer's shape
    layer._tracker.unlock()  # noqa: SLF001
    new = layer.add_weight(shape=shape, initializer="zeros", name=old.name, dtype=old.dtype)
    new.trainable = old.trainable
    tracked.insert(place, tracked.pop())  # the order of a model's variables is part of what its users see
    setattr(layer, attribute, new)
    layer._tracker.lock()  # noqa: SLF001
    if isinstance(layer, keras.layers.Embedding):
        layer.input_dim = shape[0]
    elif isinstance(layer, keras.layers.Dense) and name == "kernel":
        layer.units = shape[1]
        layer.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: shape[0]})


def unpack(inputs: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """The arguments of a call whose first argument was a dict of them; one given twice is refused."""
    given = {name: value for name, value in others.items() if value is not None}
    for name in given.keys() & inputs.keys():
        raise TypeError(f"{name} is given twice, in the dict of inputs and beside it.")
    return {**inputs, **given}


def values(tensor: Any) -> Array | None:
    """The tensor's values for a check, or None while it is being traced."""
    return tensor.numpy() if tf.executing_eagerly() and hasattr(tensor, "numpy") else None


@contextlib.contextmanager
def exact(dtype: str) -> Generator[None]:
    """The mode in which results are compared: float64 where asked for, no products in reduced precision."""
    before = tf.config.experimental.tensor_float_32_execution_enabled(), keras.config.floatx()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    keras.config.set_floatx("float64" if dtype == "float64" else before[1])
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before[0])
        keras.config.set_floatx(before[1])

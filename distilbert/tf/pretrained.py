"""Arrays into Keras variables and back: construction from a seed or a checkpoint, and saving.

Twins: distilbert/pt/pretrained.py and distilbert/flax/pretrained.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Self

import keras
import tensorflow as tf

from distilbert import weight_map
from distilbert.checkpoint.loading import LoadReport, open_checkpoint
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.checkpoint.tensors import Array, check_dtype
from distilbert.checks import check_weights
from distilbert.config import DistilBertConfig, PoolingConfig
from distilbert.initialization import initial_weights

LAYOUT = weight_map.KERAS


class PretrainedModel(keras.Model):
    """What every model has: a config, and the ways in and out."""

    load_report: LoadReport | None = None  # of the checkpoint that the weights came from

    def __init__(self, config: DistilBertConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config

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
        model.assign(initial_weights(config, cls.__name__, seed=seed))
        return model

    @classmethod
    def _from_keras_config(cls, values: dict[str, Any]) -> Self:
        pooling = values.pop("pooling", None)
        settings = {} if pooling is None else {"pooling": PoolingConfig(**pooling)}
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
        **config_overrides: Any,
    ) -> Self:
        """A model with the weights of a checkpoint, in any format; no other framework is needed.

        Args:
            folder_or_hub_id: a folder, or the id of a model on the hub (needs the extra `hub`).
            dtype: of weights and compute; default float32.
            strict: refuse tensors that the class does not know.
            new_head: allow a head that the checkpoint lacks; it gets initial weights.
            revision: of the hub model.
            config_overrides: config fields that win over the file.

        Raises:
            CheckpointError: the files are not a checkpoint of this class. ConfigError: config.json is wrong.
        """
        source = open_checkpoint(
            folder_or_hub_id, cls.__name__, dtype=dtype_name(dtype), strict=strict, new_head=new_head,
            revision=revision, **config_overrides,
        )  # fmt: skip
        weights = dict(source)  # all read and checked before the first is assigned
        model = cls(source.config, dtype=dtype_name(dtype), **source.settings)
        model.assign(weights)
        model.load_report = source.report
        return model

    def assign(self, weights: Mapping[str, Array]) -> None:
        """Set variables to canonical arrays, cast to the model's dtype."""
        specs = self.tensor_specs()
        check_weights({name: spec.shape for name, spec in specs.items()}, weights)
        for name, spec in specs.items():
            self._parameter(spec).assign(spec.to_layout(weights[name], LAYOUT))

    def weights_by_name(self) -> dict[str, Array]:
        """All variables as NumPy arrays, by canonical name in canonical orientation."""
        specs = self.tensor_specs()
        return {name: spec.from_layout(self._parameter(spec).numpy(), LAYOUT) for name, spec in specs.items()}

    @contextlib.contextmanager
    def evaluating(self) -> Generator[Self]:
        """The model as it is outside of training: here always, since Keras says `training` at each call."""
        yield self

    def tensor_specs(self) -> dict[str, weight_map.TensorSpec]:
        """Every tensor of this model by canonical name."""
        return weight_map.tensor_specs(self.config, type(self).__name__)

    def _parameter(self, spec: weight_map.TensorSpec) -> keras.Variable:
        return getattr(weight_map.find_owner(self, spec), spec.spelling(LAYOUT).name)

    def save_pretrained(self, folder: str | os.PathLike[str], format: str = "safetensors") -> None:  # noqa: A002
        """Write weights and config.json into `folder`: "safetensors", "tf-h5" or "flax-msgpack"."""
        pooling: PoolingConfig | None = getattr(getattr(self, "pooling", None), "config", None)
        save_checkpoint(Path(folder), format, type(self).__name__, self.config, self.weights_by_name(), pooling)


def dtype_name(dtype: str | tf.DType | None) -> str:
    """The dtype's name, such as "bfloat16"; float32 for None."""
    return check_dtype("float32" if dtype is None else str(getattr(dtype, "name", dtype)))


def as_tensor(x: Any, dtype: str | None = None) -> Any:
    """An argument as a tensor; None stays None."""
    return None if x is None else keras.ops.convert_to_tensor(x, dtype=dtype)


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
def exact(dtype: str) -> Generator[None]:  # noqa: ARG001 - as in the twins
    """The mode in which results are compared: no products in reduced precision."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)

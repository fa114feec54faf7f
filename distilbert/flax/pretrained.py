"""Arrays into NNX variables and back: construction from a seed or a checkpoint, and saving.

Twins: distilbert/pt/pretrained.py and distilbert/tf/pretrained.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, Self, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from distilbert import weight_map
from distilbert.checkpoint.loading import LoadReport, open_checkpoint
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.checkpoint.tensors import Array, check_dtype
from distilbert.checks import check_weights
from distilbert.config import DistilBertConfig, PoolingConfig
from distilbert.initialization import initial_weights

LAYOUT = weight_map.FLAX


class PretrainedModel(nnx.Module):
    """What every model has: a config, and the ways in and out."""

    load_report: LoadReport | None = None  # of the checkpoint that the weights came from

    def __init__(self, config: DistilBertConfig) -> None:
        self.config = config

    @classmethod
    def from_config(cls, config: DistilBertConfig, *, seed: int = 0, **settings: Any) -> Self:
        """A model in evaluation mode whose weights are a function of (config, seed), equal in every framework.

        `settings` are further arguments of the class, such as `pooling`.
        """
        model = cls._new(config, seed, **settings)
        model.assign(initial_weights(config, cls.__name__, seed=seed))
        model.eval()
        return model

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike[str],
        *,
        dtype: Any = None,
        strict: bool = True,
        new_head: bool = False,
        revision: str | None = None,
        **config_overrides: Any,
    ) -> Self:
        """A model in evaluation mode with the weights of a checkpoint, in any format; no other framework is needed.

        Args:
            folder_or_hub_id: a folder, or the id of a model on the hub (needs the extra `hub`).
            dtype: of weights and compute; default float32. float64 needs JAX's x64 mode.
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
        model = cls._new(source.config, 0, **source.settings)
        model.assign(weights)
        model.load_report = source.report
        model.eval()
        return model

    @classmethod
    def _new(cls, config: DistilBertConfig, seed: int, **settings: Any) -> Self:
        """A model with generators for its dropout."""
        make = cast("Callable[..., Self]", cls)  # every model takes rngs, which this base does not
        return make(config, **settings, rngs=nnx.Rngs(seed))

    def assign(self, weights: Mapping[str, Array]) -> None:
        """Set variables to canonical arrays, whose dtype becomes theirs."""
        specs = self.tensor_specs()
        check_weights({name: spec.shape for name, spec in specs.items()}, weights)
        for name, spec in specs.items():
            self._parameter(spec).set_value(jnp.asarray(spec.to_layout(weights[name], LAYOUT)))

    def weights_by_name(self) -> dict[str, Array]:
        """All variables as NumPy arrays, by canonical name in canonical orientation."""
        specs = self.tensor_specs()
        return {name: spec.from_layout(np.asarray(self._parameter(spec)[...]), LAYOUT) for name, spec in specs.items()}

    @contextlib.contextmanager
    def evaluating(self) -> Generator[Self]:
        """The model in evaluation mode, on the same parameters; the model itself stays as it is."""
        yield nnx.view(self, deterministic=True)

    def tensor_specs(self) -> dict[str, weight_map.TensorSpec]:
        """Every tensor of this model by canonical name."""
        return weight_map.tensor_specs(self.config, type(self).__name__)

    def _parameter(self, spec: weight_map.TensorSpec) -> nnx.Variable[Any]:
        return getattr(weight_map.find_owner(self, spec), spec.spelling(LAYOUT).name)

    def save_pretrained(self, folder: str | os.PathLike[str], format: str = "safetensors") -> None:  # noqa: A002
        """Write weights and config.json into `folder`: "safetensors", "tf-h5" or "flax-msgpack"."""
        pooling: PoolingConfig | None = getattr(getattr(self, "pooling", None), "config", None)
        save_checkpoint(Path(folder), format, type(self).__name__, self.config, self.weights_by_name(), pooling)

    @property
    def dtype(self) -> Any:
        """Of the parameters and of compute."""
        return self._parameter(self.tensor_specs()[weight_map.WORD_EMBEDDINGS])[...].dtype


def dtype_name(dtype: Any) -> str:
    """The dtype's name, such as "bfloat16"; float32 for None.

    Raises:
        ValueError: weights cannot have that dtype, or it is float64 and JAX would make it float32.
    """
    name = check_dtype("float32" if dtype is None else dtype if isinstance(dtype, str) else jnp.dtype(dtype).name)
    if name == "float64" and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise ValueError("dtype float64 needs JAX's x64 mode: call jax.config.update('jax_enable_x64', True) first.")
    return name


def as_array(x: Any, dtype: Any = None) -> Any:
    """An argument as an array; None stays None. NumPy's integers stay NumPy's, so that none is cut before its check."""
    if x is None or (isinstance(x, jax.Array) and dtype is None):
        return x
    return np.asarray(x) if dtype is None else jnp.asarray(x, dtype)


def values(array: Any) -> Array | None:
    """The array's values for a check, or None while it is being traced."""
    return None if isinstance(array, Tracer) else np.asarray(array)


@contextlib.contextmanager
def exact(dtype: str) -> Generator[None]:
    """The mode in which results are compared: float64 where asked for, no products in reduced precision."""
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        yield

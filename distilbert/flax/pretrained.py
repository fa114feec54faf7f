"""Arrays into NNX variables and back: construction from a seed or a checkpoint, and saving.

Twins: pt/pretrained.py and tf/pretrained.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from distilbert import resizing, weight_map
from distilbert.checkpoint.loading import LoadReport
from distilbert.checkpoint.opening import open_checkpoint
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.checkpoint.tensors import Array, check_dtype
from distilbert.checks import check_weights, no_array
from distilbert.config import DistilBertConfig, PoolingConfig
from distilbert.flax.attention import KERNELS, check_kernel
from distilbert.initialization import initial_weights

LAYOUT = weight_map.FLAX


class PretrainedModel(nnx.Module):
    """What every model has: a config, and the ways in and out."""

    load_report: LoadReport | None = None  # of the checkpoint that the weights came from
    attn_implementation = KERNELS[0]

    def __init__(self, config: DistilBertConfig) -> None:
        self.config = config

    @classmethod
    def from_config(cls, config: DistilBertConfig, *, seed: int = 0, **settings: Any) -> Self:
        """A model in evaluation mode whose weights are a function of (config, seed), equal in every framework.

        `settings` are further arguments of the class, such as `pooling`.
        """
        model = cls._new(config, seed, **settings)
        model.assign(initial_weights(config, cls.__name__, seed=seed, pooling=settings.get("pooling")))
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
        local_files_only: bool = False,
        attn_implementation: str | None = None,
        **config_overrides: Any,
    ) -> Self:
        """A model in evaluation mode with the weights of a checkpoint, in any format; no other framework is needed.

        Args:
            folder_or_hub_id: a folder, or the id of a model on the hub (needs the extra `hub`).
            dtype: of weights and compute; default float32. float64 needs JAX's x64 mode.
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
        model = cls._new(source.config, 0, **source.settings)
        model.assign(weights)
        model.load_report = source.report
        model.eval()
        return model.set_attn_implementation(kernel)

    @classmethod
    def _new(cls, config: DistilBertConfig, seed: int, **settings: Any) -> Self:
        """A model whose variables have shapes but no values yet, and generators for its dropout."""
        make = cast("Callable[..., Self]", cls)  # every model takes rngs, which this base does not
        model = nnx.eval_shape(lambda: make(config, **settings, rngs=nnx.Rngs(seed)))
        streams = [module for _, module in nnx.iter_graph(model) if isinstance(module, nnx.RngStream)]
        for number, stream in enumerate(streams):
            stream.key.set_value(jax.random.fold_in(jax.random.key(seed), number))
            stream.count.set_value(jnp.zeros((), jnp.uint32))
        return model

    def assign(self, weights: Mapping[str, Array]) -> None:
        """Set variables to canonical arrays, whose dtype becomes theirs."""
        specs, tied = self.tensor_specs(), weight_map.tied(self.config, type(self).__name__)
        check_weights({n: spec.shape for n, spec in specs.items()}, weights, tied, weight_map.WORD_EMBEDDINGS)
        for name, spec in specs.items():
            if name not in tied:
                self._replace(spec, weights[name])

    def _replace(self, spec: weight_map.TensorSpec, canonical: Array) -> None:
        """Give a variable a new value, of any size."""
        owner, value = weight_map.find_owner(self, spec), jnp.asarray(spec.to_layout(canonical, LAYOUT))
        self._parameter(spec).set_value(value)
        if isinstance(owner, nnx.Embed):
            owner.num_embeddings = len(value)
        elif isinstance(owner, nnx.Linear) and spec.is_kernel:
            owner.in_features, owner.out_features = value.shape

    def weights_by_name(self) -> dict[str, Array]:
        """All variables as NumPy arrays, by canonical name in canonical orientation."""
        specs = {name: self._source(spec) for name, spec in self.tensor_specs().items()}
        return {name: spec.from_layout(np.asarray(self._parameter(spec)[...]), LAYOUT) for name, spec in specs.items()}

    @contextlib.contextmanager
    def evaluating(self) -> Generator[Self]:
        """The model in evaluation mode, on the same parameters; the model itself stays as it is."""
        yield nnx.view(self, deterministic=True)

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
        for _, module in nnx.iter_modules(self):
            if isinstance(getattr(module, "config", None), DistilBertConfig):
                setattr(module, "config", config)  # noqa: B010 - a plain attribute, no variable
        for layer, block in enumerate(self._encoder().transformer.layer):
            block.attention.n_heads = config.heads_of(layer)
        specs, tied = self.tensor_specs(), weight_map.tied(config, type(self).__name__)
        for name in changed.keys() - {*tied}:
            self._replace(specs[name], changed[name])
        return self

    def gradient_checkpointing_enable(self) -> Self:
        """Save memory in training: keep each block's result only, and compute its inside again for the gradient."""
        return self._set_gradient_checkpointing(True)

    def gradient_checkpointing_disable(self) -> Self:
        """Keep everything for the gradient again."""
        return self._set_gradient_checkpointing(False)

    def _set_gradient_checkpointing(self, value: bool) -> Self:
        self._encoder().transformer.gradient_checkpointing = value
        return self

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

    def _parameter(self, spec: weight_map.TensorSpec) -> nnx.Variable[Any]:
        spec = self._source(spec)
        return getattr(weight_map.find_owner(self, spec), spec.spelling(LAYOUT).name)

    def trained_parameters(self) -> dict[str, nnx.Variable[Any]]:
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
        """Choose the attention kernel: "eager" (plain), or `jax.nn.dot_product_attention`'s "xla" or "cudnn".

        A call that a kernel cannot serve (attentions, a head mask, dropout, float64) takes the plain one. They agree to
        rounding. "cudnn" needs a GPU, half precision, and for gradients under a mask an even number of tokens.

        Raises:
            ValueError: there is no such kernel, or no GPU for it.
        """
        check_kernel(attn_implementation)
        for _, module in nnx.iter_modules(self):
            if hasattr(module, "attn_implementation"):
                setattr(module, "attn_implementation", attn_implementation)  # noqa: B010 - as above
        return self

    @property
    def dtype(self) -> Any:
        """Of the parameters and of compute."""
        return self._encoder().embeddings.word_embeddings.embedding[...].dtype


def dtype_name(dtype: Any) -> str:
    """The dtype's name, such as "bfloat16"; float32 for None.

    Raises:
        ValueError: weights cannot have that dtype, or it is float64 and JAX would make it float32.
    """
    name = check_dtype("float32" if dtype is None else dtype if isinstance(dtype, str) else jnp.dtype(dtype).name)
    if name == "float64" and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise ValueError("dtype float64 needs JAX's x64 mode: call jax.config.update('jax_enable_x64', True) first.")
    return name


def as_array(name: str, x: Any, dtype: Any = None) -> Any:
    """The argument `name` as an array; None stays None.

    NumPy's integers stay NumPy's, so that none is cut before its check.
    """
    if x is None or (isinstance(x, jax.Array) and dtype is None):
        return x
    try:
        array = np.asarray(x) if dtype is None else jnp.asarray(x, dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(no_array(name, x)) from error
    if array.dtype.kind in "OSU":
        raise ValueError(no_array(name, x))
    return array


def values(array: Any) -> Array | None:
    """The array's values for a check, or None while it is being traced."""
    return None if isinstance(array, Tracer) else np.asarray(array)


@contextlib.contextmanager
def exact(dtype: str) -> Generator[None]:
    """The mode in which results are compared: float64 where asked for, no products in reduced precision."""
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        yield

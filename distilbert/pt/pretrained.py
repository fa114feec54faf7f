"""Arrays into PyTorch parameters and back: construction from a seed or a checkpoint, and saving.

Twins: distilbert/tf/pretrained.py and distilbert/flax/pretrained.py.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Self

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from distilbert import weight_map
from distilbert.checkpoint.loading import LoadReport, open_checkpoint
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.checkpoint.tensors import Array, check_dtype
from distilbert.checks import check_weights
from distilbert.config import DistilBertConfig, PoolingConfig
from distilbert.initialization import initial_weights

LAYOUT = weight_map.PT
ATTENTION = ("sdpa", "eager")


class PretrainedModel(nn.Module):
    """What every model has: a config, and the ways in and out."""

    load_report: LoadReport | None = None  # of the checkpoint that the weights came from

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def from_config(cls, config: DistilBertConfig, *, seed: int = 0, **settings: Any) -> Self:
        """A model in evaluation mode whose weights are a function of (config, seed), equal in every framework.

        `settings` are further arguments of the class, such as `pooling`.
        """
        model = cls._empty(config, **settings)
        model.assign(initial_weights(config, cls.__name__, seed=seed))
        return model.eval()

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike[str],
        *,
        dtype: str | torch.dtype | None = None,
        strict: bool = True,
        new_head: bool = False,
        revision: str | None = None,
        attn_implementation: str = "sdpa",
        **config_overrides: Any,
    ) -> Self:
        """A model in evaluation mode with the weights of a checkpoint, in any format; no other framework is needed.

        Args:
            folder_or_hub_id: a folder, or the id of a model on the hub (needs the extra `hub`).
            dtype: of weights and compute; default float32.
            strict: refuse tensors that the class does not know.
            new_head: allow a head that the checkpoint lacks; it gets initial weights.
            revision: of the hub model.
            attn_implementation: "sdpa" or "eager".
            config_overrides: config fields that win over the file.

        Raises:
            CheckpointError: the files are not a checkpoint of this class. ConfigError: config.json is wrong.
        """
        source = open_checkpoint(
            folder_or_hub_id, cls.__name__, dtype=dtype_name(dtype), strict=strict, new_head=new_head,
            revision=revision, **config_overrides,
        )  # fmt: skip
        weights = dict(source)  # all read and checked before the first is assigned
        model = cls._empty(source.config, **source.settings)
        model.assign(weights)
        model.load_report = source.report
        return model.set_attn_implementation(attn_implementation).eval()

    @classmethod
    def _empty(cls, config: DistilBertConfig, **settings: Any) -> Self:
        """A model whose parameters have shapes but no memory yet."""
        with torch.device("meta"):
            return cls(config, **settings)

    def assign(self, weights: Mapping[str, Array]) -> None:
        """Replace parameters by canonical arrays, whose dtype becomes theirs."""
        specs = self.tensor_specs()
        check_weights({name: spec.shape for name, spec in specs.items()}, weights)
        for name, spec in specs.items():
            owner, leaf = weight_map.find_owner(self, spec), spec.spelling(LAYOUT).name
            old: nn.Parameter = getattr(owner, leaf)
            tensor = from_numpy(spec.to_layout(weights[name], LAYOUT).copy())
            tensor = tensor if old.is_meta else tensor.to(old.device)
            setattr(owner, leaf, nn.Parameter(tensor, requires_grad=old.requires_grad))

    def weights_by_name(self) -> dict[str, Array]:
        """All parameters as NumPy arrays, by canonical name in canonical orientation."""
        specs = self.tensor_specs()
        return {name: spec.from_layout(to_numpy(self._parameter(spec)).copy(), LAYOUT) for name, spec in specs.items()}

    @contextlib.contextmanager
    def evaluating(self) -> Generator[Self]:
        """The model in evaluation mode, recording nothing for gradients; afterwards it is as it was."""
        training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                yield self
        finally:
            self.train(training)

    def tensor_specs(self) -> dict[str, weight_map.TensorSpec]:
        """Every tensor of this model by canonical name."""
        return weight_map.tensor_specs(self.config, type(self).__name__)

    def _parameter(self, spec: weight_map.TensorSpec) -> Tensor:
        return getattr(weight_map.find_owner(self, spec), spec.spelling(LAYOUT).name)

    def save_pretrained(self, folder: str | os.PathLike[str], format: str = "safetensors") -> None:  # noqa: A002
        """Write weights and config.json into `folder`: "safetensors", "tf-h5" or "flax-msgpack"."""
        pooling: PoolingConfig | None = getattr(getattr(self, "pooling", None), "config", None)
        save_checkpoint(Path(folder), format, type(self).__name__, self.config, self.weights_by_name(), pooling)

    def set_attn_implementation(self, attn_implementation: str) -> Self:
        """Choose the attention kernel: "sdpa" (fused) or "eager" (plain). The results agree to rounding."""
        if attn_implementation not in ATTENTION:
            raise ValueError(f"attn_implementation must be one of {', '.join(ATTENTION)}, got {attn_implementation!r}.")
        for module in self.modules():
            if hasattr(module, "implementation"):
                setattr(module, "implementation", attn_implementation)  # noqa: B010 - a plain attribute, no parameter
        return self

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters and of compute."""
        return next(self.parameters()).dtype


def dtype_name(dtype: str | torch.dtype | None) -> str:
    """The dtype's name, such as "bfloat16"; float32 for None."""
    return check_dtype("float32" if dtype is None else str(dtype).removeprefix("torch."))


def from_numpy(array: Array) -> Tensor:
    """A tensor on the array's memory where PyTorch can use that; NumPy's bfloat16 goes through its bits."""
    array = np.require(array, requirements=["C", "W"])
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_numpy(tensor: Tensor) -> Array:
    """The tensor as an array on the host, bfloat16 as ml_dtypes has it."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def as_tensor(x: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """An argument as a tensor on `device`; None stays None."""
    if isinstance(x, np.ndarray):
        x = from_numpy(x)
    return None if x is None else torch.as_tensor(x, device=device, dtype=dtype)


def values(tensor: Tensor) -> Array | None:
    """The tensor's values for a check, or None while it is being traced."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return None
    return to_numpy(tensor)


@contextlib.contextmanager
def exact(dtype: str) -> Generator[None]:  # noqa: ARG001 - as in the twins
    """The mode in which results are compared: no gradients, no products in reduced precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_float32_matmul_precision(before)

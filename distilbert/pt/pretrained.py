"""Arrays into PyTorch parameters and back: construction from a seed or a checkpoint, and saving.

Twins: tf/pretrained.py and flax/pretrained.py.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from distilbert import resizing, weight_map
from distilbert.checkpoint.loading import LoadReport
from distilbert.checkpoint.opening import open_checkpoint
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.checkpoint.tensors import Array, check_dtype
from distilbert.checks import check_weights, no_array
from distilbert.config import DistilBertConfig, PoolingConfig
from distilbert.initialization import initial_weights
from distilbert.pt.attention import FLASH, KERNELS, check_kernel

LAYOUT = weight_map.PT
OLD_FLASH = "use_flash_attention_2"
CHANGING_MODES = threading.RLock()
DRAWS = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)  # all that our layers and PyTorch's begin with


class Undrawn(TorchFunctionMode):
    """Leave out the drawing of initial weights, which a model without memory has no place for.

    PyTorch would trace what it draws on the meta device, and import its compiler for that, which takes a second.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What `func` returns; one that draws returns its tensor as it is."""
        kwargs = kwargs or {}
        if func in DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


class PretrainedModel(nn.Module):
    """What every model has: a config, and the ways in and out."""

    load_report: LoadReport | None = None  # of the checkpoint that the weights came from
    attn_implementation = KERNELS[0]

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.config = config
        self.register_load_state_dict_post_hook(tie_again)

    @classmethod
    def from_config(cls, config: DistilBertConfig, *, seed: int = 0, **settings: Any) -> Self:
        """A model in evaluation mode whose weights are a function of (config, seed), equal in every framework.

        `settings` are further arguments of the class, such as `pooling`.
        """
        model = cls._empty(config, **settings)
        model.assign(initial_weights(config, cls.__name__, seed=seed, pooling=settings.get("pooling")))
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
        local_files_only: bool = False,
        attn_implementation: str | None = None,
        **config_overrides: Any,
    ) -> Self:
        """A model in evaluation mode with the weights of a checkpoint, in any format; no other framework is needed.

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
            config_overrides: config fields that win over the file. The old spellings `torch_dtype` of `dtype`, and
                `use_flash_attention_2=True`, are understood.

        Raises:
            CheckpointError: the files are not a checkpoint of this class. ConfigError: config.json is wrong.
            ValueError: a dtype or kernel that does not exist, or that this machine does not have.
        """
        old_dtype, old_flash = config_overrides.pop("torch_dtype", None), config_overrides.pop(OLD_FLASH, False)
        dtype = old_dtype if dtype is None else dtype
        kernel = attn_implementation or (FLASH if old_flash else KERNELS[0])
        check_kernel(kernel)
        source = open_checkpoint(
            folder_or_hub_id, cls.__name__, dtype=dtype_name(dtype), strict=strict, new_head=new_head,
            revision=revision, local_files_only=local_files_only, **config_overrides,
        )  # fmt: skip
        weights = dict(source)  # all read and checked before the first is assigned
        model = cls._empty(source.config, **source.settings)
        model.assign(weights)
        model.load_report = source.report
        return model.set_attn_implementation(kernel).eval()

    @classmethod
    def _empty(cls, config: DistilBertConfig, **settings: Any) -> Self:
        """A model whose parameters have shapes but no memory yet."""
        with torch.device("meta"), Undrawn():
            return cls(config, **settings)

    def assign(self, weights: Mapping[str, Array]) -> None:
        """Replace parameters by canonical arrays, whose dtype becomes theirs."""
        specs, tied = self.tensor_specs(), weight_map.tied(self.config, type(self).__name__)
        check_weights({n: spec.shape for n, spec in specs.items()}, weights, tied, weight_map.WORD_EMBEDDINGS)
        for name, spec in specs.items():
            if name not in tied:
                self._replace(spec, weights[name])
        self.tie_weights()

    def _replace(self, spec: weight_map.TensorSpec, canonical: Array) -> None:
        """Put a new parameter, of any size, in place of an old one."""
        owner, leaf = weight_map.find_owner(self, spec), spec.spelling(LAYOUT).name
        old: nn.Parameter = getattr(owner, leaf)
        tensor = from_numpy(spec.to_layout(canonical, LAYOUT).copy())
        tensor = tensor if old.is_meta else tensor.to(old.device)
        setattr(owner, leaf, nn.Parameter(tensor, requires_grad=old.requires_grad))
        if isinstance(owner, nn.Embedding):
            owner.num_embeddings = len(tensor)
        elif isinstance(owner, nn.Linear) and leaf == "weight":
            owner.out_features, owner.in_features = tensor.shape

    def tie_weights(self) -> None:
        """Make the masked LM's projector the word embeddings themselves, if the config ties them."""
        for name in weight_map.tied(self.config, type(self).__name__):
            spec, words = self.tensor_specs()[name], self.tensor_specs()[weight_map.WORD_EMBEDDINGS]
            setattr(weight_map.find_owner(self, spec), spec.spelling(LAYOUT).name, self._parameter(words))

    def weights_by_name(self) -> dict[str, Array]:
        """All parameters as NumPy arrays, by canonical name in canonical orientation."""
        specs = self.tensor_specs()
        return {name: spec.from_layout(to_numpy(self._parameter(spec)).copy(), LAYOUT) for name, spec in specs.items()}

    @contextlib.contextmanager
    def evaluating(self) -> Generator[Self]:
        """The model in evaluation mode, recording nothing for gradients; afterwards it is as it was.

        Several threads may do so; where the mode has to be changed and restored, one after the other.
        """
        with contextlib.ExitStack() as changing:
            changing.enter_context(CHANGING_MODES)
            modes = [module for module in self.modules() if module.training]
            if not modes:
                changing.close()
            self.eval()
            try:
                with torch.inference_mode():
                    yield self
            finally:
                for module in modes:
                    module.training = True

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
        for module in self.modules():
            if isinstance(getattr(module, "config", None), DistilBertConfig):
                setattr(module, "config", config)  # noqa: B010 - a plain attribute, no parameter
        for layer, block in enumerate(self._encoder().transformer.layer):
            block.attention.n_heads = config.heads_of(layer)
        specs, tied = self.tensor_specs(), weight_map.tied(config, type(self).__name__)
        for name in changed.keys() - {*tied}:
            self._replace(specs[name], changed[name])
        self.tie_weights()
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

    def _parameter(self, spec: weight_map.TensorSpec) -> nn.Parameter:
        return getattr(weight_map.find_owner(self, spec), spec.spelling(LAYOUT).name)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
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
        """Choose the attention kernel: "sdpa" (fused), "eager" (plain) or "flash_attention_2". They agree to rounding.

        A call that a kernel cannot serve (attentions, a head mask; for flash also masks that are neither padding nor
        packed blocks, and attention dropout without the flash-attn package) takes the next plainer one. Flash attention
        needs CUDA and half precision.

        Raises:
            ValueError: there is no such kernel, or no CUDA device for it. ImportError: it is not installed.
        """
        check_kernel(attn_implementation)
        for module in self.modules():
            if hasattr(module, "attn_implementation"):
                setattr(module, "attn_implementation", attn_implementation)  # noqa: B010 - as above
        return self

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self._encoder().embeddings.word_embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters and of compute."""
        return self._encoder().embeddings.word_embeddings.weight.dtype


def tie_again(model: PretrainedModel, _: object) -> None:
    """After `load_state_dict`, which with assign=True puts two parameters in place of a tied one."""
    model.tie_weights()


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


def as_tensor(name: str, x: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """The argument `name` as a tensor on `device`; None stays None."""
    if x is None:
        return None
    try:
        return torch.as_tensor(from_numpy(x) if isinstance(x, np.ndarray) else x, device=device, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(no_array(name, x)) from error


def values(tensor: Tensor) -> Array | None:
    """The tensor's values for a check, or None while it is being traced."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return None
    return to_numpy(tensor)


@contextlib.contextmanager
def exact(dtype: str) -> Generator[None]:  # noqa: ARG001 - as in the twins
    """The mode in which results are compared: no products in reduced precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

"""The attention kernels in PyTorch: plain, fused, flash. Twins: tf/attention.py and flax/attention.py.

Source: Vaswani et al. 2017, section 3.2; flash: Dao 2023, arXiv 2307.08691. Axes: batch, n_heads, seq, head_dim.
q, k, v and the context: (batch, n_heads, seq, head_dim). A query without a key attends uniformly to all of them, in
every kernel.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the framework's own name

FLASH = "flash_attention_2"
KERNELS = ("sdpa", "eager", FLASH)  # the first is the default


def keep_mask(attention_mask: Tensor | None) -> Tensor | None:
    """Which keys each query sees: (batch, 1 or n_heads, 1 or seq, seq) of bool. None keeps all."""
    if attention_mask is None:
        return None
    keep = attention_mask != 0
    if keep.ndim == 2:
        return keep[:, None, None, :]
    return keep[:, None] if keep.ndim == 3 else keep


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor | None,
    head_mask: Tensor | None,
    dropout: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The plain kernel: the context, and the probabilities (batch, n_heads, seq, seq) after dropout and head mask."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (batch, n_heads, seq, seq)
    if keep is not None:  # replaced, not added to: a row without a key becomes uniform
        scores = scores.masked_fill(~keep, torch.finfo(scores.dtype).min)
    softmax_dtype = torch.promote_types(scores.dtype, torch.float32)
    probabilities = dropout(scores.softmax(-1, dtype=softmax_dtype).to(q.dtype))
    if head_mask is not None:
        probabilities = probabilities * head_mask[:, None, None]
    return probabilities @ v, probabilities


def attend_fused(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, dropout_p: float) -> Tensor:
    """PyTorch's own fused kernel: the context alone."""
    if keep is not None:  # a query without a key: a zero query that sees all keys attends uniformly
        without_key = ~keep.any(-1, keepdim=True)  # (batch, 1 or n_heads, 1 or seq, 1)
        q, keep = q.masked_fill(without_key, 0.0), keep | without_key
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep, dropout_p=dropout_p)


class Ragged(NamedTuple):
    """Sequences of different lengths in one row of batch * seq tokens, as the flash kernels take them."""

    query_starts: Tensor  # (sequences + 1,) of int32: where the queries of each sequence start, and the last one ends
    key_starts: Tensor  # the same for the keys
    kept: Tensor | None  # (keys,): which tokens are keys; None: all
    without_key: Tensor | None  # (batch, 1, 1, 1) of bool: rows whose queries have no key
    longest: int


def ragged(keep: Tensor | None, x: Tensor, dropout_p: float) -> Ragged | None:
    """The sequences that a mask of x, (batch, seq, dim), describes: padded ones, or packed blocks on the diagonal.

    None where the kernel cannot help: for any other mask, and for dropout where it has none.
    """
    if dropout_p and not flash_kernel()[1]:
        return None
    batch, seq = x.shape[:2]
    starts = torch.arange(0, (batch + 1) * seq, seq, device=x.device, dtype=torch.int32)
    if keep is None:
        return Ragged(starts, starts, None, None, seq)
    if keep.shape[1:3] == (1, 1):
        without_key = ~keep.any(-1, keepdim=True)
        kept = (keep | without_key)[:, 0, 0]  # (batch, seq)
        return Ragged(starts, _starts(kept.sum(-1)), kept.flatten().nonzero()[:, 0], without_key, seq)
    return _packed(keep[:, 0]) if keep.shape[1] == 1 else None


def _packed(keep: Tensor) -> Ragged | None:
    """The blocks of (batch, seq, seq), if these are all that it keeps."""
    begins = F.pad(~keep.diagonal(-1, 1, 2), (1, 0), value=True)  # (batch, seq): not seeing the token before
    block = begins.cumsum(-1)
    if not torch.equal(keep, block[:, :, None] == block[:, None, :]):
        return None
    firsts = begins.flatten().nonzero()[:, 0]
    lengths = torch.cat([firsts, firsts.new_tensor([begins.numel()])]).diff()
    return Ragged(_starts(lengths), _starts(lengths), None, None, int(lengths.max()))


def _starts(lengths: Tensor) -> Tensor:
    return F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def attend_flash(q: Tensor, k: Tensor, v: Tensor, rows: Ragged, dropout_p: float) -> Tensor:
    """A flash kernel for sequences of different lengths: the context alone. Keys that nobody sees are left out."""
    check_flash(q)
    batch_and_seq = q.shape[0], q.shape[2]
    if rows.without_key is not None:
        q = q.masked_fill(rows.without_key, 0.0)
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # (batch * seq, n_heads, head_dim)
    if rows.kept is not None:
        k, v = k[rows.kept], v[rows.kept]
    kernel, can_drop = flash_kernel()
    options: dict[str, Any] = {"dropout_p": dropout_p} if can_drop else {}
    context = kernel(q, k, v, rows.query_starts, rows.key_starts, rows.longest, rows.longest, **options)
    return context.unflatten(0, batch_and_seq).transpose(1, 2)


@functools.cache
def flash_kernel() -> tuple[Callable[..., Tensor], bool]:
    """The flash-attn package's kernel when it is installed, else PyTorch's; and whether it can drop probabilities.

    Raises:
        ImportError: there is neither.
    """
    with contextlib.suppress(ImportError):
        from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

        return flash_attn_varlen_func, True
    with contextlib.suppress(ImportError):
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn, False  # pyright: ignore[reportReturnType]
    raise ImportError(f"{FLASH} needs the package flash-attn (`pip install flash-attn`) or PyTorch 2.10 or newer.")


def check_kernel(attn_implementation: str) -> None:
    """Refuse a kernel that does not exist, or that this machine cannot run.

    Raises:
        ValueError: it is no kernel, or there is no CUDA device for it. ImportError: it is not installed.
    """
    if attn_implementation not in KERNELS:
        raise ValueError(f"attn_implementation must be one of {', '.join(KERNELS)}, got {attn_implementation!r}.")
    if attn_implementation == FLASH:
        if not torch.cuda.is_available():
            raise ValueError(f"attn_implementation {FLASH!r} needs a CUDA device, and PyTorch finds none: use 'sdpa'.")
        flash_kernel()


def check_flash(q: Tensor) -> None:
    """The flash kernels run on CUDA in half precision only, on heads of certain widths."""
    if q.shape[-1] % 8 or q.shape[-1] > 256:
        raise ValueError(
            f"attn_implementation {FLASH!r} needs heads whose width dim / n_heads is a multiple of 8 up to 256, got "
            f"{q.shape[-1]}: use 'sdpa'."
        )
    if not q.is_cuda or q.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"attn_implementation {FLASH!r} needs a model on a CUDA device in float16 or bfloat16, got {q.dtype} on "
            f"{q.device}: move it with model.to('cuda', torch.bfloat16), or use 'sdpa'."
        )

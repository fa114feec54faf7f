"""The attention kernels in JAX: plain, and those of `jax.nn`. Twins: pt/attention.py and tf/attention.py.

Source: Vaswani et al. 2017, section 3.2. Axes: batch, n_heads, seq, head_dim. q, k, v and the context: (batch, n_heads,
seq, head_dim). A query without a key attends uniformly to all of them, in every kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import jax
import jax.numpy as jnp
from jax import Array

CUDNN = "cudnn"
KERNELS = ("eager", "xla", CUDNN)  # the first is the default; the others are jax.nn.dot_product_attention's


def keep_mask(attention_mask: Array | None) -> Array | None:
    """Which keys each query sees: (batch, 1 or n_heads, 1 or seq, seq) of bool. None keeps all."""
    if attention_mask is None:
        return None
    keep = jnp.asarray(attention_mask) != 0
    if keep.ndim == 2:
        return keep[:, None, None, :]
    return keep[:, None] if keep.ndim == 3 else keep


def attend(
    q: Array,
    k: Array,
    v: Array,
    keep: Array | None,
    head_mask: Array | None,
    dropout: Callable[[Array], Array],
) -> tuple[Array, Array]:
    """The plain kernel: the context, and the probabilities (batch, n_heads, seq, seq) after dropout and head mask."""
    scores = (q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)  # (batch, n_heads, seq, seq)
    if keep is not None:  # replaced, not added to: a row without a key becomes uniform
        scores = jnp.where(keep, scores, jnp.finfo(scores.dtype).min)
    softmax_dtype = jnp.promote_types(scores.dtype, jnp.float32)
    probabilities = dropout(jax.nn.softmax(scores.astype(softmax_dtype)).astype(q.dtype))
    if head_mask is not None:
        probabilities = probabilities * head_mask[:, None, None]
    return probabilities @ v, probabilities


def attend_fused(q: Array, k: Array, v: Array, keep: Array | None, attn_implementation: str) -> Array:
    """JAX's kernel: the context alone. "cudnn" runs on GPUs, in half precision."""
    if attn_implementation == CUDNN:
        check_cudnn(q)
    if q.dtype == jnp.float64:  # JAX's kernel would compute the scores in float32
        return attend(q, k, v, keep, None, lambda probabilities: probabilities)[0]
    if keep is not None:  # a query without a key: a zero query that sees all keys attends uniformly
        without_key = ~keep.any(-1, keepdims=True)  # (batch, 1 or n_heads, 1 or seq, 1)
        q, keep = jnp.where(without_key, 0.0, q).astype(q.dtype), keep | without_key
        keep = jnp.broadcast_to(keep, (*keep.shape[:2], q.shape[2], k.shape[2]))  # cuDNN's does not broadcast
    q, k, v = q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2)  # (batch, seq, n_heads, head_dim)
    kernel = cast("Literal['xla', 'cudnn']", attn_implementation)
    context = jax.nn.dot_product_attention(q, k, v, mask=keep, implementation=kernel)
    return context.swapaxes(1, 2)


def check_kernel(attn_implementation: str) -> None:
    """Refuse a kernel that does not exist, or that this machine cannot run.

    Raises:
        ValueError: it is no kernel, or there is no GPU for it.
    """
    if attn_implementation not in KERNELS:
        raise ValueError(f"attn_implementation must be one of {', '.join(KERNELS)}, got {attn_implementation!r}.")
    if attn_implementation == CUDNN and jax.default_backend() != "gpu":
        raise ValueError(f"attn_implementation {CUDNN!r} needs a GPU, and JAX finds none: use 'xla'.")


def check_cudnn(q: Array) -> None:
    """CuDNN's kernel runs in half precision only, on heads of certain widths."""
    if q.shape[-1] % 8 or q.shape[-1] > 128:
        raise ValueError(
            f"attn_implementation {CUDNN!r} needs heads whose width dim / n_heads is a multiple of 8 up to 128, got "
            f"{q.shape[-1]}: use 'xla'."
        )
    if q.dtype not in (jnp.float16, jnp.bfloat16):
        raise ValueError(
            f"attn_implementation {CUDNN!r} needs a model in float16 or bfloat16, got {q.dtype}: load it with "
            "dtype='bfloat16', or use 'xla'."
        )

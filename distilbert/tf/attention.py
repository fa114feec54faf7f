"""The attention kernel in Keras 3 on TensorFlow: plain. Twins: pt/attention.py and flax/attention.py.

Source: Vaswani et al. 2017, section 3.2. Axes: batch, n_heads, seq, head_dim. q, k, v and the context: (batch, n_heads,
seq, head_dim). A query without a key attends uniformly to all of them.
"""

# Keras types the results of its operations as optional: they are not.
# pyright: reportOptionalSubscript=false, reportOptionalOperand=false, reportOptionalMemberAccess=false
# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import ml_dtypes
import tensorflow as tf
from keras import ops

Tensor = Any  # a tf.Tensor, or Keras's symbolic one

KERNELS = ("eager",)  # Keras has no fused kernel on TensorFlow


def keep_mask(attention_mask: Tensor | None) -> Tensor | None:
    """Which keys each query sees: (batch, 1 or n_heads, 1 or seq, seq) of bool. None keeps all."""
    if attention_mask is None:
        return None
    keep = ops.cast(attention_mask, "bool")
    if len(keep.shape) == 2:
        return keep[:, None, None, :]
    return keep[:, None] if len(keep.shape) == 3 else keep


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor | None,
    head_mask: Tensor | None,
    dropout: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The plain kernel: the context, and the probabilities (batch, n_heads, seq, seq) after dropout and head mask."""
    scores = ops.matmul(q * q.shape[-1] ** -0.5, ops.transpose(k, (0, 1, 3, 2)))  # (batch, n_heads, seq, seq)
    if keep is not None:  # replaced, not added to: a row without a key becomes uniform
        scores = ops.where(keep, scores, lowest(scores))
    softmax_dtype = keras.backend.result_type(scores.dtype, "float32")
    probabilities = dropout(ops.cast(tf.nn.softmax(ops.cast(scores, softmax_dtype)), q.dtype))
    if head_mask is not None:
        probabilities = probabilities * head_mask[:, None, None]
    return ops.matmul(probabilities, v), probabilities


def lowest(x: Tensor) -> Tensor:
    """The finite minimum of the dtype of x."""
    dtype = keras.backend.standardize_dtype(x.dtype)
    return ops.convert_to_tensor(ml_dtypes.finfo(dtype).min, dtype=dtype)


def check_kernel(attn_implementation: str) -> None:
    """Refuse a kernel that does not exist.

    Raises:
        ValueError: it is no kernel of this backend.
    """
    if attn_implementation not in KERNELS:
        raise ValueError(f"attn_implementation must be one of {', '.join(KERNELS)}, got {attn_implementation!r}.")

"""The dense layers of an optimized Flax model: frozen weights, and their products with the features of tokens.

Activations stand features first, (features, tokens): XLA:CPU multiplies a weight with few tokens 1.2 to 1.6 times
faster so, and with many as fast [measured]. Axes: in_features, out_features, tokens.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from distilbert.checkpoint.tensors import Array as HostArray

LARGEST = 127  # of the codes of weights and activations
UNITS = {"avx512_bf16", "amx_bf16", "bf16"}  # the processor's own words for products of bfloat16, x86 and Arm


class Product(NamedTuple):
    """The weights of a dense layer.

    kernel: (out_features, in_features), float32, bfloat16, or int8 with a `scale` (out_features,) and the `sums` of
    its rows, (out_features,); bias: (out_features,), or None for none.
    """

    kernel: Any
    bias: Any
    scale: Any = None
    sums: Any = None

    def __call__(self, x: Array, *, units: bool) -> Array:
        """Kernel x + bias, in float32. x: (in_features, tokens); result: (out_features, tokens).

        x is rounded as the kernel is: to bfloat16, or to int8 codes with a scale and a middle for each token, x = scale
        codes + middle, as what comes from GELU is hardly below 0. Sums are float32, or of codes and exact.
        `units`: whether to multiply bfloat16 as such, or the same numbers in float32.
        """
        y = self._bytes(x) if self.scale is not None else self._floats(x, units)
        return y if self.bias is None else y + self.bias[:, None]

    def _floats(self, x: Array, units: bool) -> Array:
        kernel = self.kernel
        if kernel.dtype == jnp.bfloat16:
            dtype = jnp.bfloat16 if units else jnp.float32
            kernel, x = kernel.astype(dtype), jax.lax.reduce_precision(x, 8, 7).astype(dtype)
        return jnp.matmul(kernel, x, preferred_element_type=jnp.float32)

    def _bytes(self, x: Array) -> Array:
        low, high = x.min(0), x.max(0)  # (tokens,)
        middle = (low + high) / 2
        scale = jnp.maximum((high - low) / (2 * LARGEST), np.finfo(np.float32).tiny)
        codes = jnp.round((x - middle) / scale).astype(jnp.int8)
        products = jnp.matmul(self.kernel, codes, preferred_element_type=jnp.int32)  # (out_features, tokens)
        return products.astype(jnp.float32) * self.scale[:, None] * scale + self.sums[:, None] * middle


def product(kernel: HostArray, bias: HostArray | None, precision: str) -> Product:
    """A layer in a precision. kernel: (out_features, in_features); bias: (out_features,)."""
    kernel = np.ascontiguousarray(kernel)
    bias = None if bias is None else bias.astype(np.float32)
    if precision != "int8":
        return Product(kernel.astype(jnp.dtype(precision)), bias)
    kernel = kernel.astype(np.float32)
    scale = np.maximum(np.abs(kernel).max(1) / LARGEST, np.finfo(np.float32).tiny)
    codes = np.rint(kernel / scale[:, None])
    return Product(codes.astype(np.int8), bias, scale, codes.sum(1) * scale)


def table(rows: HostArray, precision: str) -> HostArray:
    """An embedding's rows as they are kept: float32, or bfloat16 in the other precisions."""
    return rows.astype(np.float32 if precision == "float32" else jnp.bfloat16)


@functools.cache
def has_units(platform: str, cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether products of bfloat16 are faster than those of float32: on accelerators, and where a CPU says so."""
    if platform != "cpu":
        return True
    try:
        words = Path(cpuinfo).read_text().split()
    except OSError:
        return False
    return not UNITS.isdisjoint(words)

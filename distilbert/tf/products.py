"""Linear layers by precision in TensorFlow. Twins: pt/products.py and flax/products.py.

oneDNN's fused product is called by its name, for it then keeps a constant weight packed between calls. Where it is not
there, the same is written as the product, bias and activation that TensorFlow's own rewriter fuses. Weights lie as in
the checkpoint: (out, in). Axes: total, in, out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from distilbert.checkpoint.tensors import Array
from distilbert.config import LAYER_NORM_EPS
from distilbert.tf.model import ACTIVATIONS

Tensor = Any  # a tf.Tensor, known or traced
AttrValue: Any = tf.compat.v1.AttrValue

FUSED_MATMUL, FUSED_NORM = "_MklNativeFusedMatMul", "_MklLayerNorm"
QUANTIZED_MATMUL = "_QuantizedMatMul"
BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")  # of processors with products in bfloat16
EMULATED = "bfloat16 is emulated: this processor has no products in it, float32 may be faster"
LEVELS = 127.0  # of int8 on each side of 0
TINY = 1e-30  # in place of the largest of a row of zeros
FUSED_ACTIVATIONS = {"gelu": b"GeluExact", "gelu_new": b"GeluApproximate", "relu": b"Relu", "identity": b""}
_FAILURES = (tf.errors.OpError, TypeError, ValueError, AttributeError, KeyError)


class Linear:
    """activation(x W^T + b), in float32 or with the product in bfloat16.

    x: (total, in), of either dtype; result: (total, out) in the dtype of the product. weight: (out, in); bias: (out,).
    """

    def __init__(self, weight: Array | Tensor, bias: Array, precision: str) -> None:
        self.dtype = tf.bfloat16 if precision == "bfloat16" else tf.float32
        self.weight, self.bias = constant(weight, self.dtype), constant(bias, self.dtype)
        self.width = int(self.weight.shape[0])
        self.fused = has_fused_matmul(self.dtype)
        self.kernel, self.fallbacks = _named(
            self.fused, f"oneDNN's {FUSED_MATMUL} in {self.dtype.name}, weights packed"
        )
        if self.fused and self.dtype == tf.bfloat16 and not has_flag(*BFLOAT16_FLAGS):
            self.fallbacks = (EMULATED,)

    def __call__(self, x: Tensor, activation: str = "identity") -> Tensor:
        """What the class says, with any activation of the models."""
        product = fused_matmul if self.fused and activation in FUSED_ACTIVATIONS else plain_matmul
        return product(tf.cast(x, self.dtype), self.weight, self.bias, activation)


class QuantizedLinear:
    """activation(x W^T + b) with weights in int8, a scale for each output, and x in int8, a scale for each row.

    x: (total, in), float32; result: (total, out), float32. weight: (out, in); bias: (out,).
    """

    def __init__(self, weight: Array, bias: Array) -> None:
        weight = np.asarray(weight, np.float32)
        scale = np.abs(weight).max(1) / LEVELS
        scale[scale == 0] = 1
        whole = np.round(weight / scale[:, None]).astype(np.int8)
        self.weight = tf.bitcast(tf.constant(np.ascontiguousarray(whole.T)), tf.qint8)  # (in, out)
        self.scale, self.bias = constant(scale, tf.float32), constant(bias, tf.float32)
        self.width = len(weight)
        self.fused = has_quantized_matmul()
        self.kernel, self.fallbacks = _named(self.fused, f"oneDNN's {QUANTIZED_MATMUL}, activations in int8 by row")

    def __call__(self, x: Tensor, activation: str = "identity") -> Tensor:
        """What the class says, with any activation of the models."""
        scale = tf.maximum(tf.reduce_max(tf.abs(x), -1, keepdims=True), TINY) / LEVELS  # (total, 1)
        whole = tf.bitcast(tf.cast(tf.round(x / scale), tf.int8), tf.qint8)
        product = quantized_matmul if self.fused else plain_quantized_matmul
        x = product(whole, self.weight, self.scale) * scale + self.bias
        return tf.nn.gelu(x, approximate=False) if activation == "gelu" else ACTIVATIONS[activation](x)


def new_linear(weight: Array | Tensor, bias: Array, precision: str) -> Linear | QuantizedLinear:
    """The layer of that precision."""
    return QuantizedLinear(weight, bias) if precision == "int8" else Linear(weight, bias, precision)


class LayerNorm:
    """LayerNorm over the last axis in float32. x: (total, dim)."""

    def __init__(self, weight: Array, bias: Array) -> None:
        self.weight, self.bias = constant(weight, tf.float32), constant(bias, tf.float32)
        self.fused = has_fused_norm()
        self.kernel, self.fallbacks = _named(self.fused, f"oneDNN's {FUSED_NORM}")

    def __call__(self, x: Tensor) -> Tensor:
        """What the class says."""
        return (fused_norm if self.fused else plain_norm)(x, self.weight, self.bias)


def _named(there: bool, kernel: str) -> tuple[str, tuple[str, ...]]:
    """What to say of a kernel: what is used, and what was wanted instead."""
    return (kernel, ()) if there else ("TensorFlow's public operators", (f"{kernel}: not on this machine",))


def constant(value: Array | Tensor, dtype: tf.DType) -> Tensor:
    """An array, or a tensor that is there already, as a tensor of the dtype."""
    if tf.is_tensor(value) and value.dtype == dtype:
        return value
    return tf.constant(np.asarray(value).astype(dtype.as_numpy_dtype))


def fused_matmul(x: Tensor, weight: Tensor, bias: Tensor, activation: str = "identity") -> Tensor:
    """OneDNN's activation(x weight^T + bias), with the weight kept packed. In graphs only."""
    steps = [step for step in (b"BiasAdd", FUSED_ACTIVATIONS[activation]) if step]
    attrs = {
        "T": AttrValue(type=x.dtype.as_datatype_enum),
        "num_args": AttrValue(i=1),
        "fused_ops": AttrValue(list=AttrValue.ListValue(s=steps)),
        "is_filter_const": AttrValue(b=True),
        "transpose_a": AttrValue(b=False),
        "transpose_b": AttrValue(b=True),
        "epsilon": AttrValue(f=0.0),
        "leakyrelu_alpha": AttrValue(f=0.0),
        "_kernel": AttrValue(s=b"MklNameChangeOp"),
    }
    return _create(FUSED_MATMUL, [x, weight, bias], attrs, (None, weight.shape[0]))


def plain_matmul(x: Tensor, weight: Tensor, bias: Tensor, activation: str = "identity") -> Tensor:
    """The same in public operators, in the pattern that TensorFlow's rewriter fuses."""
    x = tf.nn.bias_add(tf.matmul(x, weight, transpose_b=True), bias)
    if activation in ("gelu", "gelu_new"):
        return tf.nn.gelu(x, approximate=activation == "gelu_new")
    return ACTIVATIONS[activation](x)


def quantized_matmul(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """OneDNN's x weight of int8, times the scale of each output, in float32. weight: (in, out). In graphs only."""
    floats, no_bias = AttrValue(type=tf.float32.as_datatype_enum), tf.zeros_like(scale)
    attrs = {
        "Tdevice_inputs": _types(x, weight, no_bias),
        "Thost_inputs": _types(*[scale] * 4),
        "Tdevice_outputs": _types(scale),
        "Thost_outputs": _types(),
        "T1": AttrValue(type=x.dtype.as_datatype_enum),
        "T2": AttrValue(type=weight.dtype.as_datatype_enum),
        "Tbias": floats,
        "U": floats,
        "Tout": floats,
        "fused_ops": AttrValue(list=AttrValue.ListValue(s=[b"BiasAdd", b"Dequantize"])),
        "transpose_a": AttrValue(b=False),
        "transpose_b": AttrValue(b=False),
        "is_weight_const": AttrValue(b=True),
        "is_bias_const": AttrValue(b=True),
        "input_quant_mode": AttrValue(s=b"SCALED"),
        "output_quant_mode": AttrValue(s=b"SCALED"),
        "leakyrelu_alpha": AttrValue(f=0.0),
    }
    ends = (tf.constant(-LEVELS), tf.constant(LEVELS), -LEVELS * scale, LEVELS * scale)  # what -127 and 127 stand for
    return _create(QUANTIZED_MATMUL, [x, weight, no_bias, *ends], attrs, (None, weight.shape[1]), tf.float32)


def plain_quantized_matmul(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The same in public operators, the product in float32."""
    x, weight = (tf.cast(tf.bitcast(whole, tf.int8), tf.float32) for whole in (x, weight))
    return tf.matmul(x, weight) * scale


def _types(*tensors: Tensor) -> Any:
    return AttrValue(list=AttrValue.ListValue(type=[tensor.dtype.as_datatype_enum for tensor in tensors]))


def fused_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """OneDNN's LayerNorm. In graphs only."""
    attrs = {"T": AttrValue(type=x.dtype.as_datatype_enum), "epsilon": AttrValue(f=LAYER_NORM_EPS)}
    return _create(FUSED_NORM, [x, weight, bias], attrs, x.shape)


def plain_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm in public operators, with the variance in a second pass."""
    x -= tf.reduce_mean(x, -1, keepdims=True)
    return x * tf.math.rsqrt(tf.reduce_mean(x * x, -1, keepdims=True) + LAYER_NORM_EPS) * weight + bias


def _create(name: str, inputs: list[Tensor], attrs: dict[str, Any], shape: Any, dtype: Any = None) -> Tensor:
    """An operator that has no Python function, in the graph that is being traced."""
    graph: Any = tf.compat.v1.get_default_graph()
    result = graph.create_op(name, inputs, [dtype or inputs[0].dtype], attrs=attrs, name="fused").outputs[0]
    result.set_shape(shape)
    return result


@functools.cache
def has_fused_matmul(dtype: tf.DType) -> bool:
    """Whether oneDNN's product works here for the dtype: it is run once.

    In bfloat16 oneDNN ends the process on a processor that it has no product for, so its flags are read before.
    """
    if dtype == tf.bfloat16 and not has_bfloat16():
        return False
    rng = np.random.default_rng(0)
    x, weight, bias = (tf.constant(rng.normal(size=n), dtype) for n in ((5, 32), (16, 32), (16,)))
    tolerance = 1e-5 if dtype == tf.float32 else 0.1
    return _agree(
        lambda: fused_matmul(x, weight, bias, "gelu"), lambda: plain_matmul(x, weight, bias, "gelu"), tolerance
    )


@functools.cache
def has_quantized_matmul() -> bool:
    """Whether oneDNN's product of int8 works here: it is run once, with the largest values, which must not saturate."""
    x = np.full((5, 64), LEVELS).astype(np.int8)
    weight = np.where(np.arange(32) % 2, x.T[:, :1], -x.T[:, :1])
    x, weight = (tf.bitcast(tf.constant(array), tf.qint8) for array in (x, weight))
    scale = tf.constant(np.linspace(1e-5, 1e-4, 32), tf.float32)
    return _agree(lambda: quantized_matmul(x, weight, scale), lambda: plain_quantized_matmul(x, weight, scale), 1e-3)


def has_bfloat16() -> bool:
    """Whether the processor is one that oneDNN has products in bfloat16 for, be they emulated."""
    return has_flag("avx512bw")


def has_flag(*names: str) -> bool:
    """Whether the processor has one of these flags, where the system lists them."""
    return not processor_flags().isdisjoint(names)


@functools.cache
def processor_flags() -> frozenset[str]:
    """What the system says that the processor can do; nothing where it does not say."""
    cpuinfo = Path("/proc/cpuinfo")
    return frozenset(cpuinfo.read_text(encoding="utf-8").split() if cpuinfo.exists() else ())


@functools.cache
def has_fused_norm() -> bool:
    """Whether oneDNN's LayerNorm works here: it is run once."""
    rng = np.random.default_rng(0)
    x, weight, bias = (tf.constant(rng.normal(size=n), tf.float32) for n in ((5, 32), (32,), (32,)))
    return _agree(lambda: fused_norm(x, weight, bias), lambda: plain_norm(x, weight, bias), 1e-5)


def _agree(fused: Callable[[], Tensor], plain: Callable[[], Tensor], tolerance: float) -> bool:
    if tf.config.list_logical_devices("GPU"):
        return False
    try:
        found, wanted = (tf.cast(tf.function(f, autograph=False)(), tf.float32) for f in (fused, plain))
    except _FAILURES:
        return False
    return bool(np.allclose(found, wanted, rtol=0, atol=tolerance))

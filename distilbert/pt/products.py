"""The dense layers of an optimized PyTorch model: frozen weights, packed for the processor's matrix products.

One class per precision and kernel. Products of one precision give the same numbers to rounding, whatever computes
them. Axes: total (tokens of a batch), in_features, out_features. Sources: oneDNN (products with GELU and sum fused);
Khudia et al. 2021, arXiv 2101.05615 (bytes with a scale and a minimum per row).
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the framework's own name

from distilbert.allocator import use_huge_pages
from distilbert.pt.model import ACTIVATIONS

FUSED = {"gelu": ("gelu", "none"), "relu": ("relu", ""), "tanh": ("tanh", ""), "identity": ("none", "")}
TRAILER = 8  # bytes after each quantized row: its scale and its minimum, float32 each
CODES = (127, 63)  # largest weight code; the smaller where sums of two byte products saturate at 16 bits


class Product(abc.ABC):
    """activation(x weight^T + bias). x: (total, in_features); result: (total, out_features).

    The result is float32 with `add`, (total, out_features) of float32, a residual that is added to it; otherwise it
    may also be what the next product takes.
    """

    kernel: str  # its name in a description

    @abc.abstractmethod
    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor: ...


class PlainProduct(Product):
    """PyTorch's own product, in float32 or bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str, dtype: torch.dtype) -> None:
        self.weight = weight.to(dtype, copy=True)
        self.bias = None if bias is None else bias.to(dtype, copy=True)
        self.activation = ACTIVATIONS[activation]
        self.kernel = f"torch linear, {name_of(dtype)}"

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        x = self.activation(F.linear(x.to(self.weight.dtype), self.weight, self.bias))
        return x if add is None else add + x


class PackedProduct(Product):
    """oneDNN's product on prepacked weights, in float32 or bfloat16; activation and residual are fused into it."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str, dtype: torch.dtype) -> None:
        self.weight = packed(weight.to(dtype))
        self.bias = None if bias is None else bias.to(dtype, copy=True)
        self.dtype = dtype
        self.fused, self.algorithm = FUSED.get(activation, FUSED["identity"])
        self.activation = None if activation in FUSED else ACTIVATIONS[activation]
        fused = [activation] if self.fused != "none" else []
        fused += ["residual"] if dtype == torch.float32 else []
        self.kernel = ", ".join(["oneDNN prepacked", name_of(dtype), *(f"{part} fused" for part in fused)])
        self.linear, self.linear_add = onednn_linear()

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        if add is not None and self.dtype == torch.float32:
            return self.linear_add(x, add, self.weight, self.bias, "add")
        x = self.linear(x.to(self.dtype), self.weight, self.bias, self.fused, [], self.algorithm)
        if self.activation is not None:
            x = self.activation(x)
        return x if add is None else add + x


class ByteProduct(Product):
    """Products of bytes: each row of x has its own scale and minimum, each row of the weight its own scale.

    x = scale * code + low, so that x weight^T = scale * (code weight^T) + low * sums, where sums are those of the
    weight's rows. The first product is exact, in integers. Codes of x are unsigned: signed ones take a reference kernel
    on processors without AMX.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str) -> None:
        codes, scale = quantized_weight(weight, largest_code() or CODES[0])
        self.scale = scale  # (out_features,)
        self.sums = codes.sum(1) * scale  # (out_features,)
        self.bias = torch.zeros_like(scale) if bias is None else bias.to(torch.float32, copy=True)
        self.activation = None if activation == "identity" else ACTIVATIONS[activation]
        self.multiply, self.kernel = byte_product(codes, scale)

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        rows = quantized_rows(x)  # (total, in_features + TRAILER)
        scale, low = scale_and_low(rows)  # (total, 1) each
        y = torch.addcmul(self.bias, low, self.sums).addcmul_(self.multiply(rows), scale)
        if self.activation is not None:
            y = self.activation(y)
        return y if add is None else y.add_(add)


def new_product(precision: str, weight: Tensor, bias: Tensor | None, activation: str = "identity") -> Product:
    """The fastest product of that precision that this machine has. weight: (out_features, in_features)."""
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if precision == "int8":
        return ByteProduct(weight, bias, activation)
    dtype = getattr(torch, precision)
    kind = PackedProduct if weight.device.type == "cpu" and not lacks_onednn(dtype) else PlainProduct
    return kind(weight, bias, activation, dtype)


def missing(precision: str) -> tuple[str, ...]:
    """What this machine lacks for the fastest products of that precision, and why."""
    if precision == "int8":
        reasons = [lacks_bytes(code) for code in CODES if code > largest_code()] + [lacks_byte_rows()]
    else:
        reasons = [lacks_onednn(getattr(torch, precision))]
    if precision == "bfloat16" and not has_bfloat16():
        reasons.append("this processor has no bfloat16 products: they are emulated, and slower than float32")
    return tuple(reason for reason in reasons if reason)


class Table:
    """An embedding's rows as float32, kept as float32, bfloat16 or bytes with a scale and a minimum each."""

    def __init__(self, weight: Tensor, precision: str) -> None:
        weight = weight.detach()
        if precision == "int8":
            self.rows = quantized_rows(weight.float())
        else:
            self.rows = weight.to(getattr(torch, precision), copy=True)

    def __call__(self, ids: Tensor) -> Tensor:
        """Ids (total,) to rows (total, dim)."""
        rows = F.embedding(ids, self.rows)
        if rows.dtype != torch.uint8:
            return rows.float()
        scale, low = scale_and_low(rows)
        return torch.addcmul(low, rows[:, :-TRAILER].float(), scale)


def onednn_linear() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The products of oneDNN: with an activation, and with a sum."""
    operator = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001 - what PyTorch's own compiler calls
    return operator.default, operator.binary


def packed(weight: Tensor) -> Tensor:
    """The weight in the order that oneDNN reads it in, on huge pages where there are some."""
    result = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)  # noqa: SLF001 - as above
    on_huge_pages(result)
    return result


def on_huge_pages(opaque: Tensor) -> None:
    """Ask for huge pages behind a packed weight."""
    use_huge_pages(torch.ops.mkldnn.data_ptr(opaque), torch.ops.mkldnn._nbytes(opaque))  # noqa: SLF001


@functools.cache
def lacks_onednn(dtype: torch.dtype) -> str:
    """Why oneDNN's products cannot be used here; empty if they can. They are tried, not asked."""
    x, weight, bias = torch.eye(4, 16), torch.linspace(-1, 1, 128).reshape(8, 16), torch.ones(8)
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    try:
        linear, linear_add = onednn_linear()
        operand = packed(weight)
        results = linear(x, operand, bias, *_spread("gelu")), linear_add(x, x[:, :8], operand, bias, "add")
    except (AttributeError, RuntimeError) as error:
        return f"PyTorch {torch.__version__} lacks oneDNN's prepacked products: {first_line(error)}"
    expected = F.gelu(F.linear(x, weight, bias)), F.linear(x, weight, bias) + x[:, :8]
    same = all(torch.allclose(a, b, rtol=0.02, atol=1e-5) for a, b in zip(results, expected, strict=True))
    return "" if same else "oneDNN's prepacked products give other numbers on this machine"


def _spread(activation: str) -> tuple[str, list[float], str]:
    name, algorithm = FUSED[activation]
    return name, [], algorithm


def quantized_weight(weight: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """The weight as codes * scale: (out_features, in_features) from -largest to largest, and (out_features,)."""
    weight = weight.float()
    scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / largest
    return (weight / scale[:, None]).round().to(torch.int8), scale


def quantized_rows(x: Tensor) -> Tensor:
    """Each row as bytes, and after them its scale and its minimum: x = scale * byte + minimum.

    (total, features) of float32 to (total, features + TRAILER) of uint8.
    """
    x = x.float().contiguous()
    return plain_rows(x) if lacks_byte_rows() else torch.ops.quantized.embedding_bag_byte_prepack(x)


def plain_rows(x: Tensor) -> Tensor:
    """What `quantized_rows` gives, step by step."""
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    span = high - low
    codes = ((x - low) * (255 / (span + 1e-8))).round().clamp(0, 255).to(torch.uint8)
    return torch.cat([codes, torch.cat([span / 255, low], 1).view(torch.uint8)], 1)


def scale_and_low(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of quantized rows, (total, 1) each: what a step is worth, and the minimum."""
    if rows.shape[1] % 4:  # the numbers do not lie at multiples of their size
        rows = rows[:, -TRAILER:].contiguous()
    numbers = rows.view(torch.float32)
    return numbers[:, -2:-1], numbers[:, -1:]


@functools.cache
def lacks_byte_rows() -> str:
    """Why rows are quantized step by step; empty if one operator does it."""
    x = torch.linspace(-3, 5, 96, dtype=torch.float32).reshape(2, 48)
    try:
        same = torch.equal(torch.ops.quantized.embedding_bag_byte_prepack(x), plain_rows(x))
    except (AttributeError, RuntimeError) as error:
        return f"PyTorch {torch.__version__} cannot quantize rows in one step: {first_line(error)}"
    return "" if same else "rows quantized in one step get other numbers on this machine"


def byte_product(codes: Tensor, scale: Tensor) -> tuple[Callable[[Tensor], Tensor], str]:
    """Quantized rows to (bytes codes^T) * scale, (total, out_features) of float32; and the kernel's name."""
    if not largest_code():
        return functools.partial(plain_byte_product, codes=codes, scale=scale), "torch linear on codes"
    weight = torch.ops.onednn.qlinear_prepack(codes, None)
    on_huge_pages(weight)
    zeros = torch.zeros(len(scale), dtype=torch.int32)
    multiply = torch.ops.onednn.qlinear_pointwise.default

    def product(rows: Tensor) -> Tensor:
        rows = rows[:, :-TRAILER].contiguous()  # (total, in_features)
        return multiply(rows, 1.0, 0, weight, scale, zeros, None, 1.0, 0, torch.float32, "none", [], "")

    return product, "oneDNN prepacked, u8 rows and s8 weights"


def plain_byte_product(rows: Tensor, *, codes: Tensor, scale: Tensor) -> Tensor:
    """The product of codes in float32."""
    return F.linear(rows[:, :-TRAILER].float(), codes.float()) * scale


@functools.cache
def largest_code() -> int:
    """The largest weight code with which oneDNN's products of bytes are exact here; 0 if there is none."""
    return next((code for code in CODES if not lacks_bytes(code)), 0)


@functools.cache
def lacks_bytes(code: int) -> str:
    """Why oneDNN's products of bytes cannot be used with weights up to `code`; empty if they can."""
    rows = torch.full((4, 64), 255, dtype=torch.uint8)
    codes = torch.full((16, 64), code, dtype=torch.int8)
    scale, zeros = torch.ones(16, dtype=torch.float32), torch.zeros(16, dtype=torch.int32)
    try:
        weight = torch.ops.onednn.qlinear_prepack(codes, None)
        result = torch.ops.onednn.qlinear_pointwise(
            rows, 1.0, 0, weight, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
    except (AttributeError, RuntimeError) as error:
        return f"PyTorch {torch.__version__} lacks oneDNN's products of bytes: {first_line(error)}"
    exact = torch.equal(result, torch.full_like(result, 255 * code * 64))
    return "" if exact else f"products of bytes saturate on this processor with weights up to {code}"


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself."""
    checks = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(check is not None and check() for check in checks)


def first_line(error: Exception) -> str:
    """What an error says first."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def name_of(dtype: torch.dtype) -> str:
    """The dtype's name without the framework's."""
    return str(dtype).removeprefix("torch.")

"""What this machine can do at most, at this moment: products of matrices of DistilBERT's sizes by oneDNN, prepacked."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.engines import Answer

ROWS, WIDTH, HIDDEN = 512, 768, 3072
OPERATIONS = 2 * ROWS * WIDTH * HIDDEN
TRIES = 12  # of which the quickest counts


def start(threads: int) -> tuple[Answer, Callable[[Answer], Answer]]:
    """What `benchmarks.engines.serve` needs; each order is answered with GFLOP/s by precision, null where it cannot."""
    import torch

    torch.set_num_threads(threads)
    makers = {
        "float32": lambda: _floats(torch, torch.float32),
        "bfloat16": lambda: _floats(torch, torch.bfloat16),
        "int8": lambda: _int8(torch),
    }
    products = {name: _tried(make) for name, make in makers.items()}
    hello: Answer = {"versions": {"torch": torch.__version__}, "cpu": torch.backends.cpu.get_cpu_capability()}
    return hello, lambda _: {name: None if call is None else _speed(call) for name, call in products.items()}


def _tried(make: Callable[[], Callable[[], Any]]) -> Callable[[], Any] | None:
    """A product that works here; these are private operators, which a build of torch need not have."""
    try:
        call = make()
        call()
    except (AttributeError, RuntimeError):
        return None
    return call


def _speed(call: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(TRIES):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return OPERATIONS / min(seconds) / 1e9


def _floats(torch: Any, dtype: Any) -> Callable[[], Any]:
    x, weight = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(HIDDEN, WIDTH, dtype=dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)  # noqa: SLF001
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")  # noqa: SLF001


def _int8(torch: Any) -> Callable[[], Any]:
    """Unsigned activations: signed ones have no kernel before AMX. Results stay 8 bits wide."""
    x = torch.full((ROWS, WIDTH), 130, dtype=torch.uint8)
    weight = torch.ones(HIDDEN, WIDTH, dtype=torch.int8)
    scales, zeros = torch.ones(HIDDEN), torch.zeros(HIDDEN, dtype=torch.int32)
    packed = torch.ops.onednn.qlinear_prepack(weight, [ROWS, WIDTH])
    return lambda: torch.ops.onednn.qlinear_pointwise(
        x, 1.0, 128, packed, scales, zeros, None, 1.0, 0, torch.uint8, "none", [], ""
    )

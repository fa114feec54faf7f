"""Who takes part: every engine that `benchmarks.inference` can time, one row each."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.engines import ROOT

BUILD = ROOT / "build"
MODELS = BUILD / "bench-models"
OURS, INTEROP4, INTEROP5, KERAS_HUB, RUNTIMES = (
    ".venv",
    "build/interop4",
    "build/interop5",
    "build/interop-keras-hub",
    "build/bench-runtimes",
)
GROUPS = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "int8": "int8",
    "tf": "TensorFlow",
    "flax": "JAX",
}


KERNELS = {"pt": "PyTorch's", "tf": "TensorFlow's", "flax": "XLA's"}


@dataclasses.dataclass(frozen=True)
class Peer:
    """An engine.

    Attributes:
        name, title: for the command line, and for people.
        group: engines of one group are timed in turns, so that their ratios mean something.
        precision: of products; says how far results may be off.
        home: the virtual environment that it runs in.
        loader: a function in `benchmarks.inference_engines`.
        model: the format that it reads.
        options: of the loader.
        everywhere: whether it takes part in all workloads, or in the headline ones only.
    """

    name: str
    title: str
    group: str
    precision: str
    home: str
    loader: str
    model: str = "base"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    everywhere: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is this package's."""
        return self.home == OURS

    @property
    def environment(self) -> dict[str, str]:
        """What its process needs to be told."""
        return {"TF_USE_LEGACY_KERAS": "1"} if self.home == INTEROP4 else {}

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return ROOT / self.home / "bin" / "python"


def _ours(backend: str, precision: str, group: str) -> Peer:
    options = {"backend": backend, "precision": precision}
    title = f"distilbert.{backend}, optimized, {precision}"
    return Peer(f"{backend}-{precision}", title, group, precision, OURS, "optimized", "base", options, backend == "pt")


def _framework(backend: str, precision: str, group: str) -> Peer:
    """Ours where this package's own kernels cannot be used, as without AVX-512."""
    options = {"backend": backend, "precision": precision, "native": False}
    title = f"distilbert.{backend}, optimized, {KERNELS[backend]} kernels, {precision}"
    return Peer(f"{backend}-{precision}-framework", title, group, precision, OURS, "optimized", "base", options)


def _plain(backend: str, group: str) -> Peer:
    title = f"distilbert.{backend}, the model itself"
    return Peer(f"{backend}-plain", title, group, "float32", OURS, f"plain_{backend}")


def _torch(name: str, precision: str, **options: Any) -> Peer:
    kind = "compiled" if options.get("compiled") else options["attention"]
    title = f"transformers 5.23 torch, {kind}, {precision}"
    options["dtype"] = precision
    return Peer(name, title, precision, precision, INTEROP5, "transformers_torch", "base", options, kind == "sdpa")


def _onnx(name: str, precision: str, *, everywhere: bool) -> Peer:
    title = f"ONNX Runtime, {'fused' if 'fused' in name else 'as exported'}, {precision}"
    return Peer(name, title, precision, precision, RUNTIMES, "onnx_runtime", name, {}, everywhere)


def _openvino(precision: str, model: str, hint: str) -> Peer:
    title = f"OpenVINO, {precision}" + (" by NNCF" if precision == "int8" else "")
    name = f"openvino-{precision}"
    return Peer(name, title, precision, precision, RUNTIMES, "openvino", model, {"hint": hint}, everywhere=True)


def _ctranslate2(precision: str) -> Peer:
    title, options = f"CTranslate2, {precision}", {"compute_type": precision}
    return Peer(
        f"ctranslate2-{precision}", title, precision, precision, INTEROP5, "ctranslate2", "ctranslate2", options,
        everywhere=True,
    )  # fmt: skip


def _transformers_tf(*, xla: bool) -> Peer:
    name, title = ("tf-peer-xla", "XLA") if xla else ("tf-peer-graph", "graph")
    title = f"transformers 4.57 TensorFlow, {title}, float32"
    return Peer(name, title, "tf", "float32", INTEROP4, "transformers_tf", "tf-h5", {"xla": xla})


def _keras_hub(*, xla: bool) -> Peer:
    name, title = ("keras-hub-xla", "XLA") if xla else ("keras-hub-graph", "graph")
    return Peer(name, f"KerasHub, {title}, float32", "tf", "float32", KERAS_HUB, "keras_hub", "keras-hub", {"xla": xla})


PEERS = {
    peer.name: peer
    for peer in (
        _ours("pt", "float32", "float32"),
        _framework("pt", "float32", "float32"),
        _plain("pt", "float32"),
        _torch("torch-sdpa", "float32", attention="sdpa"),
        _torch("torch-eager", "float32", attention="eager"),
        _torch("torch-compiled", "float32", attention="sdpa", compiled=True),
        Peer(
            "sentence-transformers", "sentence-transformers 6.2, float32", "float32", "float32", INTEROP5,
            "sentence_transformers",
        ),
        _onnx("onnx", "float32", everywhere=True),
        _onnx("onnx-fused", "float32", everywhere=False),
        _openvino("float32", "onnx", "f32"),
        _ctranslate2("float32"),
        _ours("pt", "bfloat16", "bfloat16"),
        _framework("pt", "bfloat16", "bfloat16"),
        _torch("torch-sdpa-bfloat16", "bfloat16", attention="sdpa"),
        _torch("torch-compiled-bfloat16", "bfloat16", attention="sdpa", compiled=True),
        _openvino("bfloat16", "onnx", "bf16"),
        _ours("pt", "int8", "int8"),
        _framework("pt", "int8", "int8"),
        _onnx("onnx-int8", "int8", everywhere=True),
        _onnx("onnx-fused-int8", "int8", everywhere=True),
        _openvino("int8", "openvino-int8", "bf16"),
        _ctranslate2("int8"),
        _ours("tf", "float32", "tf"),
        _ours("tf", "bfloat16", "tf"),
        _ours("tf", "int8", "tf"),
        _framework("tf", "float32", "tf"),
        _framework("tf", "bfloat16", "tf"),
        _plain("tf", "tf"),
        _transformers_tf(xla=False),
        _transformers_tf(xla=True),
        _keras_hub(xla=False),
        _keras_hub(xla=True),
        _ours("flax", "float32", "flax"),
        _ours("flax", "bfloat16", "flax"),
        _ours("flax", "int8", "flax"),
        _framework("flax", "float32", "flax"),
        _plain("flax", "flax"),
        Peer(
            "flax-peer", "transformers 4.57 Flax, jitted, float32", "flax", "float32", INTEROP4, "transformers_flax",
            "flax-msgpack",
        ),
    )
}  # fmt: skip
EXPECTED = Peer("expected", "float64", "", "float64", OURS, "expected")
PROBE = Peer("probe", "products of matrices", "", "", OURS, "probe")

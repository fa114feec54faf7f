"""Results of the reference implementation: models that its own classes saved, in every format, and what they compute.

Each folder of `goldens/` holds config.json, the weights as its PyTorch, TensorFlow and Flax classes wrote them, inputs,
and float64 outputs, loss and gradients. They hold the specification itself, and each backend from each file.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conformance.adapters import load
from conformance.comparison import Parts, Tolerance, measure
from distilbert import parity
from distilbert.checkpoint.folder import FORMATS
from distilbert.config import CONFIG_FILE

FOLDERS = sorted(path for path in (Path(__file__).parent / "goldens").iterdir() if path.is_dir())
TOLERANCES = {"float64": Tolerance(1e-9, 1e-9, 1e-9, 0.0), "float32": Tolerance(5e-6, 5e-6, 1e-5, 0.0)}
GRADIENT = "grad."

_LAST: dict[tuple[Path, str, str], tuple[dict[str, str], Parts]] = {}  # the weights last measured, and what they gave


def head_of(folder: Path) -> str:
    """The class that a golden folder is of."""
    return f"DistilBert{folder.name.split('-')[0]}"


def inputs(folder: Path) -> dict[str, NDArray[Any]]:
    """The arguments of the call, targets included."""
    return dict(np.load(folder / "inputs.npz"))


def expected(folder: Path) -> Parts:
    """What the reference implementation computed, in float64. The encoder has no loss, hence no gradients."""
    arrays: Mapping[str, NDArray[Any]] = np.load(folder / "expected.npz")
    parts: Parts = {"outputs": {}, "loss": {}}
    for name, array in arrays.items():
        if name.startswith(GRADIENT):
            parts.setdefault("gradients", {})[name.removeprefix(GRADIENT)] = array
        else:
            parts["loss" if name == "loss" else "outputs"][name] = array
    return parts


def found(folder: Path, backend: str, format: str, dtype: str) -> Parts:  # noqa: A002 - as the package calls it
    """What the backend computes from the folder's file of that format, which is the only one that it sees."""
    with tempfile.TemporaryDirectory() as alone:
        for name in (CONFIG_FILE, FORMATS[format].file):
            shutil.copy(folder / name, alone)
        adapter = load(backend, head_of(folder), alone, dtype)
    digests = parity.digests(adapter.model)
    last_digests, parts = _LAST.get((folder, backend, dtype), ({}, {}))
    if digests != last_digests:  # the same bits in a model compute the same
        parts = measure(adapter, inputs(folder), differentiated=False)
        if "gradients" in expected(folder):
            parts["gradients"] = adapter.gradients(inputs(folder))
        _LAST[folder, backend, dtype] = digests, parts
    return parts

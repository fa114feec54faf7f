"""Golden vectors for ports in other languages: what goes in and what must come out, in files that anyone can read.

One folder per class and option, each a checkpoint (config.json and model.safetensors, float32), and in it one
safetensors file per mask with the call's `inputs.*`, and in float64 the `outputs.*`, the `loss` and the `gradients.*`
of the specification. `index.json` lists the files, how the scalar that was differentiated came about, and tolerances.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from conformance.cases import DTYPES, Case, cases
from conformance.comparison import TOLERANCES, expected
from distilbert.checkpoint import safely, safetensors
from distilbert.checkpoint.publishing import new_folder
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.checkpoint.tensors import TensorInfo

INDEX = "index.json"
ABOUT = {
    "inputs": "the arguments of the call; a missing attention_mask keeps every token",
    "outputs": "float64 results on the float32 weights of the folder, dropout not acting",
    "gradients": "of the loss, by canonical tensor name; a tied projector's are the word embeddings'",
    "objective": "where a class has no loss: the mean square of last_hidden_state; for embeddings, the multiple "
    "negatives ranking loss (scale 20, cosines) of the first half of the rows against the second",
    "difference": "largest absolute difference over the largest absolute entry of what is expected, if that is not 0",
}


def write(folder: Path, progress: Callable[[int, int], None] = lambda _done, _all: None) -> int:
    """Write all vectors into a new folder, whole or not at all; returns how many.

    Raises:
        CheckpointError: the folder exists.
    """
    chosen = [case for case in cases() if case.dtype == "float64"]
    entries: list[dict[str, Any]] = []
    with new_folder(folder) as temporary:
        for done, case in enumerate(chosen, start=1):
            entries.append(_write_case(temporary, case))
            progress(done, len(chosen))
        tolerances = {dtype: _without_nan(dataclasses.asdict(TOLERANCES[dtype])) for dtype in DTYPES}
        safely.write_json(temporary / INDEX, {"about": ABOUT, "tolerances": tolerances, "vectors": entries})
    return len(entries)


def _write_case(root: Path, case: Case) -> dict[str, Any]:
    """Write one case, with its model if that is not there yet, and return its entry in the index."""
    model = root / _slug(case.head) / _slug(case.option.name)
    weights = dataclasses.replace(case, dtype="float32").weights()
    if not model.exists():
        pooling = case.settings.get("pooling")
        save_checkpoint(model, "safetensors", case.head, case.config, weights, pooling)
    parts = expected(case)
    arrays = {f"inputs.{name}": array for name, array in case.inputs().items()}
    arrays |= {f"outputs.{name}": array for name, array in parts["outputs"].items()} | parts["loss"]
    arrays |= {f"gradients.{name}": array for name, array in parts["gradients"].items()}
    file = model / f"{_slug(case.mask)}.safetensors"
    info = {name: TensorInfo(np.shape(array), np.asarray(array).dtype.name) for name, array in arrays.items()}
    safetensors.write(file, info, lambda name: np.asarray(arrays[name]))
    return {
        "class": case.head,
        "option": case.option.name,
        "mask": case.mask,
        "model": model.relative_to(root).as_posix(),
        "file": file.relative_to(root).as_posix(),
    }


def _slug(name: str) -> str:
    return "-".join(name.replace(",", "").split())


def _without_nan(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value == value}

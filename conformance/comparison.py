"""One case on one backend: the largest difference from the specification, in outputs, loss, gradients and one step.

A difference is relative to the scale of what is compared: to the largest entry of that tensor, if that is not zero.
Two kinds of gradients have another scale. One that is zero in exact arithmetic (the bias of the keys, which softmax
ignores, or of the last layer before a softmax over positions) is nothing but rounding: the model's largest gradient.
That of queries and keys is what remains when numbers of the size of the values' gradient cancel, in float32 with the
rounding of those: the values' gradient, if larger. In float64, queries and keys are held to their own scale.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conformance.adapters import Adapter, make
from conformance.cases import Case, weights
from distilbert import reference, reference_training
from distilbert.config import DistilBertConfig
from distilbert.parity import largest_difference

Arrays = dict[str, NDArray[Any]]
Parts = dict[str, Arrays]  # "outputs", "loss", "gradients", "step" -> place -> array

# Weight decay is large and the learning rate that of fine-tuning, so that a wrong decay shows above the rounding of
# float32, and rounding of gradients near zero, which AdamW scales up to the learning rate, does not.
STEP: dict[str, Any] = {"learning_rate": 5e-5, "weight_decay": 0.5, "eps": 1e-4}
EXACT_ZERO = 1e-12  # below this part of the largest gradient, a float64 gradient is rounding


@dataclass(frozen=True)
class Tolerance:
    """The largest relative difference that passes, by part."""

    outputs: float
    loss: float
    gradients: float
    step: float


# Between what was measured over all cases and what the weakest mutant shows, for outputs, loss, gradients and step.
# Measured in float64: 6e-15, 2e-15, 9e-14, 2e-15. In float32: 2e-6, 6e-7, 2.3e-5, 6e-7; the third is 3e-6 but where a
# bias's gradient is a sum in which much cancels (ranking loss, regression). In float16: 4e-3, 2e-3; in bfloat16: 4e-2,
# 2e-2. Mutants in float32: 9e-6 (LayerNorm epsilon), 2e-2, 3e-4 (tanh GELU in the derivative), 2e-5.
TOLERANCES = {
    "float64": Tolerance(1e-10, 1e-10, 1e-10, 1e-12),
    "float32": Tolerance(5e-6, 5e-6, 5e-5, 1e-6),
    "float16": Tolerance(1e-2, 1e-2, math.nan, math.nan),
    "bfloat16": Tolerance(1e-1, 1e-1, math.nan, math.nan),
}
# Of losses, objectives and trainers. Measured in float64: 6e-15 and less. In float32: outputs 6e-7, losses 1.5e-6,
# gradients 1.6e-6, weights after two steps 2.6e-7. The weakest mutant there: 3.7e-6 in the weights (betas exchanged).
TRAINING_TOLERANCES = TOLERANCES | {"float32": Tolerance(5e-6, 2e-5, 5e-5, 1e-6)}


def expected(case: Case, alter: Callable[[Arrays], Arrays] = lambda weights: weights) -> Parts:
    """What the specification says. `alter` plants a fault in its weights."""
    given, inputs = alter(case.weights()), case.inputs()
    parts = output_parts(reference.HEADS[case.head](case.config, given, **case.settings, **inputs))
    if case.differentiated:
        gradients = reference_training.gradients(case.head, case.config, given, inputs, **case.settings)
        parts["gradients"] = gradients
        parts["step"] = reference_training.step(case.head, case.config, given, gradients, **case.settings, **STEP)
    return parts


def found(case: Case, backend: str, kernel: str) -> Parts:
    """What the backend computes, by one of its attention kernels."""
    settings = tuple(case.option.settings.items())
    adapter = _adapter(backend, case.head, case.config, settings, case.dtype, kernel)
    parts = measure(adapter, case.inputs(), differentiated=case.differentiated)
    if case.differentiated:
        adapter.assign(case.weights())
    return parts


def measure(adapter: Adapter, inputs: Mapping[str, Any], *, differentiated: bool) -> Parts:
    """What a model computes: by the plain kernel, which shows all states, and by its own.

    Raises:
        ValueError: something has another dtype than the model.
    """
    everything, own = adapter.outputs(inputs)
    parts = output_parts(everything, adapter.dtype)
    by_own = output_parts(own, adapter.dtype)["outputs"]
    parts["outputs"] |= {f"kernel's {place}": array for place, array in by_own.items()}
    if differentiated:
        parts["gradients"], parts["step"] = adapter.step(inputs, **STEP)
    return parts


def differences(wanted: Parts, got: Parts) -> dict[str, float]:
    """The largest relative difference of each part."""
    return {part: max((d for _, d in _places(part, wanted[part], got[part])), default=0.0) for part in wanted}


def first_failure(wanted: Parts, got: Parts, tolerance: Tolerance) -> str:
    """The first place that differs by more than its part's tolerance; "" if none does."""
    for part in wanted:
        allowed = getattr(tolerance, part)
        for place, difference in _places(part, wanted[part], got[part]):
            if not difference <= allowed:
                return f"{part}: {place} differs by {difference:.1e}, allowed {allowed:.0e}"
    return ""


def _places(part: str, wanted: Arrays, got: Arrays) -> Iterator[tuple[str, float]]:
    """Every place of a part and its relative difference; names that differ are infinitely far apart."""
    if {_plain(place) for place in got} != wanted.keys():
        yield f"{sorted({*map(_plain, got)} ^ wanted.keys())[0]}, which only one side has,", math.inf
        return
    scales = {place: float(np.abs(array).max()) for place, array in wanted.items()}
    for place, array in got.items():
        name = _plain(place)
        scale = _gradient_scale(name, scales, array.dtype.name) if part == "gradients" else scales[name]
        yield place, largest_difference(wanted[name], array) / (scale or 1.0)


def _gradient_scale(name: str, scales: Mapping[str, float], dtype: str) -> float:
    largest = max(scales.values())
    if scales[name] < EXACT_ZERO * largest:
        return largest
    values = name.replace("q_lin", "v_lin").replace("k_lin", "v_lin")
    return scales[name] if dtype == "float64" else max(scales[name], scales[values])


def _plain(place: str) -> str:
    """The place without the note that stands before it."""
    return place.rsplit(" ", 1)[-1]


def output_parts(output: Any, dtype: str = "float64") -> Parts:
    """The outputs by name, the parts of a tuple numbered; the loss apart. All are of `dtype`, a loss at least float32.

    Raises:
        ValueError: one is of another dtype.
    """
    outputs: Arrays = {}
    loss: Arrays = {}
    for name, value in output._asdict().items():
        if name == "loss":
            loss[name] = np.asarray(value)
        elif isinstance(value, tuple):
            outputs |= {f"{name}.{i}": array for i, array in enumerate(value)}
        else:
            outputs[name] = value
    of_loss = "float32" if dtype in ("float16", "bfloat16") else dtype
    for wanted, arrays in ((dtype, outputs), (of_loss, loss)):
        for name, array in arrays.items():
            if array.dtype.name != wanted:
                raise ValueError(f"{name} must be of the dtype {wanted}, got {array.dtype.name}.")
    return {"outputs": outputs, "loss": loss}


@functools.lru_cache(maxsize=16)
def _adapter(
    backend: str, head: str, config: DistilBertConfig, settings: tuple[tuple[str, Any], ...], dtype: str, kernel: str
) -> Adapter:
    """A model that several cases share."""
    return make(
        backend, head, config, weights(config, head, dtype=dtype, **dict(settings)), kernel=kernel, **dict(settings)
    )

"""Curves of runs as one SVG: loss, learning rate and the metrics of evaluations over steps; equal logs, equal files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distilbert.checkpoint import safely
from distilbert.errors import DataError
from distilbert.optional import require
from distilbert.training import logs
from distilbert.training.logs import Line

WIDTH, HEIGHT = 8.0, 2.4  # of a panel, in inches
POINTS = 400  # of a curve at most; a longer run is drawn as means of that many equal stretches
OF_TRAINING = ("loss", "learning_rate")

Quantity = tuple[str, str]  # "train" or "evaluation", and a name
Curve = tuple[list[int], list[float]]  # steps and values


def plot(runs: Mapping[str, Path], target: Path) -> None:
    """Draw the logs of runs, one panel a quantity and one curve a run.

    Args:
        runs: the files `log.jsonl` by the name that stands in the legend.
        target: the SVG file.

    Raises:
        DataError: a log has a broken line, or none has a step. OSError: a log cannot be read.
        MissingDependencyError: matplotlib is not installed.
    """
    found = {name: logs.read(path) for name, path in runs.items()}
    panels = quantities(list(found.values()))
    if not panels:
        raise DataError(f"{', '.join(map(str, runs.values()))}: nothing to draw: no step is logged yet.")
    matplotlib = require("matplotlib", extra="train", needed_for="drawing curves")
    figure = require("matplotlib.figure", extra="train", needed_for="drawing curves").Figure
    with matplotlib.rc_context({"svg.hashsalt": "distilbert", "svg.fonttype": "none"}):
        page = figure(figsize=(WIDTH, HEIGHT * len(panels)), layout="constrained")
        for axes, quantity in zip(page.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels, strict=True):
            _draw(axes, quantity, {run: curve(lines, quantity) for run, lines in found.items()})
        page.axes[-1].set_xlabel("step")
        with safely.write_file(target) as temporary:
            page.savefig(temporary, format="svg", metadata={"Date": None})


def quantities(runs: Sequence[Sequence[Line]]) -> list[Quantity]:
    """What can be drawn of the runs: of training first, then the metrics in the order in which they come."""
    lines = [line for run in runs for line in run]
    trained = [("train", name) for name in OF_TRAINING if any(name in line for line in lines)]
    metrics = dict.fromkeys(name for line in lines for name in line.get("evaluation", {}))
    return [*trained, *(("evaluation", name) for name in metrics)]


def curve(lines: Sequence[Line], quantity: Quantity) -> Curve:
    """Steps and values of a quantity; a value that is not finite is left out."""
    group, name = quantity
    values = [(line["step"], (line if group == "train" else line.get(group, {})).get(name)) for line in lines]
    points = [(step, value) for step, value in values if value is not None]
    return [step for step, _ in points], [value for _, value in points]


def _draw(axes: Any, quantity: Quantity, by_run: Mapping[str, Curve]) -> None:
    group, name = quantity
    for run, (steps, values) in by_run.items():
        axes.plot(_thin(steps), _thin(values), label=run, linewidth=1.2, marker="." if group == "evaluation" else "")
    axes.set_ylabel(name.replace("_", " ") if group == "train" else f"evaluation:\n{name.replace('_', ' ')}")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")


def _thin(values: Sequence[float]) -> list[float]:
    """At most POINTS values: means of stretches, which differ in length by one at most."""
    stretches = np.array_split(np.asarray(values, np.float64), min(len(values), POINTS) or 1)
    return [float(stretch.mean()) for stretch in stretches if len(stretch)]

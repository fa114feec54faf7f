"""One cell: a workload computed by the engines of a group, checked, then timed in turns."""

from __future__ import annotations

import hashlib
import itertools
import random
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.checking import check
from benchmarks.engines import Engine, EngineError
from benchmarks.peers import PEERS
from benchmarks.workloads import Workload

SEED = 0
ROUNDS = (6, 25)  # at least, at most
STEADY = 0.05  # by how much the probe may move across a round


class Task(NamedTuple):
    """A workload with its batches on disk, and the numbers that they must give, (tokens, dim)."""

    workload: Workload
    inputs: Path
    expected: NDArray[np.float64]


def write_inputs(workload: Workload, folder: Path) -> Path:
    """The batches of a workload as a file that engines read."""
    arrays = {}
    for number, (ids, mask) in enumerate(workload.batches()):
        arrays |= {f"ids{number}": ids, f"mask{number}": mask}
    file = folder / f"{workload.name}.npz"
    np.savez(file, **arrays)
    return file


def expectation(engine: Engine, workload: Workload, inputs: Path, kept: Path) -> NDArray[np.float64]:
    """What the float64 engine computes, kept in a folder by the workload's fingerprint."""
    file = kept / f"{fingerprint(workload)}.npy"
    if not file.exists():
        kept.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part.npy")
        engine.run({"do": "check", "inputs": str(inputs), "outputs": str(part)})
        part.rename(file)
    return np.load(file)


def fingerprint(workload: Workload) -> str:
    """A hash of ids, masks and their shapes: one text of 512 tokens is not four of 128."""
    arrays = [array for batch in workload.batches() for array in batch]
    return hashlib.sha256(b"".join(repr(x.shape).encode() + x.tobytes() for x in arrays)).hexdigest()[:16]


def measure(task: Task, engines: Mapping[str, Engine], probe: Engine, *, seconds: float) -> dict[str, Any]:
    """Check every engine, then time those that passed, in rounds, for about the given time.

    Returns:
        A cell of the results: checks and failures by engine, and of each round the seconds of each engine's repeats,
        what the probe reached, and whether it was steady.
    """
    checks, failed = {}, {}
    for name, engine in engines.items():
        try:
            checks[name] = checked(task, engine, PEERS[name].precision)
        except (EngineError, ValueError, OSError) as error:  # also results that cannot be read or compared
            failed[name] = str(error)
    passing = {name: engine for name, engine in engines.items() if name in checks}
    cell = {"workload": task.workload.name, "checks": checks}
    found = timed(task, passing, probe, seconds=seconds)
    return cell | found | {"failed": failed | found["failed"]}


def checked(task: Task, engine: Engine, precision: str) -> dict[str, float]:
    """How far an engine is off.

    Raises:
        EngineError: further than its precision explains. ValueError, OSError: the results cannot be compared or read.
    """
    file = task.inputs.with_suffix(f".{engine.name}.npy")
    engine.run({"do": "check", "inputs": str(task.inputs), "outputs": str(file)})
    found = check(np.load(file), task.expected)
    file.unlink()
    if not found.passes(precision):
        raise EngineError(f"{engine.name}: results are wrong for {precision}: {found}")
    return found._asdict()


def timed(task: Task, engines: Mapping[str, Engine], probe: Engine, *, seconds: float) -> dict[str, Any]:
    """Rounds of turns; the first does not count, but says how many fit into the time. Who fails has no turns."""
    order = {"do": "time", "inputs": str(task.inputs), "repeat": task.workload.repeat}
    draw = random.Random(SEED)  # noqa: S311 - nothing secret
    turns: dict[str, list[list[float]]] = {name: [] for name in engines}
    failed: dict[str, str] = {}
    probes, begin = [], time.perf_counter()
    for name in engines:
        take_turn(name, engines[name], order, turns, failed)
    rounds = int(seconds / (time.perf_counter() - begin)) if turns else 0
    turns = {name: [] for name in turns}
    for _ in range(min(max(rounds, ROUNDS[0]), ROUNDS[1]) if turns else 0):
        probes.append(probe.run({}))
        for name in draw.sample(list(turns), len(turns)):
            take_turn(name, engines[name], order, turns, failed)
    probes.append(probe.run({}))
    return {"turns": turns, "failed": failed, "probes": probes, "steady": steady(probes)}


def take_turn(
    name: str, engine: Engine, order: Mapping[str, Any], turns: dict[str, list[list[float]]], failed: dict[str, str]
) -> None:
    """Time an engine once more; one that fails loses its turns."""
    try:
        turns[name].append(engine.run(order)["seconds"])
    except EngineError as error:
        del turns[name]
        failed[name] = str(error)


def steady(probes: list[dict[str, float | None]]) -> list[bool]:
    """Whether the probes before and after each round agree."""
    speeds = [probe["float32"] or 1.0 for probe in probes]
    return [abs(after / before - 1) <= STEADY for before, after in itertools.pairwise(speeds)]


def mostly_steady(cell: Mapping[str, Any]) -> bool:
    """Whether at least half of the rounds are steady."""
    return 2 * sum(cell["steady"]) >= len(cell["steady"])


def seconds_of(cell: Mapping[str, Any], name: str) -> list[float]:
    """An engine's time in each steady round: the median of its repeats. All rounds, if half of them are not steady."""
    kept = cell["steady"] if mostly_steady(cell) else [True] * len(cell["steady"])
    return [statistics.median(turn) for turn, keep in zip(cell["turns"][name], kept, strict=True) if keep]

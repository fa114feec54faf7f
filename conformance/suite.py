"""Everything that one backend is held to, in one run: cases, goldens, mutants and signatures; and the tables of it."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from conformance import comparison, goldens, signatures, training_mutants
from conformance.adapters import ADAPTERS
from conformance.cases import MODEL, Case, cases
from conformance.comparison import TRAINING_TOLERANCES, Parts, Tolerance
from conformance.loss_cases import loss_cases
from conformance.mutants import MUTANTS, caught
from conformance.objective_cases import objective_cases, step_cases
from conformance.training_mutants import TRAINING_MUTANTS, TrainingCase
from distilbert.backends import BACKENDS
from distilbert.checkpoint.folder import REFERENCE_FORMATS
from distilbert.weight_map import HEADS

Progress = Callable[[int, int], None]
PARTS = {"outputs": "outputs", "loss": "loss", "gradients": "gradients", "step": "one AdamW step"}
TABLES = ("float32", "float64")
TRAINING = {"losses": loss_cases, "objectives": objective_cases, "steps": step_cases}  # what of training is compared


@dataclass(frozen=True)
class Result:
    """One comparison: what was compared, how far each part is from what it should be, and what failed, if anything."""

    name: str
    head: str  # or what of training it is, a key of TRAINING
    dtype: str
    differences: dict[str, float]
    failure: str


@dataclass(frozen=True)
class Report:
    """All that one backend was held to."""

    backend: str
    cases: tuple[Result, ...]  # against the specification
    training: tuple[Result, ...]  # against that of training
    goldens: tuple[Result, ...]  # against the reference implementation, from every file format
    mutants: dict[str, str]  # name -> where it shows; "" for one that passes unnoticed
    signatures: tuple[str, ...]  # what differs from the written ones
    seconds: float

    @property
    def results(self) -> tuple[Result, ...]:
        """Every comparison."""
        return (*self.cases, *self.training, *self.goldens)

    @property
    def failures(self) -> list[str]:
        """One line for each thing that is not as it must be."""
        failed = [f"{r.name}: {r.failure}" for r in self.results if r.failure]
        unnoticed = [f"mutant {name!r} passes unnoticed" for name, where in self.mutants.items() if not where]
        return failed + unnoticed + list(self.signatures)

    @property
    def summary(self) -> str:
        """What was done, in a line."""
        noticed = len([name for name, where in self.mutants.items() if where])
        compared = f"{len(self.cases)} cases, {len(self.training)} of training, {len(self.goldens)} goldens"
        return f"{compared}, {noticed} of {len(self.mutants)} mutants noticed"

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON holds it; a difference that is not finite is null."""
        values: dict[str, Any] = dataclasses.asdict(self)
        values |= {"failures": self.failures, "passed": not self.failures}
        for entry in (*values["cases"], *values["training"], *values["goldens"]):
            entry["differences"] = {p: d if math.isfinite(d) else None for p, d in entry["differences"].items()}
        return values


def run(backend: str, *, every: bool = False, progress: Progress = lambda _done, _all: None) -> Report:
    """Hold the backend to everything.

    Args:
        backend: "pt", "tf" or "flax".
        every: all masks with all options under all kernels, which takes several times as long.
        progress: called with (comparisons done, comparisons in all).

    Raises:
        MissingDependencyError: its framework cannot be imported.
    """
    start, kernels = time.perf_counter(), ADAPTERS[backend].kernels
    chosen = [(case, kernels if every or _shows_kernels(case) else kernels[:1]) for case in cases(every=every)]
    golden_runs = len(goldens.FOLDERS) * len(REFERENCE_FORMATS) * len(goldens.TOLERANCES)
    training = [(group, case) for group, list_cases in TRAINING.items() for case in list_cases()]
    planted = len(kernels) * len(MUTANTS) + len(TRAINING_MUTANTS)
    total = sum(len(some) for _, some in chosen) + len(training) + golden_runs + planted
    done = iter(range(1, total + 1))
    tick: Callable[[], None] = lambda: progress(next(done), total)  # noqa: E731 - a counter, nothing more
    return Report(
        backend=backend,
        cases=tuple(_run_cases(backend, chosen, tick)),
        training=tuple(_run_training(backend, training, tick)),
        goldens=tuple(_run_goldens(backend, tick)),
        mutants=_run_mutants(backend, kernels, tick) | _run_training_mutants(backend, tick),
        signatures=tuple(signatures.differences(backend)),
        seconds=time.perf_counter() - start,
    )


def _shows_kernels(case: Case) -> bool:
    """Whether a case is for all kernels: they lie in the encoder, which every head has alike, and see masks."""
    return case.head == MODEL and case.option.name == "plain"


def _run_cases(
    backend: str, chosen: Iterable[tuple[Case, Sequence[str]]], tick: Callable[[], None]
) -> Iterator[Result]:
    for case, kernels in chosen:
        wanted = comparison.expected(case)
        for kernel in kernels:
            name, tolerance = f"{case.name} / {kernel}", comparison.TOLERANCES[case.dtype]
            find = functools.partial(comparison.found, case, backend, kernel)
            yield _compare(name, case.head, case.dtype, wanted, find, tolerance)
            tick()


def _run_training(
    backend: str, chosen: Iterable[tuple[str, TrainingCase]], tick: Callable[[], None]
) -> Iterator[Result]:
    for group, case in chosen:
        find = functools.partial(case.found, backend)
        yield _compare(case.name, group, case.dtype, case.expected(), find, TRAINING_TOLERANCES[case.dtype])
        tick()


def _run_goldens(backend: str, tick: Callable[[], None]) -> Iterator[Result]:
    for folder in goldens.FOLDERS:
        wanted = goldens.expected(folder)
        for format_ in REFERENCE_FORMATS:
            for dtype, tolerance in goldens.TOLERANCES.items():
                name, head = f"{folder.name} / {format_} / {dtype}", goldens.head_of(folder)
                find = functools.partial(goldens.found, folder, backend, format_, dtype)
                yield _compare(name, head, dtype, wanted, find, tolerance)
                tick()


def _run_mutants(backend: str, kernels: Sequence[str], tick: Callable[[], None]) -> dict[str, str]:
    """Where each mutant shows under every kernel; it must be noticed by all of them."""
    places: dict[str, str] = {}
    found: dict[tuple[str, str], Parts] = {}  # several mutants show in the same case
    for mutant in MUTANTS:
        for kernel in kernels:
            key = (mutant.case.name, kernel)
            if key not in found:
                found[key] = comparison.found(mutant.case, backend, kernel)
            where = caught(mutant, found[key])
            places[mutant.name] = where and places.get(mutant.name, where)
            tick()
    return places


def _run_training_mutants(backend: str, tick: Callable[[], None]) -> dict[str, str]:
    """Where each mutant of training shows: kernels are no part of it."""
    places: dict[str, str] = {}
    found: dict[str, Parts] = {}
    for mutant in TRAINING_MUTANTS:
        if mutant.case.name not in found:
            found[mutant.case.name] = mutant.case.found(backend)
        places[mutant.name] = training_mutants.caught(mutant, found[mutant.case.name])
        tick()
    return places


def _compare(
    name: str, head: str, dtype: str, wanted: Parts, find: Callable[[], Parts], tolerance: Tolerance
) -> Result:
    """Compare what the backend finds; that it refuses the call, or answers in another dtype, is a failure too."""
    try:
        got = find()
    except Exception as error:  # noqa: BLE001 - whatever a framework raises, the run goes on and says so
        return Result(name, head, dtype, {}, f"{type(error).__name__}: {error}")
    differences = comparison.differences(wanted, got)
    return Result(name, head, dtype, differences, comparison.first_failure(wanted, got, tolerance))


def markdown(reports: Sequence[Report]) -> str:
    """The largest difference per head and backend, as tables for the README: one for each dtype; and what was done."""
    names = " / ".join(BACKENDS[report.backend] for report in reports)
    tables = [f"{dtype}: {names}\n\n{_table(reports, dtype)}" for dtype in TABLES]
    tables.append(f"training: {names}\n\n{_training_table(reports)}")
    return "\n\n".join([*tables, "; ".join(f"{BACKENDS[r.backend]}: {r.summary}" for r in reports) + "."])


def _table(reports: Sequence[Report], dtype: str) -> str:
    rows = _heading("class")
    rows += [[f"`{head}`", *(_cell(reports, head, dtype, part) for part in PARTS)] for head in HEADS]
    rows.append(["allowed", *_allowed(comparison.TOLERANCES[dtype])])
    return _lines(rows)


def _training_table(reports: Sequence[Report]) -> str:
    rows = _heading("training")
    for dtype in TABLES:
        for group in TRAINING:
            cells = [_cell(reports, group, dtype, part) for part in PARTS]
            rows += [[f"{group}, {dtype}", *cells]] if set(cells) != {"-"} else []
        rows.append([f"allowed, {dtype}", *_allowed(TRAINING_TOLERANCES[dtype])])
    return _lines(rows)


def _heading(first: str) -> list[list[str]]:
    return [[first, *PARTS.values()], ["---"] * (1 + len(PARTS))]


def _allowed(tolerance: Tolerance) -> list[str]:
    return [f"{getattr(tolerance, part):.0e}" for part in PARTS]


def _lines(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(reports: Sequence[Report], head: str, dtype: str, part: str) -> str:
    """The largest difference of each backend, over cases and goldens; a dash where the class has no such part."""
    found = [
        [r.differences[part] for r in report.results if (r.head, r.dtype) == (head, dtype) and part in r.differences]
        for report in reports
    ]
    no_loss = part == "loss" and head in ("DistilBertModel", "DistilBertForSentenceEmbedding")
    if no_loss or (head in TRAINING and not any(found)):
        return "-"
    return " / ".join(f"{max(values, default=math.nan):.0e}" for values in found)

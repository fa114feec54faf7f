"""How fast inference is, in three frameworks and against everyone, in one run on one machine.

    make bench          everything, about half an hour
    make bench-quick    the headline workloads in PyTorch's three precisions with few rounds, under 5 minutes
    python -m benchmarks.inference --only int8,query    some cells again

Every engine lives in a process of its own, on the same two processors with two threads, and sleeps when it is not its
turn. Engines of one group take turns: a round gives each the same batches, in an order that is drawn anew. An engine
whose results are not the model's is not timed. Ratios are medians of the ratios within rounds, with 95 % intervals;
a probe before each round says what products of matrices reach at that moment.

All results go to a file, cell by cell (a cell is a workload in a group); cells that were measured before stay. The
report is made of that file. The peers' environments are built by `make`, their model files by this command, when they
are not there. Nothing else may run meanwhile: it does not start while others keep a tenth of a processor busy.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import cold_start, machine, report
from benchmarks.engines import Engine, EngineError
from benchmarks.exports import ensure
from benchmarks.measuring import Task, expectation, measure, write_inputs
from benchmarks.peers import BUILD, EXPECTED, GROUPS, MODELS, PEERS, PROBE, Peer
from benchmarks.workloads import WORKLOADS, Workload

THREADS = 2
COLD = "cold-start"
QUICK_GROUPS = ("float32", "bfloat16", "int8")
PATIENCE = 60  # seconds that others have to become quiet
ENVIRONMENT = {
    "OMP_NUM_THREADS": str(THREADS),
    "MKL_NUM_THREADS": str(THREADS),
    "TF_NUM_INTRAOP_THREADS": str(THREADS),
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "KERAS_BACKEND": "tensorflow",
    "JAX_PLATFORMS": "cpu",
    "HF_HUB_OFFLINE": "1",
    "TORCHINDUCTOR_CACHE_DIR": str(MODELS / "inductor"),
}
# glibc gives large buffers back to the system after each call and has to get them again. All engines are spared that.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(1 << 26),
}


def main() -> None:
    """Measure what was asked for and write the report."""
    arguments = parse_arguments()
    groups, workloads, peers = chosen(arguments.only, quick=arguments.quick)
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {"cells": {}, "engines": {}}
    machine.pin(THREADS)
    ensure("base", {**os.environ, **ENVIRONMENT})
    missing = export(peers)
    with tempfile.TemporaryDirectory() as scratch:
        tasks = prepare(workloads, Path(scratch)) if peers else []
        for group in groups:
            members = [peer for peer in peers if peer.group == group]
            for cell in measure_group(members, tasks, arguments, results["engines"], missing):
                results["cells"][f"{group}/{cell['workload']}"] = cell
                save(results, arguments.results)
    if COLD in arguments.only or not (arguments.only or arguments.quick):
        await_quiet(busy=arguments.busy)
        results["cold start"] = {
            "machine": machine.description(),
            **cold_start.measure(BUILD / "minilm" / "safetensors"),
        }
        save(results, arguments.results)
    report.write(results, markdown=arguments.markdown, plot=arguments.plot)


def parse_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = f"groups ({', '.join(GROUPS)}), {COLD}, workloads ({', '.join(WORKLOADS)}) and engines ({', '.join(PEERS)})"
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help=f"with commas between: {names}")
    parser.add_argument("--quick", action="store_true", help="the headline workloads in PyTorch, the strongest engines")
    parser.add_argument("--seconds", type=float, default=40.0, help="for a headline cell; others get a third of it")
    parser.add_argument("--busy", action="store_true", help="measure even though something else is running")
    parser.add_argument("--trim", action="store_true", help="let glibc give memory back between calls, its default")
    parser.add_argument("--results", type=Path, default=BUILD / "bench.json", help="the file of all results")
    parser.add_argument("--markdown", type=Path, help="a page with the report's markers, to be written between them")
    parser.add_argument("--plot", type=Path, help="where the plot is written, as SVG")
    arguments = parser.parse_args()
    for unknown in set(arguments.only) - {COLD, *GROUPS, *WORKLOADS, *PEERS}:
        parser.error(f"--only: there is no group, workload or engine {unknown!r}")
    return arguments


def chosen(only: Sequence[str], *, quick: bool) -> tuple[list[str], list[Workload], list[Peer]]:
    """Groups, workloads and engines that take part. Names restrict their kind; a kind that is not named is whole."""
    named = [name for name in only if name in GROUPS]
    groups = named or ([] if COLD in only else list(QUICK_GROUPS if quick else GROUPS))
    workloads = [WORKLOADS[name] for name in only if name in WORKLOADS] or list(WORKLOADS.values())
    peers = [PEERS[name] for name in only if name in PEERS] or list(PEERS.values())
    if quick:
        workloads = [workload for workload in workloads if workload.headline]
        peers = [peer for peer in peers if peer.everywhere]
    peers = [peer for peer in peers if peer.group in groups]
    return [group for group in groups if any(peer.group == group for peer in peers)], workloads, peers


def export(peers: Sequence[Peer]) -> dict[str, str]:
    """Write the model files that are not there; peers whose files cannot be had, and why."""
    missing = {}
    for peer in peers:
        try:
            ensure(peer.model, {**os.environ, **ENVIRONMENT})
        except (subprocess.CalledProcessError, OSError) as error:
            missing[peer.name] = f"{peer.model} cannot be written: {error}"
    return missing


def spawn(peer: Peer, *, trim: bool = False) -> Engine:
    """A process that loads the engine; what it prints goes to a log beside the models."""
    command = [peer.python, "-m", "benchmarks.inference_engines", peer.name, MODELS]
    environment = ENVIRONMENT | peer.environment | ({} if trim else KEEP_MEMORY)
    return Engine(peer.name, command, environment, log=MODELS / f"{peer.name}.log")


def prepare(workloads: Sequence[Workload], scratch: Path) -> list[Task]:
    """Write the batches, and have the float64 engine compute them, unless that was done before."""
    files = [write_inputs(workload, scratch) for workload in workloads]
    with spawn(EXPECTED) as engine:
        return [
            Task(workload, file, expectation(engine, workload, file, MODELS / "expected"))
            for workload, file in zip(workloads, files, strict=True)
        ]


def measure_group(
    members: Sequence[Peer],
    tasks: Sequence[Task],
    arguments: argparse.Namespace,
    known: dict[str, Any],
    unwritten: Mapping[str, str],
) -> Iterator[dict[str, Any]]:
    """The cells of a group, without the peers of `unwritten`. What engines say of themselves is put into `known`."""
    with ExitStack() as stack:
        probe = stack.enter_context(spawn(PROBE, trim=arguments.trim))
        missing = {peer.name: unwritten[peer.name] for peer in members if peer.name in unwritten}
        engines = {}
        for peer in members:
            if peer.name not in missing:
                try:
                    engines[peer.name] = stack.enter_context(spawn(peer, trim=arguments.trim))
                except OSError as error:  # such as an interpreter that is not there
                    missing[peer.name] = str(error)
        missing |= introduce(engines, known)
        for name, reason in missing.items():
            known.pop(name, None)
            say(f"{name} is left out: {reason}")
        await_quiet(busy=arguments.busy)
        for task in tasks:
            taking_part = {
                peer.name: engines[peer.name]
                for peer in members
                if peer.name not in missing and (peer.everywhere or task.workload.headline)
            }
            about = machine.description() | {"trim": arguments.trim, "engines": list(engines)}
            seconds = arguments.seconds if task.workload.headline else arguments.seconds / 3
            cell = measure(task, taking_part, probe, seconds=seconds)
            cell["failed"] |= missing if task.workload.headline else {}
            say(report.line(members[0].group, cell))
            yield {**cell, "group": members[0].group, "machine": about}


def introduce(engines: dict[str, Engine], known: dict[str, Any]) -> dict[str, str]:
    """Wait for all engines; those that cannot be had, and why."""
    missing = {}
    for name, engine in engines.items():
        try:
            known[name] = engine.hello
        except EngineError as error:
            missing[name] = str(error)
    return missing


def await_quiet(*, busy: bool) -> None:
    """Go on when nothing else is running; end when that does not come."""
    until = time.monotonic() + PATIENCE
    while (used := machine.processors_in_use()) > machine.QUIET and not busy:
        if time.monotonic() < until:
            continue
        sys.exit(f"FAIL: {used:.1f} processors are busy with something else; --busy measures all the same")


def save(results: dict[str, Any], file: Path) -> None:
    """Write all results; a reader sees the old ones or the new."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(results), encoding="utf-8")
    part.rename(file)


def say(line: str) -> None:
    """Print one line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

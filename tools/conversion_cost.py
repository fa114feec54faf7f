"""What a conversion of a base-size checkpoint costs: peak anonymous memory and time, in every direction.

    .venv/bin/python tools/conversion_cost.py build/cost

Memory is the largest RssAnon of the converting process, read from /proc every two milliseconds, above that of an
interpreter that has imported NumPy. Time is a ratio: the conversion's over that of a plain copy of the same folder
with fsync, the median of several rounds in which both take turns.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from distilbert.checkpoint.folder import WRITABLE
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.config import DistilBertConfig
from distilbert.initialization import initial_weights

HEAD = "DistilBertModel"
CONFIG = DistilBertConfig()  # base size: 66 million values, 265 MB in float32
MEBIBYTE = 1 << 20
ROUNDS = 3
BASELINE = "import numpy, time; time.sleep(0.3)"
CONVERT = "import sys; from weights_convert import convert; convert(sys.argv[1], sys.argv[2], to=sys.argv[3])"


def main(root: Path) -> None:
    """Make the checkpoints, convert each into each, and print a table."""
    root.mkdir(parents=True)
    for name in WRITABLE:
        save_checkpoint(root / name, name, HEAD, CONFIG, initial_weights(CONFIG))
    baseline = peak_memory(BASELINE)
    largest = CONFIG.vocab_size * CONFIG.dim * 4 / MEBIBYTE
    say(f"largest tensor {largest:.0f} MiB; NumPy's interpreter {baseline:.0f} MiB, which is not counted below")
    say("| from | to | peak memory, MiB | time / plain copy | seconds |\n|---|---|---|---|---|")
    for source in WRITABLE:
        for target in WRITABLE:
            memory = peak_memory(CONVERT, root / source, root / "out", target) - baseline
            shutil.rmtree(root / "out")
            ratio, seconds = relative_time(root, source, target)
            say(f"| {source} | {target} | {memory:.0f} | {ratio:.1f} | {seconds:.2f} |")
    shutil.rmtree(root)


def peak_memory(code: str, *arguments: str | Path) -> float:
    """The largest RssAnon of a new interpreter that runs `code`, in MiB."""
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)])  # noqa: S603 - our own code
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.002)
    if process.returncode:
        sys.exit(f"FAIL: {arguments} ended with {process.returncode}")
    return peak / 1024


def anonymous(pid: int) -> int:
    """RssAnon of a process in KiB; 0 when it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def relative_time(root: Path, source: str, target: str) -> tuple[float, float]:
    """The median of conversion / copy, and the median seconds of the conversion."""
    from weights_convert import convert

    ratios: list[float] = []
    seconds: list[float] = []
    for _ in range(ROUNDS):
        copying = timed(lambda: copy(root / source, root / "copy"))
        converting = timed(lambda: convert(root / source, root / "out", to=target))
        ratios.append(converting / copying)
        seconds.append(converting)
        for name in ("copy", "out"):
            shutil.rmtree(root / name)
    return statistics.median(ratios), statistics.median(seconds)


def timed(action) -> float:  # noqa: ANN001 - a function without arguments
    """Seconds that it takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def copy(source: Path, destination: Path) -> None:
    """A plain copy that is on the disk at the end."""
    destination.mkdir()
    for file in source.iterdir():
        with (destination / file.name).open("wb") as out, file.open("rb") as data:
            shutil.copyfileobj(data, out, MEBIBYTE)
            os.fsync(out.fileno())


def say(line: str) -> None:
    """Print at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) != 2 or Path(sys.argv[1]).exists():
        sys.exit("usage: conversion_cost.py NEW_FOLDER (needs 2 GB of disk)")
    main(Path(sys.argv[1]))

"""Training that is killed at random moments must end with the bits of a run that was left alone.

For each backend and kind of run: once undisturbed, then with SIGKILL at random moments, spread over its steps so that
some fall into saves and evaluations, and begun again each time. Compared: SHA-256 of the model, of the last checkpoint
(weights, moments, counters) and of the log, which has each step once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from distilbert.backends import BACKENDS
from tools.tiny_runs import HEADS, make_model, write_examples

KINDS = {"train": "text-classification", "distill": "masked-lm"}
STEPS, SAVE_EVERY, EVAL_EVERY = 150, 7, 25
LONGEST = 0.3  # seconds from a step's line in the log to the kill: as long as several steps, a save or an evaluation
COMPARED = ("model/model.safetensors", f"checkpoints/step-{STEPS:08d}/state.safetensors", "log.jsonl")


def main() -> None:
    """Run what was asked for; exit with 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the runs; emptied first")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--accumulation", type=int, default=2)
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    failed = False
    for backend in arguments.backends.split(","):
        for kind in KINDS:
            command = prepare(arguments.folder, kind, backend, "--accumulation", str(arguments.accumulation))
            same = compare(command, arguments.folder / f"{backend}-{kind}", arguments.kills)
            failed |= not same
    sys.exit(failed)


def prepare(folder: Path, kind: str, backend: str, *options: str) -> list[str]:
    """Write model and data of a kind of run; its command line, but for the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    task = KINDS[kind]
    model = make_model(folder / f"{kind}-model", HEADS[task], n_layers=4 if kind == "distill" else 2)
    data = [write_examples(folder / f"{kind}-{part}.jsonl", task, count) for part, count in (("a", 600), ("b", 60))]
    numbers = {
        "batch-size": 8, "max-steps": STEPS, "epochs": 50, "save-every": SAVE_EVERY, "eval-every": EVAL_EVERY,
        "threads": 1, "learning-rate": 1e-3, "keep": 2,
    }  # fmt: skip
    values = [text for name, number in numbers.items() for text in (f"--{name}", str(number))]
    files = ["--train-data", str(data[0]), "--eval-data", str(data[1])]
    return [sys.executable, "-m", "distilbert", kind, str(model), "--task", task, "--backend", backend, *files,
            *values, *options]  # fmt: skip


def compare(command: Sequence[str], folder: Path, kills: int, seed: int = 0) -> bool:
    """Whether a run that is killed that often ends as one that is not; what was found is printed."""
    alone, killed = folder / "undisturbed", folder / "killed"
    subprocess.run([*command, "--out", str(alone)], check=True, capture_output=True)  # noqa: S603 - our own
    done = disturbed([*command, "--out", str(killed)], killed, kills, random.Random(seed))  # noqa: S311
    digests = [
        {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in COMPARED} for run in (alone, killed)
    ]
    different = [name for name in COMPARED if digests[0][name] != digests[1][name]]
    steps = [line["step"] for line in map(json.loads, (killed / "log.jsonl").open()) if "loss" in line]
    same = not different and steps == list(range(1, STEPS + 1))
    sys.stdout.write(f"{folder.name}: {done} kills, {'the same bits' if same else f'DIFFERENT: {different}'}\n")
    return same


def disturbed(command: Sequence[str], out: Path, kills: int, moments: random.Random) -> int:
    """Run a command to its end, killed at `kills` random moments and begun again; how often it was killed."""
    done = 0
    for step in sorted(moments.sample(range(1, STEPS - 1), kills)):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
        while process.poll() is None and last_step(out / "log.jsonl") < step:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, LONGEST))
        done += process.poll() is None
        process.kill()
        process.wait()
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603
    return done


def last_step(log: Path) -> int:
    """The step of the last whole line of a log; 0 if there is none."""
    lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


if __name__ == "__main__":
    main()

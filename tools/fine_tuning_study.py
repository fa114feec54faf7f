"""One training in every framework: the section of a package from its description, from a trained encoder.

Two questions: whether the losses of the first steps are the same numbers, without dropout, in fine-tuning and in
distillation; and whether the fine-tuned models are as good in the end, with dropout and several seeds. Run it on the
files of `tools.package_texts`; it ends with a table, a JSON and the curves of the first seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distilbert.backends import BACKENDS
from distilbert.checkpoint import safely
from distilbert.training import curves, logs

FIRST_STEPS = 50


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a trained encoder")
    parser.add_argument("texts", type=Path, help="folder of tools.package_texts")
    parser.add_argument("out", type=Path, help="folder for the runs, which go on where they were broken off")
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--max-length", type=int, default=48)
    parser.add_argument("--teacher", type=Path, help="a trained masked LM, to compare the first steps of distillation")
    parser.add_argument("--curves", type=Path, help="SVG of the curves of the first seed")
    study(parser.parse_args())


def study(arguments: argparse.Namespace) -> None:
    """All runs, and what they show."""
    names: list[str] = arguments.backends.split(",")
    still = ("--dropout", "0", "--max-steps", FIRST_STEPS)
    first_steps = {name: fine_tune(arguments, name, "first-steps", *still) for name in names}
    first_distilled = {name: distill(arguments, name, *still) for name in names} if arguments.teacher else {}
    with_dropout = {
        name: [fine_tune(arguments, name, f"seed-{seed}", "--seed", seed) for seed in range(arguments.seeds)]
        for name in names
    }
    found = {
        name: {
            "first_losses": losses(first_steps[name]),
            "first_distilled": losses(first_distilled[name]) if first_distilled else [],
            "reports": [json.loads((folder / "report.json").read_text()) for folder in with_dropout[name]],
        }
        for name in names
    }
    safely.write_json(arguments.out / "study.json", found)
    if arguments.curves is not None:
        curves.plot({BACKENDS[name]: with_dropout[name][0] / logs.NAME for name in names}, arguments.curves)
    sys.stdout.write(table(found))


def fine_tune(arguments: argparse.Namespace, backend: str, name: str, *options: Any) -> Path:
    """One fine-tuning on the sections; its folder."""
    files = [str(arguments.texts / f"sections-{part}.jsonl") for part in ("train", "eval")]
    return run(
        arguments, backend, name, "train", arguments.model, "--task", "text-classification", "--train-data", files[0],
        "--eval-data", files[1], "--epochs", arguments.epochs, *options,
    )  # fmt: skip


def distill(arguments: argparse.Namespace, backend: str, *options: Any) -> Path:
    """The first steps of one distillation, by the triple loss; its folder."""
    return run(
        arguments, backend, "first-distilled", "distill", arguments.teacher, "--task", "masked-lm", "--train-data",
        arguments.texts / "text-train.jsonl", *options,
    )  # fmt: skip


def run(arguments: argparse.Namespace, backend: str, name: str, kind: str, *options: Any) -> Path:
    """One run; its folder."""
    out = arguments.out / f"{backend}-{name}"
    command = [
        sys.executable, "-m", "distilbert", kind, *map(str, options), "--out", str(out), "--backend", backend,
        "--max-length", str(arguments.max_length), "--learning-rate", "1e-4",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    sys.stderr.write(f"{out.name}: {done.stdout}{done.stderr}\n")
    done.check_returncode()
    return out


def losses(folder: Path) -> list[float]:
    """Of the steps of a run."""
    return [line["loss"] for line in logs.read(folder / logs.NAME) if "loss" in line]


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy, time, and how far the first losses are from those of the first framework."""
    rows = [
        "| framework | accuracy, mean | of each seed | seconds | first losses differ by | of distillation |",
        "|---|---|---|---|---|---|",
    ]
    first = next(iter(found.values()))
    for name, runs in found.items():
        accuracies = [report["metrics"]["accuracy"] for report in runs["reports"]]
        seconds = statistics.median(report["seconds"] for report in runs["reports"])
        each = ", ".join(f"{accuracy:.2%}" for accuracy in accuracies)
        differences = [largest_difference(runs[key], first[key]) for key in ("first_losses", "first_distilled")]
        apart = " | ".join("-" if difference is None else f"{difference:.1e}" for difference in differences)
        rows.append(f"| {BACKENDS[name]} | {statistics.mean(accuracies):.2%} | {each} | {seconds:.0f} | {apart} |")
    return "\n".join(rows) + "\n"


def largest_difference(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Of losses, relative; None where there are none."""
    return max((abs(one - other) / other for one, other in zip(ours, theirs, strict=True)), default=None)


if __name__ == "__main__":
    main()

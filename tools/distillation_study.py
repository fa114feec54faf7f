"""What distillation gives, at our size: the paper's ablation on package descriptions.

A teacher is made from a trained encoder by masked-LM training. Students of half its layers learn from it: with the
triple loss, without each of its losses, without a teacher, and with it from random weights. Teacher and students are
then fine-tuned on the sections of packages; the first student also with the fine-tuned teacher beside it.
Source: Sanh et al. 2019, tables 1 to 4.
Run it on the files of `tools.package_texts`; it ends with a JSON of every run, a table of what the models know, and one
of what they cost.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from distilbert import DistilBertTokenizerFast
from distilbert.checkpoint import safely
from distilbert.pt import DistilBertForSequenceClassification

STUDENTS: dict[str, tuple[str, ...]] = {
    "triple loss": (),
    "without divergence": ("--alpha-kl", "0"),
    "without masked LM": ("--alpha-task", "0"),
    "without cosine": ("--alpha-cos", "0"),
    "without teacher": ("--alpha-kl", "0", "--alpha-cos", "0"),
    "random weights": ("--student-init", "random"),
}
BATCH, ROUNDS = 32, 21  # texts, and how often each model reads them


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a trained encoder")
    parser.add_argument("texts", type=Path, help="folder of tools.package_texts")
    parser.add_argument("out", type=Path, help="folder for the runs, which go on where they were broken off")
    parser.add_argument("--teacher-epochs", type=float, default=10)
    parser.add_argument("--student-epochs", type=float, default=10)
    parser.add_argument("--section-epochs", type=float, default=3)
    parser.add_argument("--taught-epochs", type=float, default=6, help="of the sections beside the fine-tuned teacher")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--token-budget", type=int, default=16384)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--seeds", type=int, default=1, help="fine-tunings of each model on the sections")
    parser.add_argument("--at-once", type=int, default=1, help="runs at the same time")
    study(parser.parse_args())


def study(arguments: argparse.Namespace) -> None:
    """All runs, and what they show."""
    out, started = arguments.out, time.monotonic()
    teacher = run(arguments, "train", arguments.model, out / "teacher", "masked-lm", "text", arguments.teacher_epochs,
                  "--learning-rate", "5e-4")  # fmt: skip
    students = together(arguments, [
        ("distill", teacher, out / name.replace(" ", "-"), "masked-lm", "text", arguments.student_epochs,
         "--learning-rate", "5e-4", *options) for name, options in STUDENTS.items()
    ])  # fmt: skip
    names = ["teacher", *STUDENTS]
    seeds = range(arguments.seeds)
    tuned = together(arguments, [
        ("train", model, model.parent / f"sections-{seed}", "text-classification", "sections",
         arguments.section_epochs, "--learning-rate", "1e-4", "--seed", str(seed))
        for model in (teacher, *students) for seed in seeds
    ])  # fmt: skip
    by_model = {name: tuned[i * len(seeds) : (i + 1) * len(seeds)] for i, name in enumerate(names)}
    taught = together(arguments, [
        ("distill", tutor, students[0].parent / f"taught-{seed}", "text-classification", "sections",
         arguments.taught_epochs, "--learning-rate", "1e-4", "--seed", str(seed), "--student", str(students[0]))
        for seed, tutor in zip(seeds, by_model["teacher"], strict=True)
    ])  # fmt: skip
    found = {
        name: {"masked_lm": report(model.parent), "sections": [report(run.parent) for run in by_model[name]]}
        for name, model in zip(names, (teacher, *students), strict=True)
    }
    found[f"{names[1]}, and taught sections"] = {
        "masked_lm": found[names[1]]["masked_lm"],
        "sections": [report(run.parent) for run in taught],
    }
    cost = costs({name: by_model[name][0] for name in names[:2]}, arguments)
    seconds = round(time.monotonic() - started)
    safely.write_json(out / "study.json", {"seconds": seconds, "runs": found, "costs": cost})
    sys.stdout.write(table(found) + "\n" + cost_table(cost))


def together(arguments: argparse.Namespace, runs: Sequence[tuple[Any, ...]]) -> list[Path]:
    """Several runs, some at the same time; the folders of their models."""
    with ThreadPoolExecutor(arguments.at_once) as pool:
        return list(pool.map(lambda one: run(arguments, *one), runs))


def run(
    arguments: argparse.Namespace, kind: str, model: Path, out: Path, task: str, data: str, epochs: float, *options: str
) -> Path:
    """One run; the folder of its model."""
    files = [str(arguments.texts / f"{data}-{part}.jsonl") for part in ("train", "eval")]
    command = [
        sys.executable, "-m", "distilbert", kind, str(model), "--task", task, "--out", str(out),
        "--train-data", files[0], "--eval-data", files[1], "--backend", "pt", "--epochs", str(epochs),
        "--max-length", str(arguments.max_length), "--token-budget", str(arguments.token_budget),
        "--batch-size", str(arguments.token_budget // 8), "--precision", arguments.precision,
        "--eval-every", str(sys.maxsize), *options,  # once, at the end
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    sys.stderr.write(f"{out.parent.name}/{out.name}: {done.stdout}{done.stderr}\n")
    done.check_returncode()
    return out / "model"


def costs(models: Mapping[str, Path], arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Of the classifiers in folders: parameters, and milliseconds for a batch of texts, medians of rounds in turn."""
    loaded = {name: DistilBertForSequenceClassification.from_pretrained(folder) for name, folder in models.items()}
    tokenizer = DistilBertTokenizerFast.from_pretrained(next(iter(models.values())))
    with (arguments.texts / "sections-eval.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in itertools.islice(lines, BATCH)]
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=arguments.max_length, return_tensors="pt")
    times: dict[str, list[float]] = {name: [] for name in loaded}
    with torch.inference_mode():
        for name in [*loaded] * ROUNDS:
            started = time.perf_counter()
            loaded[name](**inputs)
            times[name].append(1000 * (time.perf_counter() - started))
    return {
        name: {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "in_layers": sum(parameter.numel() for parameter in model.distilbert.transformer.parameters()),
            "milliseconds": statistics.median(times[name][1:]),  # the first warms up
        }
        for name, model in loaded.items()
    }


def report(folder: Path) -> dict[str, Any]:
    """What a run reported."""
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Each model's masked LM and section accuracy, and what part of the teacher's that is."""
    rows = ["| model | perplexity | masked tokens right | sections right | of the teacher's |", "|---|---|---|---|---|"]
    best: float | None = None
    for name, runs in found.items():
        words, accuracies = runs["masked_lm"]["metrics"], [one["metrics"]["accuracy"] for one in runs["sections"]]
        accuracy = sum(accuracies) / len(accuracies)
        best = best or accuracy
        rows.append(
            f"| {name} | {words['perplexity']:.2f} | {words['accuracy']:.2%} | {accuracy:.2%} | {accuracy / best:.1%} |"
        )
    return "\n".join(rows) + "\n"


def cost_table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Parameters and time."""
    rows = ["| model | parameters | of them in layers | ms for a batch |", "|---|---|---|---|"]
    for name, of in found.items():
        rows.append(f"| {name} | {of['parameters']:,.0f} | {of['in_layers']:,.0f} | {of['milliseconds']:.1f} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()

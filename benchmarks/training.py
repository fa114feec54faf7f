"""How fast a training step is: against transformers, and a distillation's with logits where they are needed.

    python -m benchmarks.training --model FOLDER --text TEXTS.jsonl.xz --peer PYTHON

Of FOLDER, config.json and the tokenizer are used; weights are drawn. PYTHON is an interpreter that has transformers
5.23 and the same torch. Two comparisons, on batches of real texts, cut at --longest tokens:

step    fine-tuning a classifier: our trainer against the loop that transformers' Trainer runs, on batches of texts as
        they come, and on batches of texts of like length
logits  distilling into a student of half the layers: logits at the masked tokens against logits at all tokens

Every engine lives in a process of its own, on the same two processors with two threads, and sleeps when it is not its
turn. A round gives the engines of a comparison the same batches, in an order that is drawn anew; ratios are medians of
the ratios within rounds, with 95 % intervals. Before, without dropout, the losses of all must agree, or there is no
result: fine-tuning's of every step, distillation's of the first, but for the divergence, which counts other tokens.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import machine
from benchmarks.engines import ROOT, Answer, Engine
from benchmarks.inference import ENVIRONMENT, KEEP_MEMORY, await_quiet, say
from benchmarks.peers import OURS as OUR_HOME
from benchmarks.statistics import Ratio, paired_ratio
from benchmarks.training_engines import EVERYWHERE, KINDS, NEEDED, OURS, PEER, STUDENT, TEACHER, THREADS
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.config import DistilBertConfig
from distilbert.initialization import initial_weights
from distilbert.tokenization.fast import DistilBertTokenizerFast
from distilbert.training.batches import Batch
from distilbert.training.records import Faults, Record
from distilbert.training.tasks import MaskedLM, Task, TextClassification

SEED = 0
CLASSES = 20
AGREEMENT = 1e-4  # relative, of losses
DROPOUTS = ("dropout", "attention_dropout", "seq_classif_dropout")
TITLES = {
    OURS: "distilbert.pt, Trainer.step",
    PEER: "transformers, the Trainer's loop",
    NEEDED: "distilbert.pt, logits at masked tokens",
    EVERYWHERE: "distilbert.pt, logits at all tokens",
}


class Workload(NamedTuple):
    """A comparison on some batches: its engines, first the one whose speed is told in terms of the second."""

    name: str
    title: str
    engines: tuple[str, str]
    by_length: bool = False


class Round(NamedTuple):
    """The batches of each engine as a file, their tokens, and the places in them, padding included."""

    files: dict[str, Path]
    tokens: int
    places: int


WORKLOADS = (
    Workload("step", "fine-tuning, texts as they come", (OURS, PEER)),
    Workload("step-by-length", "fine-tuning, texts of like length together", (OURS, PEER), by_length=True),
    Workload("logits", "distillation, texts as they come", (NEEDED, EVERYWHERE)),
)


def main() -> None:
    """Measure what was asked for and write the report."""
    arguments = parse_arguments()
    machine.pin(THREADS)
    await_quiet(busy=arguments.busy)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(arguments, Path(scratch))
        found: list[dict[str, Any]] = []
        for workload in (one for one in WORKLOADS if one.name in arguments.only):
            found.append(bench.measure(workload))
            write_report(arguments, found)


def write_report(arguments: argparse.Namespace, found: Sequence[Mapping[str, Any]]) -> None:
    """Print the table of what there is, and write what was asked for."""
    text = table(found)
    say(text)
    if arguments.markdown:
        arguments.markdown.write_text(text, encoding="utf-8")
    if arguments.json:
        report = {"machine": machine.description(), "threads": THREADS, "batch": arguments.batch, "workloads": found}
        arguments.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [workload.name for workload in WORKLOADS]
    parser.add_argument("--model", type=Path, required=True, help="a folder with config.json and a tokenizer")
    parser.add_argument("--text", type=Path, required=True, help="JSON lines with text")
    parser.add_argument("--peer", type=Path, required=True, help="an interpreter that has transformers 5.23")
    parser.add_argument("--only", type=lambda text: text.split(","), default=names, help=", ".join(names))
    parser.add_argument("--longest", type=int, default=128, help="tokens of a text")
    parser.add_argument("--batch", type=int, default=32, help="texts in a batch")
    parser.add_argument("--steps", type=int, default=4, help="in a turn")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--busy", action="store_true", help="measure even though something else is running")
    parser.add_argument("--json", type=Path, help="where everything that was measured is written")
    parser.add_argument("--markdown", type=Path, help="where the table is written")
    return parser.parse_args()


class Bench:
    """The texts, the models, and the engines that train them."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self._arguments, self._scratch = arguments, scratch
        self._config = DistilBertConfig.from_pretrained(arguments.model).replace(num_labels=CLASSES)
        self._tokenizer = DistilBertTokenizerFast.from_pretrained(arguments.model)
        count = arguments.batch * arguments.steps * (arguments.rounds + 1)
        self._records = read_records(arguments.text, count + count // 4)  # some are too short to learn words from

    def measure(self, workload: Workload) -> dict[str, Any]:
        """Check the engines of a workload, then let them take turns; the first round does not count."""
        rounds = list(self._rounds(workload))
        with ExitStack() as stack:
            engines = {name: stack.enter_context(self._start(name, dropout=False)) for name in workload.engines}
            check(workload, {name: engine.run(order(rounds[0].files[name])) for name, engine in engines.items()})
        with ExitStack() as stack:
            engines = {name: stack.enter_context(self._start(name, dropout=True)) for name in workload.engines}
            seconds = take_turns(engines, rounds)
            versions = {name: engine.hello["versions"] for name, engine in engines.items()}
        tokens, places = (sum(getattr(one, what) for one in rounds[1:]) for what in ("tokens", "places"))
        ratio = paired_ratio(*(seconds[name] for name in workload.engines))._asdict()
        about = {"name": workload.name, "title": workload.title, "tokens": tokens, "fill": tokens / places}
        say(f"{workload.title}: {len(rounds) - 1} rounds")
        return {**about, "seconds": seconds, "ratio": ratio, "versions": versions}

    def _rounds(self, workload: Workload) -> Iterator[Round]:
        """What each round computes, after the one that does not count."""
        steps, batch, count = self._arguments.steps, self._arguments.batch, self._arguments.rounds + 1
        tasks = {name: self._task(name) for name in workload.engines}
        task = tasks[workload.engines[0]]
        examples = [example for each in task.features_of(self._records, Faults()) for example in each]
        for number in range(count):
            part = examples[number * steps * batch : (number + 1) * steps * batch]
            part = sorted(part, key=task.length) if workload.by_length else part
            parts = [part[i * batch : (i + 1) * batch] for i in range(steps)]
            batches = {
                name: [task.collate(part, step=number * steps + i) for i, part in enumerate(parts)]
                for name, task in tasks.items()
            }
            files = {name: self._scratch / f"{workload.name}-{number}-{name}.npz" for name in tasks}
            for name, file in files.items():
                write(file, batches[name])
            ids = [one.inputs["input_ids"] for one in batches[workload.engines[0]]]
            yield Round(files, sum(map(task.length, part)), sum(array.size for array in ids))

    def _task(self, name: str) -> Task:
        """What makes the batches of an engine."""
        options: dict[str, Any] = {"tokenizer": self._tokenizer, "max_length": self._arguments.longest}
        if name in (OURS, PEER):
            labels = tuple(map(str, range(CLASSES)))
            return TextClassification(**options, labels=labels, problem_type="single_label_classification")
        return MaskedLM(
            **options, distil=True, smoothing=0.0, logit_positions="all" if name == EVERYWHERE else "masked"
        )

    def _start(self, name: str, *, dropout: bool) -> Engine:
        """The process of an engine, and the models that it loads."""
        config = self._config if dropout else self._config.replace(**dict.fromkeys(DROPOUTS, 0.0))
        folder = self._scratch / f"{name}-{dropout}"
        if name in (OURS, PEER):
            save(folder, "DistilBertForSequenceClassification", config)
        else:
            save(folder / TEACHER, "DistilBertForMaskedLM", config)
            save(folder / STUDENT, "DistilBertForMaskedLM", config.replace(n_layers=config.n_layers // 2))
        python = self._arguments.peer if name == PEER else ROOT / OUR_HOME / "bin" / "python"
        command = [python, "-m", "benchmarks.training_engines", name, folder]
        return Engine(name, command, ENVIRONMENT | KEEP_MEMORY)


def read_records(file: Path, count: int) -> list[Record]:
    """That many texts, drawn from all of a file, each with a class that is drawn."""
    opener = lzma.open if file.suffix == ".xz" else open
    with opener(file, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    if len(texts) < count:
        sys.exit(f"FAIL: {len(texts)} texts are too few, {count} are needed")
    draw = random.Random(SEED)  # noqa: S311 - nothing secret
    chosen = draw.sample(texts, count)
    return [Record(str(file), i, {"text": t, "label": str(draw.randrange(CLASSES))}) for i, t in enumerate(chosen, 1)]


def save(folder: Path, head: str, config: DistilBertConfig) -> None:
    """A checkpoint with weights that are drawn, the same each time."""
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder, "safetensors", head, config, initial_weights(config, head, seed=SEED))


def write(file: Path, batches: Sequence[Batch]) -> None:
    """Batches as a file that engines read."""
    parts = [(f"{i}/{kind}", getattr(batch, kind)) for i, batch in enumerate(batches) for kind in KINDS]
    np.savez(file, **{f"{place}/{name}": array for place, arrays in parts for name, array in arrays.items()})


def order(file: Path) -> Answer:
    """To take a step on each batch of a file."""
    return {"inputs": str(file)}


def check(workload: Workload, answers: Mapping[str, Answer]) -> None:
    """End where the losses of the engines differ."""
    one, other = (answers[name]["losses"] for name in workload.engines)
    if OURS in workload.engines:
        pairs = [(a["loss"], b["loss"]) for a, b in zip(one, other, strict=True)]
    else:  # the divergence counts other tokens, so later weights are others too
        pairs = [(one[0][part], other[0][part]) for part in ("task", "cos")]
    for a, b in pairs:
        if abs(a - b) > AGREEMENT * abs(b):
            sys.exit(f"FAIL: {workload.title}: losses differ: {pairs}")


def take_turns(engines: Mapping[str, Engine], rounds: Sequence[Round]) -> dict[str, list[float]]:
    """Seconds of each engine in each round but the first."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    draw = random.Random(SEED)  # noqa: S311 - nothing secret
    for one in rounds:
        for name in draw.sample(list(engines), len(engines)):
            seconds[name].append(engines[name].run(order(one.files[name]))["seconds"])
    return {name: taken[1:] for name, taken in seconds.items()}


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The results as Markdown."""
    rows = ["| training step | filled | engine | tokens per second | times as fast |", "|---|---|---|---|---|"]
    for one in found:
        first = next(iter(one["seconds"]))
        for name, seconds in one["seconds"].items():
            speed = one["tokens"] / len(seconds) / statistics.median(seconds)
            ratio = str(Ratio(**one["ratio"])) if name == first else ""
            rows.append(f"| {one['title']} | {one['fill']:.2f} | {TITLES[name]} | {speed:.0f} | {ratio} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()

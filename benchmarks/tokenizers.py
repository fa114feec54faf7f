"""How fast our tokenizers are, against the Rust library called directly and transformers' tokenizers, in one run.

    python -m benchmarks.tokenizers --text TEXTS.jsonl.xz --vocabulary FOLDER --peer4 PYTHON --peer5 PYTHON

PYTHON are interpreters that have transformers 4.57 and 5.23. Every engine lives in a process of its own, has two
threads, and works only when it is asked to: never two at once. A round gives all engines the same texts, in an order
that is drawn anew; every round has other texts, so that nothing is known beforehand. What they make of them must be
equal, or there is no result. Speeds are medians over rounds, ratios medians of the ratios within rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import lzma
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.engines import Engine, EngineError
from benchmarks.statistics import paired_ratio
from distilbert.tokenization.fast import DistilBertTokenizerFast

THREADS = "2"
ENVIRONMENT = {
    "RAYON_NUM_THREADS": THREADS,
    "OMP_NUM_THREADS": THREADS,
    "TOKENIZERS_PARALLELISM": "true",
    "HF_HUB_OFFLINE": "1",
}
SHORT = 14  # tokens of a short text, [CLS] and [SEP] included
SEED = 0

OURS = ("ours:fast", "ours:python-fast")
RUST, RUST_FAST = "rust:encode_batch", "rust:encode_batch_fast"
PEER5, PEER4 = "transformers:5:DistilBertTokenizerFast", "transformers:4:DistilBertTokenizerFast"
OURS_SLOW, PEER4_SLOW = "ours:python-slow", "transformers:4:DistilBertTokenizer"
TITLES = {
    "ours:fast": "DistilBertTokenizerFast",
    "ours:python-fast": "DistilBertTokenizer",
    OURS_SLOW: 'DistilBertTokenizer, dialect="slow"',
    RUST: "tokenizers, encode_batch",
    RUST_FAST: "tokenizers, encode_batch_fast",
    PEER5: "transformers 5, fast",
    PEER4: "transformers 4, fast",
    PEER4_SLOW: "transformers 4, slow",
}


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is timed. `part` is the share of a round's texts that it takes; `fresh` engines have seen no text before."""

    title: str
    job: str
    engines: tuple[str, ...] = (*OURS, RUST_FAST, RUST, PEER5, PEER4)
    references: tuple[str, ...] = (RUST_FAST, PEER5, PEER4)
    part: float = 1.0
    fresh: bool = False
    short: bool = False


WORKLOADS = (
    Workload("Padded arrays, batches of 32", "padded"),
    Workload("Padded arrays, batches of 32, by tokenizers that were just loaded", "padded", part=0.25, fresh=True),
    Workload("Padded arrays, one batch", "padded, one batch"),
    Workload("Flat ids and lengths, one batch", "flat, one batch"),
    Workload("Offsets, batches of 32", "offsets", (*OURS, RUST, PEER5, PEER4), (RUST, PEER5, PEER4)),
    Workload(
        f"One text of {SHORT} tokens, arrays", "single", (*OURS, RUST, PEER5, PEER4), (RUST, PEER5, PEER4), short=True
    ),
    Workload(
        "Padded arrays, batches of 32, in Python alone",
        "padded",
        ("ours:python-fast", OURS_SLOW, PEER4_SLOW),
        (PEER4_SLOW,),
        part=0.125,
    ),
)


def start(name: str, python: Path, vocabulary: Path) -> Engine:
    """The process of an engine."""
    return Engine(name, [python, "-m", "benchmarks.tokenizer_engines", name, vocabulary], ENVIRONMENT)


@dataclasses.dataclass(frozen=True)
class Round:
    """The texts of one round, and how many tokens a model gets of them."""

    texts: list[str]
    short: list[str]


def main() -> None:
    """Time everything and write the tables."""
    arguments = parse_arguments()
    tokenizer = DistilBertTokenizerFast.from_pretrained(arguments.vocabulary)
    rounds = list(draw_rounds(arguments, tokenizer))
    load = [os.getloadavg()]
    workloads = [workload for workload in WORKLOADS if arguments.only in workload.title]
    pythons: dict[str, Path | None] = {"ours": Path(sys.executable), "rust": Path(sys.executable)}
    pythons |= {"transformers:4": arguments.peer4, "transformers:5": arguments.peer5}
    with ExitStack() as stack, tempfile.TemporaryDirectory() as scratch:
        engines: dict[str, Engine] = {}
        for name in dict.fromkeys(name for workload in workloads for name in workload.engines):
            python = pythons[name.rpartition(":")[0]]
            if python is not None:
                engines[name] = stack.enter_context(start(name, python, arguments.vocabulary))
        tables = [time_workload(workload, engines, rounds, tokenizer, Path(scratch)) for workload in workloads]
        versions = {name: engine.hello for name, engine in engines.items()}
    report(arguments, tables, {"versions": versions, "load": [*load, os.getloadavg()], "threads": THREADS})


def parse_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="JSON lines with title and text")
    parser.add_argument("--vocabulary", type=Path, required=True, help="a folder with tokenizer.json and vocab.txt")
    parser.add_argument("--peer4", type=Path, help="an interpreter that has transformers 4.57")
    parser.add_argument("--peer5", type=Path, help="an interpreter that has transformers 5.23")
    parser.add_argument("--texts", type=int, default=4096, help="in a round")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", default="", help="workloads whose title has this in it")
    parser.add_argument("--json", type=Path, help="where everything that was measured is written")
    parser.add_argument("--markdown", type=Path, help="where the tables are written")
    return parser.parse_args()


def draw_rounds(arguments: argparse.Namespace, tokenizer: DistilBertTokenizerFast) -> Iterator[Round]:
    """The texts of the warm-up and of each round, all different."""
    opener = lzma.open if arguments.text.suffix == ".xz" else open
    with opener(arguments.text, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    random.Random(SEED).shuffle(records)  # noqa: S311 - nothing secret
    if len(records) < arguments.texts * (arguments.rounds + 1):
        sys.exit(f"FAIL: {len(records)} texts are too few for {arguments.rounds + 1} rounds of {arguments.texts}")
    titles = list(dict.fromkeys(record["title"] for record in records))
    ids = tokenizer(titles)["input_ids"]
    short = [title for title, row in zip(titles, ids, strict=True) if len(row) == SHORT]
    each = len(short) // (arguments.rounds + 1)
    for number in range(arguments.rounds + 1):
        part = records[number * arguments.texts : (number + 1) * arguments.texts]
        yield Round([record["text"] for record in part], short[number * each : (number + 1) * each])


def time_workload(
    workload: Workload,
    engines: dict[str, Engine],
    rounds: list[Round],
    tokenizer: DistilBertTokenizerFast,
    scratch: Path,
) -> dict[str, Any]:
    """Seconds of each engine in each round, after one that does not count."""
    taking_part = [name for name in workload.engines if name in engines]
    seconds: dict[str, list[float]] = {name: [] for name in taking_part}
    counts: list[tuple[int, int]] = []
    order = random.Random(SEED)  # noqa: S311 - nothing secret
    for number, drawn in enumerate(rounds):
        texts = drawn.short if workload.short else drawn.texts[: int(len(drawn.texts) * workload.part)]
        (scratch / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        asked = {"job": workload.job, "texts": str(scratch / "texts.json"), "fresh": workload.fresh}
        answers = {name: engines[name].run(asked) for name in order.sample(taking_part, len(taking_part))}
        check_equal(workload, answers)
        if number == 0:
            continue
        for name, answer in answers.items():
            seconds[name].append(answer["seconds"])
        ids = tokenizer(texts, truncation=True, max_length=512)["input_ids"]
        counts.append((len(texts), sum(map(len, ids))))
    say(f"{workload.title}: {len(counts)} rounds")
    return {"workload": dataclasses.asdict(workload), "seconds": seconds, "counts": counts}


def check_equal(workload: Workload, answers: dict[str, dict[str, Any]]) -> None:
    """Engines of one dialect must have made the same."""
    for slow in (False, True):
        made = {name: answer["hash"] for name, answer in answers.items() if (name in (OURS_SLOW, PEER4_SLOW)) == slow}
        if len(set(made.values())) > 1:
            sys.exit(f"FAIL: {workload.title}: results differ: {made}")


def report(arguments: argparse.Namespace, tables: list[dict[str, Any]], run: dict[str, Any]) -> None:
    """Write what was asked for, and print the tables."""
    for table in tables:
        table["ratios"] = {
            name: {
                reference: paired_ratio(table["seconds"][name], table["seconds"][reference])
                for reference in table["workload"]["references"]
                if reference in table["seconds"]
            }
            for name in table["seconds"]
        }
    text = "\n\n".join(map(markdown, tables)) + "\n"
    say(f"{text}\nversions {json.dumps(run['versions'])}\nload {run['load']}")
    if arguments.markdown:
        arguments.markdown.write_text(text, encoding="utf-8")
    if arguments.json:
        arguments.json.write_text(json.dumps({**run, "tables": tables}, indent=1), encoding="utf-8")


def markdown(table: dict[str, Any]) -> str:
    """One workload as a table."""
    workload, seconds, counts = table["workload"], table["seconds"], table["counts"]
    references = [name for name in workload["references"] if name in seconds]
    unit = "microseconds a text" if workload["short"] else "thousand tokens/s"
    head = ["", unit, *(f"times {TITLES[name]}" for name in references)]
    rows = [head, ["---"] * len(head)]
    for name, values in seconds.items():
        if workload["short"]:
            speed = statistics.median(1e6 * s / texts for s, (texts, _) in zip(values, counts, strict=True))
        else:
            speed = statistics.median(tokens / s / 1e3 for s, (_, tokens) in zip(values, counts, strict=True))
        rows.append([TITLES[name], f"{speed:.0f}", *(str(table["ratios"][name][other]) for other in references)])
    texts, tokens = (statistics.median(count) for count in zip(*counts, strict=True))
    title = f"**{workload['title']}**: {len(counts)} rounds of {texts:.0f} texts, {tokens:.0f} tokens"
    return title + "\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def say(line: str) -> None:
    """Print one line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main()
    except EngineError as error:
        sys.exit(f"FAIL: {error}")

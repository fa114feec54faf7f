"""Does the time of our tokenizers grow with the length of a text, and no faster? And what does a huge text cost?

    python -m benchmarks.tokenizer_growth --vocabulary FOLDER

Texts are one character again and again, of the kinds that made tokenizers quadratic or worse. The processor time of a
text of twice the length must be at most 2.6 times as long; ends with 1 if it is longer.
"""

from __future__ import annotations

import argparse
import itertools
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distilbert.tokenization.fast import DistilBertTokenizerFast
from distilbert.tokenization.slow import DistilBertTokenizer

LENGTHS = [200_000 << doubling for doubling in range(4)]
LIMIT = 2.6
ENOUGH = (
    0.3  # processor seconds in which a call is repeated; the quickest counts, for the rest of the machine only adds
)
TRIES = 5
HUGE = 50_000_000  # characters
HUGE_TEXTS = {"of words": "The quick, brown f\u00f6x. ", "without a space": "a"}
TEXTS = {
    "one letter": "a",
    "words": "a ",
    "unknown words": "qj\u4e00\u00df ",
    "combining marks": "\u0301",
    "letters with three marks": "e\u0301\u0323\u0327",
    "zero width joiners": "\u200d",
    "ideographs": "\u6771",
    "U+FDFA, 18 characters once decomposed": "\ufdfa",
    "controls": "\x01",
    "spaces": " ",
    "punctuation": "!",
    "NUL": "\0",
    "Hangul": "\ud55c",
    "emoji": "\U0001f600",
    "U+0130, two characters in lower case": "\u0130",
    "tags": "\U000e0041",
    "unassigned": "\U00040000",
    "beginnings of a special token": "[MASK",
    "special tokens": "[MASK]",
}
CLASSES: dict[str, Callable[..., Any]] = {
    "DistilBertTokenizerFast": DistilBertTokenizerFast.from_pretrained,
    "DistilBertTokenizer": DistilBertTokenizer.from_pretrained,
    "slow dialect": lambda folder, **options: DistilBertTokenizer.from_pretrained(folder, dialect="slow", **options),
}


def main() -> None:
    """Print the table, and end with 1 if something grows too fast."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=Path, required=True)
    parser.add_argument("--huge", choices=CLASSES, help="only read the huge text that --only names, with this class")
    parser.add_argument("--only", default="", help="texts whose name has this in it")
    arguments = parser.parse_args()
    if arguments.huge:
        read_huge(CLASSES[arguments.huge](arguments.vocabulary), arguments.only)
        return
    sys.exit(print_growth(arguments.vocabulary, arguments.only) or print_huge(arguments.vocabulary))


def print_growth(vocabulary: Path, only: str) -> int:
    """The largest growth of each text under each class, ids alone and with offsets: 1 if one is above the limit."""
    tokenizers = {name: make(vocabulary, model_max_length=None) for name, make in CLASSES.items()}
    columns = [(name, way) for name in tokenizers for way in (False, True) if (name, way) != ("slow dialect", True)]
    heads = [f"{name}, {'offsets' if way else 'ids'}" for name, way in columns]
    say(f"T(2n)/T(n), the largest from {LENGTHS[0]} to {LENGTHS[-1]} characters; in brackets T of the longest, s")
    say(f"| text | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}")
    worst = 0.0
    for name, unit in ((name, unit) for name, unit in TEXTS.items() if only in name):
        cells = [growth(tokenizers[column], unit, offsets=way) for column, way in columns]
        worst = max(worst, *(ratio for ratio, _ in cells))
        say(f"| {name} | {' | '.join(f'{ratio:.2f} ({seconds:.2f})' for ratio, seconds in cells)} |")
    say(f"largest growth {worst:.2f}, at most {LIMIT} wanted")
    return int(worst > LIMIT)


def growth(tokenizer: Any, unit: str, *, offsets: bool) -> tuple[float, float]:
    """The largest T(2n)/T(n), and the longest T; what is above the limit is measured again, for it may be noise."""
    seconds = [math.inf] * len(LENGTHS)
    for _ in range(TRIES):
        texts = (unit * (length // len(unit)) for length in LENGTHS)
        times = [quickest(tokenizer, text, offsets=offsets) for text in texts]
        seconds = [min(pair) for pair in zip(seconds, times, strict=True)]
        if steepest(seconds) <= LIMIT:
            break
    return steepest(seconds), seconds[-1]


def steepest(seconds: list[float]) -> float:
    """The largest T(2n)/T(n)."""
    return max(longer / shorter for shorter, longer in itertools.pairwise(seconds))


def quickest(tokenizer: Any, text: str, *, offsets: bool) -> float:
    """Processor seconds of one call, of all threads."""
    times: list[float] = []
    while sum(times) < ENOUGH:
        begin = time.process_time()
        tokenizer(text, return_offsets_mapping=offsets)
        times.append(time.process_time() - begin)
    return min(times)


def print_huge(vocabulary: Path) -> int:
    """Time and memory of huge texts that are cut to 512 tokens, each in a new process, whose peak is not another's."""
    for name, kind in itertools.product(CLASSES, HUGE_TEXTS):
        command = [sys.executable, "-m", "benchmarks.tokenizer_growth", "--vocabulary", str(vocabulary)]
        command += ["--huge", name, "--only", kind]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - our own code
        say(f"{name}: {answer.stdout.strip()}")
    return 0


def read_huge(tokenizer: Any, kind: str) -> None:
    """Read a huge text, and say what that took beyond the text itself."""
    unit = HUGE_TEXTS[kind]
    text = unit * (HUGE // len(unit))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    found = tokenizer(text, truncation=True, max_length=512)
    seconds = time.perf_counter() - begin
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    size = len(found["input_ids"])
    say(f"{len(text)} characters {kind} to {size} tokens: {seconds:.2f} s, {more:.0f} MiB more at the peak")


def say(line: str) -> None:
    """Print one line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""What int8 costs on real texts: cosines with float32, and how much of a search is lost.

    python -m benchmarks.int8_accuracy FOLDER TEXTS.jsonl.xz --results build/bench.json

TEXTS has JSON lines with "title" and "text". Each title has to find its text among all by the cosine of embeddings.
The numbers are added to the results under "int8 accuracy", or the other precision's name; the report shows int8.
"""

from __future__ import annotations

import argparse
import importlib
import json
import lzma
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.inference import save
from distilbert.backends import BACKENDS, load_backend
from distilbert.tokenization.batching import length_sorted_batches
from distilbert.tokenization.fast import DistilBertTokenizerFast

Vectors = NDArray[np.float32]
BATCH = 32
MAX_LENGTH = 256


def main() -> None:
    """Embed titles and texts in both precisions, compare, print and add to the results."""
    arguments = parse_arguments()
    titles, texts = read(arguments.texts, arguments.count)
    tokenizer = DistilBertTokenizerFast.from_pretrained(arguments.folder)
    vectors = {}
    for precision in ("float32", arguments.precision):
        model = load_backend(arguments.backend).DistilBertForSentenceEmbedding.from_pretrained(arguments.folder)
        engine = importlib.import_module(f"distilbert.{arguments.backend}.inference").optimize(model, precision)
        vectors[precision] = [embed(engine, tokenizer, part) for part in (titles, texts)]
    found = compare(vectors["float32"], vectors[arguments.precision])
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    if arguments.results:
        results = json.loads(arguments.results.read_text(encoding="utf-8"))
        save(results | {f"{arguments.precision} accuracy": found}, arguments.results)


def parse_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a checkpoint for sentence embeddings")
    parser.add_argument("texts", type=Path, help="JSON lines with title and text, may be compressed by xz")
    parser.add_argument("--count", type=int, default=2000, help="of records")
    parser.add_argument("--backend", choices=BACKENDS, default="pt")
    parser.add_argument("--precision", choices=("bfloat16", "int8"), default="int8")
    parser.add_argument("--results", type=Path, help="results of benchmarks.inference, to which the numbers are added")
    return parser.parse_args()


def read(file: Path, count: int) -> tuple[list[str], list[str]]:
    """Titles and texts of the first `count` records whose title no earlier one has."""
    opener = lzma.open if file.suffix == ".xz" else open
    found: dict[str, str] = {}
    with opener(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            if record["title"].strip() and record["text"].strip():
                found.setdefault(record["title"], record["text"])
            if len(found) == count:
                break
    return list(found), list(found.values())


def embed(engine: Any, tokenizer: DistilBertTokenizerFast, texts: Sequence[str]) -> Vectors:
    """Vectors of length 1, (len(texts), width), in the order of the texts."""
    ids = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    parts: list[tuple[Any, Vectors]] = [
        (rows, np.asarray(engine([list(item) for item in items]).embeddings, np.float32))
        for rows, items in length_sorted_batches(ids, batch_size=BATCH)
    ]
    vectors = np.empty((len(ids), parts[0][1].shape[1]), np.float32)
    for rows, part in parts:
        vectors[rows] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def compare(exact: Sequence[Vectors], rounded: Sequence[Vectors]) -> dict[str, Any]:
    """Both are (titles, texts). The cosine that all but 1 % of the texts reach, recalls, and what of it is lost."""
    cosines = (exact[1] * rounded[1]).sum(1)
    recalls = [recall(*exact), recall(*rounded)]
    return {
        "texts": len(cosines), "cosine": float(np.percentile(cosines, 1)), "least cosine": float(cosines.min()),
        "recall, float32": recalls[0], "recall": recalls[1], "recall lost": recalls[0] - recalls[1],
    }  # fmt: skip


def recall(titles: Vectors, texts: Vectors) -> float:
    """Which part of the titles has its own text as the nearest."""
    return float(((titles @ texts.T).argmax(1) == np.arange(len(titles))).mean())


if __name__ == "__main__":
    main()

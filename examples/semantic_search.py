"""Semantic search: the sentences nearest in meaning to each query, with the score that each framework gives.

Run: python examples/semantic_search.py FOLDER [--backends pt,tf,flax] [--query TEXT] [--texts FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from distilbert.backends import BACKENDS, check_backends
from distilbert.parity import read_texts
from distilbert.tasks.embedding import SentenceEncoder

SENTENCES = Path(__file__).parent / "sentences.txt"
QUERIES = ["play music from a compact disc", "air battles", "who is allowed to log in"]


def main() -> None:
    """Embed the sentences and the queries, and print the best matches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a sentence-embedding checkpoint")
    parser.add_argument("--backends", default=",".join(BACKENDS))
    parser.add_argument("--query", action="append", help="may be given several times")
    parser.add_argument("--texts", type=Path, default=SENTENCES, help="UTF-8 file, one sentence per line")
    parser.add_argument("--top", type=int, default=3)
    options = parser.parse_args()

    sentences, queries = read_texts(options.texts), options.query or QUERIES
    scores = {}  # backend -> (queries, sentences): the cosine, since the vectors have length 1
    for name in check_backends(options.backends.split(",")):
        encoder = SentenceEncoder.from_pretrained(options.folder, backend=name)
        scores[name] = encoder.encode(queries) @ encoder.encode(sentences).T

    table = Table("query", "nearest sentences", *(BACKENDS[name] for name in scores))
    first = next(iter(scores.values()))
    for q, query in enumerate(queries):
        for rank, i in enumerate((-first[q]).argsort()[: options.top]):
            table.add_row(query if rank == 0 else "", sentences[i], *(f"{s[q, i]:.6f}" for s in scores.values()))
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()

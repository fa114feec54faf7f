"""Examples of package descriptions: the section that a package is in, its tags, and plain text, split in two.

Which part a package falls into is a function of how its text begins: packages of one source share that, and must not
lie on both sides. All three tasks are split alike, so that nothing that a language model has read is evaluated on.
Run it on JSON lines with `section`, `tags`, `title` and `text`.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import lzma
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

SECTIONS, TAGS = 20, 30  # the most frequent
HELD_OUT = 10  # one in so many texts
COMMON = 40  # characters that texts of one source share


def main() -> None:
    """Write `sections`, `tags` and `text`, each as `-train.jsonl` and `-eval.jsonl`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("source", type=Path, help="JSON lines, .xz or not")
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--per-section", type=int, default=sys.maxsize, help="the most examples of a section for training"
    )
    arguments = parser.parse_args()
    packages = list(read(arguments.source))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write(arguments.folder, "sections", sections(packages, arguments.per_section))
    write(arguments.folder, "tags", tags(packages))
    write(arguments.folder, "text", ((part(package), {"text": text(package)}) for package in packages))


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The packages of a file."""
    with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def part(package: Mapping[str, Any]) -> str:
    """The part that a package falls into."""
    digest = hashlib.sha256(package["text"][:COMMON].encode()).digest()
    return "eval" if int.from_bytes(digest[:8], "big") % HELD_OUT == 0 else "train"


def text(package: Mapping[str, Any]) -> str:
    """Title and description."""
    return f"{package['title']}. {package['text']}"


def sections(packages: Iterable[Mapping[str, Any]], most: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Those of the largest sections."""
    counts = collections.Counter(package["section"] for package in packages)
    chosen, taken = {name for name, _ in counts.most_common(SECTIONS)}, collections.Counter[tuple[str, str]]()
    for package in packages:
        key = (part(package), package["section"])
        taken[key] += 1
        limit = most if key[0] == "train" else max(1, most // 4)
        if key[1] in chosen and taken[key] <= limit:
            yield key[0], {"text": text(package), "label": package["section"]}


def tags(packages: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Those that have one of the most frequent tags, with all of these that they have."""
    counts = collections.Counter(tag for package in packages for tag in package["tags"])
    chosen = {tag for tag, _ in counts.most_common(TAGS)}
    for package in packages:
        if label := sorted(chosen & {*package["tags"]}):
            yield part(package), {"text": text(package), "label": label}


def write(folder: Path, name: str, examples: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Write examples, each into the file of its part."""
    files = {key: (folder / f"{name}-{key}.jsonl").open("w", encoding="utf-8") for key in ("train", "eval")}
    counts = collections.Counter[str]()
    for key, example in examples:
        files[key].write(json.dumps(example, ensure_ascii=False) + "\n")
        counts[key] += 1
    for file in files.values():
        file.close()
    sys.stdout.write(f"{name}: {counts['train']} for training, {counts['eval']} held out\n")


if __name__ == "__main__":
    main()

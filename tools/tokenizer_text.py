"""Do both tokenizers give the reference's ids and offsets on real text? In two steps, for the reference may lie apart.

    REFERENCE_PYTHON tools/tokenizer_text.py write IDS.npz --vocabulary FOLDER TEXTS.jsonl.xz ... [--cased] [--slow]
    .venv/bin/python -m tools.tokenizer_text compare IDS.npz

The first step, run by an interpreter that has transformers, writes the ids of every text, which is every string of
every record, and their offsets if its tokenizer gives any. The second computes them with our classes, from the same
files and options, and ends with 1 if one id or offset differs.
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CHUNK = 1024  # texts that are encoded at once


class Encoded(NamedTuple):
    """Texts encoded, one after the other.

    Attributes:
        ids: (tokens,), int32, special tokens included.
        lengths: tokens of each text, (texts,), int32.
        offsets: start and end of each token, (tokens, 2), int32; (0, 2) where there are none.
    """

    ids: NDArray[np.int32]
    lengths: NDArray[np.int32]
    offsets: NDArray[np.int32]


def main() -> None:
    """Do the step that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    write = steps.add_parser("write", help="write the reference's ids")
    write.add_argument("ids", type=Path)
    write.add_argument("texts", type=Path, nargs="+")
    write.add_argument("--vocabulary", type=Path, required=True)
    write.add_argument("--cased", action="store_true", help="do not fold case")
    write.add_argument("--slow", action="store_true", help="the reference's tokenizer in Python (transformers 4)")
    compare = steps.add_parser("compare", help="compare ours with them")
    compare.add_argument("ids", type=Path)
    arguments = parser.parse_args()
    if arguments.step == "write":
        write_reference(arguments)
    else:
        sys.exit(compare_with_reference(arguments.ids))


def read_texts(paths: list[Path]) -> Iterator[str]:
    """Every string of every record of JSON lines, compressed by xz or not."""
    for path in paths:
        opener = lzma.open if path.suffix == ".xz" else open
        with opener(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield from (value for value in json.loads(line).values() if isinstance(value, str))


def write_reference(arguments: argparse.Namespace) -> None:
    """Encode with transformers, and note how."""
    import transformers

    name = "DistilBertTokenizer" if arguments.slow else "DistilBertTokenizerFast"
    transformers.logging.set_verbosity_error()  # texts longer than a model takes are meant here
    tokenizer = getattr(transformers, name).from_pretrained(arguments.vocabulary, do_lower_case=not arguments.cased)
    encoded = encode(tokenizer, arguments.texts, offsets=not arguments.slow)
    how = {
        "reference": f"transformers {transformers.__version__} {name}",
        "vocabulary": str(arguments.vocabulary),
        "texts": [str(path) for path in arguments.texts],
        "cased": arguments.cased,
        "slow": arguments.slow,
    }
    np.savez_compressed(arguments.ids, how=json.dumps(how), **encoded._asdict())
    say(f"{how['reference']}: {len(encoded.lengths)} texts, {len(encoded.ids)} tokens")


def encode(tokenizer: Callable[..., Any], paths: list[Path], *, offsets: bool) -> Encoded:
    """Encode every text, uncut; both sides answer the same call."""
    ids, lengths, places = [], [], [np.empty((0, 2), np.int32)]
    options = {"return_offsets_mapping": True} if offsets else {}
    texts = read_texts(paths)
    while chunk := list(islice(texts, CHUNK)):
        found = tokenizer(chunk, **options)
        lengths.extend(map(len, found["input_ids"]))
        ids.append(np.fromiter(chain.from_iterable(found["input_ids"]), np.int32))
        if offsets:
            ends = chain.from_iterable(chain.from_iterable(found["offset_mapping"]))
            places.append(np.fromiter(ends, np.int32).reshape(-1, 2))
    return Encoded(np.concatenate(ids), np.array(lengths, np.int32), np.concatenate(places))


def compare_with_reference(path: Path) -> int:
    """Encode with our classes as the reference did, and say where they differ: 1 if anywhere."""
    from distilbert.tokenization.fast import DistilBertTokenizerFast
    from distilbert.tokenization.slow import DistilBertTokenizer

    with np.load(path, allow_pickle=False) as content:
        how, expected = json.loads(str(content["how"])), Encoded(*(content[name] for name in Encoded._fields))
    options = {"do_lower_case": not how["cased"], "model_max_length": None}
    classes: list[tuple[Any, dict[str, Any]]] = [(DistilBertTokenizerFast, {}), (DistilBertTokenizer, {})]
    if how["slow"]:
        classes = [(DistilBertTokenizer, {"dialect": "slow"})]
    say(f"{how['reference']}{' cased' if how['cased'] else ''}: {len(expected.lengths)} texts")
    different = 0
    for made_by, extra in classes:
        tokenizer = made_by.from_pretrained(how["vocabulary"], **options, **extra)
        for offsets in (False,) if how["slow"] else (False, True):  # two ways through our code
            different += compare(tokenizer, how, expected, offsets=offsets)
    return int(different > 0)


def compare(tokenizer: Any, how: dict[str, Any], expected: Encoded, *, offsets: bool) -> int:
    """Encode every text with one tokenizer: how many differ."""
    paths = [Path(text) for text in how["texts"]]
    begin = time.perf_counter()
    found = encode(tokenizer, paths, offsets=offsets)
    seconds = time.perf_counter() - begin
    wanted = expected if offsets else expected._replace(offsets=found.offsets)
    wrong = differences(found, wanted)
    what = f"{len(found.ids)} tokens{f', {len(found.offsets)} offsets' if offsets else ''}"
    say(f"  {type(tokenizer).__name__}: {what}: {len(wrong)} texts differ ({seconds:.0f} s)")
    if wrong:
        show(wrong[0], found, wanted, paths)
    return len(wrong)


def differences(found: Encoded, expected: Encoded) -> list[int]:
    """The texts whose ids or offsets differ."""
    if len(found.lengths) != len(expected.lengths):
        sys.exit(f"FAIL: {len(found.lengths)} texts, but the reference had {len(expected.lengths)}")
    if all(map(np.array_equal, found, expected)):
        return []
    pairs = zip(by_text(found), by_text(expected), strict=True)
    return [i for i, (ours, theirs) in enumerate(pairs) if not all(map(np.array_equal, ours, theirs))]


def by_text(encoded: Encoded) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Ids and offsets of each text."""
    end = 0
    for length in encoded.lengths.tolist():
        start, end = end, end + length
        yield encoded.ids[start:end], encoded.offsets[start:end]


def show(text: int, found: Encoded, expected: Encoded, paths: list[Path]) -> None:
    """A text that differs, and both results."""
    say(f"  text {text}: {next(islice(read_texts(paths), text, None))!r}")
    for name, encoded in (("ours", found), ("reference", expected)):
        ids, offsets = next(islice(by_text(encoded), text, None))
        say(f"  {name}: ids {ids.tolist()}\n    offsets {offsets.tolist()}")


def say(line: str) -> None:
    """Print one line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

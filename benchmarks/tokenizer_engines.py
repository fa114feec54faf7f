"""What `benchmarks.tokenizers` times: our tokenizers and others', each in a process of its own interpreter.

    PYTHON -m benchmarks.tokenizer_engines ENGINE VOCABULARY

reads orders from standard input and answers each with one line of JSON; between orders it sleeps. An order names a job
and a file with the texts. What the job made is reduced to a hash outside the timed part, so that engines can be
compared. This file is read by the others' interpreters: it imports our package only for our engines.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.engines import Answer, serve

BATCH = 32
MAX_LENGTH = 512
Texts = Sequence[str]
Arrays = list[NDArray[Any]]


def flatten(ids: Sequence[Sequence[int]]) -> Arrays:
    """Rows of ids as flat int32 and lengths, for engines that have no way of their own."""
    lengths = np.fromiter(map(len, ids), np.int32, len(ids))
    return [np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum())), lengths]


class Transformers:
    """A tokenizer that is called as transformers' are, at the settings of its documentation; so are ours."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self.renew()

    def renew(self) -> None:
        """A new tokenizer, as after loading: what was learnt from texts is gone."""
        self.tokenizer = self.make()

    def padded(self, texts: Texts) -> Arrays:
        """Ids and mask, (batch, seq), int64."""
        found = self.tokenizer(texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="np")
        return [found["input_ids"], found["attention_mask"]]

    def flat(self, texts: Texts) -> Arrays:
        """Flat ids, int32, and lengths."""
        found = self.tokenizer(texts, truncation=True, max_length=MAX_LENGTH, return_attention_mask=False)
        return flatten(found["input_ids"])

    def offsets(self, texts: Texts) -> list[Any]:
        """Ids and offsets as lists."""
        found = self.tokenizer(texts, truncation=True, max_length=MAX_LENGTH, return_offsets_mapping=True)
        return [found["input_ids"], found["offset_mapping"]]

    def single(self, text: str) -> Arrays:
        """Ids and mask of one text, (1, seq), int64."""
        found = self.tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="np")
        return [found["input_ids"], found["attention_mask"]]


class Ours(Transformers):
    """Ours, with our own packing."""

    def flat(self, texts: Texts) -> Arrays:
        """Flat ids, int32, and lengths."""
        from distilbert.tokenization.batching import pack

        found = self.tokenizer(texts, truncation=True, max_length=MAX_LENGTH, return_attention_mask=False)
        packed = pack(found["input_ids"])
        return [packed.ids, packed.lengths]


class Rust:
    """The Rust library called directly, with its own padding and truncation."""

    def __init__(self, folder: Path, method: str) -> None:
        self.folder, self.method = folder, method
        self.renew()

    def renew(self) -> None:
        """A new tokenizer."""
        import tokenizers

        self.tokenizer, self.unpadded = (
            tokenizers.Tokenizer.from_file(str(self.folder / "tokenizer.json")) for _ in range(2)
        )
        for tokenizer in (self.tokenizer, self.unpadded):
            tokenizer.no_padding()
            tokenizer.enable_truncation(MAX_LENGTH)
        self.tokenizer.enable_padding(pad_id=self.tokenizer.token_to_id("[PAD]"))

    def padded(self, texts: Texts) -> Arrays:
        """Ids and mask, (batch, seq), int64."""
        found = getattr(self.tokenizer, self.method)(texts)
        ids, masks = [encoding.ids for encoding in found], [encoding.attention_mask for encoding in found]
        return [np.array(ids, np.int64), np.array(masks, np.int64)]

    def flat(self, texts: Texts) -> Arrays:
        """Flat ids, int32, and lengths."""
        return flatten([encoding.ids for encoding in getattr(self.unpadded, self.method)(texts)])

    def offsets(self, texts: Texts) -> list[Any]:
        """Ids and offsets as lists."""
        found = getattr(self.unpadded, self.method)(texts)
        return [[encoding.ids for encoding in found], [encoding.offsets for encoding in found]]

    def single(self, text: str) -> Arrays:
        """Ids and mask of one text, (1, seq), int64."""
        encoding = self.unpadded.encode(text)
        return [np.array([encoding.ids], np.int64), np.array([encoding.attention_mask], np.int64)]


def make_engine(name: str, folder: Path) -> Transformers | Rust:
    """An engine by its name in `benchmarks.tokenizers`."""
    if name.startswith("rust"):
        return Rust(folder, name.removeprefix("rust:"))
    if name.startswith("transformers"):
        import transformers

        transformers.logging.set_verbosity_error()
        foreign = getattr(transformers, name.split(":")[2])
        return Transformers(lambda: foreign.from_pretrained(folder))
    from distilbert.tokenization import fast, slow

    if name == "ours:fast":
        return Ours(lambda: fast.DistilBertTokenizerFast.from_pretrained(folder))
    dialect = name.removeprefix("ours:python-")
    return Ours(lambda: slow.DistilBertTokenizer.from_pretrained(folder, dialect=dialect))


def batches(texts: Texts) -> Iterator[Texts]:
    """Batches in arrival order."""
    return (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))


# What is timed, given an engine and texts.
JOBS: dict[str, Callable[[Any, Texts], list[Any]]] = {
    "padded": lambda engine, texts: [engine.padded(batch) for batch in batches(texts)],
    "padded, one batch": lambda engine, texts: [engine.padded(texts)],
    "flat, one batch": lambda engine, texts: [engine.flat(texts)],
    "offsets": lambda engine, texts: [engine.offsets(batch) for batch in batches(texts)],
    "single": lambda engine, texts: [engine.single(text) for text in texts],
}


def fingerprint(results: list[Any]) -> str:
    """A hash of shapes, dtypes and values."""
    state = hashlib.sha256()
    for part in chain.from_iterable(results):
        is_array = isinstance(part, np.ndarray)
        state.update(f"{part.dtype} {part.shape}".encode() if is_array else json.dumps(part).encode())
        state.update(np.ascontiguousarray(part).tobytes() if is_array else b"")
    return state.hexdigest()


def run(engine: Transformers | Rust, order: dict[str, Any]) -> dict[str, Any]:
    """Time one job once."""
    texts = json.loads(Path(order["texts"]).read_text(encoding="utf-8"))
    if order["fresh"]:
        engine.renew()
    job = JOBS[order["job"]]
    gc.collect()
    begin = time.perf_counter()
    results = job(engine, texts)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "hash": fingerprint(results)}


def versions(engine: str) -> dict[str, str]:
    """The versions that an engine runs on."""
    from importlib.metadata import version

    packages = ["numpy", "tokenizers", *(["transformers"] if engine.startswith("transformers") else [])]
    return {"python": sys.version.split()[0], **{name: version(name) for name in packages}}


def start() -> tuple[Answer, Callable[[Answer], Answer]]:
    """Load the engine that the command line names."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    engine = make_engine(name, folder)
    return versions(name), lambda order: run(engine, order)


if __name__ == "__main__":
    serve(start)

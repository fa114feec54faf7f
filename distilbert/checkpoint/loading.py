"""From a folder to canonical tensors: every stored name accounted for before the first weight is read.

Strict: a tensor that is missing, unexpected or wrongly shaped refuses the load, all of them in one error. The known
ways in which checkpoints differ (base prefix, tied projector, tensors stored twice, other heads, buffers) are rules
with a reason, and the report lists what each of them did.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from distilbert import weight_map
from distilbert.checkpoint.folder import find_weights, open_weights
from distilbert.checkpoint.hub import find_folder
from distilbert.checkpoint.sentence_transformers import read_pooling
from distilbert.checkpoint.tensors import DTYPES, FLOATS, Array, is_finite, raw_bytes
from distilbert.config import DistilBertConfig
from distilbert.errors import CheckpointError, Kind
from distilbert.initialization import initial_tensor
from distilbert.positions import sinusoidal_table
from distilbert.weight_map import Layout, TensorSpec


@dataclass(frozen=True, eq=False, repr=False)  # equal to itself only: NNX hashes and prints what a module holds
class LoadReport:
    """What a load did with every tensor. Canonical names, except that `skipped` and `renamed` have stored ones."""

    source: str
    loaded: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict[str, str])  # stored -> canonical, where they differ
    transposed: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    cast: dict[str, str] = field(default_factory=dict[str, str])  # canonical -> "float16 to float32"
    new: dict[str, str] = field(default_factory=dict[str, str])  # canonical -> why it was made, not read
    skipped: dict[str, str] = field(default_factory=dict[str, str])  # stored -> why it is not needed

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        counts = [f"{len(self.loaded)} tensors loaded"]
        for verb in ("renamed", "transposed", "tied", "cast", "new", "skipped"):
            if entries := getattr(self, verb):
                names = ", ".join(list(entries)[:4]) + (", ..." if len(entries) > 4 else "")
                counts.append(f"{len(entries)} {verb}" + (f" ({names})" if verb in ("tied", "new", "skipped") else ""))
        return f"{self.source}: {'; '.join(counts)}"

    def __repr__(self) -> str:
        return f"<LoadReport {self}>"


class Checkpoint(Mapping[str, Array]):
    """The tensors of one class in canonical form, checked from the header, read one at a time by indexing."""

    def __init__(
        self,
        folder: Path,
        config: DistilBertConfig,
        head: str,
        *,
        layout: Layout | None = None,
        dtype: str | None = None,
        strict: bool = True,
        new_head: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = dict(settings or {})  # the class's further arguments
        found, detected, self._stored = open_weights(folder)
        self.layout = layout or detected
        self.path, self.config, self.head = folder / found.file, config, head
        self.specs = weight_map.tensor_specs(config, head)
        self._dtype = dtype
        self._progress: Callable[[int, int], None] | None = None
        self._read_names: set[str] = set()
        self._sources, skipped, unexpected = _match_names(
            {name: found.plain_name(name) for name in self._stored.info}, self.layout, config, self.specs
        )
        self.new = _new_tensors(config, self.specs, self._sources, new_head=new_head)
        missing = [n for n in self.specs if n not in self._sources and n not in self.new and not self._is_tied(n)]
        self._refuse_misfits(missing, [] if not strict else unexpected)
        skipped |= {} if strict else dict.fromkeys(unexpected, "unknown")
        self.report = self._report(skipped)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __getitem__(self, name: str) -> Array:
        self._read_names.add(name)
        if self._progress is not None:
            self._progress(len(self._read_names), len(self))
        if name in self.new:
            return self._as_dtype(name, _make(self.config, self.specs[name]))
        if self._is_tied(name) and name not in self._sources:
            name = weight_map.WORD_EMBEDDINGS
        return self._as_dtype(name, self._read_checked(name))

    def on_read(self, progress: Callable[[int, int], None]) -> None:
        """Call `progress` with (tensors read, tensors in all) whenever one is read."""
        self._progress = progress

    def dtype(self, name: str) -> str:
        """Name of the dtype that indexing returns."""
        if self._dtype:
            return self._dtype
        stored = self._sources.get(name) or self._sources.get(weight_map.WORD_EMBEDDINGS)
        return self._stored.info[stored[0]].dtype if stored and name not in self.new else "float32"

    def _is_tied(self, name: str) -> bool:
        return name == weight_map.TIED_PROJECTOR and self.config.tie_word_embeddings

    def _as_dtype(self, name: str, array: Array) -> Array:
        if self._dtype is None or array.dtype == DTYPES[self._dtype]:
            return array
        with np.errstate(over="ignore"):
            converted = array.astype(DTYPES[self._dtype])
        if not is_finite(converted):
            raise CheckpointError(self.path, "NonFinite", f"holds numbers in {name!r} that {self._dtype} cannot")
        return converted

    def _read_checked(self, name: str) -> Array:
        """The canonical array: finite, and equal in every place where the file holds it."""
        spec, sources = self.specs[name], self._sources[name]
        array = spec.from_layout(self._stored[sources[0]], self.layout)
        if not is_finite(array):
            where = np.argwhere(~np.isfinite(array))[0].tolist()
            raise CheckpointError(self.path, "NonFinite", f"holds NaN or infinity in {sources[0]!r} at {where}")
        for other in sources[1:]:
            if not _same_bits(array, spec.from_layout(self._stored[other], self.layout)):
                raise CheckpointError(self.path, "DuplicateName", f"holds {name!r} twice with different numbers")
        if self._is_tied(name) and not _same_bits(array, self._read_checked(weight_map.WORD_EMBEDDINGS)):
            detail = f"{name!r} differs from the word embeddings, to which tie_word_embeddings=true ties it"
            raise CheckpointError(self.path, "TiedTensorsDiffer", f"{detail}; set it to false to keep both")
        return array

    def _refuse_misfits(self, missing: list[str], unexpected: list[str]) -> None:
        misshapen = [
            f"{stored!r} has shape {self._stored.info[stored].shape}, must have {spec.stored_shape(self.layout)}"
            for name, spec in self.specs.items()
            for stored in self._sources.get(name, ())
            if self._stored.info[stored].shape != spec.stored_shape(self.layout)
        ]
        mistyped = [s for stored in self._sources.values() for s in stored if self._stored.info[s].dtype not in FLOATS]
        problems: tuple[tuple[Kind, str, list[str]], ...] = (
            ("MissingTensor", "lacks", missing),
            ("UnexpectedTensor", "holds unknown", unexpected),
            ("ShapeMismatch", "does not fit its config:", misshapen),
            ("DtypeUnsupported", "holds integers in", mistyped),
        )
        found = [problem for problem in problems if problem[2]]
        if found:
            counted = f"{len(missing)} missing, {len(unexpected)} unexpected, {len(misshapen)} misshapen tensors: "
            texts = (f"{verb} {', '.join(names)}" for _, verb, names in found)
            raise CheckpointError(self.path, found[0][0], counted + "; ".join(texts))

    def _report(self, skipped: dict[str, str]) -> LoadReport:
        first = {name: stored[0] for name, stored in self._sources.items()}
        casts = {n: f"{self._stored.info[s].dtype} to {self.dtype(n)}" for n, s in first.items()}
        return LoadReport(
            source=str(self.path),
            loaded=tuple(first),
            renamed={s: n for n, stored in self._sources.items() for s in stored if s != n},
            transposed=tuple(n for n in first if self.specs[n].spelling(self.layout).axes),
            tied=tuple(n for n in self.specs if self._is_tied(n)),
            cast={n: text for n, text in casts.items() if len(set(text.split(" to "))) > 1},
            new=self.new,
            skipped=skipped,
        )


def open_checkpoint(
    folder_or_hub_id: str | os.PathLike[str],
    head: str,
    *,
    dtype: str = "float32",
    strict: bool = True,
    new_head: bool = False,
    revision: str | None = None,
    **config_overrides: Any,
) -> Checkpoint:
    """The checkpoint that `from_pretrained` of the class `head` reads; its arguments are documented there.

    Raises:
        CheckpointError: the files are not a checkpoint of this class. ConfigError: config.json is wrong.
    """
    folder = find_folder(folder_or_hub_id, revision=revision)
    encoder, pooling = read_pooling(folder)
    find_weights(encoder)
    config = DistilBertConfig.from_pretrained(encoder, **config_overrides)
    settings = {"pooling": pooling} if head == "DistilBertForSentenceEmbedding" else {}
    return Checkpoint(encoder, config, head, dtype=dtype, strict=strict, new_head=new_head, settings=settings)


def find_head(folder: Path, config: DistilBertConfig) -> str:
    """The class whose checkpoint lies in `folder`: what config.json says, else what the tensors show.

    Raises:
        CheckpointError: the tensors fit no class.
    """
    named = config.extra.get("architectures")
    for name in cast("list[Any]", named) if isinstance(named, list) else []:
        plain = str(name).removeprefix("TF").removeprefix("Flax")
        if plain in weight_map.HEADS:
            return plain
    found, layout, stored = open_weights(folder)
    known = {name: spec for spec in weight_map.all_specs(config).values() for name in spec.accepted_names(layout)}
    present = {known[plain].module for plain in map(found.plain_name, stored.info) if plain in known}
    above = {module.name for module in present & set(weight_map.ABOVE)}
    for name, head in weight_map.HEADS.items():
        if above == set(head.modules):
            return name
    detail = f"has the head modules {', '.join(sorted(above))}, which no class has"
    raise CheckpointError(folder / found.file, "UnexpectedTensor", detail)


def _match_names(
    plain_names: Mapping[str, str], layout: Layout, config: DistilBertConfig, specs: Mapping[str, TensorSpec]
) -> tuple[dict[str, list[str]], dict[str, str], list[str]]:
    """Stored names by the canonical name they hold, those to skip with the reason, and those nobody knows."""
    known = {name: spec for spec in weight_map.all_specs(config).values() for name in spec.accepted_names(layout)}
    sources: dict[str, list[str]] = {}
    skipped: dict[str, str] = {}
    unexpected: list[str] = []
    for name, plain in plain_names.items():
        if plain in known and known[plain].name in specs:
            sources.setdefault(known[plain].name, []).append(name)
        elif plain in known:
            skipped[name] = "another class's head"
        elif plain in weight_map.NOT_WEIGHTS[layout.name]:
            skipped[name] = weight_map.NOT_WEIGHTS[layout.name][plain]
        else:
            unexpected.append(name)
    return sources, skipped, unexpected


def _new_tensors(
    config: DistilBertConfig, specs: Mapping[str, TensorSpec], sources: Mapping[str, Any], *, new_head: bool
) -> dict[str, str]:
    """Tensors to make because the file lacks them and a rule allows it, with the rule."""
    new = {
        n: "a head that the file does not have" for n, s in specs.items() if new_head and s.module in weight_map.ABOVE
    }
    if config.sinusoidal_pos_embds and weight_map.POSITION_EMBEDDINGS in specs:
        new[weight_map.POSITION_EMBEDDINGS] = "the sinusoidal table, which the config asks for"
    return {name: why for name, why in new.items() if name not in sources}


def _make(config: DistilBertConfig, spec: TensorSpec) -> Array:
    if spec.name == weight_map.POSITION_EMBEDDINGS:
        return sinusoidal_table(*spec.shape)
    seed = zlib.crc32(spec.name.encode())  # its own, so that equal shapes do not get equal numbers
    return initial_tensor(config, spec, np.random.RandomState(seed))


def _same_bits(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and raw_bytes(a) == raw_bytes(b)

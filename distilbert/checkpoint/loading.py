"""From a folder to canonical tensors: every stored name accounted for before the first weight is read.

Strict: a tensor that is missing, unexpected or wrongly shaped refuses the load, all of them in one error. The known
ways in which checkpoints differ (base prefix, tied projector, tensors stored twice, other heads, buffers) are rules
with a reason, and the report lists what each of them did.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from distilbert import weight_map
from distilbert.checkpoint.folder import find_weights, open_weights, read_config
from distilbert.checkpoint.hub import find_folder
from distilbert.checkpoint.sentence_transformers import read_pooling
from distilbert.checkpoint.tensors import DTYPES, FLOATS, Array, is_finite, raw_bytes
from distilbert.config import DistilBertConfig
from distilbert.errors import CheckpointError, Kind
from distilbert.initialization import initial_tensor
from distilbert.positions import sinusoidal_table
from distilbert.weight_map import Layout, TensorSpec

LABEL_FIELDS = ("num_labels", "id2label")  # an override of these asks for a head of its own


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


@dataclass(frozen=True)
class _Plan:
    """Where each tensor of a class comes from, decided from names alone. Canonical names, but for the stored ones."""

    sources: dict[str, list[str]]  # canonical -> every stored name that holds it
    tied: tuple[str, ...]  # canonical names that must equal, and may be taken from, the word embeddings
    new: dict[str, str]  # canonical -> why it is made, not read
    skipped: dict[str, str]  # stored -> why it is not needed
    unexpected: list[str]  # stored names that nobody knows
    missing: list[str]  # canonical


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
        found, detected, self._stored = open_weights(folder)
        self.path, self.layout = folder / found.file, layout or detected
        self.config, self.head, self.settings = config, head, dict(settings or {})
        self.specs = weight_map.tensor_specs(config, head)
        self._dtype = dtype
        self._progress: Callable[[int, int], None] | None = None
        self._read_names: set[str] = set()
        plain_names = {name: found.plain_name(name) for name in self._stored.info}
        self._plan = _make_plan(plain_names, self.layout, config, head, new_head=new_head)
        if new_head:
            self._replace_misshapen_head()
        self._refuse_misfits(self._plan.unexpected if strict else [])
        self.report = self._report()

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __getitem__(self, name: str) -> Array:
        self._read_names.add(name)
        if self._progress is not None:
            self._progress(len(self._read_names), len(self))
        if name in self._plan.new:
            return self._converted(name, _make(self.config, self.specs[name]))
        return self._converted(name, self._read(self._source_of(name)))

    def on_read(self, progress: Callable[[int, int], None]) -> None:
        """Call `progress` with (tensors read, tensors in all) whenever one is read."""
        self._progress = progress

    def dtype(self, name: str) -> str:
        """Name of the dtype that indexing returns."""
        if self._dtype is not None:
            return self._dtype
        if name in self._plan.new:
            return "float32"
        return self._stored.info[self._plan.sources[self._source_of(name)][0]].dtype

    def _source_of(self, name: str) -> str:
        """The canonical tensor to read for `name`: itself, or the one to which it is tied."""
        return name if name in self._plan.sources else weight_map.WORD_EMBEDDINGS

    def _read(self, name: str) -> Array:
        """The canonical array as stored: finite, and equal in every place where the file holds it."""
        spec, (first, *others) = self.specs[name], self._plan.sources[name]
        array = spec.from_layout(self._stored[first], self.layout)
        if not is_finite(array):
            where = np.argwhere(~np.isfinite(array))[0].tolist()
            raise CheckpointError(self.path, "NonFinite", f"holds NaN or infinity in {first!r} at {where}")
        for other in others:
            if not _same_bits(array, spec.from_layout(self._stored[other], self.layout)):
                raise CheckpointError(self.path, "DuplicateName", f"holds {name!r} twice with different numbers")
        if name in self._plan.tied and not _same_bits(array, self._read(weight_map.WORD_EMBEDDINGS)):
            detail = f"{name!r} differs from the word embeddings, to which tie_word_embeddings=true ties it"
            raise CheckpointError(self.path, "TiedTensorsDiffer", f"{detail}; set it to false to keep both")
        return array

    def _converted(self, name: str, array: Array) -> Array:
        """The array in the dtype that was asked for, which must be able to hold it."""
        if self._dtype is None or array.dtype == DTYPES[self._dtype]:
            return array
        with np.errstate(over="ignore"):
            converted = array.astype(DTYPES[self._dtype])
        if not is_finite(converted):
            raise CheckpointError(self.path, "NonFinite", f"holds numbers in {name!r} that {self._dtype} cannot")
        return converted

    def _replace_misshapen_head(self) -> None:
        """A head's tensors that have another size in the file, such as another number of labels, are made anew."""
        for name, spec in self.specs.items():
            stored = self._plan.sources.get(name, [])
            shapes = {self._stored.info[one].shape for one in stored} - {spec.stored_shape(self.layout)}
            if spec.module in weight_map.ABOVE and shapes:
                del self._plan.sources[name]
                self._plan.new[name] = f"a head of another size: the file's has the shape {shapes.pop()}"
                self._plan.skipped.update(dict.fromkeys(stored, "a head of another size"))

    def _refuse_misfits(self, unexpected: list[str]) -> None:
        info, missing = self._stored.info, self._plan.missing
        pairs = [(stored, self.specs[name]) for name, names in self._plan.sources.items() for stored in names]
        misfits = [(stored, s) for stored, s in pairs if info[stored].shape != s.stored_shape(self.layout)]
        misshapen = [
            f"{stored!r} has shape {info[stored].shape}, must have {spec.stored_shape(self.layout)}"
            for stored, spec in misfits
        ]
        problems: tuple[tuple[Kind, str, list[str]], ...] = (
            ("MissingTensor", "lacks", missing),
            ("UnexpectedTensor", "holds unknown", unexpected),
            ("ShapeMismatch", "does not fit its config:", misshapen),
            (
                "DtypeUnsupported",
                "holds integers in",
                [stored for stored, _ in pairs if info[stored].dtype not in FLOATS],
            ),
        )
        found = [problem for problem in problems if problem[2]]
        if found:
            counted = f"{len(missing)} missing, {len(unexpected)} unexpected, {len(misshapen)} misshapen tensors: "
            texts = [f"{verb} {', '.join(names)}" for _, verb, names in found]
            wanting = [self.specs[name] for name in missing] + [spec for _, spec in misfits]
            if wanting and all(spec.module in weight_map.ABOVE for spec in wanting):
                texts.append("new_head=True makes the head anew")
            raise CheckpointError(self.path, found[0][0], counted + "; ".join(texts))

    def _report(self) -> LoadReport:
        plan = self._plan
        stored = {name: self._stored.info[names[0]].dtype for name, names in plan.sources.items()}
        return LoadReport(
            source=str(self.path),
            loaded=tuple(plan.sources),
            renamed={other: name for name, names in plan.sources.items() for other in names if other != name},
            transposed=tuple(name for name in plan.sources if self.specs[name].spelling(self.layout).axes),
            tied=plan.tied,
            cast={n: f"{dtype} to {self.dtype(n)}" for n, dtype in stored.items() if dtype != self.dtype(n)},
            new=plan.new,
            skipped=plan.skipped | dict.fromkeys(plan.unexpected, "unknown"),
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
    stored = read_config(encoder)
    config = stored.replace(**config_overrides)
    new_head = new_head or (not config_overrides.keys().isdisjoint(LABEL_FIELDS) and _other_labels(config, stored))
    settings = {"pooling": pooling} if head == "DistilBertForSentenceEmbedding" else {}
    checkpoint = Checkpoint(encoder, config, head, dtype=dtype, strict=strict, new_head=new_head, settings=settings)
    made = [name for name in checkpoint.report.new if checkpoint.specs[name].module in weight_map.ABOVE]
    if made:
        text = f"{checkpoint.path}: new, with initial weights: {', '.join(made)}; train the model before you use it."
        warnings.warn(text, stacklevel=3)
    return checkpoint


def _other_labels(config: DistilBertConfig, stored: DistilBertConfig) -> bool:
    """Whether the labels are not those of the file, which says nothing of them when they are the default ones."""
    return config.id2label != stored.id2label or stored.id2label == DistilBertConfig().id2label


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


def _make_plan(
    plain_names: Mapping[str, str],
    layout: Layout,
    config: DistilBertConfig,
    head: str,
    *,
    new_head: bool,
) -> _Plan:
    """Account for every stored name (given with its plain spelling in the layout) and every tensor of the class."""
    specs = weight_map.tensor_specs(config, head)
    known = {name: spec for spec in weight_map.all_specs(config).values() for name in spec.accepted_names(layout)}
    plan = _Plan({}, weight_map.tied(config, head), {}, {}, [], [])
    if _holds_larger_head(head, {known[plain].module.name for plain in plain_names.values() if plain in known}):
        wanted = {name for name, spec in specs.items() if spec.in_encoder}
    else:
        wanted = specs.keys()
    for stored, plain in plain_names.items():
        if plain in known and known[plain].name in wanted:
            plan.sources.setdefault(known[plain].name, []).append(stored)
        elif plain in known:
            plan.skipped[stored] = "another class's head"
        elif why := weight_map.why_no_weight(layout, plain):
            plan.skipped[stored] = why
        else:
            plan.unexpected.append(stored)
    for name, spec in specs.items():
        if name in plan.sources or (name in plan.tied and weight_map.WORD_EMBEDDINGS in plan.sources):
            continue
        if new_head and spec.module in weight_map.ABOVE:
            plan.new[name] = "a head that the file does not have"
        elif name == weight_map.POSITION_EMBEDDINGS and config.sinusoidal_pos_embds:
            plan.new[name] = "the sinusoidal table, which the config asks for"
        else:
            plan.missing.append(name)
    return plan


def _holds_larger_head(head: str, modules: set[str]) -> bool:
    """Whether the file's head is another class's, which has modules of the same names as this one's and more.

    Sequence classification has a `classifier`, as token classification has, but behind a layer of its own.
    """
    own = {*weight_map.HEADS[head].modules}
    return bool(own) and any(own < {*other.modules} <= modules for other in weight_map.HEADS.values())


def _make(config: DistilBertConfig, spec: TensorSpec) -> Array:
    if spec.name == weight_map.POSITION_EMBEDDINGS:
        return sinusoidal_table(*spec.shape)
    seed = zlib.crc32(spec.name.encode())  # its own, so that equal shapes do not get equal numbers
    return initial_tensor(config, spec, np.random.RandomState(seed))


def _same_bits(a: Array, b: Array) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and raw_bytes(a) == raw_bytes(b)

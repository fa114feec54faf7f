"""From a folder to canonical tensors: every stored name accounted for before the first weight is read.

Strict: a tensor that is missing, unexpected or wrongly shaped refuses the load, all of them in one error. The known
ways in which checkpoints differ (base prefix, tied projector, tensors stored twice, other heads, buffers) are rules
with a reason, and the report lists what each of them did.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from distilbert import weight_map
from distilbert.checkpoint.folder import open_weights
from distilbert.checkpoint.sentence_transformers import DenseFolder
from distilbert.checkpoint.tensors import DTYPES, FLOATS, Array, LazyWeights, digest, is_finite
from distilbert.config import CONFIG_FILE, DistilBertConfig
from distilbert.errors import CheckpointError, ConfigError, Kind
from distilbert.initialization import initial_tensor
from distilbert.positions import sinusoidal_table
from distilbert.weight_map import Layout, TensorSpec

_SHOWN = 4  # names of a list, in a line for people
MAX_MADE = 1 << 24  # numbers of a table that a file lacks: a few bytes of config.json must not ask for gigabytes


@dataclass(frozen=True, eq=False, repr=False)  # equal to itself only: NNX hashes and prints what a module holds
class LoadReport:
    """What a load did with every tensor. Canonical names, except that `skipped` and `renamed` have stored ones.

    The stored names of a dense layer behind a pooling stand behind its folder's name, as paths do.
    """

    source: str
    loaded: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict[str, str])  # stored -> canonical, where they differ
    transposed: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    cast: dict[str, str] = field(default_factory=dict[str, str])  # canonical -> "float16 to float32"
    new: dict[str, str] = field(default_factory=dict[str, str])  # canonical -> why it was made, not read
    skipped: dict[str, str] = field(default_factory=dict[str, str])  # stored -> why it is not needed

    def including(self, other: LoadReport, place: str) -> LoadReport:
        """This report with that of a folder `place` inside."""
        stored = {
            part: getattr(self, part) | {f"{place}/{name}": value for name, value in getattr(other, part).items()}
            for part in ("renamed", "skipped")
        }
        return dataclasses.replace(self, loaded=self.loaded + other.loaded, cast=self.cast | other.cast, **stored)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        counts = [f"{len(self.loaded)} tensors loaded"]
        for verb in ("renamed", "transposed", "tied", "cast", "new", "skipped"):
            if entries := getattr(self, verb):
                shown = f" ({some(entries)})" if verb in ("tied", "new", "skipped") else ""
                counts.append(f"{len(entries)} {verb}{shown}")
        return f"{self.source}: {'; '.join(counts)}"

    def __repr__(self) -> str:
        return f"<LoadReport {self}>"


def some(names: Collection[str]) -> str:
    """The first names of a list, and how many follow."""
    more = len(names) - _SHOWN
    return ", ".join(list(names)[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class _Plan:
    """Where each tensor of a class comes from, decided from names alone. Canonical names, but for the stored ones."""

    sources: dict[str, list[str]]  # canonical -> every stored name that holds it
    tied: tuple[str, ...]  # canonical names that must equal, and may be taken from, the word embeddings
    new: dict[str, str]  # canonical -> why it is made, not read
    skipped: dict[str, str]  # stored -> why it is not needed
    unexpected: list[str]  # stored names that nobody knows
    missing: list[str]  # canonical


class Checkpoint(LazyWeights):
    """The tensors of one class in canonical form, checked from the header, read one at a time by indexing."""

    def __init__(
        self,
        folder: Path,
        config: DistilBertConfig,
        head: str,
        *,
        layouts: Mapping[str, Layout] | None = None,
        headless: bool = False,
        dtype: str | None = None,
        strict: bool = True,
        new_head: bool = False,
        settings: Mapping[str, Any] | None = None,
        dense: DenseFolder | None = None,
    ) -> None:
        found = open_weights(folder)
        self.path, self._stored, self._plain_names = found.path, found.stored, found.plain_names
        if layouts is not None and found.layout.name not in layouts:
            detail = f"holds weights as {found.format.name} names them, where a folder of this kind has none"
            raise CheckpointError(found.path, "VersionUnsupported", detail)
        self.layout = found.layout if layouts is None else layouts[found.layout.name]
        self.config, self.head, self.settings = config, head, dict(settings or {})
        self.specs = self._find_specs()
        self._dtype = dtype
        self._progress: Callable[[int, int], None] | None = None
        self._read_names: set[str] = set()
        self._dense: DenseCheckpoint | None = None
        self._plan = _make_plan(
            self._plain_names, self.layout, config, head, self.specs, new_head=new_head, headless=headless
        )
        if new_head:
            self._replace_misshapen_head()
        self._refuse_misfits(self._plan.unexpected if strict else [])
        self.report = self._report()
        if dense is not None:
            self._dense = DenseCheckpoint.open(dense, config, dtype=dtype, strict=strict, settings=settings)
            self.specs |= self._dense.specs
            self.report = self.report.including(self._dense.report, dense.path.name)

    def _find_specs(self) -> dict[str, TensorSpec]:
        """The tensors of the class, by canonical name."""
        return weight_map.tensor_specs(self.config, self.head)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __getitem__(self, name: str) -> Array:
        self._read_names.add(name)
        if self._progress is not None:
            self._progress(len(self._read_names), len(self))
        if self._dense is not None and name in self._dense.specs:
            return self._dense[name]
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
        if self._dense is not None and name in self._dense.specs:
            return self._dense.dtype(name)
        if name in self._plan.new:
            return "float32"
        return self._stored.info[self._plan.sources[self._source_of(name)][0]].dtype

    def _source_of(self, name: str) -> str:
        """The canonical tensor to read for `name`: itself, or the one to which it is tied."""
        return weight_map.WORD_EMBEDDINGS if name in self._plan.tied else name

    def _read(self, name: str) -> Array:
        """The canonical array as stored: finite, and equal in every place where the file holds it.

        Whoever reads the word embeddings relies on what is tied to them, which a save leaves out.
        """
        spec, (first, *others) = self.specs[name], self._plan.sources[name]
        duplicates = {digest(self._stored[other]) for other in others}  # first, so that one array is held at a time
        tied = [twin for twin in self._plan.tied if name == weight_map.WORD_EMBEDDINGS and twin in self._plan.sources]
        twins = {twin: digest(self._read(twin)) for twin in tied}
        array = self._stored[first]
        if not is_finite(array):
            where = np.argwhere(~np.isfinite(array))[0].tolist()
            raise CheckpointError(self.path, "NonFinite", f"holds NaN or infinity in {first!r} at {where}")
        if duplicates and duplicates != {digest(array)}:
            raise CheckpointError(self.path, "DuplicateName", f"holds {name!r} twice with different numbers")
        array = spec.from_layout(array, self.layout)
        for twin, bits in twins.items():
            if bits != digest(array):
                detail = f"{twin!r} differs from the word embeddings, to which tie_word_embeddings=true ties it"
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


class DenseCheckpoint(Checkpoint):
    """The dense layer behind a pooling, which has a folder of its own."""

    @classmethod
    def open(cls, folder: DenseFolder, config: DistilBertConfig, **options: Any) -> Self:
        """The layer in `folder`; `options` are those of a checkpoint, the pooling among the settings.

        Raises:
            ConfigError: it is for vectors of another width than the encoder's.
        """
        if folder.in_features != config.dim:
            path, found = folder.path / CONFIG_FILE, folder.in_features
            raise ConfigError(f"{path}: in_features must be {config.dim}, the dim of the encoder, got {found!r}.")
        layouts = dict.fromkeys(weight_map.DIALECTS, weight_map.SENTENCE)
        return cls(folder.path, config, "DistilBertForSentenceEmbedding", layouts=layouts, **options)

    def _find_specs(self) -> dict[str, TensorSpec]:
        return weight_map.dense_specs(self.config, self.settings["pooling"])


def _make_plan(
    plain_names: Mapping[str, str],
    layout: Layout,
    config: DistilBertConfig,
    head: str,
    specs: dict[str, TensorSpec],
    *,
    new_head: bool,
    headless: bool,
) -> _Plan:
    """Account for every stored name (given with its plain spelling in the layout) and every tensor of the class."""
    every = weight_map.all_specs(config) | specs
    known = {name: spec for spec in every.values() for name in spec.accepted_names(layout)}
    plan = _Plan({}, weight_map.tied(config, head), {}, {}, [], [])
    present = {known[plain].module.name for plain in plain_names.values() if plain in known}
    if headless or _holds_larger_head(head, present):
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
        if math.prod(spec.shape) > MAX_MADE:
            rows, dim = spec.shape
            raise ConfigError(
                f"max_position_embeddings asks for a sinusoidal table of {rows} x {dim} numbers, more than {MAX_MADE}."
            )
        return sinusoidal_table(*spec.shape)
    seed = zlib.crc32(spec.name.encode())  # its own, so that equal shapes do not get equal numbers
    return initial_tensor(config, spec, np.random.RandomState(seed))

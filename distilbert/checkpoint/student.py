"""A student from a teacher: some of its layers, everything else as it is.

Sanh et al. 2019 initialise DistilBERT from layers 0, 2, 4, 7, 9 and 11 of the twelve of BERT.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from distilbert.checkpoint.loading import Checkpoint, LoadReport
from distilbert.checkpoint.tensors import Array, LazyWeights


class Student(LazyWeights):
    """The canonical tensors of a model whose layer i is layer `layers[i]` of the teacher."""

    def __init__(self, teacher: Checkpoint, layers: Sequence[int]) -> None:
        _check(layers, teacher.config.n_layers)
        config = teacher.config
        pruned = {i: config.pruned_heads[layer] for i, layer in enumerate(layers) if layer in config.pruned_heads}
        self.config = config.replace(n_layers=len(layers), pruned_heads=pruned)
        self.head = teacher.head
        self._teacher = teacher
        places: dict[int | None, int | None] = {None: None} | {layer: i for i, layer in enumerate(layers)}
        self._sources = {  # name in the student -> name in the teacher
            dataclasses.replace(spec, layer=places[spec.layer]).name: name
            for name, spec in teacher.specs.items()
            if spec.layer in places
        }
        self.report = _report(teacher.report, set(self._sources.values()))

    def __getitem__(self, name: str) -> Array:
        return self._teacher[self._sources[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def on_read(self, progress: Callable[[int, int], None]) -> None:
        """Call `progress` with (tensors read, tensors in all) whenever one is read."""
        self._teacher.on_read(lambda done, _: progress(done, len(self)))

    def dtype(self, name: str) -> str:
        """Name of the dtype that indexing returns."""
        return self._teacher.dtype(self._sources[name])


def parse_layers(text: str) -> list[int]:
    """The numbers of layers in a text such as 0,2,4.

    Raises:
        ValueError: they are not numbers joined by commas.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise ValueError(f"layers must be numbers joined by commas, such as 0,2,4, got {text!r}.")
    return [int(part) for part in parts]


def _check(layers: Sequence[int], n_layers: int) -> None:
    if not layers or any(layer not in range(n_layers) for layer in layers) or len(set(layers)) < len(layers):
        listed = ",".join(map(str, layers))
        raise ValueError(f"layers must be different numbers from 0 to {n_layers - 1}, got {listed!r}.")


def _report(report: LoadReport, used: set[str]) -> LoadReport:
    """The teacher's report, with the tensors of layers that were left out among the skipped ones."""
    unused = [name for name in report.loaded if name not in used]
    stored = {name: other for other, name in report.renamed.items()}
    left_out = {stored.get(name, name): "of a layer that the student does not have" for name in unused}
    return dataclasses.replace(
        report,
        loaded=tuple(name for name in report.loaded if name in used),
        transposed=tuple(name for name in report.transposed if name in used),
        renamed={other: name for other, name in report.renamed.items() if name in used},
        cast={name: how for name, how in report.cast.items() if name in used},
        skipped=report.skipped | left_out,
    )

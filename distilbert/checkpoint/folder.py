"""What lies in a checkpoint folder: which file holds the weights, and how to write one in any format."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, cast

from distilbert.checkpoint import hdf5, keras_hub, keras_hub_config, msgpack, safely, safetensors, sharding, torch_bin
from distilbert.checkpoint.tensors import Array, StoredTensors, TensorInfo
from distilbert.config import DistilBertConfig
from distilbert.errors import CheckpointError
from distilbert.weight_map import DIALECTS, FLAX, KERAS_HUB, PT, TF, Layout, TensorSpec, from_h5_path, h5_paths


@dataclass(frozen=True)
class Format:
    """A file format: its name on the command line, its file in a folder, its module, its usual layout."""

    name: str
    file: str
    module: ModuleType
    layout: Layout
    companions: tuple[str, ...] = ()  # further files that belong to the weights

    @property
    def index(self) -> str:
        """The file that stands for `file` in a folder whose checkpoint has several parts."""
        return sharding.index_file(self.file)

    def stored_names(self, spec: TensorSpec, head: str, *, headless: bool) -> list[str]:
        """Every name under which a file of this format holds the tensor."""
        return h5_paths(spec, head) if self.module is hdf5 else [spec.stored_name(self.layout, headless=headless)]

    def written_dtype(self, dtype: str) -> str:
        """The dtype in which a file of this format holds `dtype`: HDF5 has no bfloat16, float32 holds it exactly."""
        return "float32" if self.module is hdf5 and dtype == "bfloat16" else dtype

    def plain_name(self, stored: str) -> str:
        """A name stored in a whole file as its layout spells it."""
        return from_h5_path(stored) if self.module is hdf5 else stored

    def from_index(self, key: str) -> str:
        """The name that a shard stores for a key of its index, which is also how the layout spells it."""
        if self.module is hdf5:
            return key.split("/", 1)[-1]  # without the model's name
        return key.replace("/", ".") if self.module is msgpack else key

    @property
    def is_preset(self) -> bool:
        """Whether its folders are KerasHub presets, whose JSON files are others too."""
        return self.module is keras_hub

    @property
    def shardable(self) -> bool:
        """Whether it is written in parts; the reference's h5 parts have another layout than the whole, of its own."""
        return self.module is not hdf5 and not self.is_preset

    def check_shard_size(self, shard_size: int | None) -> None:
        """Refuse a shard size for a format that is written whole.

        Raises:
            ValueError: the format is written whole.
        """
        if shard_size is not None and not self.shardable:
            raise ValueError(f"a {self.file} is written whole; leave the shard size out.")


FORMATS = {
    entry.name: entry
    for entry in (  # in the order of preference, should a folder hold several
        Format("safetensors", "model.safetensors", safetensors, PT),
        Format("torch-bin", "pytorch_model.bin", torch_bin, PT),
        Format("tf-h5", "tf_model.h5", hdf5, TF),
        Format("flax-msgpack", "flax_model.msgpack", msgpack, FLAX),
        Format("keras-hub", "model.weights.h5", keras_hub, KERAS_HUB, keras_hub_config.TASK_FILES),
    )
}
WRITABLE = list(FORMATS)
REFERENCE_FORMATS = [name for name, entry in FORMATS.items() if not entry.is_preset]  # these hold any model


class Weights(NamedTuple):
    """The weights in a folder: their file or index, format and layout, the tensors, and their names in the layout."""

    path: Path
    format: Format
    layout: Layout
    stored: StoredTensors
    plain_names: dict[str, str]


def find_weights(folder: Path) -> tuple[Format, Path]:
    """The format in which `folder` holds its weights, and the file or index.

    Raises:
        CheckpointError: NotFound when there is no such folder, or no file of a known name in it.
    """
    safely.check_folder(folder)
    for entry in FORMATS.values():
        for name in (entry.file, entry.index):
            if os.path.lexists(folder / name):
                return entry, folder / name
    if any(entry.name.endswith(".ckpt.index") for entry in folder.iterdir()):
        detail = "holds a checkpoint of TensorFlow 1, which only TensorFlow reads; convert it with transformers 4 first"
        raise CheckpointError(folder, "VersionUnsupported", detail)
    names = ", ".join(entry.file for entry in FORMATS.values())
    raise CheckpointError(folder, "NotFound", f"holds no weights (none of {names}, whole or with an index of parts)")


def open_weights(folder: Path) -> Weights:
    """The tensors of `folder` by stored name, unread, with the layout that names them."""
    found, path = find_weights(folder)
    if path.name == found.index:
        stored = sharding.read(path, found.file, cast("sharding.FileModule", found.module), found.from_index)
        plain_names = {name: name for name in stored.info}
    else:
        stored = found.module.read(path)
        plain_names = {name: found.plain_name(name) for name in stored.info}
    return Weights(path, found, DIALECTS.get(stored.metadata.get("format", ""), found.layout), stored, plain_names)


def weight_files(folder: Path, name: str) -> set[str]:
    """The files in `folder` that are, or are parts of, weights in the format of that name.

    Raises:
        CheckpointError: it holds weights in another format, which a save in this one would contradict.
    """
    present = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set[str]()
    for other in FORMATS.values():
        both = present & {other.file, other.index}
        if other.name != name and both:
            detail = f"holds {both.pop()}; two weight files in a folder could disagree, choose another folder"
            raise CheckpointError(folder, "DestinationExists", detail)
    file, companions = FORMATS[name].file, FORMATS[name].companions
    return {one for one in present if one in (file, *companions) or sharding.is_part(one, file)}


def write_weights(
    folder: Path,
    format: str,  # noqa: A002 - the argument's public name
    head: str,
    specs: Mapping[str, TensorSpec],
    dtypes: Mapping[str, str],
    read_one: Callable[[str], Array],
    shard_size: int | None = None,
) -> None:
    """Write the canonical tensors `specs` of the class `head` into `folder`, one at a time, all or nothing.

    Raises:
        CheckpointError: the format is unknown.
    """
    target = check_format(format)
    headless = all(spec.in_encoder for spec in specs.values())
    sources = {stored: spec for spec in specs.values() for stored in target.stored_names(spec, head, headless=headless)}
    info = {
        stored: TensorInfo(spec.stored_shape(target.layout), target.written_dtype(dtypes[spec.name]))
        for stored, spec in sources.items()
    }

    def read_stored(stored: str) -> Array:
        spec = sources[stored]
        return spec.to_layout(read_one(spec.name), target.layout)

    module = cast("sharding.FileModule", target.module)
    sharding.write(folder, target.file, module, info, read_stored, shard_size)


def check_format(name: str) -> Format:
    """The format of that name.

    Raises:
        CheckpointError: there is none.
    """
    if name not in WRITABLE:
        raise CheckpointError(
            name, "VersionUnsupported", f"is not a format to write; choose from {', '.join(WRITABLE)}"
        )
    return FORMATS[name]


def write_config(folder: Path, config: DistilBertConfig, head: str, dtype: str) -> None:
    """Write config.json with the class and dtype that the weights beside it have."""
    architecture = "DistilBertModel" if head == "DistilBertForSentenceEmbedding" else head
    extra = {k: v for k, v in config.extra.items() if k != "torch_dtype"}
    config.replace(extra={**extra, "architectures": [architecture], "dtype": dtype}).save_pretrained(folder)

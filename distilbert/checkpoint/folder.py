"""What lies in a checkpoint folder: which file holds the weights, and how to write one in any format."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from distilbert.checkpoint import hdf5, keras_hub, keras_hub_config, msgpack, safely, safetensors, torch_bin
from distilbert.checkpoint.tensors import Array, StoredTensors, TensorInfo
from distilbert.config import CONFIG_FILE, MAX_CONFIG_BYTES, DistilBertConfig
from distilbert.errors import CheckpointError
from distilbert.weight_map import DIALECTS, FLAX, KERAS_HUB, PT, TF, Layout, TensorSpec, from_h5_path, h5_paths


@dataclass(frozen=True)
class Format:
    """A file format: its name on the command line, its file in a folder, its module, its usual layout."""

    name: str
    file: str
    module: ModuleType
    layout: Layout
    writable: bool = True

    def stored_names(self, spec: TensorSpec, head: str, *, headless: bool) -> list[str]:
        """Every name under which a file of this format holds the tensor."""
        return h5_paths(spec, head) if self.module is hdf5 else [spec.stored_name(self.layout, headless=headless)]

    def written_dtype(self, dtype: str) -> str:
        """The dtype in which a file of this format holds `dtype`: HDF5 has no bfloat16, float32 holds it exactly."""
        return "float32" if self.module is hdf5 and dtype == "bfloat16" else dtype

    def plain_name(self, stored: str) -> str:
        """A stored name as its layout spells it."""
        return from_h5_path(stored) if self.module is hdf5 else stored


FORMATS = {
    entry.name: entry
    for entry in (  # in the order of preference, should a folder hold several
        Format("safetensors", "model.safetensors", safetensors, PT),
        Format("torch-bin", "pytorch_model.bin", torch_bin, PT, writable=False),
        Format("tf-h5", "tf_model.h5", hdf5, TF),
        Format("flax-msgpack", "flax_model.msgpack", msgpack, FLAX),
        Format("keras-hub", "model.weights.h5", keras_hub, KERAS_HUB),
    )
}
WRITABLE = [entry.name for entry in FORMATS.values() if entry.writable]
REFERENCE_FORMATS = [name for name, entry in FORMATS.items() if entry.module is not keras_hub]  # these hold any model


def find_weights(folder: Path) -> Format:
    """The format in which `folder` holds its weights.

    Raises:
        CheckpointError: NotFound when there is no such folder, or no file of a known name in it.
    """
    safely.check_folder(folder)
    for entry in FORMATS.values():
        if os.path.lexists(folder / entry.file):
            return entry
    names = ", ".join(entry.file for entry in FORMATS.values())
    raise CheckpointError(folder, "NotFound", f"holds no weights (none of {names})")


def open_weights(folder: Path) -> tuple[Format, Layout, StoredTensors]:
    """The tensors of `folder` by stored name, unread, with the layout that names them."""
    found = find_weights(folder)
    stored = found.module.read(folder / found.file)
    return found, DIALECTS.get(stored.metadata.get("format", ""), found.layout), stored


def write_weights(
    folder: Path,
    format: str,  # noqa: A002 - the argument's public name
    head: str,
    specs: Mapping[str, TensorSpec],
    dtypes: Mapping[str, str],
    read_one: Callable[[str], Array],
) -> Path:
    """Write the canonical tensors `specs` of the class `head` into `folder`, one at a time, all or nothing.

    Raises:
        CheckpointError: the format is unknown, or the folder holds weights in another format.
    """
    target = check_format(format)
    for other in FORMATS.values():
        if other is not target and os.path.lexists(folder / other.file):
            detail = f"holds {other.file}; two weight files in a folder could disagree, choose another folder"
            raise CheckpointError(folder, "DestinationExists", detail)
    headless = all(spec.in_encoder for spec in specs.values())
    sources = {stored: spec for spec in specs.values() for stored in target.stored_names(spec, head, headless=headless)}
    info = {
        stored: TensorInfo(spec.stored_shape(target.layout), target.written_dtype(dtypes[spec.name]))
        for stored, spec in sources.items()
    }

    def read_stored(stored: str) -> Array:
        spec = sources[stored]
        return spec.to_layout(read_one(spec.name), target.layout)

    target.module.write(folder / target.file, info, read_stored)
    return folder / target.file


def check_format(name: str) -> Format:
    """The writable format of that name.

    Raises:
        CheckpointError: there is none.
    """
    if name not in WRITABLE:
        raise CheckpointError(
            name, "VersionUnsupported", f"is not a format to write; choose from {', '.join(WRITABLE)}"
        )
    return FORMATS[name]


def read_config(folder: Path) -> DistilBertConfig:
    """The config of a checkpoint folder, a KerasHub preset included.

    Raises:
        CheckpointError: config.json is missing or not a JSON object. ConfigError: a value is wrong.
    """
    if keras_hub_config.is_preset(safely.read_json(folder / CONFIG_FILE, MAX_CONFIG_BYTES)):
        return keras_hub_config.read_config(folder)
    return DistilBertConfig.from_pretrained(folder)


def write_config(folder: Path, config: DistilBertConfig, head: str, dtype: str) -> None:
    """Write config.json with the class and dtype that the weights beside it have."""
    architecture = "DistilBertModel" if head == "DistilBertForSentenceEmbedding" else head
    extra = {k: v for k, v in config.extra.items() if k != "torch_dtype"}
    config.replace(extra={**extra, "architectures": [architecture], "dtype": dtype}).save_pretrained(folder)

"""What a hostile case is, the good tiny model from which it is made, and tools to spoil its files."""

import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from distilbert import weight_map
from distilbert.checkpoint.folder import FORMATS
from distilbert.checkpoint.manifest import MANIFEST_FILE
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.config import DistilBertConfig
from distilbert.initialization import initial_weights

HEAD = "DistilBertForMaskedLM"
CONFIG = DistilBertConfig(
    vocab_size=20, max_position_embeddings=8, n_layers=1, n_heads=2, dim=4, hidden_dim=6, initializer_range=1.0
)
SPECS = weight_map.tensor_specs(CONFIG, HEAD)
WEIGHTS = initial_weights(CONFIG, HEAD, seed=1)
LIN1 = "distilbert.transformer.layer.0.ffn.lin1.weight"
NORM = "distilbert.transformer.layer.0.sa_layer_norm.weight"
WORDS = weight_map.WORD_EMBEDDINGS
OUTSIDE = "outside"  # beside the folder of a case: a good checkpoint that must never be opened

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
HTML = b"<!DOCTYPE html><html><body>Sign in to continue</body></html>"


@dataclass(frozen=True)
class Case:
    """A way to spoil a good folder that holds weights in `format`, and the kinds of error that may refuse it.

    A kind is a CheckpointError's, or the name of another class of the error family.
    """

    name: str
    spoil: Callable[[Path], object]
    kinds: tuple[str, ...]
    format: str = "safetensors"


def cases(what, table, form="safetensors"):
    """The cases of a table from name to (spoil, kind, kind, ...)."""
    return [Case(f"{what}: {name}", spoil, tuple(kinds), form) for name, (spoil, *kinds) in table.items()]


def make_good(folder):
    """A good checkpoint of the tiny model in every format, a folder each, with a vocabulary beside it."""
    for name, entry in FORMATS.items():
        written = "safetensors" if name == "torch-bin" else name
        save_checkpoint(folder / name, written, HEAD, CONFIG, WEIGHTS)
        if name != written:  # PyTorch's files are PyTorch's own
            file = folder / name / FORMATS[written].file
            write_tensors(name, folder / name / entry.file, dict(FORMATS[written].module.read(file)))
            file.unlink()
        (folder / name / MANIFEST_FILE).unlink()  # as a downloaded folder, whose files nothing vouches for
        (folder / name / "vocab.txt").write_text("".join(f"token{i}\n" for i in range(CONFIG.vocab_size)))


@functools.cache
def good_bytes(form):
    """The good weights file of a format."""
    with tempfile.TemporaryDirectory() as folder:
        make_good(Path(folder))
        return (Path(folder) / form / FORMATS[form].file).read_bytes()


def make(case, good, place):
    """The folder `place`/in of a case, and beside it a good one that it must not reach."""
    shutil.copytree(good / case.format, place / "in")
    (place / OUTSIDE).symlink_to(good / case.format)
    case.spoil(place / "in")
    return place / "in"


def weights_file(folder):
    """The file that holds the weights of a folder with one format."""
    return next(folder / entry.file for entry in FORMATS.values() if (folder / entry.file).exists())


def content(data, name=None):
    """Replace the weights file, or the file `name`, by these bytes."""

    def spoil(folder):
        target = folder / name if name else weights_file(folder)
        target.unlink(missing_ok=True)
        target.write_bytes(data)

    return spoil


def edit_bytes(change):
    """Replace the weights file by what `change` makes of its bytes."""

    def spoil(folder):
        file = weights_file(folder)
        file.write_bytes(change(file.read_bytes()))

    return spoil


def edit_config(**changes):
    """Change values of config.json."""

    def spoil(folder):
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | changes))

    return spoil


def stored(form, name):
    """Where a file of the format holds a canonical tensor, every place."""
    spec = SPECS.get(name) or weight_map.all_specs(CONFIG)[name]
    has_it = any(spec.accepted_names(FORMATS[form].layout))
    return FORMATS[form].stored_names(spec, HEAD, headless=False) if has_it else []


def edit_tensors(form, change):
    """Rewrite the weights file after `change(tensors, names)`, where `names` maps canonical to stored ones."""

    def spoil(folder):
        file, module = folder / FORMATS[form].file, FORMATS[form].module
        tensors = dict(module.read(file))
        change(tensors, {name: stored(form, name) for name in SPECS})
        write_tensors(form, file, tensors)

    return spoil


def write_tensors(form, file, tensors):
    """Write arrays under the names of a format with the library that users write it with."""
    if form == "torch-bin":
        torch.save({name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in tensors.items()}, file)
    elif form == "tf-h5":
        write_h5(file, tensors)
    elif form == "keras-hub":
        task = {name.removeprefix("task/"): a for name, a in tensors.items() if name.startswith("task/")}
        write_h5(file, {name: a for name, a in tensors.items() if not name.startswith("task/")})
        write_h5(file.with_name("task.weights.h5"), task)
    elif form == "flax-msgpack":
        from flax.serialization import msgpack_serialize
        from flax.traverse_util import unflatten_dict

        file.write_bytes(msgpack_serialize(unflatten_dict(tensors, sep=".")))
    else:
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, file, {"format": "pt"})


def write_h5(file, tensors):
    import h5py

    with h5py.File(file, "w") as h5:
        for name, array in tensors.items():
            h5.create_dataset(name, data=array)

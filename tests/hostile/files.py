"""What may stand in the place of any weights file, and what any format may wrongly hold."""

import functools
import os
import socket

import numpy as np

from distilbert import weight_map
from distilbert.checkpoint.folder import FORMATS
from tests.hostile import base
from tests.hostile.base import HTML, LFS, LIN1, NORM, OUTSIDE, WORDS, cases, content, edit_bytes, edit_tensors


def replace(make, name=None):
    """Replace the weights file, or the file `name`, by what `make(path)` puts there."""

    def spoil(folder):
        target = folder / name if name else base.weights_file(folder)
        target.unlink(missing_ok=True)
        make(target)

    return spoil


def link(to):
    """A symbolic link to `to`; {} stands for the name of the file."""
    return lambda path: path.symlink_to(to.format(path.name))


def _socket(path):
    here = os.open(path.parent, os.O_RDONLY)  # the name of a socket is limited to 108 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def _linked_folder(folder):
    """The weights lie where a link to another folder, inside this one, leads."""
    (folder / "sub").symlink_to(f"../{OUTSIDE}")
    file = base.weights_file(folder)
    file.unlink()
    file.symlink_to(f"sub/{file.name}")


def cached(link_to, blobs="blobs"):
    """The folder as a snapshot in a hub cache, its weights file a link; {} stands for the name of the file."""

    def spoil(folder):
        snapshot = folder.parent / "snapshots" / "abc"
        snapshot.parent.mkdir()
        folder.rename(snapshot)
        folder.symlink_to(snapshot)
        file = base.weights_file(snapshot)
        (folder.parent / "stored").mkdir()
        file.rename(folder.parent / "stored" / "sha")
        (folder.parent / "blobs").symlink_to(blobs) if blobs != "blobs" else (folder.parent / "stored").rename(
            folder.parent / "blobs"
        )
        file.symlink_to(link_to.format(file.name))

    return spoil


NOT_FILES = {
    "directory": (replace(lambda path: path.mkdir()), "NotRegularFile"),
    "pipe": (replace(os.mkfifo), "NotRegularFile"),
    "socket": (replace(_socket), "NotRegularFile"),
    "link out of the folder": (replace(link(f"../{OUTSIDE}/{{}}")), "UnsafeLink"),
    "absolute link": (replace(link("/etc/hostname")), "UnsafeLink"),
    "link to a device": (replace(link("/dev/zero")), "UnsafeLink"),
    "link to the system": (replace(link("/proc/version")), "UnsafeLink"),
    "link to itself": (replace(link("{}")), "UnsafeLink"),
    "link to nothing": (replace(link("nothing")), "NotFound"),
    "link through a linked folder": (_linked_folder, "UnsafeLink"),
    "link out of a hub's cache": (cached(f"../../{OUTSIDE}/{{}}"), "UnsafeLink"),
    "link by way of a hub's blobs": (cached(f"../../blobs/../{OUTSIDE}/{{}}"), "UnsafeLink"),
    "link into blobs that are a link": (cached("../../blobs/{}", blobs=OUTSIDE), "UnsafeLink"),
    "absent": (lambda folder: base.weights_file(folder).unlink(), "NotFound"),
    "empty": (content(b""), "BadMagic"),
    "git-lfs pointer": (content(LFS), "BadMagic"),
    "HTML page": (content(HTML), "BadMagic"),
    "zeros": (content(bytes(4096)), "BadMagic"),
    "text": (content(b"{}\n"), "BadMagic"),
    "half": (edit_bytes(lambda data: data[: len(data) // 2]), "Truncated", "HeaderInvalid"),
    "twenty bytes": (edit_bytes(lambda data: data[:20]), "Truncated", "HeaderInvalid"),
}


def _set(name, change):
    """Put `change(array)` in the place of a tensor, everywhere where the file holds it."""

    def edit(tensors, names):
        for place in names[name]:
            tensors[place] = change(tensors[place])

    return edit


def _fill(value):
    def change(array):
        array = array.copy()
        array.reshape(-1)[-1] = value
        return array

    return change


def _remove(name):
    return lambda tensors, names: [tensors.pop(place) for place in names[name]]


def _add(form, name):
    """An unknown tensor; the name is spelt so that the format can hold it."""
    prefix = "layer/model/" if form == "tf-h5" else ""
    return lambda tensors, _: tensors.update({prefix + name: np.ones(2, np.float32)})


def _untie(form):
    (place,) = base.stored(form, weight_map.TIED_PROJECTOR)

    def edit(tensors, names):
        words = np.array(tensors[names[WORDS][0]])
        tensors[place] = (words.T if form in ("tf-h5", "flax-msgpack") else words) + np.float32(1)

    return edit


def _twice():
    """A tensor once more, under another name that it may have, with other numbers."""

    def edit(tensors, names):
        first, *others = names[WORDS]
        other = others[0] if others else first.replace(weight_map.BASE, "", 1)
        tensors[other] = tensors[first] + np.float32(1)

    return edit


def _rename(old, new):
    def edit(tensors, _):
        for name in list(tensors):
            tensors[name.replace(old, new)] = tensors.pop(name)

    return edit


def wrong_tensors(form):
    """What the tensors themselves may have wrong, in a file that is as its format asks."""
    edit = functools.partial(edit_tensors, form)
    twice = (
        {  # KerasHub has one name for a tensor, and none for a tied one
            "a tied tensor that differs": (edit(_untie(form)), "TiedTensorsDiffer"),
            "a tensor twice": (edit(_twice()), "DuplicateName", "MissingTensor"),
        }
        if form != "keras-hub"
        else {}
    )
    return twice | {
        "NaN": (edit(_set(LIN1, _fill(np.nan))), "NonFinite"),
        "infinity": (edit(_set(NORM, _fill(np.inf))), "NonFinite"),
        "minus infinity": (edit(_set(WORDS, _fill(-np.inf))), "NonFinite"),
        "a row less": (edit(_set(WORDS, lambda array: array[1:])), "ShapeMismatch"),
        "a flat kernel": (edit(_set(LIN1, np.ravel)), "ShapeMismatch"),
        "a transposed kernel": (edit(_set(LIN1, np.transpose)), "ShapeMismatch"),
        "a scalar": (edit(_set(NORM, lambda array: array[0])), "ShapeMismatch", "HeaderInvalid"),
        "an empty tensor": (edit(_set(NORM, lambda array: array[:0])), "ShapeMismatch"),
        "integers": (edit(_set(LIN1, lambda array: array.astype(np.int64))), "DtypeUnsupported"),
        "bytes": (edit(_set(LIN1, lambda array: array.astype(np.uint8))), "DtypeUnsupported", "UnsafePickle"),
        "complex": (edit(_set(LIN1, lambda array: array.astype(np.complex64))), "DtypeUnsupported", "UnsafePickle"),
        "a tensor missing": (edit(_remove(NORM)), "MissingTensor"),
        "no tensors": (edit(lambda tensors, _: tensors.clear()), "MissingTensor"),
        "a tensor more": (edit(_add(form, "bogus")), "UnexpectedTensor"),
        "a name that climbs": (edit(_add(form, "..x")), "UnexpectedTensor", "HeaderInvalid"),
        "a name of escapes": (edit(_add(form, "\x1b[31m\u202ered\x07")), "UnexpectedTensor"),
        "a wrong prefix": (edit(_rename("layers" if form == "keras-hub" else "distilbert", "module")), "MissingTensor"),
    }


HDF5 = {"tf-h5", "keras-hub"}
_OF_HDF5 = ("MissingTensor", "UnexpectedTensor")  # the right kind of file, with other names in it


def _all():
    for name in FORMATS:
        yield from cases(name, NOT_FILES, name)
        yield from cases(name, wrong_tensors(name), name)
        others = {
            f"{other} bytes": (content(base.good_bytes(other)), *(_OF_HDF5 if {name, other} == HDF5 else ["BadMagic"]))
            for other in FORMATS
            if other != name
        }
        yield from cases(name, others, name)


CASES = list(_all())

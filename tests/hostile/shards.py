"""Hostile sharded checkpoints: an index that leads elsewhere, or does not agree with its shards."""

import functools
import json
import os
import shutil

import numpy as np

from distilbert.checkpoint.folder import FORMATS
from distilbert.weight_map import HEADS
from tests.hostile import base
from tests.hostile.base import OUTSIDE, Case
from tests.hostile.files import link

SHARDED = ("safetensors", "torch-bin", "tf-h5", "flax-msgpack")


def index_file(form):
    """The name of a format's index."""
    return f"{FORMATS[form].file}.index.json"


def shard_file(form, number, count=2):
    """The name of a shard, from 1."""
    stem, ending = FORMATS[form].file.rsplit(".", 1)
    return f"{stem}-{number:05}-of-{count:05}.{ending}"


def split(folder, form):
    """Turn the weights of a good folder into two shards and their index, as the reference names them."""
    file = folder / FORMATS[form].file
    tensors = {FORMATS[form].plain_name(name): array for name, array in FORMATS[form].module.read(file).items()}
    file.unlink()
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        base.write_tensors(form, folder / shard_file(form, number), {name: tensors[name] for name in part})
        weight_map |= {key(form, name): shard_file(form, number) for name in part}
    size = sum(array.nbytes for array in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / index_file(form)).write_text(json.dumps(index))


def key(form, name):
    """What an index calls a tensor that a shard stores under `name`."""
    if form == "tf-h5":
        return f"{HEADS[base.HEAD].tf_name}/{name}"
    return name.replace(".", "/") if form == "flax-msgpack" else name


def edit_index(change):
    """The good shards under another index; `change(index, key of LIN1, form)` alters or returns one."""

    def spoil(folder, form):
        split(folder, form)
        index = json.loads((folder / index_file(form)).read_text())
        place = key(form, FORMATS[form].plain_name(base.stored(form, base.LIN1)[0]))
        index = change(index, place, form) or index
        (folder / index_file(form)).write_text(index if isinstance(index, str) else json.dumps(index))

    return spoil


def leads_to(name):
    """One tensor is said to lie in the file `name`; {} stands for the name of the first shard."""
    return edit_index(lambda index, place, form: index["weight_map"].update({place: name.format(shard_file(form, 1))}))


def _copy_outside(folder):
    """The good shards, where none of them may be read."""
    (folder.parent / OUTSIDE).unlink()
    shutil.copytree(folder, folder.parent / OUTSIDE)


def all_lead_to(name):
    """Every tensor of the first shard is said to lie in the file `name`, where a good copy of that shard is."""

    def spoil(folder, form):
        split(folder, form)
        _copy_outside(folder)
        index = json.loads((folder / index_file(form)).read_text())
        first, target = shard_file(form, 1), name.format(shard_file(form, 1), folder.parent / OUTSIDE)
        index["weight_map"] = {name: target if file == first else file for name, file in index["weight_map"].items()}
        (folder / index_file(form)).write_text(json.dumps(index))

    return spoil


def replace_shard(make):
    """The first shard replaced by what `make(path)` puts there; a good copy lies outside."""

    def spoil(folder, form):
        split(folder, form)
        _copy_outside(folder)
        (folder / shard_file(form, 1)).unlink()
        make(folder / shard_file(form, 1))

    return spoil


def edit_shard(change, number=1):
    """A shard after `change(tensors, form)`; the index stays."""

    def spoil(folder, form):
        split(folder, form)
        file = folder / shard_file(form, number)
        tensors = dict(FORMATS[form].module.read(file))
        change(tensors, form)
        base.write_tensors(form, file, tensors)

    return spoil


def _swap(folder, form):
    split(folder, form)
    first, second = folder / shard_file(form, 1), folder / shard_file(form, 2)
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)


def _both_hold(folder, form):
    """The second shard holds a tensor of the first one too, with other numbers."""
    split(folder, form)
    first = dict(FORMATS[form].module.read(folder / shard_file(form, 1)))
    name = next(iter(first))
    second = dict(FORMATS[form].module.read(folder / shard_file(form, 2)))
    base.write_tensors(form, folder / shard_file(form, 2), second | {name: first[name] + np.float32(1)})


def _only_index(folder, form):
    split(folder, form)
    for number in (1, 2):
        (folder / shard_file(form, number)).unlink()


def _half_downloaded(folder, form):
    split(folder, form)
    shard = folder / shard_file(form, 1)
    shard.rename(shard.with_name(shard.name + ".incomplete"))


def _truncated(folder, form):
    split(folder, form)
    shard = folder / shard_file(form, 1)
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])


def _other(form):
    """A pickle in the place of other formats, and another format in the place of a pickle."""
    return "safetensors" if form == "torch-bin" else "torch-bin"


def _bytes_of_another_format(folder, form):
    split(folder, form)
    (folder / shard_file(form, 1)).write_bytes(base.good_bytes(_other(form)))


def _of_another_format(folder, form):
    """All tensors in a file of another format, which the index names so."""
    split(folder, form)
    name = f"weights.{FORMATS[_other(form)].file.rsplit('.', 1)[1]}"
    (folder / name).write_bytes(base.good_bytes(_other(form)))
    index = json.loads((folder / index_file(form)).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], name)
    (folder / index_file(form)).write_text(json.dumps(index))


def _index_is(make):
    def spoil(folder, form):
        split(folder, form)
        (folder / index_file(form)).unlink()
        make(folder / index_file(form))

    return spoil


def _add(number):
    """A tensor that the index does not name."""

    def change(tensors, form):
        tensors["layer/model/bogus" if form == "tf-h5" else "bogus"] = np.ones(2, np.float32)

    return edit_shard(change, number)


def _drop(tensors, _):
    tensors.pop(next(iter(tensors)))


def _nan(tensors, _):
    name = next(iter(tensors))
    tensors[name] = np.full_like(tensors[name], np.nan)


def _many_shards(*_):
    return '{"metadata": {}, "weight_map": {' + ",".join(f'"{i}":"{i}.safetensors"' for i in range(1_000_000)) + "}}"


def _thousands(_, __, form):
    return {"metadata": {}, "weight_map": {f"t{i}": shard_file(form, i, 20_000) for i in range(20_000)}}


ESCAPE = ("PathEscape",)
WRONG = ("HeaderInvalid",)
DISAGREES = ("IncompleteSave", "MissingTensor", "UnexpectedTensor", "DuplicateName", "SizeMismatch", "HeaderInvalid")
TABLE = {
    # a place elsewhere
    "climbs": (all_lead_to(f"../{OUTSIDE}/{{0}}"), *ESCAPE),
    "climbs by a folder that is there": (all_lead_to(f"../in/../{OUTSIDE}/{{0}}"), *ESCAPE),
    "climbs by a folder that is not": (all_lead_to(f"x/../../{OUTSIDE}/{{0}}"), *ESCAPE),
    "climbs as on Windows": (leads_to(f"..\\{OUTSIDE}\\{{}}"), *ESCAPE),
    "is absolute": (all_lead_to("{1}/{0}"), *ESCAPE),
    "is on a drive": (leads_to("C:\\{}"), *ESCAPE),
    "is on a drive, relative to it": (leads_to("C:{}"), *ESCAPE),
    "is on a share": (leads_to("\\\\host\\share\\{}"), *ESCAPE),
    "is a URL": (leads_to("file:///etc/{}"), *ESCAPE),
    "is a device": (leads_to("/dev/zero"), *ESCAPE),
    "is in a folder below": (leads_to("sub/{}"), *ESCAPE, "IncompleteSave", "NotFound"),
    "has a NUL": (leads_to("{}\0"), *ESCAPE),
    "has a line end": (leads_to("{}\n"), *ESCAPE, "IncompleteSave", *WRONG),
    "has escapes": (leads_to("\x1b[31m\u202e{}"), *ESCAPE, "IncompleteSave", "NotFound", *WRONG),
    "is empty": (leads_to(""), *ESCAPE, *WRONG),
    "is the folder": (leads_to("."), *ESCAPE, *WRONG, "NotRegularFile"),
    "is a number": (edit_index(lambda index, place, _: index["weight_map"].update({place: 5})), *WRONG, *ESCAPE),
    "is a list": (edit_index(lambda index, place, _: index["weight_map"].update({place: ["x"]})), *WRONG, *ESCAPE),
    "is 10 000 letters": (leads_to("a" * 10_000 + "{}"), *ESCAPE, *WRONG, "IncompleteSave", "NotFound"),
    "is the index": (edit_index(lambda index, place, form: index["weight_map"].update({place: index_file(form)})), *ESCAPE, *WRONG, "BadMagic"),
    "is config.json": (leads_to("config.json"), *ESCAPE, *WRONG, "BadMagic"),
    "is of another format": (_of_another_format, *ESCAPE, *WRONG, "BadMagic", "UnexpectedTensor", "IncompleteSave"),
    # what lies there
    "a link out of the folder": (replace_shard(link(f"../{OUTSIDE}/{{}}")), "UnsafeLink"),
    "a link to a device": (replace_shard(link("/dev/zero")), "UnsafeLink"),
    "a link to itself": (replace_shard(link("{}")), "UnsafeLink"),
    "a pipe": (replace_shard(os.mkfifo), "NotRegularFile"),
    "a directory": (replace_shard(lambda path: path.mkdir()), "NotRegularFile"),
    "a git-lfs pointer": (replace_shard(lambda path: path.write_bytes(base.LFS)), "BadMagic"),
    "an empty file": (replace_shard(lambda path: path.touch()), "BadMagic", "Truncated", "IncompleteSave"),
    "bytes of another format": (_bytes_of_another_format, "BadMagic"),
    "no shard": (_only_index, "IncompleteSave", "NotFound"),
    "one shard not there": (replace_shard(lambda path: None), "IncompleteSave", "NotFound"),
    "one shard half downloaded": (_half_downloaded, "IncompleteSave", "NotFound"),
    "one shard cut short": (_truncated, "IncompleteSave", "Truncated", "HeaderInvalid"),
    "shards swapped": (_swap, *DISAGREES),
    "a tensor in both shards": (_both_hold, *DISAGREES),
    "a tensor that the index does not name": (_add(1), *DISAGREES),
    "a tensor missing in its shard": (edit_shard(_drop), *DISAGREES),
    "NaN in a shard": (edit_shard(_nan), "NonFinite"),
    "a tensor said to be in the other shard": (edit_index(lambda index, place, form: index["weight_map"].update({place: next(f for f in (shard_file(form, 1), shard_file(form, 2)) if f != index["weight_map"][place])})), *DISAGREES),
    "a tensor that no shard has": (edit_index(lambda index, _, form: index["weight_map"].update({"bogus": shard_file(form, 1)})), *DISAGREES),
    "a tensor that the index forgot": (edit_index(lambda index, place, _: index["weight_map"].pop(place) and None), *DISAGREES),
    "a size that is too large": (edit_index(lambda index, *_: index["metadata"].update(total_size=1 << 60)), "SizeMismatch", "IncompleteSave"),
    "a size that is too small": (edit_index(lambda index, *_: index["metadata"].update(total_size=4)), "SizeMismatch", "IncompleteSave"),
    "a size that is text": (edit_index(lambda index, *_: index["metadata"].update(total_size="x")), "SizeMismatch", "IncompleteSave", *WRONG),
    # the index itself
    "an index without a map": (edit_index(lambda index, *_: index.pop("weight_map") and None), *WRONG),
    "an index whose map is a list": (edit_index(lambda index, *_: index.update(weight_map=list(index["weight_map"]))), *WRONG),
    "an index whose map is empty": (edit_index(lambda index, *_: index.update(weight_map={})), *WRONG, "MissingTensor", "IncompleteSave"),
    "an index whose map is null": (edit_index(lambda index, *_: index.update(weight_map=None)), *WRONG),
    "an index that names a tensor twice": (edit_index(lambda index, place, _: json.dumps(index).replace('"weight_map": {', f'"weight_map": {{"{place}": "x", ')), "DuplicateName"),
    "an index that is a list": (edit_index(lambda index, *_: "[]"), *WRONG),
    "an index that is no JSON": (edit_index(lambda index, *_: "{"), *WRONG),
    "an index that is empty": (edit_index(lambda index, *_: " "), *WRONG),
    "an index without end": (edit_index(lambda index, *_: '{"weight_map":' + "[" * 200_000), "ResourceLimit"),
    "an index of 20 000 shards": (edit_index(_thousands), "ResourceLimit", "IncompleteSave", *WRONG),
    "an index that is a link out": (_index_is(link(f"../{OUTSIDE}/{{}}")), "UnsafeLink"),
    "an index that is a pipe": (_index_is(os.mkfifo), "NotRegularFile"),
    "an index that is a directory": (_index_is(lambda path: path.mkdir()), "NotRegularFile"),
}  # fmt: skip

TABLES = dict.fromkeys(SHARDED, TABLE)
TABLES["safetensors"] = TABLE | {"an index of a million shards": (edit_index(_many_shards), "ResourceLimit", *WRONG)}

CASES = [
    Case(f"shards of {form}: {name}", functools.partial(spoil, form=form), tuple(kinds), form)
    for form, table in TABLES.items()
    for name, (spoil, *kinds) in table.items()
]

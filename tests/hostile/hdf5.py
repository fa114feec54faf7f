"""Hostile HDF5 files: links, storage elsewhere, filters, types and shapes that weights do not need, cycles, damage."""

import h5py
import numpy as np

from tests.hostile.base import LIN1, NORM, OUTSIDE, WORDS, cases, content, edit_bytes, stored

FILE = "tf_model.h5"
ELSEWHERE = f"../{OUTSIDE}/{FILE}"
LIN1_PLACE, NORM_PLACE = stored("tf-h5", LIN1)[0], stored("tf-h5", NORM)[0]
WORDS_PLACE, WORDS_AGAIN = stored("tf-h5", WORDS)


def edit(change, libver="earliest"):
    """The good file after `change(file)`."""

    def spoil(folder):
        with h5py.File(folder / FILE, "r+", libver=libver) as file:
            change(file)

    return spoil


def only(change, libver="earliest"):
    """A file that holds only what `change(file)` puts there."""

    def spoil(folder):
        with h5py.File(folder / FILE, "w", libver=libver) as file:
            change(file)

    return spoil


def put(make, place=LIN1_PLACE):
    """The good file with another thing in the place of a dataset: `make(file, place, array)`."""

    def change(file):
        array = file[place][()]
        del file[place]
        make(file, place, array)

    return edit(change)


def stores(**options):
    """The dataset as it is, stored otherwise."""
    return put(lambda file, place, array: file.create_dataset(place, data=array, **options))


def typed(dtype):
    """The dataset with numbers of another type."""
    return put(lambda file, place, array: file.create_dataset(place, data=array.astype(dtype)))


def linked(make_link, place=LIN1_PLACE):
    """A link in the place of a dataset or group."""

    def change(file):
        file.move(place, "moved")
        file[place] = make_link()

    return edit(change)


def _external_storage(name, shape=None):
    def make(file, place, array):
        size = int(np.prod(shape or array.shape)) * 4
        file.create_dataset(place, shape or array.shape, "f4", external=[(name, 0, size)])

    return put(make)


def _virtual(source):
    def make(file, place, array):
        layout = h5py.VirtualLayout(shape=array.shape, dtype="f4")
        layout[:] = h5py.VirtualSource(source, place, shape=array.shape)
        file.create_virtual_dataset(place, layout)

    return put(make)


def _never_written(shape, **options):
    return put(lambda file, place, _: file.create_dataset(place, shape, "f4", **options))


def _compact(file, place, array):
    """A dataset whose bytes lie in its header."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple(array.shape)
    parent, name = place.rsplit("/", 1)
    dataset = h5py.h5d.create(file[parent].id, name.encode(), h5py.h5t.IEEE_F32LE, space, properties)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, array)


def _fill_value(file, place, array):
    """A dataset without bytes, all of whose numbers are a fill value."""
    file.create_dataset(place, array.shape, "f4", fillvalue=3.5)


def _loop(file):
    file["loop"] = file["/"]


def _mutual(file):
    group = file.create_group("a/b")
    group["c"] = file["a"]


def _net(file):
    """Ten levels of groups, each linked six times: few bytes, sixty million paths."""
    below = file.create_group("0")
    for level in range(1, 10):
        group = file.create_group(str(level))
        for i in range(6):
            group[str(i)] = below
        below = group


def _crossed(file):
    """Two names for one dataset, in the place of two datasets of the same shape."""
    other = LIN1_PLACE.replace("ffn/lin1/kernel", "attention/k_lin/kernel")
    first = other.replace("k_lin", "q_lin")
    del file[other]
    file[other] = file[first][()].T.copy()[:2]


def _objects(file, place, _):
    file.create_dataset(place, data=np.array([b"text", b"longer text"], object), dtype=h5py.string_dtype())


def _references(file, place, _):
    file.create_dataset(place, data=np.array([file.ref, file[WORDS_PLACE].ref], object), dtype=h5py.ref_dtype)


def _ragged(file, place, _):
    dataset = file.create_dataset(place, (2,), h5py.vlen_dtype(np.float32))
    dataset[0], dataset[1] = [1.0], [2.0, 3.0]


def _named_type(file, place, _):
    file[place] = np.dtype("f4")


def _deep(file):
    file.create_group("/".join("d" * 200))


def _many(file):
    group = file.create_group("many")
    for i in range(3000):
        group.create_group(str(i))
    for i in range(30):
        file[f"again{i}"] = group


def _pages(file):
    file.create_dataset("layer/model/extra:0", data=np.zeros((64, 64), np.float32))


def flip(pattern, offset, value):
    """Bytes after the first place of `pattern` replaced."""

    def change(data):
        at = data.index(pattern) + offset
        return data[:at] + value + data[at + len(value) :]

    return edit_bytes(change)


LINKS = {
    "external link to a dataset": (linked(lambda: h5py.ExternalLink(ELSEWHERE, LIN1_PLACE)), "HeaderInvalid", "UnsafeLink"),
    "external link to a group": (linked(lambda: h5py.ExternalLink(ELSEWHERE, "distilbert"), "distilbert"), "HeaderInvalid", "UnsafeLink"),
    "external link by an absolute path": (linked(lambda: h5py.ExternalLink("/etc/hostname", "/x")), "HeaderInvalid", "UnsafeLink"),
    "external link to the file itself": (linked(lambda: h5py.ExternalLink(FILE, "moved")), "HeaderInvalid", "UnsafeLink"),
    "external link beside the weights": (edit(lambda f: f.__setitem__("e", h5py.ExternalLink("/etc/hostname", "/x"))), "HeaderInvalid", "UnsafeLink"),
    "external link in a group in between": (linked(lambda: h5py.ExternalLink(ELSEWHERE, LIN1_PLACE.rsplit("/", 2)[0]), LIN1_PLACE.rsplit("/", 2)[0]), "HeaderInvalid", "UnsafeLink"),
    "soft link to a dataset": (linked(lambda: h5py.SoftLink("/moved")), "UnsafeLink"),
    "soft link to a group": (linked(lambda: h5py.SoftLink("/moved"), "distilbert"), "UnsafeLink"),
    "soft link beside the weights": (edit(lambda f: f.__setitem__("s", h5py.SoftLink(f"/{LIN1_PLACE}"))), "UnsafeLink"),
    "soft link to nothing": (linked(lambda: h5py.SoftLink("/nothing")), "UnsafeLink"),
    "soft link to itself": (linked(lambda: h5py.SoftLink(f"/{LIN1_PLACE}")), "UnsafeLink"),
    "soft link to the root": (linked(lambda: h5py.SoftLink("/")), "UnsafeLink"),
    "soft link that climbs": (linked(lambda: h5py.SoftLink("../../../../moved")), "UnsafeLink"),
    "soft links in a ring": (edit(lambda f: [f.__setitem__("a", h5py.SoftLink("/b")), f.__setitem__("b", h5py.SoftLink("/a"))]), "UnsafeLink"),
    "group that holds itself": (edit(_loop), "ResourceLimit", "UnsafeLink"),
    "group in a ring": (edit(_mutual), "ResourceLimit"),
    "net of groups": (edit(_net), "ResourceLimit"),
    "external storage": (_external_storage(ELSEWHERE), "Truncated", "UnsafeLink"),
    "external storage by an absolute path": (_external_storage("/etc/hostname"), "Truncated", "UnsafeLink"),
    "external storage of a device": (_external_storage("/dev/zero"), "Truncated", "UnsafeLink"),
    "external storage of a process": (_external_storage("/proc/self/environ"), "Truncated", "UnsafeLink"),
    "virtual dataset of another file": (_virtual(ELSEWHERE), "UnsafeLink"),
    "virtual dataset of this file": (_virtual("."), "UnsafeLink"),
}  # fmt: skip

STORAGE = {
    "chunked": (stores(chunks=(2, 2)), "UnsafeLink"),
    "gzip": (stores(compression="gzip"), "UnsafeLink"),
    "lzf": (stores(compression="lzf"), "UnsafeLink"),
    "shuffled": (stores(chunks=(2, 2), shuffle=True), "UnsafeLink"),
    "with checksums": (stores(chunks=(2, 2), fletcher32=True), "UnsafeLink"),
    "scaled": (stores(chunks=(2, 2), scaleoffset=2), "UnsafeLink"),
    "resizable": (stores(maxshape=(None, None)), "UnsafeLink"),
    "compact": (put(_compact), "UnsafeLink"),
    "only a fill value": (put(_fill_value), "Truncated"),
    "never written": (_never_written((4, 6)), "Truncated"),
    "a shape of 3 GB": (_never_written((3 << 28,)), "Truncated"),
    "a shape of a tebibyte": (_never_written((1 << 20, 1 << 18)), "Truncated"),
    "a chunked shape of 4 TB": (_never_written((1 << 40,), chunks=(1 << 20,)), "UnsafeLink"),
    "a compressed bomb": (
        put(lambda f, p, _: f.create_dataset(p, data=np.zeros(1 << 22, "f4"), compression="gzip")),
        "UnsafeLink",
    ),
    "a nothing that NumPy cannot have": (_never_written((0, 1 << 39, 1 << 39)), "ShapeMismatch"),
    "a resizable nothing": (_never_written((0,), maxshape=(None,)), "UnsafeLink"),
    "rank 9": (put(lambda f, p, _: f.create_dataset(p, data=np.zeros((1,) * 9, "f4"))), "ShapeMismatch"),
    "rank 32": (put(lambda f, p, _: f.create_dataset(p, data=np.zeros((1,) * 32, "f4"))), "ShapeMismatch"),
    "no data at all": (put(lambda f, p, _: f.create_dataset(p, dtype="f4")), "DtypeUnsupported", "HeaderInvalid", "ShapeMismatch", "UnsafeLink"),
}  # fmt: skip

TYPES = {
    "big-endian": (typed(">f4"), "DtypeUnsupported"),
    "int32": (typed("<i4"), "DtypeUnsupported"),
    "uint64": (typed("<u8"), "DtypeUnsupported"),
    "boolean": (typed("?"), "DtypeUnsupported"),
    "complex": (typed("<c8"), "DtypeUnsupported"),
    "long double": (typed(np.longdouble), "DtypeUnsupported", "HeaderInvalid"),
    "compound": (typed([("a", "<f4"), ("b", "<f4")]), "DtypeUnsupported"),
    "array": (
        put(lambda f, p, _: f.create_dataset(p, (4,), np.dtype(("<f4", (6,))))),
        "DtypeUnsupported",
        "HeaderInvalid",
        "Truncated",
    ),
    "enumeration": (
        put(lambda f, p, _: f.create_dataset(p, (4, 6), h5py.enum_dtype({"A": 1, "B": 2}))),
        "DtypeUnsupported",
    ),
    "opaque": (put(lambda f, p, a: f.create_dataset(p, data=a.view("V4"))), "DtypeUnsupported", "HeaderInvalid"),
    "fixed strings": (typed("S4"), "DtypeUnsupported"),
    "strings": (put(_objects), "DtypeUnsupported"),
    "references": (put(_references), "DtypeUnsupported"),
    "ragged": (put(_ragged), "DtypeUnsupported"),
    "a type and no data": (put(_named_type), "DtypeUnsupported", "UnsafeLink"),
}

SHAPES_AND_NAMES = {
    "200 groups deep": (edit(_deep), "ResourceLimit"),
    "100 000 paths": (edit(_many), "ResourceLimit"),
    "no groups": (only(lambda f: None), "MissingTensor"),
    "names without their ending": (edit(lambda f: f.move(NORM_PLACE, NORM_PLACE.removesuffix(":0"))), "MissingTensor"),
    "a layer under another name": (edit(lambda f: f.move(NORM_PLACE, NORM_PLACE.replace("layer_._0", "layer_._00"))), "MissingTensor"),
    "two places that disagree": (edit(lambda f: f[WORDS_AGAIN].__setitem__((0, 0), 9.0)), "DuplicateName"),
    "a dataset at the root": (edit(lambda f: f.create_dataset("x", data=np.ones(2, "f4"))), "UnexpectedTensor"),
    "a dataset in a new layer": (edit(_pages), "UnexpectedTensor"),
    "a dataset in the place of a group": (only(lambda f: f.create_dataset("distilbert", data=np.ones(2, "f4"))), "MissingTensor"),
    "a group in the place of a dataset": (put(lambda f, p, _: f.create_group(p)), "MissingTensor"),
    "another tensor's half": (edit(_crossed), "ShapeMismatch"),
}  # fmt: skip

DAMAGE = {
    "only the signature": (content(b"\x89HDF\r\n\x1a\n"), "HeaderInvalid"),
    "signature and zeros": (content(b"\x89HDF\r\n\x1a\n" + bytes(2000)), "HeaderInvalid"),
    "signature and ones": (content(b"\x89HDF\r\n\x1a\n" + b"\xff" * 2000), "HeaderInvalid"),
    "signature after 512 bytes": (edit_bytes(lambda data: bytes(512) + data), "BadMagic"),
    "superblock of version 9": (edit_bytes(lambda data: data[:8] + b"\x09" + data[9:]), "HeaderInvalid"),
    "root at the end of memory": (edit_bytes(lambda data: data[:64] + b"\xff" * 8 + data[72:]), "HeaderInvalid"),
    "tree that claims 65 535 entries": (flip(b"TREE", 6, b"\xff\xff"), "HeaderInvalid", "Truncated", "ResourceLimit"),
    "tree that is its own child": (flip(b"TREE", 32, b"\x88" + bytes(7)), "HeaderInvalid", "ResourceLimit"),
    "tree that is very deep": (flip(b"TREE", 5, b"\xff"), "HeaderInvalid", "ResourceLimit"),
    "table that claims 65 535 names": (flip(b"SNOD", 6, b"\xff\xff"), "HeaderInvalid", "Truncated", "UnsafeLink"),
    "heap beyond the file": (flip(b"HEAP", 24, b"\xff" * 7 + b"\x00"), "HeaderInvalid", "Truncated"),
    "the last third missing": (edit_bytes(lambda data: data[: len(data) * 2 // 3]), "Truncated", "HeaderInvalid"),
}  # fmt: skip

CASES = [
    *cases("HDF5 link", LINKS, "tf-h5"),
    *cases("HDF5 storage", STORAGE, "tf-h5"),
    *cases("HDF5 type", TYPES, "tf-h5"),
    *cases("HDF5 name", SHAPES_AND_NAMES, "tf-h5"),
    *cases("HDF5 damage", DAMAGE, "tf-h5"),
]

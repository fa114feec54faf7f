"""Hostile MessagePack files: lengths that lie, trees without end, leaves that are no plain arrays."""

import struct

import msgpack
import numpy as np

from tests.hostile.base import LIN1, cases, content, edit_bytes, edit_config, stored

CHUNKED = "__msgpack_chunked_array__"
KEYS = stored("flax-msgpack", LIN1)[0].split(".")


def leaf(shape, dtype, data, code=1):
    """An array as flax stores it."""
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, data)))


def raw(tree):
    """A file of this tree, or of these bytes."""
    return content(tree if isinstance(tree, bytes) else msgpack.packb(tree))


def put(value):
    """The good file with another value in the place of a kernel."""

    def change(data):
        tree = msgpack.unpackb(data)
        node = tree
        for key in KEYS[:-1]:
            node = node[key]
        node[KEYS[-1]] = value
        return msgpack.packb(tree)

    return edit_bytes(change)


def chunked(**changes):
    """A chunked kernel, one thing of which is wrong."""
    array = np.arange(24, dtype=np.float32)
    parts = {"0": leaf([16], "float32", array[:16].tobytes()), "1": leaf([8], "float32", array[16:].tobytes())}
    return put({CHUNKED: True, "shape": {"0": 4, "1": 6}, "chunks": parts} | changes)


ONE = leaf([2], "float32", bytes(8))
KERNEL = bytes(4 * 6 * 4)

TREES = {
    "a byte missing": (edit_bytes(lambda data: data[:-1]), "Truncated"),
    "a byte more": (edit_bytes(lambda data: data + b"\0"), "HeaderInvalid"),
    "two trees": (edit_bytes(lambda data: data + data), "HeaderInvalid"),
    "a list": (raw([1, 2]), "BadMagic"),
    "nothing": (raw(b"\x80"), "MissingTensor"),
    "map32 that claims 2^32 - 1 entries": (raw(b"\xdf\xff\xff\xff\xff"), "Truncated", "HeaderInvalid", "ResourceLimit", "BadMagic"),
    "map16 that claims 65 535 entries": (raw(b"\xde\xff\xff\xa1a\x80"), "Truncated", "HeaderInvalid"),
    "array32 that claims 2^32 - 1 items": (raw(b"\x81\xa1a\xdd\xff\xff\xff\xff"), "Truncated", "HeaderInvalid"),
    "ext32 that claims 2^32 - 1 bytes": (raw(b"\x81\xa1a\xc9\xff\xff\xff\xff\x01"), "Truncated", "HeaderInvalid"),
    "str32 that claims 2^32 - 1 bytes": (raw(b"\x81\xdb\xff\xff\xff\xff"), "Truncated", "HeaderInvalid", "ResourceLimit"),
    "bin32 that claims 2^32 - 1 bytes": (raw(b"\x81\xa1a\xc6\xff\xff\xff\xff"), "Truncated", "HeaderInvalid"),
    "the reserved byte": (raw(b"\x81\xa1a\xc1"), "HeaderInvalid", "BadMagic"),
    "a key that is not UTF-8": (raw(b"\x81\xa2\xff\xfe\x80"), "HeaderInvalid", "BadMagic"),
    "an integer key": (raw({1: {}}), "HeaderInvalid"),
    "a key of bytes": (raw({b"a": {}}), "HeaderInvalid"),
    "a null key": (raw({None: {}}), "HeaderInvalid"),
    "a key that is a list": (raw(b"\x81\x90\x80"), "HeaderInvalid"),
    "a key with dots": (raw({"a.b": leaf([0], "float32", b"")}), "HeaderInvalid"),
    "a key of a megabyte": (raw({"\u202e" * (1 << 18): ONE}), "MissingTensor", "HeaderInvalid", "ResourceLimit"),
    "a key twice": (raw(b"\x82\xa1a\xc0\xa1a\xc0"), "DuplicateName", "HeaderInvalid"),
    "a map twice": (raw(b"\x82\xa1a\x80\xa1a\x80"), "DuplicateName"),
    "3 000 maps deep": (raw(b"\x81\xa1a" * 3000 + b"\xc0"), "HeaderInvalid", "ResourceLimit"),
    "13 maps deep": (raw(b"\x81\xa1a" * 15 + b"\x80"), "HeaderInvalid", "ResourceLimit"),
    "lists 100 000 deep": (raw(b"\x81\xa1a" + b"\x91" * 100_000), "HeaderInvalid", "Truncated", "ResourceLimit"),
    "20 million empty maps": (raw(b"\x81\xa1a\xdd" + struct.pack(">I", 20_000_000) + b"\x80" * 20_000_000), "HeaderInvalid", "ResourceLimit"),
    "a million empty maps with names": (
        raw(b"\xdf" + struct.pack(">I", 1 << 20) + b"".join(b"\xa6%06x\x80" % i for i in range(1 << 20))),
        "HeaderInvalid",
        "ResourceLimit",
        "MissingTensor",
    ),
    "60 000 empty arrays": (raw({f"{i:x}": leaf([0], "float32", b"") for i in range(60_000)}), "ResourceLimit"),
    "a bare array at the root": (raw(b"\xc7" + msgpack.packb(ONE)[1:]), "BadMagic"),
}  # fmt: skip

LEAVES = {
    "text": (put("text"), "HeaderInvalid"),
    "a number": (put(1.5), "HeaderInvalid"),
    "null": (put(None), "HeaderInvalid"),
    "a list of numbers": (put([1.0] * 24), "HeaderInvalid"),
    "plain bytes": (put(KERNEL), "HeaderInvalid"),
    "a timestamp": (put(msgpack.Timestamp(0)), "HeaderInvalid"),
    "a native complex": (put(msgpack.ExtType(2, msgpack.packb((1.0, 2.0)))), "HeaderInvalid"),
    "an unknown extension": (put(leaf([4, 6], "float32", KERNEL, code=7)), "HeaderInvalid"),
    "an extension of nothing": (put(msgpack.ExtType(1, b"")), "HeaderInvalid"),
    "an extension that is null": (put(msgpack.ExtType(1, b"\xc0")), "HeaderInvalid"),
    "an extension with something behind": (
        put(msgpack.ExtType(1, msgpack.packb(([4, 6], "float32", KERNEL)) + b"\0")),
        "HeaderInvalid",
        "SizeMismatch",
    ),
    "two parts": (put(msgpack.ExtType(1, msgpack.packb(([24], "float32")))), "HeaderInvalid"),
    "four parts": (put(msgpack.ExtType(1, msgpack.packb(([24], "float32", KERNEL, 1)))), "HeaderInvalid"),
    "too few bytes": (put(leaf([4, 6], "float32", KERNEL[:-4])), "SizeMismatch"),
    "too many bytes": (put(leaf([4, 6], "float32", KERNEL + bytes(4))), "SizeMismatch"),
    "a dimension of -1": (put(leaf([-1, 6], "float32", KERNEL)), "ShapeMismatch"),
    "two negative dimensions": (put(leaf([-4, -6], "float32", KERNEL)), "ShapeMismatch"),
    "a dimension of 2^63": (put(leaf([1 << 63, 0], "float32", b"")), "ShapeMismatch", "SizeMismatch"),
    "a float dimension": (put(leaf([4.0, 6], "float32", KERNEL)), "ShapeMismatch"),
    "a true dimension": (put(leaf([True, 24], "float32", KERNEL)), "ShapeMismatch"),
    "a shape of text": (put(leaf("46", "float32", KERNEL)), "ShapeMismatch", "HeaderInvalid"),
    "a shape of nothing": (put(leaf(None, "float32", KERNEL)), "ShapeMismatch", "HeaderInvalid"),
    "rank 9": (put(leaf([1] * 8 + [24], "float32", KERNEL)), "ShapeMismatch"),
    "rank 100 000": (put(leaf([1] * 100_000, "float32", bytes(4))), "ShapeMismatch", "HeaderInvalid"),
    "objects": (put(leaf([3], "O", bytes(24))), "DtypeUnsupported"),
    "structures": (put(leaf([12], "f4,f4", KERNEL)), "DtypeUnsupported"),
    "void": (put(leaf([12], "V8", KERNEL)), "DtypeUnsupported"),
    "strings": (put(leaf([12], "U2", KERNEL)), "DtypeUnsupported"),
    "big-endian": (put(leaf([4, 6], ">f4", KERNEL)), "DtypeUnsupported"),
    "a short name": (put(leaf([4, 6], "f4", KERNEL)), "DtypeUnsupported"),
    "dates": (put(leaf([12], "datetime64[s]", KERNEL)), "DtypeUnsupported"),
    "eight bits": (put(leaf([4, 24], "float8_e4m3fn", KERNEL)), "DtypeUnsupported"),
    "a dtype that is a list": (put(leaf([4, 6], ["float32"], KERNEL)), "DtypeUnsupported", "HeaderInvalid"),
    "a dtype of bytes": (put(leaf([4, 6], b"float32", KERNEL)), "DtypeUnsupported", "HeaderInvalid"),
    "a dtype of a megabyte": (put(leaf([4, 6], "\x1b" * (1 << 20), KERNEL)), "DtypeUnsupported", "HeaderInvalid"),
    "bytes that are text": (put(leaf([4, 6], "float32", "x" * 96)), "DtypeUnsupported", "HeaderInvalid"),
    "int32 for float32": (put(leaf([4, 6], "int32", KERNEL)), "DtypeUnsupported"),
}

CHUNKS = {
    "no chunks": (chunked(chunks={}), "SizeMismatch", "HeaderInvalid"),
    "a chunk missing": (chunked(chunks={"1": leaf([24], "float32", KERNEL)}), "SizeMismatch", "HeaderInvalid"),
    "chunks that are a list": (chunked(chunks=[ONE]), "SizeMismatch", "HeaderInvalid"),
    "chunks that are maps": (chunked(chunks={"0": {}}), "SizeMismatch", "HeaderInvalid"),
    "a chunk in a chunk": (chunked(chunks={"0": {CHUNKED: True, "shape": {}, "chunks": {}}}), "SizeMismatch", "HeaderInvalid"),
    "chunks of two dtypes": (chunked(chunks={"0": leaf([16], "float32", bytes(64)), "1": leaf([8], "int32", bytes(32))}), "SizeMismatch", "HeaderInvalid"),
    "no shape": (chunked(shape={}), "SizeMismatch", "HeaderInvalid"),
    "a shape that is larger": (chunked(shape={"0": 1 << 40, "1": 6}), "SizeMismatch", "HeaderInvalid"),
    "a shape that is negative": (chunked(shape={"0": -4, "1": -6}), "SizeMismatch", "HeaderInvalid", "ShapeMismatch"),
    "a shape of fractions": (chunked(shape={"0": 4.0, "1": 6}), "SizeMismatch", "HeaderInvalid", "ShapeMismatch"),
    "a shape with a hole": (chunked(shape={"0": 24, "2": 1}), "SizeMismatch", "HeaderInvalid", "ShapeMismatch"),
    "a shape that is a list": (chunked(shape=[4, 6]), "SizeMismatch", "HeaderInvalid"),
    "rank 9": (chunked(shape={str(i): 1 for i in range(8)} | {"8": 24}), "SizeMismatch", "HeaderInvalid", "ShapeMismatch"),
}  # fmt: skip


def _other_sizes(folder):
    edit_config(dim=8, n_heads=4)(folder)


CASES = [
    *cases("msgpack tree", TREES, "flax-msgpack"),
    *cases("msgpack leaf", LEAVES, "flax-msgpack"),
    *cases("msgpack chunks", CHUNKS, "flax-msgpack"),
    *cases("msgpack", {"a config of other sizes": (_other_sizes, "ShapeMismatch")}, "flax-msgpack"),
]

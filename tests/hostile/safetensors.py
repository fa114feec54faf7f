"""Hostile safetensors files: the header lies about lengths, offsets, shapes, dtypes and names."""

import json
import os
import struct

import numpy as np

from distilbert.checkpoint import safetensors
from distilbert.checkpoint.tensors import TensorInfo
from distilbert.config import DistilBertConfig
from distilbert.weight_map import POSITION_EMBEDDINGS, tensor_specs
from tests.hostile.base import WORDS, cases, content, edit_bytes, edit_config

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DESCRIBED = json.dumps(F32).encode()


def raw(header, data=bytes(8), length=None):
    """A file of this header, JSON or its bytes, and these data."""
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    return content(struct.pack("<Q", len(text) if length is None else length) + text + data)


def edit(change):
    """The good file with another header."""

    def changed(data):
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        text = json.dumps(change(header) or header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    return edit_bytes(changed)


def entry(**changes):
    """The good file whose largest tensor is described otherwise."""
    return edit(lambda header: header[WORDS].update(changes))


def _sparse(size):
    """A file whose header has that many bytes, without writing them."""

    def spoil(folder):
        raw(b"{", b"", length=size)(folder)
        os.truncate(folder / "model.safetensors", 8 + size)

    return spoil


def _names(count):
    """A header of that many empty tensors."""
    return b"{" + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(count)) + b"}"


def _swapped(header):
    """Two tensors of the same shape, each at the other's place, declared as overlapping."""
    first, second = (n for n in header if n.endswith(("q_lin.weight", "k_lin.weight")))
    header[first]["data_offsets"] = header[second]["data_offsets"]


TABLE = {
    "zip": (content(b"PK\x03\x04" + bytes(60)), "BadMagic"),
    "only a length": (content(struct.pack("<Q", 2)), "BadMagic"),
    "length 2^63": (raw({}, length=1 << 63), "HeaderTooLarge"),
    "length 2^64 - 1": (raw({}, length=(1 << 64) - 1), "HeaderTooLarge"),
    "length 100 000 001": (raw({}, length=100_000_001), "HeaderTooLarge"),
    "length beyond the file": (raw({"a": F32}, length=1 << 20), "Truncated"),
    "length of nothing": (raw({"a": F32}, length=0), "HeaderInvalid"),
    "length that cuts the header": (raw({"a": F32}, length=20), "HeaderInvalid"),
    "length that takes in data": (raw({"a": F32}, b" " * 8, length=60), "HeaderInvalid", "Truncated"),
    "header of NULs": (raw(b"{" + bytes(100)), "HeaderInvalid"),
    "header that begins with spaces": (raw(b"  {}", b""), "BadMagic"),
    "header that is not UTF-8": (raw(b'{"\xff": 1}', b""), "HeaderInvalid"),
    "header with NaN": (raw(b'{"a": NaN}', b""), "HeaderInvalid"),
    "header with something behind it": (raw(b"{}{}", b""), "HeaderInvalid"),
    "data too short": (raw({"a": F32}, bytes(4)), "Truncated"),
    "data too long": (raw({"a": F32}, bytes(12)), "OffsetInvalid"),
    "bytes behind the last tensor": (edit_bytes(lambda data: data + b"PK\x05\x06" + bytes(18)), "OffsetInvalid"),
    "overlap": (raw({"a": F32, "b": F32}), "OffsetInvalid"),
    "two tensors at one place": (edit(_swapped), "OffsetInvalid"),
    "hole": (raw({"a": F32 | {"data_offsets": [4, 12]}}, bytes(12)), "OffsetInvalid"),
    "offsets in reverse": (raw({"a": F32 | {"data_offsets": [8, 0]}}), "OffsetInvalid"),
    "negative offset": (raw({"a": F32 | {"data_offsets": [-8, 0]}}), "HeaderInvalid"),
    "float offset": (raw({"a": F32 | {"data_offsets": [0.0, 8.0]}}), "HeaderInvalid"),
    "true offset": (raw({"a": F32 | {"data_offsets": [False, 8]}}), "HeaderInvalid"),
    "three offsets": (raw({"a": F32 | {"data_offsets": [0, 8, 8]}}), "HeaderInvalid"),
    "offset beyond 2^64": (raw({"a": F32 | {"data_offsets": [0, 1 << 70]}}), "OffsetInvalid"),
    "offsets past the end": (entry(data_offsets=[1 << 40, (1 << 40) + 320]), "OffsetInvalid"),
    "size": (raw({"a": F32 | {"shape": [3]}}), "OffsetInvalid"),
    "shape that claims more": (entry(shape=[1 << 30, 4]), "OffsetInvalid"),
    "shape overflow": (raw({"a": F32 | {"shape": [0, 1 << 40, 1 << 40]}}), "ShapeMismatch"),
    "shape of nothing that NumPy cannot have": (raw({"a": {"dtype": "F32", "shape": [0, 1 << 39, 1 << 39], "data_offsets": [0, 0]}}, b""), "ShapeMismatch"),
    "shape that wraps to the size": (entry(shape=[(1 << 62) + 80]), "ShapeMismatch"),
    "negative dimension": (raw({"a": F32 | {"shape": [-1]}}), "ShapeMismatch"),
    "two negative dimensions": (entry(shape=[-20, -4]), "ShapeMismatch"),
    "float dimension": (entry(shape=[20.0, 4]), "ShapeMismatch"),
    "true dimension": (entry(shape=[True, 80]), "ShapeMismatch"),
    "shape that is text": (entry(shape="20"), "ShapeMismatch"),
    "rank 9": (raw({"a": F32 | {"shape": [1] * 9}}), "ShapeMismatch"),
    "rank 100 000": (entry(shape=[1] * 100_000), "ShapeMismatch"),
    "transposed shape": (entry(shape=[4, 20]), "ShapeMismatch"),
    "dtype F8": (raw({"a": F32 | {"dtype": "F8_E4M3"}}), "DtypeUnsupported"),
    "dtype in lower case": (entry(dtype="f32"), "DtypeUnsupported"),
    "dtype that is a list": (entry(dtype=["F32"]), "DtypeUnsupported"),
    "dtype that is null": (entry(dtype=None), "DtypeUnsupported"),
    "dtype of a megabyte": (entry(dtype="\x1b" * (1 << 20)), "DtypeUnsupported"),
    "dtype I32 for F32": (entry(dtype="I32"), "DtypeUnsupported"),
    "dtype of half the size": (entry(dtype="F16"), "OffsetInvalid"),
    "extra field": (raw({"a": F32 | {"x": 1}}), "HeaderInvalid"),
    "missing field": (raw({"a": {"dtype": "F32", "shape": [2]}}), "HeaderInvalid"),
    "not an object": (raw({"a": []}), "HeaderInvalid"),
    "metadata of numbers": (raw({"__metadata__": {"a": 1}}, b""), "HeaderInvalid"),
    "metadata that is a list": (raw({"__metadata__": []}, b""), "HeaderInvalid"),
    "metadata that is null": (edit(lambda header: header.update(__metadata__=None)), "HeaderInvalid"),
    "metadata twice": (raw(b'{"__metadata__":{},"__metadata__":{}}', b""), "DuplicateName"),
    "metadata with a key twice": (raw(b'{"__metadata__":{"a":"1","a":"2"}}', b""), "DuplicateName"),
    "a tensor named twice": (raw(b'{"a":%s,"a":%s}' % (DESCRIBED, DESCRIBED)), "DuplicateName"),
    "a tensor named twice in two spellings": (raw(b'{"a":%s,"\\u0061":%s}' % (DESCRIBED, DESCRIBED)), "DuplicateName"),
    "the last of 100 000 tensors twice": (
        raw(b"{" + b",".join(b'"%d":0' % i for i in range(100_000)) + b',"99999":0}', b""),
        "DuplicateName",
    ),
    "300 000 empty tensors": (raw(_names(300_000), b""), "ResourceLimit", "HeaderTooLarge"),
    "60 000 empty tensors": (raw(_names(60_000), b""), "ResourceLimit"),
    "a header of 90 MB": (_sparse(90 << 20), "HeaderTooLarge"),
    "a header of empty lists": (raw(b'{"a":[' + b"[]," * (2 << 20) + b"0]}", b""), "HeaderInvalid"),
    "a header of short names": (raw(b"{" + b",".join(b'"%x":1' % i for i in range(700_000)) + b"}", b""), "ResourceLimit"),
    "lists 200 000 deep": (raw(b'{"a":' + b"[" * 200_000), "ResourceLimit"),
    "not JSON": (raw(b"{]"), "HeaderInvalid"),
    "a name of a megabyte": (edit(lambda header: header.update({"\u202e" * (1 << 18): header.pop(WORDS)})), "MissingTensor"),
    "a name that is a path": (edit(lambda header: header.update({"../../x": header.pop(WORDS)})), "MissingTensor"),
    "a name with NUL": (edit(lambda header: header.update({WORDS + "\0": header.pop(WORDS)})), "MissingTensor"),
    "a name in look-alikes": (edit(lambda header: header.update({WORDS.replace("e", "\u0435"): header.pop(WORDS)})), "MissingTensor"),
    "no name": (edit(lambda header: header.update({"": header.pop(WORDS)})), "MissingTensor"),
    "the dialect of another framework": (edit(lambda header: header.update(__metadata__={"format": "tf"})), "MissingTensor"),
}  # fmt: skip


def _table_of_gigabytes(folder):
    """A position table that the file lacks and the config asks to be made: 2^20 rows of 512 from a file of 8 MB."""
    sizes = {"vocab_size": 1, "dim": 512, "hidden_dim": 1, "n_heads": 1, "max_position_embeddings": 1 << 20}
    edit_config(**sizes, sinusoidal_pos_embds=True, architectures=["DistilBertModel"])(folder)
    specs = tensor_specs(DistilBertConfig(**sizes, n_layers=1))
    info = {n: TensorInfo(spec.shape, "float16") for n, spec in specs.items() if n != POSITION_EMBEDDINGS}
    safetensors.write(folder / "model.safetensors", info, lambda name: np.zeros(info[name].shape, np.float16))


CASES = [
    *cases("safetensors", TABLE),
    *cases("safetensors", {"a table of gigabytes to be made": (_table_of_gigabytes, "ConfigError")}),
]

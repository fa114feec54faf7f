"""Properties of the safetensors and HDF5 readers: a result or a CheckpointError, and what is accepted is exact."""

import collections
import functools
import io
import json
import struct

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distilbert.checkpoint import hdf5, safetensors
from distilbert.checkpoint.tensors import DTYPES, TensorInfo
from distilbert.errors import CheckpointError

QUICK = settings(
    max_examples=300, deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
MODULES = {"safetensors": safetensors, "tf-h5": hdf5}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


def arrays(names, dtypes):
    """Arrays of any bits, NaN among them, by name."""

    def make(name, dtype, shape, seed):
        size = int(np.prod(shape)) * DTYPES[dtype].itemsize
        return name, np.frombuffer(np.random.default_rng(seed).bytes(size), DTYPES[dtype]).reshape(shape)

    shapes = st.lists(st.integers(0, 4), max_size=4)
    one = st.builds(make, names, st.sampled_from(dtypes), shapes, st.integers(0, 1 << 16))
    return st.lists(one, min_size=1, max_size=5, unique_by=lambda pair: pair[0]).map(dict)


def write(module, path, tensors):
    """Write arrays in the order of their names, the one that HDF5 keeps, and return the file's bytes."""
    tensors = dict(sorted(tensors.items()))
    module.write(path, {n: TensorInfo(a.shape, a.dtype.name) for n, a in tensors.items()}, tensors.__getitem__)
    return path.read_bytes()


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def check_round_trip(module, path, tensors):
    """Written and read, the arrays are the same; written again, the file is."""
    content = write(module, path, tensors)
    found = dict(module.read(path))
    assert_same(found, tensors)
    assert write(module, path, found) == content


@QUICK
@given(tensors=arrays(TEXT.filter(lambda name: name != "__metadata__"), list(DTYPES)))
def test_any_tensors_come_back_from_safetensors(tensors, tmp_path):
    check_round_trip(safetensors, tmp_path / "f", tensors)


H5_NAMES = st.from_regex(r"[a-c]/[a-c](/[a-c_]{1,3})?:0", fullmatch=True)


@QUICK
@given(tensors=arrays(H5_NAMES, [name for name in DTYPES if name != "bfloat16"]))
def test_any_tensors_come_back_from_hdf5(tensors, tmp_path):
    check_round_trip(hdf5, tmp_path / "f", tensors)


def outcome(module, path, content):
    """What a reader makes of a file: refused, or read, and then exact."""
    path.write_bytes(content)
    try:
        stored = module.read(path)
        found = {name: stored[name] for name in stored}
    except CheckpointError as error:
        return f"refused{'' if str(error).isprintable() else ' in more than one line'}"
    assert sum(array.nbytes for array in found.values()) <= 4 * len(content) + 1024 or module is hdf5
    if module is hdf5:  # any names, even none that Keras could write
        found = {f"layer/{i}": array for i, array in enumerate(found.values())}
    if found:
        check_round_trip(module, path, found)
    return "read"


def _base(name):
    """A small good file of the format."""
    tensors = {f"a/b{i}:0": np.arange(i * 6, i * 6 + 6, dtype=np.float32).reshape(2, 3) for i in range(4)}
    if name == "tf-h5":
        out = io.BytesIO()
        with h5py.File(out, "w") as file:
            for key, array in tensors.items():
                file.create_dataset(key, data=array)
        return out.getvalue()
    header = {
        key: {"dtype": "F32", "shape": [2, 3], "data_offsets": [i * 24, i * 24 + 24]} for i, key in enumerate(tensors)
    }
    return packed(json.dumps(header).encode(), b"".join(array.tobytes() for array in tensors.values()))


def packed(header, data):
    """A safetensors file."""
    return struct.pack("<Q", len(header)) + header + data


BASES = {name: _base(name) for name in MODULES}
NUMBERS = [
    0,
    1,
    2,
    4,
    8,
    127,
    128,
    255,
    256,
    1000,
    65_535,
    1 << 16,
    (1 << 31) - 1,
    1 << 31,
    1 << 32,
    1 << 62,
    (1 << 64) - 1,
]
DAMAGE = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 1 << 20), st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("number"), st.integers(0, 1 << 20), st.sampled_from(NUMBERS), st.sampled_from([1, 2, 4, 8])),
        st.tuples(st.just("flip"), st.integers(0, 1 << 20), st.integers(0, 7)),
        st.tuples(st.just("remove"), st.integers(0, 1 << 20), st.integers(1, 64)),
        st.tuples(st.just("copy"), st.integers(0, 1 << 20), st.integers(0, 1 << 20), st.integers(1, 64)),
        st.tuples(st.just("cut"), st.integers(0, 1 << 20)),
    ),
    min_size=1,
    max_size=4,
)  # fmt: skip


def damaged(content, damage):
    """The file after each change; places wrap around, so that every one of them lies in the file."""
    data = bytearray(content)
    for kind, place, *values in damage:
        at = place % max(len(data), 1)
        if kind == "set":
            data[at : at + len(values[0])] = values[0]
        elif kind == "number":
            number, width = values
            data[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, "little")
        elif kind == "flip" and data:
            data[at] ^= 1 << values[0]
        elif kind == "remove":
            del data[at : at + values[0]]
        elif kind == "copy":
            start = values[0] % max(len(data), 1)
            piece = data[start : start + values[1]]
            data[at : at + len(piece)] = piece
        elif kind == "cut":
            del data[at:]
    return bytes(data)


@pytest.mark.parametrize("name", MODULES)
def test_a_damaged_file_is_exact_or_refused(name, tmp_path):
    outcomes = collections.Counter()

    @QUICK
    @given(damage=DAMAGE)
    def check(damage):
        outcomes[outcome(MODULES[name], tmp_path / "f", damaged(BASES[name], damage))] += 1

    check()
    assert outcomes.keys() == {"read", "refused"}
    assert min(outcomes.values()) > 10


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.sampled_from(["F32", "BF16", "I64", "pt"])
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
SIZES = st.lists(st.one_of(st.integers(0, 4), st.sampled_from([-1, True, 2.0, 1 << 40, 1 << 64])), max_size=3)


@functools.partial(st.composite)
def headers(draw):
    """A header that is nearly right: tensors one behind another, some fields of which are something else."""
    header, position = {}, 0
    for name in draw(st.lists(TEXT, max_size=4)):
        shape, dtype = (
            draw(st.lists(st.integers(0, 3), max_size=3)),
            draw(st.sampled_from(["F64", "F32", "F16", "I32"])),
        )
        size = int(np.prod(shape)) * {"F64": 8, "F32": 4, "F16": 2, "I32": 4}[dtype]
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
        if draw(st.integers(0, 5)) == 0:
            entry[draw(st.sampled_from([*entry, "x"]))] = draw(st.one_of(JSON, SIZES))
        header[name] = entry
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.one_of(st.dictionaries(TEXT, TEXT, max_size=2), JSON))
    return json.dumps(header).encode(), bytes(position + draw(st.sampled_from([0, 0, 0, 1, -1])) * (position > 0))


def test_a_header_that_is_nearly_right_is_exact_or_refused(tmp_path):
    outcomes = collections.Counter()

    @QUICK
    @given(parts=headers())
    def check(parts):
        outcomes[outcome(safetensors, tmp_path / "f", packed(*parts))] += 1

    check()
    assert outcomes.keys() == {"read", "refused"}
    assert min(outcomes.values()) > 50

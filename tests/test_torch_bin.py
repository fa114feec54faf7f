"""pytorch_model.bin: torch's files are read, ours are read by torch, and whatever else comes is refused, fast."""

import collections
import io
import os
import pickle
import pickletools
import struct
import sys
import tarfile
import time
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distilbert.checkpoint import state_pickle, torch_bin
from distilbert.checkpoint.tensors import DTYPES, TensorInfo
from distilbert.errors import CheckpointError

ZIP, LEGACY = {}, {"_use_new_zipfile_serialization": False}
LAYOUTS = pytest.mark.parametrize("layout", [ZIP, LEGACY], ids=["zip", "legacy"])
ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "double": np.array([1.5, -0.0], np.float64),
    "half": np.array([1.5, 65504], np.float16),
    "brain": np.array([[1.0], [3e38]], ml_dtypes.bfloat16),
    "ids": np.array([1, -(1 << 62)], np.int64),
    "small ids": np.array([[[1, -2]]], np.int32),
    "scalar": np.array(7, np.float32),
    "empty": np.zeros((3, 0), np.float32),
}


def info_of(arrays):
    return {name: TensorInfo(array.shape, array.dtype.name) for name, array in arrays.items()}


def write(path, arrays):
    torch_bin.write(path, info_of(arrays), arrays.__getitem__)
    return path


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


def to_numpy(tensor):
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def state_dict():
    base = torch.arange(24, dtype=torch.float32)
    state = collections.OrderedDict(
        plain=base.reshape(4, 6),
        turned=base.reshape(4, 6).T,
        part=base[3:11].reshape(2, 4),
        shared=base.reshape(4, 6),
        columns=base.reshape(4, 6)[:, 2:4],
        steps=base[1::5],
        swapped=base.reshape(2, 3, 4).permute(2, 0, 1),
        half=base.half(),
        brain=base.bfloat16(),
        double=base.double(),
        ids=torch.arange(3),
        small_ids=torch.arange(3, dtype=torch.int32),
        scalar=torch.tensor(2.5),
        one=torch.ones(1, 1)[:, :1],
        empty=torch.zeros(0, 3),
        also_empty=torch.zeros(3, 0),
        parameter=torch.nn.Parameter(base * 2),
    )
    state["tied"] = state["parameter"]
    state._metadata = collections.OrderedDict({"": {"version": 1}, "layer": {"version": 2}})
    return state


@LAYOUTS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_files_of_torch_are_read_as_torch_reads_them(layout, protocol, tmp_path):
    state = state_dict()
    torch.save(state, tmp_path / "bin", pickle_protocol=protocol, **layout)
    stored = torch_bin.read(tmp_path / "bin")
    assert stored.info == info_of(stored)
    assert_same(stored, {name: to_numpy(tensor) for name, tensor in state.items()})
    for name in ("columns", "turned", "part"):  # alone, in another order
        assert_same({name: torch_bin.read(tmp_path / "bin")[name]}, {name: to_numpy(state[name])})


@LAYOUTS
def test_a_module_and_its_buffers_are_read(layout, tmp_path):
    module = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.LayerNorm(4), torch.nn.BatchNorm1d(4))
    torch.save(module.state_dict(), tmp_path / "bin", **layout)
    assert_same(torch_bin.read(tmp_path / "bin"), {n: to_numpy(t) for n, t in module.state_dict().items()})


@pytest.mark.parametrize("mmap", [False, True], ids=["read", "mapped"])
def test_torch_reads_what_is_written(mmap, tmp_path):
    state = torch.load(write(tmp_path / "bin", ARRAYS), weights_only=True, mmap=mmap)
    assert isinstance(state, collections.OrderedDict)
    assert_same({name: to_numpy(tensor) for name, tensor in state.items()}, ARRAYS)
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in state.values())
    assert_same(torch_bin.read(tmp_path / "bin"), ARRAYS)


def data_offset(path, entry):
    header = path.read_bytes()[entry.header_offset :][:30]
    return entry.header_offset + 30 + sum(struct.unpack("<2H", header[26:]))


def test_members_are_torchs_plain_aligned_and_undated(tmp_path):
    path = write(tmp_path / "bin", ARRAYS)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    data = [f"archive/data/{i}" for i in range(len(ARRAYS))]
    assert names == ["archive/data.pkl", "archive/byteorder", *data, "archive/version"]
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}
    assert {(entry.create_system, entry.extra) for entry in entries} == {(0, b"")}  # of the directory
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {data_offset(path, entry) % 64 for entry in entries} == {0}
    assert write(tmp_path / "again", ARRAYS).read_bytes() == path.read_bytes()


def test_large_archives_are_written_and_read(tmp_path, monkeypatch):
    """Sizes and offsets of 64 bits, here from 100 bytes on instead of 2 GiB."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    arrays = {"small": np.ones(3, np.float32), "large": np.arange(99.0), "last": np.ones((2, 2), np.float32)}
    path = write(tmp_path / "bin", arrays)
    assert path.read_bytes().count(b"\xff\xff\xff\xff") >= 4
    assert_same(torch_bin.read(path), arrays)
    assert_same({n: to_numpy(t) for n, t in torch.load(path, weights_only=True).items()}, arrays)
    with zipfile.ZipFile(path) as archive:
        assert {data_offset(path, entry) % 64 for entry in archive.infolist()} == {0}


@pytest.mark.parametrize("rows", [(1 << 15) - 1, 1 << 15, 1 << 16])
def test_numbers_beyond_31_bits_are_written(rows, tmp_path):
    """A tensor of up to 16 GiB, of which only the description is made."""
    program = state_pickle.dump({"huge": TensorInfo((rows, 1 << 16), "float32")})
    value = state_pickle.Machine(tmp_path).run(io.BytesIO(program))
    storage = state_pickle.Storage("0", "float32", rows << 16)
    assert value == {"huge": state_pickle.Tensor(storage, 0, (rows, 1 << 16), (1 << 16, 1))}


def peak(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@LAYOUTS
def test_one_tensor_at_a_time_is_in_memory(layout, tmp_path):
    state = {str(i): torch.full((1024, 1024), float(i)) for i in range(6)}  # 4 MiB each
    torch.save(state, tmp_path / "theirs", **layout)
    stored = torch_bin.read(tmp_path / "theirs")
    for name in ("5", "0"):
        assert peak(lambda name=name: stored[name]) < 1.1 * (4 << 20)
    flat = torch.arange(6 << 20, dtype=torch.float32)
    torch.save({str(i): flat[i << 20 : (i + 1) << 20] for i in range(6)}, tmp_path / "parts", **layout)
    parts = torch_bin.read(tmp_path / "parts")
    assert peak(lambda: parts["3"]) < 1.1 * (4 << 20)

    def rewrite():
        torch_bin.write(tmp_path / "ours", stored.info, stored.__getitem__)

    assert peak(rewrite) < 1.1 * (4 << 20)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    before = write(tmp_path / "bin", ARRAYS).read_bytes()

    def broken(name):
        if name == "scalar":
            raise OSError(28, "No space left on device")
        return ARRAYS[name]

    with pytest.raises(OSError, match="No space left"):
        torch_bin.write(tmp_path / "bin", info_of(ARRAYS), broken)
    assert (tmp_path / "bin").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


class Attack:
    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


def write_archive(path, program, data=None, **options):
    """A zip archive around a pickle and the bytes of storages."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", program)
        for key, content in (data or {}).items():
            archive.writestr(f"archive/data/{key}", content)
    return path


def legacy_pickles(state):
    """The five pickles of a file of the layout before PyTorch 1.6, and the rest of it."""
    buffer = io.BytesIO()
    torch.save(state, buffer, **LEGACY)
    buffer.seek(0)
    pickles = []
    for _ in range(5):
        start = buffer.tell()
        collections.deque(pickletools.genops(buffer), 0)
        pickles.append(buffer.getvalue()[start : buffer.tell()])
    return pickles, buffer.read()


def refuse(path):
    """The error that reading a file, and every tensor in it, ends with."""
    with pytest.raises(CheckpointError) as caught:
        dict(torch_bin.read(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 500
    return caught.value


def test_a_pickle_that_asks_for_anything_else_is_refused_and_runs_nothing(tmp_path):
    canary = tmp_path / "canary"
    attacks = {
        "posix.system": Attack(os.system, f"touch {canary}"),
        "__builtin__.eval": Attack(eval, f"open({str(canary)!r}, 'w')"),
        "__builtin__.getattr": Attack(getattr, "".join, "__class__"),
        "io.open": Attack(open, str(canary), "w"),
        "torch.serialization.load": Attack(torch.load, str(canary)),
    }
    pickles, rest = legacy_pickles({"weight": torch.ones(3)})
    for name, attack in attacks.items():
        for content in (attack, {"weight": attack}, [attack], ("storage", attack)):
            for protocol in (2, 4):
                program = pickle.dumps(content, protocol)
                asked = name if protocol == 2 else name.replace("__builtin__", "builtins")
                files = [b"".join([*pickles[:i], program, *pickles[i + 1 :], rest]) for i in range(5)] + [program]
                files.append(write_archive(tmp_path / "zip", program).read_bytes())
                for file in files:
                    (tmp_path / "bin").write_bytes(file)
                    error = refuse(tmp_path / "bin")
                    assert error.kind == "UnsafePickle"
                    assert f"asks for {asked}, which is not part of a tensor" in error.detail
    assert not canary.exists()


INSTRUCTIONS = {  # those that a state dict needs; all others end the load
    "PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL", "BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1",
    "BININT2", "LONG1", "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1",
    "TUPLE2", "TUPLE3", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "APPEND", "APPENDS", "SETITEM",
    "SETITEMS", "BUILD", "BINPERSID", "REDUCE",
}  # fmt: skip
OPERANDS = {
    "uint1": b"\0", "uint2": b"\0\0", "int4": b"\0\0\0\0", "uint4": b"\0\0\0\0", "uint8": b"\0" * 8,
    "stringnl": b"'this'\n", "stringnl_noescape": b"this\n", "stringnl_noescape_pair": b"this\ns\n",
    "decimalnl_short": b"1\n", "decimalnl_long": b"1L\n", "floatnl": b"1.5\n", "float8": b"\0" * 8,
    "unicodestringnl": b"this\n", "unicodestring1": b"\4this", "unicodestring4": b"\4\0\0\0this",
    "unicodestring8": b"\4\0\0\0\0\0\0\0this", "string1": b"\4this", "string4": b"\4\0\0\0this",
    "bytes1": b"\4this", "bytes4": b"\4\0\0\0this", "bytes8": b"\4\0\0\0\0\0\0\0this",
    "bytearray8": b"\4\0\0\0\0\0\0\0this", "long1": b"\1\1", "long4": b"\1\0\0\0\1",
}  # fmt: skip
PRELUDES = [
    b"", b"(", b"]", b"}", b")", b"](K\1", b"}(X\1\0\0\0aK\1", b"}X\1\0\0\0aK\1", b"X\4\0\0\0thisX\1\0\0\0s",
    b"(X\4\0\0\0thisX\1\0\0\0s", b"ccollections\nOrderedDict\n)", b"(ccollections\nOrderedDict\n", b"}q\0",
    b"ccollections\nOrderedDict\n)}", b"}}",
]  # fmt: skip


@pytest.mark.parametrize("opcode", pickletools.opcodes, ids=lambda opcode: opcode.name)
def test_every_other_instruction_is_refused_and_none_imports(opcode, tmp_path):
    operand = OPERANDS[opcode.arg.name] if opcode.arg else b""
    modules, refused = set(sys.modules), []
    for prelude in PRELUDES:
        program = b"\x80\x04" + prelude + opcode.code.encode("latin-1") + operand + b"."
        write_archive(tmp_path / "zip", program)
        (tmp_path / "legacy").write_bytes(program)
        for name in ("zip", "legacy"):
            try:
                assert not dict(torch_bin.read(tmp_path / name))
            except CheckpointError as error:
                refused.append(f"it has the pickle instruction {opcode.name} [" in str(error))
    assert set(sys.modules) == modules
    if opcode.name in INSTRUCTIONS:
        assert not any(refused)
    else:
        assert len(refused) == 2 * len(PRELUDES)
        assert all(refused)


def push(value):
    """The instructions that make a value; bytes are instructions already."""
    match value:
        case bytes():
            return value
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"\x8a\x0b" + value.to_bytes(11, "little", signed=True)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(push, value)) + b"t"


FLOATS, DICT = b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n)R"


REFERENCE = push(("storage", FLOATS, "0", "cpu", 4)) + b"Q"


def tensor(shape=(4,), strides=(1,), offset=0, size=4, key="0", storage=FLOATS, **options):
    reference = options.get("reference", ("storage", storage, key, "cpu", size))
    arguments = options.get("arguments", (push(reference) + b"Q", offset, shape, strides, False, DICT))
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + push(arguments) + b"R"


def program(*items):
    return b"\x80\x02}(" + b"".join(map(push, items)) + b"u."


BROKEN_TENSORS = {
    "stride 0": (tensor((5, 4), (0, 1)), "DtypeUnsupported"),
    "overlap": (tensor((3, 2), (1, 1)), "DtypeUnsupported"),
    "partial overlap": (tensor((2, 2), (1, 1)), "DtypeUnsupported"),
    "negative stride": (tensor((4,), (-1,), offset=3), "ShapeMismatch"),
    "negative size": (tensor((-4,)), "ShapeMismatch"),
    "negative offset": (tensor(offset=-1), "ShapeMismatch"),
    "huge size": (tensor((1 << 79,)), "ShapeMismatch"),
    "huge empty": (tensor((0, 1 << 39, 1 << 39), (1, 1, 1)), "ShapeMismatch"),
    "huge stride of one": (tensor((1,), (1 << 62,)), "ShapeMismatch"),
    "rank 9": (tensor((1,) * 9, (1,) * 9), "ShapeMismatch"),
    "rank 17": (tensor((1,) * 17, (1,) * 17), "ResourceLimit"),
    "strides for another rank": (tensor((2, 2), (2,)), "ShapeMismatch"),
    "past the end": (tensor(offset=1), "SizeMismatch"),
    "last element past the end": (tensor((2,), (4,)), "SizeMismatch"),
    "empty past the end": (tensor((0,), offset=5), "SizeMismatch"),
    "storage shorter than claimed": (tensor(size=5), "SizeMismatch"),
    "storage longer than claimed": (tensor((3,), size=3), "SizeMismatch"),
    "storage of negative size": (tensor((0,), size=-4), "SizeMismatch"),
    "storage of huge size": (tensor(size=1 << 75), "SizeMismatch"),
    "no such storage": (tensor(key="1"), "Truncated"),
    "storage elsewhere": (tensor(key="../data.pkl"), "Truncated"),
    "key that is no text": (tensor(key=b"X\3\0\0\0\xed\xa0\x80"), "HeaderInvalid"),
    "size that is a bool": (tensor((True, 4), (4, 1)), "HeaderInvalid"),
    "size that is text": (tensor(("4",)), "HeaderInvalid"),
    "shape that is a storage": (tensor(shape=REFERENCE), "HeaderInvalid"),
    "bool storage": (tensor(storage=b"ctorch\nBoolStorage\n"), "DtypeUnsupported"),
    "complex storage": (tensor(storage=b"ctorch\nComplexFloatStorage\n"), "DtypeUnsupported"),
    "sparse": (b"ctorch._utils\n_rebuild_sparse_tensor\n)R", "DtypeUnsupported"),
    "quantized": (b"ctorch._utils\n_rebuild_qtensor\n)R", "DtypeUnsupported"),
    "meta": (b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n)R", "DtypeUnsupported"),
    "storage that is a function": (tensor(storage=b"ctorch._utils\n_rebuild_tensor_v2\n"), "HeaderInvalid"),
    "view of a view": (tensor(reference=("storage", FLOATS, "0", "cpu", 4, ("1", 0, 4))), "HeaderInvalid"),
    "no reference": (tensor(reference="0"), "HeaderInvalid"),
    "no arguments": (tensor(arguments=()), "HeaderInvalid"),
    "bare storage": (REFERENCE, "HeaderInvalid"),
    "text": ("weight", "HeaderInvalid"),
    "nested": (b"}" + push("a") + tensor() + b"s", "HeaderInvalid"),
    "list": (b"](" + tensor() + b"e", "HeaderInvalid"),
    "tuples three deep": (
        tensor(arguments=(REFERENCE, 0, (4,), (1,), False, DICT, (((1,),),))),
        "HeaderInvalid",
    ),
    "a call of a tensor": (tensor() + b")R", "HeaderInvalid"),
}


@pytest.mark.parametrize("case", BROKEN_TENSORS)
def test_what_is_not_a_plain_tensor_is_refused_unread(case, tmp_path):
    made, kind = BROKEN_TENSORS[case]
    path = write_archive(tmp_path / "bin", program("weight", made), {"0": bytes(16)})
    with pytest.raises(CheckpointError) as caught:
        torch_bin.read(path)
    assert caught.value.kind == kind, caught.value
    assert "\n" not in str(caught.value)


BROKEN_STATE_DICTS = {
    "a tensor": (b"\x80\x02" + tensor() + b".", "HeaderInvalid"),
    "a list": (b"\x80\x02].", "HeaderInvalid"),
    "a number for a name": (program(1, tensor()), "HeaderInvalid"),
    "a tuple for a name": (program((1,), tensor()), "HeaderInvalid"),
    "a name twice": (program("a", tensor(), "a", tensor()), "DuplicateName"),
    "a name without a tensor": (program("a", tensor(), "b"), "HeaderInvalid"),
    "two dtypes": (program("a", tensor(), "b", tensor(storage=b"ctorch\nIntStorage\n")), "HeaderInvalid"),
    "two sizes": (program("a", tensor(), "b", tensor((1,), size=1)), "HeaderInvalid"),
    "itself": (b"\x80\x02}q\0" + push("a") + b"h\0s.", "HeaderInvalid"),
    "names of a megabyte": (program("\x1b" * 1_000_000, tensor()), "ResourceLimit"),
    "a global with an escape": (b"\x80\x02ctorc\\x68\nFloatStorage\n.", "UnsafePickle"),
    "a global without an end": (b"\x80\x02ctorch\nFloatStorage", "HeaderInvalid"),
    "a global that is a list": (b"\x80\x04]]\x93.", "HeaderInvalid"),
    "a number of 2000 bits": (b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".", "ResourceLimit"),
    "items for a list": (b"\x80\x02](" + push("a") + tensor() + b"u.", "HeaderInvalid"),
    "appended to a dict": (b"\x80\x02}" + push("a") + b"a.", "HeaderInvalid"),
    "more marks than values": (b"\x80\x02" + b"(" * 1000 + b".", "HeaderInvalid"),
    "a value that was never kept": (b"\x80\x02h\7.", "HeaderInvalid"),
    "no end": (b"\x80\x02}", "HeaderInvalid"),
    "nothing": (b"\x80\x02.", "HeaderInvalid"),
    "no pickle": (b"", "HeaderInvalid"),
    "a mark too few": (b"\x80\x02}u.", "HeaderInvalid"),
}


@pytest.mark.parametrize("case", BROKEN_STATE_DICTS)
def test_what_is_not_a_state_dict_is_refused(case, tmp_path):
    content, kind = BROKEN_STATE_DICTS[case]
    assert refuse(write_archive(tmp_path / "bin", content, {"0": bytes(16)})).kind == kind


def test_a_long_name_is_not_written_out(tmp_path):
    path = write_archive(tmp_path / "bin", b"\x80\x02c" + b"\x1b" * 4_000_000 + b"\nx\n.")
    assert refuse(path).kind == "UnsafePickle"
    assert peak(lambda: refuse(path)) < 5 * 4_000_000


def nest(start, step, count):
    return b"\x80\x04" + start + step * count + b"."


HOSTILE_PICKLES = {  # none may take longer than its instructions
    "a memo index of two thousand million": b"\x80\x02}r\0\0\0\x7f.",
    "a key of a million nested tuples": b"\x80\x02}()" + b"\x85" * 1_000_000 + b"K\1u.",
    "a name that is nested tuples": b"\x80\x04)" + b"\x85" * 100_000 + push("x") + b"\x93.",
    "tuples": nest(b")", b"\x85", 50_000),
    "lists": nest(b"]", b"q\0]h\0a", 50_000),
    "lists inside": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "dicts": b"\x80\x02" + b"}X\1\0\0\0a" * 50_000 + b"N" + b"s" * 50_000 + b".",
    "ordered dicts": nest(b"", DICT, 50_000),
    "billion laughs of tuples": nest(b"K\1", b"q\0(" + b"h\0" * 10 + b"t", 20),
    "billion laughs of lists": nest(b"]", b"q\0](" + b"h\0" * 10 + b"e", 10_000),
    "a long tuple of long tuples": b"\x80\x02(" + b"K\1" * 100_000 + b"tq\0(" + b"h\0" * 100_000 + b"t.",
    "an argument list of a hundred thousand, called again and again": b"\x80\x02(" + b"K\1" * 100_000 + b"tq\0"
    + b"ccollections\nOrderedDict\nh\0R" * 30_000 + b".",
    "a cycle as a name": b"\x80\x04]q\0h\0ah\0\x93.",
    "a cycle as a persistent id": b"\x80\x04]q\0h\0aQ.",
    "a cycle as arguments": b"\x80\x04]q\0h\0aq\0ctorch._utils\n_rebuild_tensor_v2\nh\0R.",
    "a million instructions": b"\x80\x02" + b"}" * 1_000_000 + b".",
    "two million marks": b"\x80\x02" + b"(" * 2_000_000 + b".",
    "long names": b"\x80\x02" + push("x" * 1000) + b"q\0" + b"h\0" * 200_000 + b".",
    "a string that claims 4 GiB": b"\x80\x02X\xff\xff\xff\xff.",
    "a string that claims all memory": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.",
    "a frame that claims all memory": b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
    "a number of three million digits": b"\x80\x02L" + b"9" * 3_000_000 + b"L\n.",
    "a float of three million digits": b"\x80\x02F" + b"x" * 3_000_000 + b"\n.",
    "twenty thousand names for a matrix": program(
        "0", tensor((1000,), size=1000) + b"q\0", *(x for i in range(20_000) for x in (f"{i} ", b"h\0"))
    ),
    "a file of tensors": program(*(x for i in range(20_000) for x in (str(i), tensor(key=str(i))))),
}  # fmt: skip


@pytest.mark.parametrize("layout", ["zip", "legacy"])
@pytest.mark.parametrize("case", HOSTILE_PICKLES)
def test_pickles_made_to_hurt_are_refused_quickly(case, layout, tmp_path):
    """Bounded by the number of instructions, not by the clock: the slowest takes a twentieth of the limit."""
    path = write_archive(tmp_path / "bin", HOSTILE_PICKLES[case], {"0": bytes(4000)})
    if layout == "legacy":
        pickles, rest = legacy_pickles({"weight": torch.ones(3)})
        path.write_bytes(b"".join([*pickles[:3], HOSTILE_PICKLES[case], *pickles[4:], rest]))
    start = time.process_time()
    assert not read_if_accepted(path)  # an empty state dict is harmless
    assert time.process_time() - start < 10


def test_the_instructions_of_a_file_are_counted(tmp_path, monkeypatch):
    """Twenty thousand names for one number are harmless, and the limit holds for all pickles of a file together."""
    names = [str(i) for i in range(20_000)]
    items = [x for name in names for x in (name, tensor((), (), size=1) + b"q\0" if name == "0" else b"h\0")]
    stored = torch_bin.read(write_archive(tmp_path / "bin", program(*items), {"0": bytes(4)}))
    assert list(stored) == names
    assert stored["19999"] == 0
    pickles, _ = legacy_pickles({"weight": torch.ones(3)})
    counts = [len(list(pickletools.genops(one))) for one in pickles]
    torch.save({"weight": torch.ones(3)}, tmp_path / "legacy", **LEGACY)
    monkeypatch.setattr(state_pickle, "MAX_INSTRUCTIONS", sum(counts))
    assert list(torch_bin.read(tmp_path / "legacy")) == ["weight"]
    monkeypatch.setattr(state_pickle, "MAX_INSTRUCTIONS", sum(counts) - 1)
    assert refuse(tmp_path / "legacy").kind == "ResourceLimit"
    monkeypatch.undo()
    monkeypatch.setattr(state_pickle, "MAX_TENSORS", 19_999)
    assert refuse(tmp_path / "bin").kind == "ResourceLimit"


def test_views_add_up_to_a_bounded_multiple_of_the_file(tmp_path):
    shared = torch.arange(10_000.0)
    for count in (2, 4):
        torch.save({str(i): shared[i:] for i in range(count)}, tmp_path / "bin")
        assert torch_bin.read(tmp_path / "bin")["1"].tobytes() == shared[1:].numpy().tobytes()
    torch.save({str(i): shared[i:] for i in range(6)}, tmp_path / "bin")
    assert refuse(tmp_path / "bin").kind == "ResourceLimit"


def good_archive(path):
    return write_archive(
        path,
        program("a", tensor(), "b", tensor(key="1")),
        {"0": struct.pack("<4f", 1, 2, 3, 4), "1": struct.pack("<4f", 5, 6, 7, 8)},
    ).read_bytes()


def patch(data, name, place, format, *values):  # noqa: A002 - as struct has it
    """Write `values` at `place` of the local header (of 30 bytes) or of the directory's entry (of 46) of a member."""
    header, size = (data.index(name), 30) if place[0] == "local" else (data.rindex(name), 46)
    mutant = bytearray(data)
    struct.pack_into(format, mutant, header - size + place[1], *values)
    return bytes(mutant)


A, B = b"archive/data/0", b"archive/data/1"
BROKEN_ARCHIVES = {  # what is done to a good archive, and the kind of the error
    "encrypted": (lambda d: patch(patch(d, A, ("local", 6), "<H", 1), A, ("entry", 8), "<H", 1), "HeaderInvalid"),
    "encrypted by its header": (lambda d: patch(d, A, ("local", 6), "<H", 1), "HeaderInvalid"),
    "compressed by its header": (lambda d: patch(d, A, ("local", 8), "<H", 8), "HeaderInvalid"),
    "compressed by its entry": (lambda d: patch(d, A, ("entry", 10), "<H", 8), "HeaderInvalid"),
    "other packed size": (lambda d: patch(d, A, ("entry", 20), "<L", 15), "HeaderInvalid"),
    "other size in the header": (lambda d: patch(d, A, ("local", 18), "<2L", 15, 15), "HeaderInvalid"),
    "no size in the header": (lambda d: patch(d, A, ("local", 18), "<2L", 0, 0), "HeaderInvalid"),
    "size of 4 GiB in the header": (lambda d: patch(d, A, ("local", 18), "<2L", *[0xFFFFFFFF] * 2), "HeaderInvalid"),
    "size of 4 GiB": (lambda d: patch(d, A, ("entry", 20), "<2L", *[0xFFFFFFFF] * 2), "OffsetInvalid"),
    "other name in the header": (lambda d: d.replace(A, b"archive/data/2", 1), "HeaderInvalid"),
    "other name in the entry": (lambda d: patch(d, A, ("entry", 59), "<B", 50), "Truncated"),
    "longer name in the header": (lambda d: patch(d, A, ("local", 26), "<H", 15), "HeaderInvalid"),
    "extra bytes in the header": (lambda d: patch(d, A, ("local", 28), "<H", 8), "OffsetInvalid"),
    "extra bytes past the end": (lambda d: patch(d, B, ("local", 28), "<H", 65535), "OffsetInvalid"),
    "named twice": (lambda d: d.replace(B, A), "DuplicateName"),
    "overlap": (lambda d: patch(patch(d, A, ("local", 18), "<2L", 20, 20), A, ("entry", 20), "<2L", 20, 20),
                "OffsetInvalid"),
    "the same bytes for two": (lambda d: patch(d, B, ("entry", 42), "<L", d.index(A) - 30), "OffsetInvalid"),
    "offset past the end": (lambda d: patch(d, B, ("entry", 42), "<L", len(d)), "OffsetInvalid"),
    "offset of no header": (lambda d: patch(d, B, ("entry", 42), "<L", d.index(B) - 31), "OffsetInvalid"),
    "no entry": (lambda d: d.replace(b"PK\1\2", b"PK\1\3"), "Truncated"),
    "other checksum": (lambda d: patch(d, A, ("entry", 16), "<L", 1), "SizeMismatch"),
    "other numbers": (lambda d: d.replace(struct.pack("<f", 2), struct.pack("<f", 2.5)), "SizeMismatch"),
    "other pickle": (lambda d: d.replace(b"FloatStorage", b"flaatStorage"), "SizeMismatch"),
    "a comment": (lambda d: d[:-2] + b"\5\0hello", "Truncated"),
    "a comment cut off": (lambda d: d[:-2] + b"\5\0", "Truncated"),
    "something between": (lambda d: d[:-22] + b"\0" + d[-22:], "Truncated"),
    "something before": (lambda d: b"PK\3\4" + d, "Truncated"),
    "something behind": (lambda d: d + b"\0", "Truncated"),
    "fewer members than entries": (lambda d: d[:-14] + b"\2\0\2\0" + d[-10:], "Truncated"),
    "an entry that is not counted": (lambda d: with_member(d, "x", b"")[:-14] + b"\3\0\3\0" + with_member(d, "x", b"")[-10:],
                                     "Truncated"),
    "more members than entries": (lambda d: d[:-14] + b"\4\0\4\0" + d[-10:], "Truncated"),
    "a second disk": (lambda d: d[:-18] + b"\1\0" + d[-16:], "Truncated"),
    "no state dict": (lambda d: d.replace(b"data.pkl", b"data.pkm"), "HeaderInvalid"),
    "a second state dict": (lambda d: d.replace(B, b"archdata0/data.pkl"[4:]), "HeaderInvalid"),
    "big-endian": (lambda d: with_member(d, "archive/byteorder", b"big"), "VersionUnsupported"),
}  # fmt: skip


def with_member(data, name, content, **attributes):
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as archive:
        entry = zipfile.ZipInfo(name)
        for attribute, value in attributes.items():
            setattr(entry, attribute, value)
        archive.writestr(entry, content)
    return buffer.getvalue()


@pytest.mark.parametrize("case", BROKEN_ARCHIVES)
def test_an_archive_that_torch_does_not_write_is_refused(case, tmp_path):
    good = good_archive(tmp_path / "good")
    assert torch_bin.read(tmp_path / "good")["b"].tolist() == [5, 6, 7, 8]
    damage, kind = BROKEN_ARCHIVES[case]
    (tmp_path / "bin").write_bytes(damage(good))
    error = refuse(tmp_path / "bin")
    assert error.kind == kind, error


def test_a_directory_of_64_bits_must_agree_with_the_one_of_32(tmp_path):
    torch.save({"weight": torch.ones(3)}, tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    assert good[-98:].startswith(b"PK\6\6")
    for place, kind in {
        0: "Truncated",
        32: "HeaderInvalid",
        40: "HeaderInvalid",
        48: "HeaderInvalid",
        64: "Truncated",
    }.items():
        mutant = bytearray(good)
        mutant[len(good) - 98 + place] ^= 1
        (tmp_path / "bin").write_bytes(mutant)
        assert refuse(tmp_path / "bin").kind == kind, place


def test_members_that_nobody_asks_for_are_harmless(tmp_path):
    data = good_archive(tmp_path / "bin")
    data = with_member(data, "../../evil", b"x")
    data = with_member(data, "/etc/passwd", b"x")
    data = with_member(data, "archive/", b"", external_attr=0o40755 << 16)
    data = with_member(data, "archive/data/link", b"/etc/passwd", external_attr=0o120777 << 16)
    data = with_member(data, "archive/\x1b[31m", b"x")
    (tmp_path / "bin").write_bytes(data)
    assert torch_bin.read(tmp_path / "bin")["a"].tolist() == [1, 2, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_a_compressed_archive_is_not_unpacked(tmp_path):
    path = write_archive(tmp_path / "bin", program(), {"0": bytes(50_000_000)}, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    assert peak(lambda: refuse(path)) < 1_000_000
    assert "compressed" in str(refuse(path))


@pytest.mark.parametrize("count", [60_000, 1_000_000])
def test_too_many_members_are_refused_by_their_count(count, tmp_path):
    directory = struct.pack("<4s6H3L5H2L", b"PK\1\2", *[0] * 16) * count
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), 4)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 4 + len(directory), 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    small = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, min(count, 0xFFFF), min(count, 0xFFFF), len(directory), 4, 0)
    for tail in (end64 + locator + end, small):
        (tmp_path / "bin").write_bytes(b"PK\3\4" + directory + tail)
        start = time.process_time()
        assert peak(lambda: refuse(tmp_path / "bin")) < 1_000_000
        assert refuse(tmp_path / "bin").kind == "ResourceLimit"
        assert time.process_time() - start < 8


def other_keys(pickles, old, new):
    return [*pickles[:4], pickles[4].replace(old, new)]


BROKEN_LEGACY = {  # what is done to the five pickles and to the rest, and the kind of the error
    "other magic": (lambda p, r: ([b"\x80\2K\1.", *p[1:]], r), "BadMagic"),
    "MessagePack": (lambda p, r: ([b"\x80"], b""), "HeaderInvalid"),
    "other protocol": (lambda p, r: ([p[0], b"\x80\2M\xea\3.", *p[2:]], r), "VersionUnsupported"),
    "big-endian": (lambda p, r: ([*p[:2], p[2].replace(b"\x88", b"\x89"), *p[3:]], r), "VersionUnsupported"),
    "no system": (lambda p, r: ([*p[:2], b"\x80\2N.", *p[3:]], r), "VersionUnsupported"),
    "no state dict": (lambda p, r: ([*p[:3], b"\x80\2N.", p[4]], r), "HeaderInvalid"),
    "no keys": (lambda p, r: ([*p[:4], b"\x80\2].", *p[5:]], r), "HeaderInvalid"),
    "keys that are no list": (lambda p, r: ([*p[:4], b"\x80\2}."], r), "HeaderInvalid"),
    "keys that are numbers": (lambda p, r: ([*p[:4], b"\x80\2](K\1e."], r), "HeaderInvalid"),
    "another key": (lambda p, r: (other_keys(p, b"X\1\0\0\0" + b"1", b"X\1\0\0\0" + b"2"), r), "HeaderInvalid"),
    "a key twice": (lambda p, r: (other_keys(p, b"X\1\0\0\0" + b"1", b"X\1\0\0\0" + b"0"), r), "HeaderInvalid"),
    "another count": (lambda p, r: (p, b"\3" + r[1:]), "SizeMismatch"),
    "a huge count": (lambda p, r: (p, r[:7] + b"\x7f" + r[8:]), "SizeMismatch"),
    "too short": (lambda p, r: (p, r[:-1]), "Truncated"),
    "no data": (lambda p, r: (p, b""), "Truncated"),
    "too long": (lambda p, r: (p, r + b"\0"), "OffsetInvalid"),
}


@pytest.mark.parametrize("case", BROKEN_LEGACY)
def test_a_broken_file_of_the_layout_before_1_6_is_refused(case, tmp_path):
    pickles, _ = legacy_pickles({})
    reference = ("storage", FLOATS, "1", "cpu", 4, None)
    pickles[3] = program(
        "a", tensor(reference=("storage", FLOATS, "0", "cpu", 4, None)), "b", tensor(reference=reference)
    )
    pickles[4] = b"\x80\2](" + push("1") + push("0") + b"e."
    count = struct.pack("<Q", 4)
    rest = count + struct.pack("<4f", 5, 6, 7, 8) + count + struct.pack("<4f", 1, 2, 3, 4)
    (tmp_path / "good").write_bytes(b"".join(pickles) + rest)
    assert torch_bin.read(tmp_path / "good")["a"].tolist() == [1, 2, 3, 4]
    assert torch.load(tmp_path / "good", weights_only=True)["a"].tolist() == [1, 2, 3, 4]
    damage, kind = BROKEN_LEGACY[case]
    pickles, rest = damage(pickles, rest)
    (tmp_path / "bin").write_bytes(b"".join(pickles) + rest)
    with pytest.raises(CheckpointError) as caught:
        torch_bin.read(tmp_path / "bin")  # before a tensor is read
    assert caught.value.kind == kind, caught.value


def test_the_tar_archive_before_0_1_10_is_refused_by_name(tmp_path):
    with tarfile.open(tmp_path / "bin", "w:", format=tarfile.PAX_FORMAT) as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    error = refuse(tmp_path / "bin")
    assert error.kind == "VersionUnsupported"
    assert "tar archive of PyTorch before 0.1.10" in str(error)


@LAYOUTS
def test_every_truncation_is_noticed(layout, tmp_path):
    torch.save({"weight": torch.arange(9.0), "bias": torch.ones(2)}, tmp_path / "bin", **layout)
    good = (tmp_path / "bin").read_bytes()
    for size in reversed(range(len(good))):
        os.truncate(tmp_path / "bin", size)
        refuse(tmp_path / "bin")


@pytest.mark.parametrize("writer", ["torch", "ours"])
def test_a_flipped_bit_is_noticed_or_changes_nothing(writer, tmp_path):
    state = state_dict()
    arrays = {name: to_numpy(tensor) for name, tensor in state.items()}
    torch.save(state, tmp_path / "bin") if writer == "torch" else write(tmp_path / "bin", arrays)
    good = (tmp_path / "bin").read_bytes()
    outcomes = collections.Counter()
    for bit in np.random.default_rng(0).choice(8 * len(good), 1000, replace=False):
        mutant = bytearray(good)
        mutant[bit // 8] ^= 1 << bit % 8
        (tmp_path / "bin").write_bytes(mutant)
        try:
            assert_same(torch_bin.read(tmp_path / "bin"), arrays)
            outcomes["harmless"] += 1
        except CheckpointError:
            outcomes["noticed"] += 1
    assert outcomes["noticed"] > 400


def test_a_flipped_bit_beside_a_view_is_noticed(tmp_path):
    """A storage is verified whole, though each of its tensors is a part of it, and again for the next reader."""
    flat = torch.arange(3000.0)
    torch.save({str(i): flat[1000 * i :][:1000] for i in range(3)}, tmp_path / "bin")
    data = bytearray((tmp_path / "bin").read_bytes())
    data[data.find(struct.pack("<3f", 500, 501, 502))] ^= 1
    (tmp_path / "bin").write_bytes(data)
    stored = torch_bin.read(tmp_path / "bin")
    for name in ("2", "0", "2"):
        with pytest.raises(CheckpointError, match="damaged bytes in 'data/0'; copy or download it again"):
            stored[name]


def read_if_accepted(path):
    try:
        return dict(torch_bin.read(path))
    except CheckpointError:
        return None


def assert_written_alike(arrays, folder):
    """What was read is written and read again without change, and always as the same bytes."""
    first = write(folder / "first", arrays)
    assert_same(torch_bin.read(first), arrays)
    assert write(folder / "second", torch_bin.read(first)).read_bytes() == first.read_bytes()


QUICK = settings(
    max_examples=300, deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
DAMAGE = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "double", "insert"]), st.integers(0, 1 << 20), st.integers(0, 40),
        st.integers(0, 255) | st.sampled_from(sorted(ord(opcode.code) for opcode in pickletools.opcodes)),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


def damaged(data, damage):
    for kind, place, length, value in damage:
        start = place % (len(data) + 1)
        piece = data[start : start + length]
        match kind:
            case "set":
                data = data[:start] + bytes([value]) + data[start + 1 :]
            case "cut":
                data = data[:start] + data[start + length :]
            case "double":
                data = data[:start] + piece + data[start:]
            case "insert":
                data = data[:start] + bytes([value]) + data[start:]
    return data


SMALL = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(3), "t": torch.nn.Parameter(torch.ones(2, 3).T)}
SMALL["tied"] = SMALL["a"]


@LAYOUTS
@QUICK
@given(damage=DAMAGE)
def test_a_damaged_file_is_read_or_refused(layout, damage, tmp_path):
    torch.save(SMALL, tmp_path / "bin", **layout)
    (tmp_path / "bin").write_bytes(damaged((tmp_path / "bin").read_bytes(), damage))
    arrays = read_if_accepted(tmp_path / "bin")
    if arrays is not None:
        assert_written_alike(arrays, tmp_path)


@pytest.mark.parametrize("protocol", [2, 4])
@QUICK
@given(damage=DAMAGE)
def test_a_damaged_pickle_in_a_whole_file_is_read_or_refused(protocol, damage, tmp_path):
    torch.save(SMALL, tmp_path / "bin", pickle_protocol=protocol)
    with zipfile.ZipFile(tmp_path / "bin") as archive:
        content = damaged(archive.read("bin/data.pkl"), damage)
        data = {name.removeprefix("bin/data/"): archive.read(name) for name in archive.namelist() if "/data/" in name}
    arrays = read_if_accepted(write_archive(tmp_path / "bin", content, data))
    if arrays is not None:
        assert_written_alike(arrays, tmp_path)


@settings(QUICK, max_examples=100)
@given(
    names=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), unique=True, max_size=5),
    seed=st.integers(0, 1000),
)
def test_any_tensors_come_back_and_torch_agrees(names, seed, tmp_path):
    random = np.random.default_rng(seed)
    arrays = {}
    for name in names:
        shape = tuple(random.integers(0, 4, random.integers(0, 5)))
        dtype = DTYPES[random.choice(list(DTYPES))]
        arrays[name] = np.frombuffer(random.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)
    assert_written_alike(arrays, tmp_path)
    state = torch.load(tmp_path / "first", weights_only=True)
    assert_same({name: to_numpy(tensor) for name, tensor in state.items()}, arrays)
    torch.save(state, tmp_path / "theirs", **(LEGACY if seed % 2 else ZIP))
    assert_same(torch_bin.read(tmp_path / "theirs"), arrays)

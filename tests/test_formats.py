"""Checkpoint files: the reference's own are read, ours are read by the formats' own libraries, broken ones refused."""

import collections
import json
import os
import pickle
import struct
import time
import zipfile

import h5py
import ml_dtypes
import msgpack as msgpack_library
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from distilbert import weight_map
from distilbert.checkpoint import hdf5, msgpack, safely, safetensors, torch_bin
from distilbert.checkpoint.folder import FORMATS, REFERENCE_FORMATS
from distilbert.checkpoint.loading import open_checkpoint
from distilbert.checkpoint.tensors import TensorInfo
from distilbert.config import DistilBertConfig
from distilbert.errors import CheckpointError
from tests.support import ANY_MODEL, REFERENCE_FOLDERS

ARRAYS = {
    "a.kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.array([1.5, -0.0], np.float64),
    "b.half": np.array([1.5, 65504], np.float16),
    "b.brain": np.array([[1.0], [3e38]], ml_dtypes.bfloat16),
    "scalar": np.array(7, np.float32),
    "empty": np.zeros((0, 4), np.float32),
}
INFO = {name: TensorInfo(array.shape, array.dtype.name) for name, array in ARRAYS.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("folder", REFERENCE_FOLDERS, ids=lambda f: f.name)
@pytest.mark.parametrize("name", REFERENCE_FORMATS)
def test_files_of_the_reference_hold_the_same_bits(folder, name, tmp_path):
    file = FORMATS[name].file
    (tmp_path / file).write_bytes((folder / file).read_bytes())
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    found = dict(open_checkpoint(tmp_path, "DistilBertModel"))
    expected = {f"distilbert.{n}": a for n, a in load_file(folder / "model.safetensors").items()}
    assert_same(found, {n: expected[n] for n in found})
    assert len(found) == len(expected)


def test_safetensors_is_what_its_own_library_reads_and_writes(tmp_path):
    safetensors.write(tmp_path / "ours", INFO, ARRAYS.__getitem__)
    assert_same(load_file(tmp_path / "ours"), ARRAYS)
    with safe_open(tmp_path / "ours", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    save_file(ARRAYS, tmp_path / "theirs", metadata={"format": "tf"})
    stored = safetensors.read(tmp_path / "theirs")
    assert_same(dict(stored), ARRAYS)
    assert stored.metadata == {"format": "tf"}


def test_msgpack_is_what_flax_reads_and_writes(tmp_path, monkeypatch):
    from flax.serialization import msgpack_restore, msgpack_serialize

    def tree(arrays):
        nested = {}
        for name, array in arrays.items():
            *parents, last = name.split(".")
            node = nested
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = array
        return nested

    (tmp_path / "theirs").write_bytes(msgpack_serialize(tree(ARRAYS)))
    assert_same(dict(msgpack.read(tmp_path / "theirs")), ARRAYS)
    for chunk in (1 << 30, 8):  # whole, and in chunks of two float32
        monkeypatch.setattr(msgpack, "CHUNK_BYTES", chunk)
        msgpack.write(tmp_path / "ours", INFO, ARRAYS.__getitem__)
        assert_same(dict(msgpack.read(tmp_path / "ours")), ARRAYS)
        restored = msgpack_restore((tmp_path / "ours").read_bytes())
        assert np.array_equal(restored["a"]["kernel"], ARRAYS["a.kernel"])
        assert restored["b"]["brain"].tobytes() == ARRAYS["b.brain"].tobytes()


def test_hdf5_is_what_h5py_reads_and_writes(tmp_path):
    arrays = {
        "layer/m/x/kernel:0": ARRAYS["a.kernel"],
        "layer/m/y:0": ARRAYS["b.half"],
        "other/m/z:0": ARRAYS["a.bias"],
    }
    info = {name: TensorInfo(array.shape, array.dtype.name) for name, array in arrays.items()}
    hdf5.write(tmp_path / "ours", info, arrays.__getitem__)
    assert_same(dict(hdf5.read(tmp_path / "ours")), arrays)
    with h5py.File(tmp_path / "ours") as file:
        assert np.char.decode(np.array(file.attrs["layer_names"], "S")).tolist() == ["layer", "other"]
        assert np.char.decode(np.array(file["layer"].attrs["weight_names"], "S")).tolist() == ["m/x/kernel:0", "m/y:0"]
        assert np.array_equal(file["layer/m/x/kernel:0"], arrays["layer/m/x/kernel:0"])


def test_a_long_list_of_names_is_split_as_keras_does(tmp_path):
    names = [f"layer/{'m' * 90}/{i}:0" for i in range(1500)]
    hdf5.write(tmp_path / "h5", {n: TensorInfo((1,), "float32") for n in names}, lambda name: np.ones(1, np.float32))
    with h5py.File(tmp_path / "h5") as file:
        parts = [key for key in file["layer"].attrs if key.startswith("weight_names")]
        assert len(parts) > 1
        assert sum(len(file["layer"].attrs[part]) for part in parts) == 1500
    assert len(hdf5.read(tmp_path / "h5")) == 1500


def test_torch_files_are_read_as_torch_reads_them(tmp_path):
    base = torch.arange(24, dtype=torch.float32)
    state = collections.OrderedDict(
        plain=base.reshape(4, 6),
        turned=base.reshape(4, 6).T,
        part=base[3:11].reshape(2, 4),
        shared=base.reshape(4, 6),
        half=base.half(),
        brain=base.bfloat16(),
        double=base.double(),
        ids=torch.arange(3),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(base * 2),
    )
    state._metadata = {"": {"version": 1}}
    for protocol in (2, 4):
        torch.save(state, tmp_path / "bin", pickle_protocol=protocol)
        stored = torch_bin.read(tmp_path / "bin")
        assert list(stored) == list(state)
        for name, tensor in state.items():
            found = stored[name]
            bits = tensor.detach().contiguous()
            wanted = bits.view(torch.int16).numpy() if name == "brain" else bits.numpy()
            assert found.shape == wanted.shape
            assert found.tobytes() == wanted.tobytes(), name


class Attack:
    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


def test_a_pickle_that_asks_for_anything_else_is_refused_and_runs_nothing(tmp_path):
    canary = tmp_path / "canary"
    attacks = {
        "os.system": Attack(os.system, f"touch {canary}"),
        "eval": Attack(eval, f"open({str(canary)!r}, 'w')"),
        "getattr": Attack(getattr, "".join, "__class__"),
        "open": Attack(open, str(canary), "w"),
    }
    for name, attack in attacks.items():
        for content in (attack, {"weight": attack}):
            with zipfile.ZipFile(tmp_path / "bin", "w") as archive:
                archive.writestr("archive/data.pkl", pickle.dumps(content, 2))
            with pytest.raises(CheckpointError, match="which is not part of a tensor") as caught:
                torch_bin.read(tmp_path / "bin")
            assert caught.value.kind == "UnsafePickle", name
    assert not canary.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02}" + b"r\x00\x00\x00\x7f" + b".",  # a memo index of two thousand million
        b"\x80\x02}(" + b")" + b"\x85" * 1_000_000 + b"K\x01u.",  # a key of a million nested tuples
        b"\x80\x02}(K\x01K\x01u.",  # a key that is no string
        b"\x80\x02(" * 1000 + b".",
        b"\x80\x02}",
        b"\x80\x02.",
        b"",
        b"\x80\x02]" + b"]a" * 100_000 + b".",
        b"cposix\nsystem\n(X\x02\x00\x00\x00idtR.",
        b"\x80\x02c__builtin__\neval\n.",
        b"(iposix\nsystem\n.",
        b"\x80\x02}}b.",
        b"\x80\x04)" + b"\x85" * 100_000 + b"\x8c\x01x\x93.",  # a name that is a hundred thousand nested tuples
        b"\x80\x02}(X\x01\x00\x00\x00aNX\x01\x00\x00\x00aNu.",  # a key named twice
    ],
)
def test_pickles_made_to_hurt_are_refused_quickly(tmp_path, program):
    with zipfile.ZipFile(tmp_path / "bin", "w") as archive:
        archive.writestr("archive/data.pkl", program)
    start = time.process_time()
    with pytest.raises(CheckpointError):
        _refuse_empty(torch_bin.read(tmp_path / "bin"), tmp_path)
    assert time.process_time() - start < 3


def _refuse_empty(stored, path):
    """An empty state dict is harmless by itself; a load misses every tensor of it."""
    if not stored:
        raise CheckpointError(path, "MissingTensor", "lacks everything")


def test_a_flipped_bit_in_a_torch_file_is_noticed(tmp_path):
    torch.save({"weight": torch.arange(1000.0)}, tmp_path / "bin")
    data = bytearray((tmp_path / "bin").read_bytes())
    data[data.find(struct.pack("<3f", 500, 501, 502))] ^= 1
    (tmp_path / "bin").write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged bytes"):
        torch_bin.read(tmp_path / "bin")["weight"]


def _header(entries, data=b"\0" * 8, length=None):
    text = json.dumps(entries).encode() if isinstance(entries, dict) else entries
    return struct.pack("<Q", len(text) if length is None else length) + text + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BROKEN_SAFETENSORS = {
    "empty": (b"", "BadMagic"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "BadMagic"),
    "html": (b"<!DOCTYPE html><html></html>", "BadMagic"),
    "zip": (b"PK\x03\x04" + b"\0" * 60, "BadMagic"),
    "length 2^63": (_header({}, length=1 << 63), "HeaderTooLarge"),
    "length beyond the file": (_header({"a": F32}, length=1 << 20), "Truncated"),
    "data too short": (_header({"a": F32}, b"\0" * 4), "Truncated"),
    "data too long": (_header({"a": F32}, b"\0" * 12), "OffsetInvalid"),
    "overlap": (_header({"a": F32, "b": F32}), "OffsetInvalid"),
    "hole": (_header({"a": F32 | {"data_offsets": [4, 12]}}, b"\0" * 12), "OffsetInvalid"),
    "negative offset": (_header({"a": F32 | {"data_offsets": [-8, 0]}}), "HeaderInvalid"),
    "float offset": (_header({"a": F32 | {"data_offsets": [0.0, 8.0]}}), "HeaderInvalid"),
    "size": (_header({"a": F32 | {"shape": [3]}}), "OffsetInvalid"),
    "shape overflow": (_header({"a": F32 | {"shape": [0, 1 << 40, 1 << 40]}}), "ShapeMismatch"),
    "negative dimension": (_header({"a": F32 | {"shape": [-1]}}), "ShapeMismatch"),
    "rank 9": (_header({"a": F32 | {"shape": [1] * 9}}), "ShapeMismatch"),
    "dtype": (_header({"a": F32 | {"dtype": "F8_E4M3"}}), "DtypeUnsupported"),
    "extra field": (_header({"a": F32 | {"x": 1}}), "HeaderInvalid"),
    "not an object": (_header({"a": []}), "HeaderInvalid"),
    "metadata": (_header({"__metadata__": {"a": 1}}, b""), "HeaderInvalid"),
    "duplicate": (_header(b'{"a":%s,"a":%s}' % ((json.dumps(F32).encode(),) * 2)), "DuplicateName"),
    "deep": (_header(b'{"a":' + b"[" * 200_000), "ResourceLimit"),
    "not JSON": (_header(b"{]"), "HeaderInvalid"),
}


@pytest.mark.parametrize("case", BROKEN_SAFETENSORS)
def test_a_broken_safetensors_file_is_refused_from_its_header(case, tmp_path):
    content, kind = BROKEN_SAFETENSORS[case]
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        safetensors.read(tmp_path / "f")
    assert caught.value.kind == kind, caught.value
    assert "\n" not in str(caught.value)


def _leaf(shape, dtype, data):
    return msgpack_library.ExtType(1, msgpack_library.packb((shape, dtype, data)))


BROKEN_MSGPACK = {
    "empty": (b"", "BadMagic"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "BadMagic"),
    "truncated": (msgpack_library.packb({"a": _leaf([2], "float32", b"\0" * 8)})[:-3], "Truncated"),
    "trailing": (msgpack_library.packb({"a": _leaf([2], "float32", b"\0" * 8)}) + b"\0", "HeaderInvalid"),
    "size": (msgpack_library.packb({"a": _leaf([3], "float32", b"\0" * 8)}), "SizeMismatch"),
    "negative": (msgpack_library.packb({"a": _leaf([-1], "float32", b"")}), "ShapeMismatch"),
    "dtype": (msgpack_library.packb({"a": _leaf([1], "O", b"\0" * 8)}), "DtypeUnsupported"),
    "structured": (msgpack_library.packb({"a": _leaf([1], "f4,f4", b"\0" * 8)}), "DtypeUnsupported"),
    "extension": (msgpack_library.packb({"a": msgpack_library.ExtType(7, b"")}), "HeaderInvalid"),
    "string": (msgpack_library.packb({"a": "text"}), "HeaderInvalid"),
    "integer key": (msgpack_library.packb({1: {}}), "HeaderInvalid"),
    "dotted key": (msgpack_library.packb({"a.b": _leaf([0], "float32", b"")}), "HeaderInvalid"),
    "duplicate": (b"\x82\xa1a\xc0\xa1a\xc0", "DuplicateName"),
    "deep": (b"\x81\xa1a" * 3000 + b"\xc0", "HeaderInvalid"),
    "dtype that is a list": (msgpack_library.packb({"a": _leaf([1], ["float32"], b"\0" * 4)}), "DtypeUnsupported"),
    "fractional chunk shape": (
        msgpack_library.packb(
            {
                "a": {
                    "__msgpack_chunked_array__": True,
                    "shape": {"0": 2.0},
                    "chunks": {"0": _leaf([2], "float32", b"\0" * 8)},
                }
            }
        ),
        "SizeMismatch",
    ),
    "HDF5 bytes": (b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "BadMagic"),
    "not an array": (msgpack_library.packb({"a": msgpack_library.ExtType(1, b"\xc0")}), "HeaderInvalid"),
    "chunks": (
        msgpack_library.packb({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 3}, "chunks": {}}}),
        "SizeMismatch",
    ),
}


@pytest.mark.parametrize("case", BROKEN_MSGPACK)
def test_a_broken_msgpack_file_is_refused(case, tmp_path):
    content, kind = BROKEN_MSGPACK[case]
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        msgpack.read(tmp_path / "f")
    assert caught.value.kind == kind, caught.value
    assert "\n" not in str(caught.value)


def _h5(path, build):
    with h5py.File(path, "w") as file:
        build(file)


def _virtual(file):
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", shape=(4,))
    file.create_virtual_dataset("v", layout)


def _net(file):
    """Ten levels of groups, each linked six times: few bytes, sixty million paths."""
    below = file.create_group("0")
    for level in range(1, 10):
        group = file.create_group(str(level))
        for i in range(6):
            group[str(i)] = below
        below = group


BROKEN_HDF5 = {
    "external link": (lambda f: f.__setitem__("e", h5py.ExternalLink("/etc/hostname", "/x")), "HeaderInvalid"),
    "external storage": (lambda f: f.create_dataset("e", (4,), "f4", external=[("/etc/hostname", 0, 16)]), "Truncated"),
    "virtual": (_virtual, "UnsafeLink"),
    "chunked": (lambda f: f.create_dataset("c", (4, 4), "f4", chunks=(2, 2)), "UnsafeLink"),
    "compressed": (lambda f: f.create_dataset("g", data=np.zeros((4, 4), "f4"), compression="gzip"), "UnsafeLink"),
    "bomb": (lambda f: f.create_dataset("b", (1 << 40,), "f4", chunks=(1 << 20,)), "UnsafeLink"),
    "never written": (lambda f: f.create_dataset("n", (4,), "f4"), "Truncated"),
    "big-endian": (lambda f: f.create_dataset("b", data=np.zeros(4, ">f4")), "DtypeUnsupported"),
    "strings": (lambda f: f.create_dataset("s", data=[b"x"]), "DtypeUnsupported"),
    "net": (_net, "ResourceLimit"),
    "cycle": (lambda f: f.create_group("a").__setitem__("loop", f["a"]), "ResourceLimit"),
}


@pytest.mark.parametrize("case", BROKEN_HDF5)
def test_hdf5_beyond_plain_datasets_is_refused_unread(case, tmp_path):
    build, kind = BROKEN_HDF5[case]
    _h5(tmp_path / "f", build)
    with pytest.raises(CheckpointError) as caught:
        hdf5.read(tmp_path / "f")
    assert caught.value.kind == kind, caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", REFERENCE_FORMATS)
def test_a_truncated_file_is_refused(name, tmp_path):
    entry = FORMATS[name]
    data = (REFERENCE_FOLDERS[0] / entry.file).read_bytes()
    (tmp_path / "config.json").write_bytes((REFERENCE_FOLDERS[0] / "config.json").read_bytes())
    for size in (len(data) // 3, len(data) - 1, 100, 20, 0):
        if name == "tf-h5" and size == len(data) - 1:
            continue  # its last byte is padding of the symbol table
        (tmp_path / entry.file).write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            dict(open_checkpoint(tmp_path, "DistilBertModel"))


def test_only_regular_files_in_their_own_folder_are_opened(tmp_path):
    inside, outside = tmp_path / "model", tmp_path / "elsewhere"
    inside.mkdir()
    outside.mkdir()
    (outside / "x").write_bytes(b"x")
    (inside / "link").symlink_to(outside / "x")
    (inside / "device").symlink_to("/dev/zero")
    (inside / "folder").mkdir()
    os.mkfifo(inside / "pipe")
    for name, kind in [("link", "UnsafeLink"), ("device", "UnsafeLink"), ("folder", "NotRegularFile"),
                       ("pipe", "NotRegularFile"), ("missing", "NotFound")]:  # fmt: skip
        with pytest.raises(CheckpointError) as caught:
            safely.open_checked(inside / name)
        assert caught.value.kind == kind, name


def test_the_cache_of_the_hub_is_opened(tmp_path):
    """Its snapshots are links to blobs: the one kind of link out of a folder that is followed."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    (snapshot / "1_Pooling").mkdir(parents=True)
    (blobs / "123").write_bytes(b"content")
    (snapshot / "config.json").symlink_to("../../blobs/123")
    (snapshot / "1_Pooling" / "config.json").symlink_to("../../../blobs/123")
    for file in (snapshot / "config.json", snapshot / "1_Pooling" / "config.json"):
        assert safely.read_bytes(file, 100) == b"content"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "model.safetensors"
    safetensors.write(target, INFO, ARRAYS.__getitem__)
    before = target.read_bytes()

    def broken(name):
        if name == "scalar":
            raise OSError(28, "No space left on device")
        return ARRAYS[name]

    for module in (safetensors, msgpack, hdf5):
        names = {f"layer/{n}": i for n, i in INFO.items()} if module is hdf5 else INFO
        with pytest.raises(OSError, match="No space left"):
            module.write(target, names, lambda name: broken(name.removeprefix("layer/")))
        assert target.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == [target.name]


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), safely.new_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with safely.new_folder(tmp_path / "out") as folder:
        (folder / "whole").write_text("x")
    assert (tmp_path / "out" / "whole").read_text() == "x"
    with pytest.raises(CheckpointError, match="exists already"), safely.new_folder(tmp_path / "out"):
        pass


@pytest.mark.parametrize("head", weight_map.HEADS)
def test_the_weight_map_is_a_bijection_in_every_layout(head):
    config = DistilBertConfig(n_layers=3, num_labels=5)
    specs = weight_map.tensor_specs(config, head)
    for layout in (weight_map.PT, weight_map.TF, weight_map.FLAX, weight_map.BERT, weight_map.KERAS):
        usable = [s for s in specs.values() if layout is not weight_map.BERT or s.module.bert]
        names = [name for spec in usable for name in spec.accepted_names(layout)]
        assert len(names) == len(set(names)), layout.name
        for spec in usable:
            assert {spec.stored_name(layout), spec.stored_name(layout, headless=True)} <= set(
                names
            ) or layout is weight_map.BERT
            array = np.random.default_rng(0).normal(size=tuple(min(n, 7) for n in spec.shape))
            turned = spec.to_layout(array, layout)
            assert np.array_equal(spec.from_layout(turned, layout), array)
            assert (
                spec.stored_shape(layout) == tuple(spec.shape[a] for a in spec.spelling(layout).axes)
                or not spec.spelling(layout).axes
            )


def test_released_parameter_counts():
    """Facts of the released architecture, as published."""

    def count(head, **values):
        specs = weight_map.tensor_specs(DistilBertConfig(**values), head)
        specs.pop(weight_map.TIED_PROJECTOR, None)
        return sum(int(np.prod(spec.shape)) for spec in specs.values())

    assert count("DistilBertModel") == 66_362_880
    assert count("DistilBertForMaskedLM") == 66_985_530
    assert count("DistilBertForSequenceClassification") == 66_955_010
    assert count("DistilBertForMultipleChoice") == 66_954_241
    assert count("DistilBertForTokenClassification") == count("DistilBertForQuestionAnswering") == 66_364_418
    assert count("DistilBertModel", vocab_size=119_547) == 134_734_080


@pytest.mark.parametrize("name", ANY_MODEL)
def test_heads_keep_their_bits_through_every_format(name, tmp_path):
    from distilbert.checkpoint.saving import save_checkpoint
    from distilbert.initialization import initial_weights

    for head in weight_map.HEADS:
        config = DistilBertConfig(vocab_size=50, max_position_embeddings=9, n_layers=2, n_heads=2, dim=8, hidden_dim=12)
        weights = initial_weights(config, head, seed=3)
        save_checkpoint(tmp_path / head, name, head, config, weights)
        found = dict(open_checkpoint(tmp_path / head, head))
        assert_same(found, weights)


def test_fuzzed_files_end_in_the_error_family(tmp_path):
    """Random damage to real files: a result or a CheckpointError, never another exception."""
    random = np.random.default_rng(0)
    outcomes = collections.Counter()
    for entry in map(FORMATS.get, REFERENCE_FORMATS):
        data = (REFERENCE_FOLDERS[1] / entry.file).read_bytes()
        for _ in range(300):
            mutant = bytearray(data)
            for _ in range(random.integers(1, 5)):
                position = int(random.integers(0, min(len(data), 4000)))
                mutant[position] = random.integers(0, 256)
            (tmp_path / "f").write_bytes(mutant)
            try:
                stored = entry.module.read(tmp_path / "f")
                for tensor in stored:
                    stored[tensor]
                outcomes["read"] += 1
            except CheckpointError:
                outcomes["refused"] += 1
    assert outcomes["refused"] > 300
    assert outcomes.total() == 1200

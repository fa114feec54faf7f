"""Checkpoint files: the reference's own are read, ours are read by the formats' own libraries, broken ones refused."""

import collections
import os

import h5py
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from distilbert import weight_map
from distilbert.checkpoint import hdf5, msgpack, safely, safetensors
from distilbert.checkpoint.folder import FORMATS, REFERENCE_FORMATS
from distilbert.checkpoint.opening import open_checkpoint
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


def test_links_into_the_store_of_shared_blobs(tmp_path):
    """The client keeps a file that several models have once, beside them; links to other places stay refused."""
    model, store = tmp_path / "models--a--b", tmp_path / "blobs"
    snapshot = model / "snapshots" / "123" / "assets" / "tokenizer"
    for folder in (snapshot, model / "blobs", store / "ab", store / "cd", tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
    for target in ("blobs/ab/abc", "blobs/cd/abc", "blobs/abc", "elsewhere/abc"):
        (tmp_path / target).write_bytes(b"content")
        (model / "blobs" / "etag").unlink(missing_ok=True)
        (model / "blobs" / "etag").symlink_to(f"../../{target}")
        (snapshot / "file").unlink(missing_ok=True)
        (snapshot / "file").symlink_to("../../../../blobs/etag")
        if target == "blobs/ab/abc":
            assert safely.read_bytes(snapshot / "file", 100) == b"content"
        else:
            with pytest.raises(CheckpointError, match="UnsafeLink"):
                safely.read_bytes(snapshot / "file", 100)


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


@pytest.mark.parametrize("head", weight_map.HEADS)
def test_the_weight_map_is_a_bijection_in_every_layout(head):
    config = DistilBertConfig(n_layers=3, num_labels=5)
    specs = weight_map.tensor_specs(config, head)
    for layout in (weight_map.PT, weight_map.TF, weight_map.FLAX, weight_map.KERAS, *weight_map.BERT.values()):
        bert = layout in weight_map.BERT.values()
        usable = [s for s in specs.values() if not bert or s.module.bert]
        names = [name for spec in usable for name in spec.accepted_names(layout)]
        assert len(names) == len(set(names)), layout.name
        for spec in usable:
            assert bert or {spec.stored_name(layout), spec.stored_name(layout, headless=True)} <= set(names)
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

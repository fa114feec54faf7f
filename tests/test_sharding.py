"""Checkpoints in several files: the reference's own are read, ours are read by it, and an index that lies is refused."""

import json

import numpy as np
import pytest

from conformance import cases
from distilbert.checkpoint.folder import FORMATS, WRITABLE
from distilbert.checkpoint.manifest import MANIFEST_FILE
from distilbert.checkpoint.opening import open_checkpoint
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.checkpoint.sharding import parse_size
from distilbert.errors import CheckpointError
from distilbert.initialization import initial_weights
from tests.support import DATA, ROOT

HEAD = "DistilBertForSequenceClassification"
GOLDEN = ROOT / "conformance" / "goldens" / "ForSequenceClassification-1"
INDEX = "model.safetensors.index.json"
SHARDABLE = [name for name in WRITABLE if FORMATS[name].shardable]


@pytest.mark.parametrize("dialect", ["pt", "bin", "tf", "flax"])
def test_shards_of_the_reference_hold_the_same_bits(dialect):
    whole, parts = open_checkpoint(GOLDEN, HEAD), open_checkpoint(DATA / "sharded" / dialect, HEAD)
    assert parts.path.name.endswith(".index.json")
    assert {name: parts[name].tobytes() for name in parts} == {name: whole[name].tobytes() for name in whole}
    assert {*parts.report.loaded, *parts.report.new} == {*whole.report.loaded}  # Flax makes the sinusoidal table anew


@pytest.mark.parametrize("name", SHARDABLE)
def test_shards_are_small_and_hold_everything(name, tmp_path):
    weights = initial_weights(cases.CONFIG, HEAD)
    size = 20_000
    save_checkpoint(tmp_path, name, HEAD, cases.CONFIG, weights, shard_size=size)
    entry = FORMATS[name]
    index = json.loads((tmp_path / entry.index).read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in weights.values())
    shards = sorted({*index["weight_map"].values()})
    assert len(shards) > 2
    parts = [entry.module.read(tmp_path / shard).info for shard in shards]
    assert all(sum(tensor.size for tensor in part.values()) <= size for part in parts)
    found = open_checkpoint(tmp_path, HEAD)
    assert all(found[n].tobytes() == array.tobytes() for n, array in weights.items())
    listed = json.loads((tmp_path / MANIFEST_FILE).read_text())["files"]
    assert {*shards, entry.index, "config.json"} == listed.keys()


def test_a_save_replaces_all_parts_of_the_last_one(tmp_path):
    weights = initial_weights(cases.CONFIG, HEAD)
    (tmp_path / "notes.txt").write_text("mine")
    save_checkpoint(tmp_path, "safetensors", HEAD, cases.CONFIG, weights, shard_size=20_000)
    save_checkpoint(tmp_path, "safetensors", HEAD, cases.CONFIG, weights, shard_size=10_000_000)
    assert {p.name for p in tmp_path.iterdir()} == {"notes.txt", "config.json", "model.safetensors", MANIFEST_FILE}
    with pytest.raises(CheckpointError, match=r"holds model\.safetensors; two weight files"):
        save_checkpoint(tmp_path, "flax-msgpack", HEAD, cases.CONFIG, weights)


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path):
    save_checkpoint(tmp_path, "safetensors", HEAD, cases.CONFIG, initial_weights(cases.CONFIG, HEAD), shard_size=1)
    places = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    assert len({*places.values()}) == len(places) == 40


def test_h5_is_written_whole(tmp_path):
    weights = initial_weights(cases.CONFIG, HEAD)
    with pytest.raises(ValueError, match=r"tf_model\.h5 is written whole"):
        save_checkpoint(tmp_path / "out", "tf-h5", HEAD, cases.CONFIG, weights, shard_size=1000)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def sharded(tmp_path):
    """A checkpoint in parts as others leave it, without a manifest, and a function that edits its index."""
    weights = initial_weights(cases.CONFIG, HEAD)
    save_checkpoint(tmp_path, "safetensors", HEAD, cases.CONFIG, weights, shard_size=30_000)
    (tmp_path / MANIFEST_FILE).unlink()

    def edit(change):
        index = json.loads((tmp_path / INDEX).read_text())
        change(index)
        (tmp_path / INDEX).write_text(json.dumps(index))
        return tmp_path

    return edit


def place(name, file):
    return lambda index: index["weight_map"].update({name: file})


BIAS = "classifier.bias"
FIRST = "model-00001-of-00004.safetensors"
LIES = {
    "another part": (place(BIAS, FIRST), "MissingTensor"),
    "a tensor that no part has": (place("more.weight", FIRST), "MissingTensor"),
    "a tensor left out": (lambda index: index["weight_map"].pop(BIAS), "UnexpectedTensor"),
    "a part that is not there": (place(BIAS, "model-00009-of-00009.safetensors"), "IncompleteSave"),
    "another suffix": (place(BIAS, "pytorch_model.bin"), "HeaderInvalid"),
    "above": (place(BIAS, "../x.safetensors"), "PathEscape"),
    "below": (place(BIAS, "sub/x.safetensors"), "PathEscape"),
    "absolute": (place(BIAS, "/etc/x.safetensors"), "PathEscape"),
    "drive": (place(BIAS, "C:x.safetensors"), "PathEscape"),
    "backslash": (place(BIAS, "..\\x.safetensors"), "PathEscape"),
    "control": (place(BIAS, "x\x00.safetensors"), "PathEscape"),
    "a number for a file": (place(BIAS, 1), "HeaderInvalid"),
    "no map": (lambda index: index.update(weight_map=[FIRST]), "HeaderInvalid"),
    "an empty map": (lambda index: index.update(weight_map={}), "HeaderInvalid"),
    "a total of another checkpoint": (lambda index: index["metadata"].update(total_size=7), "SizeMismatch"),
    "a total that is no number": (lambda index: index["metadata"].update(total_size="7"), "SizeMismatch"),
    "too many parts": (
        lambda index: index.update(weight_map={f"{i}": f"{i}.safetensors" for i in range(1001)}),
        "ResourceLimit",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_lies_is_refused(sharded, lie):
    change, kind = LIES[lie]
    folder = sharded(change)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder, HEAD)
    assert caught.value.kind == kind, caught.value
    assert "\n" not in str(caught.value)


def test_parts_that_changed_places_are_refused(sharded):
    folder = sharded(lambda index: None)
    first, second = folder / FIRST, folder / FIRST.replace("00001", "00002")
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)
    with pytest.raises(CheckpointError, match="does not hold it") as caught:
        open_checkpoint(folder, HEAD)
    assert caught.value.kind == "MissingTensor"


def test_a_tied_tensor_may_be_counted_once_or_twice(tmp_path):
    head = "DistilBertForMaskedLM"
    weights = initial_weights(cases.CONFIG, head)
    save_checkpoint(tmp_path, "safetensors", head, cases.CONFIG, weights, shard_size=30_000)
    (tmp_path / MANIFEST_FILE).unlink()
    index = json.loads((tmp_path / INDEX).read_text())
    words = weights["distilbert.embeddings.word_embeddings.weight"].nbytes
    for total in (index["metadata"]["total_size"], index["metadata"]["total_size"] - words):
        index["metadata"]["total_size"] = total
        (tmp_path / INDEX).write_text(json.dumps(index))
        assert np.array_equal(open_checkpoint(tmp_path, head)["vocab_projector.bias"], weights["vocab_projector.bias"])


def test_sizes():
    found = [parse_size(text) for text in ("1", "20KB", "500MB", "2GB", "1 ".strip() + "kib", "3MiB", "1GiB")]
    assert found == [1, 20_000, 500_000_000, 2_000_000_000, 1024, 3 << 20, 1 << 30]
    for text in ("", "0", "-1", "1.5GB", "MB", "5TB", "5 MB", "٣MB", "5MMB", "1KiBB"):
        with pytest.raises(ValueError, match="a shard size must be a number of bytes"):
            parse_size(text)

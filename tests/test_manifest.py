"""MANIFEST.json: it lists what a save wrote, and whatever does not fit it any more is refused by name."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest

from conformance import cases
from distilbert.checkpoint import manifest
from distilbert.checkpoint.folder import WRITABLE
from distilbert.checkpoint.manifest import MANIFEST_FILE
from distilbert.checkpoint.opening import open_checkpoint
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.config import DistilBertConfig, PoolingConfig
from distilbert.errors import CheckpointError
from distilbert.initialization import initial_weights
from distilbert.weight_map import WORD_EMBEDDINGS
from tests.support import new_model, run_cli

HEAD = "DistilBertForSentenceEmbedding"
CONFIG = DistilBertConfig(vocab_size=50, max_position_embeddings=9, n_layers=1, n_heads=2, dim=8, hidden_dim=12)
WEIGHTS = initial_weights(CONFIG, HEAD, seed=1)
FORMS = [*((name, None) for name in WRITABLE), ("safetensors", 2000)]  # the last in shards
FLIPS = 1000


def save(folder, name="safetensors", shard_size=None, seed=1, head=HEAD):
    weights = initial_weights(CONFIG, head, seed=seed)
    pooling = PoolingConfig() if head == HEAD else None
    save_checkpoint(folder, name, head, CONFIG, weights, pooling, shard_size=shard_size)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "model")
    return tmp_path / "model"


def listed(folder):
    return json.loads((folder / MANIFEST_FILE).read_text())["files"]


def refused(folder):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder, HEAD)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(("name", "shard_size"), FORMS)
def test_the_manifest_lists_what_was_written(name, shard_size, tmp_path):
    save(tmp_path, name, shard_size)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != MANIFEST_FILE]
    assert len(files) == len(listed(tmp_path)) > 4
    for path in files:
        data = path.read_bytes()
        entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert listed(tmp_path)[path.relative_to(tmp_path).as_posix()] == entry


@pytest.mark.parametrize(("name", "shard_size"), FORMS)
def test_every_flipped_bit_is_noticed(name, shard_size, tmp_path):
    save(tmp_path, name, shard_size)
    known = manifest.read(tmp_path)
    random = np.random.default_rng(0)
    files = sorted(known)
    contents = {file: (tmp_path / file).read_bytes() for file in files}
    for i in range(FLIPS):
        file = files[i % len(files)]
        damaged = bytearray(contents[file])
        damaged[random.integers(len(damaged))] ^= 1 << random.integers(8)
        (tmp_path / file).write_bytes(damaged)
        assert [error.path for error in manifest.differences(tmp_path, known)] == [str(tmp_path / file)]
        if i % 20 < len(files):  # a load says so too, before it parses what is damaged
            assert (refused(tmp_path).kind, refused(tmp_path).path) == ("IntegrityMismatch", str(tmp_path / file))
        (tmp_path / file).write_bytes(contents[file])
    assert not manifest.differences(tmp_path, known)


def test_every_flipped_bit_of_the_manifest_is_noticed(folder):
    data = (folder / MANIFEST_FILE).read_bytes()
    random = np.random.default_rng(0)
    for _ in range(FLIPS):
        damaged = bytearray(data)
        damaged[random.integers(len(data))] ^= 1 << random.integers(8)
        (folder / MANIFEST_FILE).write_bytes(damaged)
        with pytest.raises(CheckpointError):
            raise manifest.differences(folder, manifest.read(folder))[0]


def test_files_of_two_saves_are_refused(folder, tmp_path):
    save(tmp_path / "other", seed=2)
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    assert refused(folder).kind == "IntegrityMismatch"
    assert refused(folder).path == str(folder / "model.safetensors")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "modules.json", "1_Pooling/config.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "longer", "missing", "a folder", "a pipe", "a link out"])
def test_a_damaged_file_is_named(folder, file, damage, tmp_path):
    path = folder / file
    data = path.read_bytes()
    path.unlink()
    match damage:
        case "cut":
            path.write_bytes(data[:-1])
        case "empty":
            path.touch()
        case "longer":
            path.write_bytes(data + b"\n")
        case "a folder":
            path.mkdir()
        case "a pipe":
            os.mkfifo(path)
        case "a link out":
            (tmp_path / "outside").write_bytes(data)
            path.symlink_to(tmp_path / "outside")
    kinds = {"missing": "IncompleteSave", "a link out": "UnsafeLink"}
    kinds |= dict.fromkeys(("a folder", "a pipe"), "NotRegularFile")
    error = refused(folder)
    assert (error.kind, error.path) == (kinds.get(damage, "IntegrityMismatch"), str(path))


def test_a_change_by_hand_is_refused_until_it_is_accepted(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dropout": 0.3}))
    error = refused(folder)
    assert error.kind == "IntegrityMismatch"
    assert "run `distilbert verify --accept` on the folder" in str(error)
    assert run_cli("verify", folder)[0] == 1
    assert run_cli("verify", folder, "--accept")[0] == 0
    assert open_checkpoint(folder, HEAD).config.dropout == 0.3


def test_a_file_that_grew_is_not_read(folder):
    os.truncate(folder / "config.json", 1 << 40)
    assert "has 1099511627776 bytes" in str(refused(folder))


def test_a_users_own_files_need_not_be_listed(folder):
    (folder / "notes.txt").write_text("mine")
    open_checkpoint(folder, HEAD)


GOOD = {"size": 1, "sha256": "0" * 64}
BROKEN = {
    "empty": (b"", "HeaderInvalid"),
    "not JSON": (b"{]", "HeaderInvalid"),
    "not text": (b"\xff\xfe{}", "HeaderInvalid"),
    "a list": (b"[]", "HeaderInvalid"),
    "deep": (b'{"version": 1, "files": ' + b"[" * 200_000, "ResourceLimit"),
    "huge": (b'{"version": 1, "files": {}}' + b" " * (5 << 20), "ResourceLimit"),
    "no version": ({"files": {}}, "VersionUnsupported"),
    "later version": ({"version": 2, "files": {}}, "VersionUnsupported"),
    "no files": ({"version": 1}, "HeaderInvalid"),
    "files as a list": ({"version": 1, "files": []}, "HeaderInvalid"),
    "named twice": (
        b'{"version": 1, "files": {"a": %s, "a": %s}}' % ((json.dumps(GOOD).encode(),) * 2),
        "DuplicateName",
    ),
    "no size": ({"version": 1, "files": {"a": {"sha256": "0" * 64}}}, "HeaderInvalid"),
    "fractional size": ({"version": 1, "files": {"a": GOOD | {"size": 1.0}}}, "HeaderInvalid"),
    "negative size": ({"version": 1, "files": {"a": GOOD | {"size": -1}}}, "HeaderInvalid"),
    "short digest": ({"version": 1, "files": {"a": GOOD | {"sha256": "0" * 63}}}, "HeaderInvalid"),
    "digest as a number": ({"version": 1, "files": {"a": GOOD | {"sha256": 0}}}, "HeaderInvalid"),
}
OUTSIDE = [
    *(
        "/etc/passwd",
        "../x",
        "a/../../x",
        "..",
        ".",
        "",
        "..\\x",
        "a\\x",
        "C:\\x",
        "C:x",
        "//server/x",
        "\\\\server\\x",
    ),
    *("a\0", "a\nb", "\x1b[2Ja", "\u202ea"),
]
BROKEN |= {repr(name): ({"version": 1, "files": {name: GOOD}}, "PathEscape") for name in OUTSIDE}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_manifest_is_refused_and_can_be_replaced(folder, case):
    content, kind = BROKEN[case]
    (folder / MANIFEST_FILE).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    error = refused(folder)
    assert (error.kind, error.path) == (kind, str(folder / MANIFEST_FILE))
    assert str(error).isprintable()
    save(folder, seed=2)
    open_checkpoint(folder, HEAD)


@pytest.mark.parametrize(
    ("what", "kind"), [("a pipe", "NotRegularFile"), ("a folder", "NotRegularFile"), ("a link to nothing", "NotFound")]
)
def test_a_manifest_that_is_no_file_is_refused(folder, what, kind):
    path = folder / MANIFEST_FILE
    path.unlink()
    match what:
        case "a pipe":
            os.mkfifo(path)
        case "a folder":
            path.mkdir()
        case "a link to nothing":
            path.symlink_to("nowhere")
    assert (refused(folder).kind, refused(folder).path) == (kind, str(path))


def test_a_save_keeps_the_entries_of_what_it_leaves(folder):
    """A plain encoder over a sentence folder: files beside it stay listed while they are there, damage included."""
    for name in ("notes.txt", "gone.txt"):
        (folder / name).write_text("mine")
    manifest.write(folder, manifest.files(folder))
    (folder / "gone.txt").unlink()
    (folder / "notes.txt").write_text("other")
    before = listed(folder)
    save(folder, head="DistilBertModel", seed=2)
    after = listed(folder)
    former = {"gone.txt", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json"}
    assert before.keys() - after.keys() == former
    assert after["notes.txt"] == before["notes.txt"]
    assert refused(folder).path == str(folder / "notes.txt")


def test_a_folder_that_is_replaced_while_it_is_read_is_read_again(folder):
    """Even when it is replaced twice, so that its manifest has the same bytes as at first."""
    for seeds in ((2,), (2, 1)):
        pending, seen = list(seeds), []

        def read(pending=pending, seen=seen):
            while pending:
                save(folder, seed=pending.pop(0))
            seen.append(open_checkpoint(folder, HEAD)[WORD_EMBEDDINGS])
            return seen[-1]

        found = manifest.read_whole(folder, read)
        assert len(seen) == 2
        assert np.array_equal(found, initial_weights(CONFIG, HEAD, seed=seeds[-1])[WORD_EMBEDDINGS])


def test_a_manifest_that_appears_while_a_folder_is_read_is_heeded(folder):
    (folder / MANIFEST_FILE).unlink()
    calls = []

    def read():
        calls.append(0)
        if len(calls) == 1:
            save(folder)
        return len(calls)

    assert manifest.read_whole(folder, read) == 2


def test_an_error_of_a_folder_that_was_replaced_meanwhile_does_not_count(folder):
    calls = []

    def read():
        calls.append(0)
        if len(calls) == 1:
            save(folder)
            raise CheckpointError(folder, "NotFound", "there is no such file")
        return len(calls)

    assert manifest.read_whole(folder, read) == 2


def test_a_folder_that_never_rests_is_refused(folder):
    with pytest.raises(CheckpointError, match="replaced faster than it can be read") as caught:
        manifest.read_whole(folder, lambda: save(folder))
    assert caught.value.kind == "IncompleteSave"


LAST = "distilbert.transformer.layer.1.output_layer_norm.bias"  # of what is assigned
WRONG = {
    "shape": lambda weights: weights | {LAST: weights[LAST][:-1]},
    "missing": lambda weights: {name: array for name, array in weights.items() if name != LAST},
    "unknown": lambda weights: weights | {"distilbert.other": weights[LAST]},
    "a list": lambda weights: weights | {LAST: weights[LAST].tolist()},
    "integers": lambda weights: weights | {LAST: weights[LAST].astype(np.int32)},
    "other bytes first": lambda weights: weights | {LAST: weights[LAST].astype(">f4")},
    "texts": lambda weights: weights | {LAST: weights[LAST].astype(str)},
    "objects": lambda weights: weights | {LAST: np.full(weights[LAST].shape, None)},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_weights_that_do_not_fit_leave_a_model_as_it_was(backend, wrong):
    model = new_model(backend)
    before = {name: array.tobytes() for name, array in model.weights_by_name().items()}
    others = {name: array + 1 for name, array in cases.weights().items()}
    assert list(model.tensor_specs())[-1] == LAST
    with pytest.raises((ValueError, TypeError), match=r"must (be|have)"):
        model.assign(WRONG[wrong](others))
    assert {name: array.tobytes() for name, array in model.weights_by_name().items()} == before


def test_a_damaged_checkpoint_leaves_a_model_as_it_was(backend, tmp_path):
    """Its last tensor is not finite: what a load reads tensor by tensor is checked before the first is assigned."""
    weights = {name: array + 1 for name, array in cases.weights().items()}
    weights[LAST][-1] = np.nan
    save_checkpoint(tmp_path, "safetensors", "DistilBertModel", cases.CONFIG, weights)
    model = new_model(backend)
    before = {name: array.tobytes() for name, array in model.weights_by_name().items()}
    with pytest.raises(CheckpointError, match="NaN"):
        model.assign(open_checkpoint(tmp_path, "DistilBertModel"))
    assert {name: array.tobytes() for name, array in model.weights_by_name().items()} == before

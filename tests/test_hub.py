"""Models by hub id: the real client against a server on this machine, whole, broken and offline."""

import errno
import hashlib
import json
import socket
import sys
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

from conformance import cases
from distilbert.backends import load_backend
from distilbert.checkpoint import hub as hub_module
from distilbert.checkpoint import manifest, safely, wanted
from distilbert.checkpoint.folder import FORMATS
from distilbert.checkpoint.hub import find_folder
from distilbert.checkpoint.manifest import MANIFEST_FILE
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.config import DistilBertConfig, PoolingConfig
from distilbert.errors import CheckpointError, MissingDependencyError
from distilbert.initialization import initial_weights
from distilbert.tasks.embedding import SentenceEncoder
from distilbert.tokenization.fast import DistilBertTokenizerFast
from tests.hub import send_cut, send_damaged, send_short, send_stalled, serve
from tests.support import SPECIAL_TOKENS

NAME = "someone/tiny"
SENTENCE = "DistilBertForSentenceEmbedding"
SECRET = "hf_secret"  # noqa: S105 - nobody's
OTHER_FILES = ("README.md", "onnx/model.onnx", "training_args.bin", "model.onnx", "optimizer.pt", "vocab.json")
WEIGHTS = [entry.file for entry in FORMATS.values()]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub which the client asks, with an empty cache, little patience and no pauses."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with serve(NAME) as hub:
        for name, value in {
            "ENDPOINT": hub.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DOWNLOAD_TIMEOUT": 0.2,
            "HF_HUB_ETAG_TIMEOUT": 0.2,
        }.items():
            monkeypatch.setattr(constants, name, value)
        yield hub


@pytest.fixture
def folder(tmp_path):
    """A model with a tokenizer."""
    return new_folder(tmp_path / "model")


@pytest.fixture
def no_network(hub, monkeypatch):
    """No socket can be made, once the hub has its own; the list has the attempts."""
    attempts, asked = [], len(hub.requests)

    def refuse(*arguments, **_):
        attempts.append(arguments)
        raise OSError("sockets are blocked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield attempts
    assert (attempts, len(hub.requests)) == ([], asked)


def new_folder(folder, head="DistilBertModel", seed=0, **options):
    weights = initial_weights(cases.CONFIG, head, seed=seed)
    save_checkpoint(folder, "safetensors", head, cases.CONFIG, weights, **options)
    (folder / "vocab.txt").write_text("\n".join(SPECIAL_TOKENS) + "\na\nb\n")
    return folder


def put(folder, *names, content=b"content of "):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content + name.encode())


def remove(folder, *names):
    """Take files out of a folder, and the manifest that lists them."""
    for name in (*names, MANIFEST_FILE):
        (folder / name).unlink()


def find(choose=wanted.model_files, **options):
    return find_folder(NAME, choose, **options)


def files_of(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refused(load=find, **options):
    with pytest.raises(CheckpointError) as caught:
        load(**options)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("backend", ["pt", "tf", "flax"])
def test_a_model_of_the_hub(hub, folder, backend):
    """A name that is no path is fetched from the hub, then taken from the cache."""
    hub.publish("main", folder)
    load = load_backend(backend).DistilBertModel.from_pretrained
    assert_same_weights(load(NAME), load(folder))
    asked = len(hub.requests)
    assert_same_weights(load(NAME), load(folder))
    assert_same_weights(load(NAME, local_files_only=True), load(folder))
    assert len(hub.requests) == asked
    error = refused(lambda: load("someone/absent"))
    assert (error.kind, error.path) == ("NotFound", "someone/absent")
    assert "no such folder, and no such model on the hub" in error.detail


def assert_same_weights(model, expected):
    found = model.weights_by_name()
    for name, array in expected.weights_by_name().items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.usefixtures("no_network")
def test_paths_never_touch_the_network(hub, folder, tmp_path, monkeypatch):
    """What exists, what is a path object, and what has the form of a path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").symlink_to("nowhere")
    for place in ("model", folder, str(folder), folder.relative_to(tmp_path), "broken"):
        find_folder(place, wanted.model_files)
    load = load_backend("pt").DistilBertModel.from_pretrained
    load("model")
    for place in ("./absent", "../absent/model", "/absent", "a/b/c", "absent/", "~/absent", tmp_path / "absent"):
        assert "there is no such folder" in refused(lambda place=place: load(place)).detail
    for place in (tmp_path / "absent", (tmp_path / "absent").relative_to(tmp_path)):  # a hub id, if it were a string
        assert refused(lambda place=place: load(place)).kind == "NotFound"
        assert refused(lambda place=place: DistilBertConfig.from_pretrained(place)).kind == "NotFound"
    assert hub.requests == []


@pytest.mark.parametrize("first", range(len(WEIGHTS)))
def test_only_one_format_is_downloaded(hub, folder, first):
    """The preferred one of those that there are, the small files, and nothing else."""
    remove(folder, "model.safetensors")
    put(folder, *WEIGHTS[first:], *(f"{file}.index.json" for file in WEIGHTS[first + 1 :]), *OTHER_FILES)
    hub.publish("main", folder)
    assert files_of(find()).keys() == {"config.json", "vocab.txt", WEIGHTS[first]} == hub.fetched()


def test_what_a_manifest_lists_is_downloaded_and_compared(hub, folder):
    """So that a converted folder loads by its id as it does from the disk."""
    put(folder, "notes.txt", "config_sentence_transformers.json")
    manifest.write(folder, manifest.files(folder))
    hub.publish("main", folder)
    assert files_of(find()).keys() == {*manifest.read(folder), MANIFEST_FILE}
    assert_same_weights(
        load_backend("pt").DistilBertModel.from_pretrained(NAME),
        load_backend("pt").DistilBertModel.from_pretrained(folder),
    )
    config = folder / "config.json"
    config.write_text(config.read_text().replace("gelu", "relu"))
    hub.publish("main", folder)
    error = refused(lambda: load_backend("pt").DistilBertModel.from_pretrained(NAME, revision=hub.revisions["main"]))
    assert error.kind == "IntegrityMismatch"


@pytest.mark.parametrize("file", WEIGHTS)
def test_shards_are_downloaded_with_their_index(hub, folder, file):
    stem, suffix = Path(file).stem, Path(file).suffix
    shards = [f"{stem}-0000{i}-of-00002{suffix}" for i in (1, 2)]
    remove(folder, "model.safetensors")
    put(folder, *shards, f"{stem}-00001-of-00003{suffix}", *WEIGHTS[WEIGHTS.index(file) + 1 :])
    index = {"metadata": {}, "weight_map": {"a": shards[0], "b": shards[1], "c": shards[0]}}
    (folder / f"{file}.index.json").write_text(json.dumps(index))
    hub.publish("main", folder)
    assert hub.fetched() == set()
    snapshot = find()
    assert files_of(snapshot).keys() == {"config.json", "vocab.txt", f"{file}.index.json", *shards}
    asked = len(hub.requests)
    assert find() == snapshot
    assert len(hub.requests) == asked
    (snapshot / shards[1]).unlink()
    assert f"the hub's cache lacks {shards[1]}" in refused(local_files_only=True).detail
    assert find() == snapshot
    assert (snapshot / shards[1]).read_bytes() == (folder / shards[1]).read_bytes()


def test_a_shard_that_the_hub_does_not_have(hub, folder):
    (folder / "model.safetensors").unlink()
    for places in ({"a": "model-1.safetensors"}, {"a": "../model/config.json"}, {"a": 3}):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        hub.publish("main", folder)
        error = refused()
        assert error.kind == "NotFound"
        assert f"the hub's model lacks {places['a']}" in error.detail
    (folder / "model.safetensors.index.json").write_text("{}")
    hub.publish("main", folder)
    assert refused().kind == "HeaderInvalid"


def test_a_model_without_weights_or_config(hub, folder):
    (folder / "config.json").unlink()
    hub.publish("main", folder)
    assert "the hub's model lacks config.json" in refused().detail
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").unlink()
    hub.publish("main", folder)
    assert "lacks weights (none of model.safetensors, " in refused().detail


def test_all_that_a_save_writes_is_downloaded(hub, tmp_path):
    folder = new_folder(tmp_path / "model", SENTENCE, pooling=PoolingConfig("cls", normalize=True, max_seq_length=16))
    hub.publish("main", folder)
    assert files_of(find()) == files_of(folder)


def test_modules_of_sentence_transformers(hub, folder):
    """The encoder in a folder of its own, as old versions have it, and a dense layer; each has weights once."""
    modules = {"0_Transformer": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_Normalize": "Normalize"}
    entries = [{"idx": i, "path": path, "type": f"a.models.{kind}"} for i, (path, kind) in enumerate(modules.items())]
    encoder = folder / "0_Transformer"
    encoder.mkdir()
    for file in list(folder.iterdir()):
        if file.is_file():
            file.rename(encoder / file.name)
    (folder / "modules.json").write_text(json.dumps(entries))
    needed = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/pytorch_model.bin"]
    put(folder, *needed, "0_Transformer/tf_model.h5", "2_Dense/tf_model.h5", "2_Dense/log.txt", "model.safetensors")
    hub.publish("main", folder)
    own = {f"0_Transformer/{name}" for name in ("config.json", "model.safetensors", "vocab.txt")}
    snapshot = find(wanted.encoder_files)
    assert files_of(snapshot).keys() == {"modules.json", *own, *needed}
    (snapshot / needed[2]).unlink()
    assert "lacks weights (none of 2_Dense/" in refused(local_files_only=True).detail
    assert files_of(find()).keys() == {"modules.json", *own, *needed}
    (folder / "0_Transformer" / "vocab.txt").unlink()
    hub.publish("main", folder)
    error = refused(choose=wanted.encoder_files, revision="main", load=lambda **options: find_again(hub, **options))
    assert "lacks 0_Transformer/tokenizer.json or 0_Transformer/vocab.txt" in error.detail


def find_again(hub, choose, revision):
    """By the hash of the newest commit, which is in no cache."""
    return find(choose, revision=hub.revisions[revision])


def test_a_preset_of_keras_hub(hub, folder):
    """Its vocabulary lies two folders deep, and is read through the cache's links."""
    remove(folder, "model.safetensors", "vocab.txt")
    preset = (
        "model.weights.h5",
        "task.weights.h5",
        "task.json",
        "metadata.json",
        "preprocessor.json",
        "tokenizer.json",
    )
    put(folder, *preset, "assets/tokenizer/vocabulary.txt", "assets/tokenizer/other.txt")
    hub.publish("main", folder)
    snapshot = find()
    assert files_of(snapshot).keys() == {"config.json", *preset, "assets/tokenizer/vocabulary.txt"}
    assert safely.read_bytes(snapshot / "assets/tokenizer/vocabulary.txt", 100).startswith(b"content of assets")


def test_config_and_tokenizer_alone(hub, folder):
    """They need no weights; a model completes what they left in the cache."""
    hub.publish("main", folder)
    assert DistilBertConfig.from_pretrained(NAME, dropout=0.0).dim == cases.CONFIG.dim
    assert hub.fetched() == {"config.json"}
    assert DistilBertTokenizerFast.from_pretrained(NAME)(["a b"])["input_ids"] == [[3, 5, 6, 1]]
    assert hub.fetched() == {"config.json", "vocab.txt"}
    assert load_backend("pt").DistilBertModel.from_pretrained(NAME).config.dim == cases.CONFIG.dim
    asked = len(hub.requests)
    for load in (DistilBertConfig.from_pretrained, DistilBertTokenizerFast.from_pretrained):
        load(NAME, local_files_only=True)
        load(NAME, revision="main")
    assert len(hub.requests) == asked
    for load in (DistilBertConfig.from_pretrained, DistilBertTokenizerFast.from_pretrained):
        assert "no such revision" in refused(lambda load=load: load(NAME, revision="absent")).detail


def test_a_sentence_encoder(hub, tmp_path):
    """Model and tokenizer are of one revision; what another program left out is completed."""
    folder = new_folder(tmp_path / "model", SENTENCE, pooling=PoolingConfig(normalize=True))
    commit = hub.publish("main", folder)
    snapshot = find()
    (snapshot / "vocab.txt").unlink()
    assert find() == snapshot
    assert not (snapshot / "vocab.txt").exists()  # a model alone does without
    error = refused(lambda: SentenceEncoder.from_pretrained(NAME, local_files_only=True))
    assert "lacks tokenizer.json or vocab.txt" in error.detail
    vectors = SentenceEncoder.from_pretrained(NAME).encode(["a b", "b"])
    np.testing.assert_array_equal(vectors, SentenceEncoder.from_pretrained(folder).encode(["a b", "b"]))
    hub.requests.clear()
    SentenceEncoder.from_pretrained(NAME, revision=commit, precision=None, dtype="float64")
    assert hub.requests == []


def test_revisions(hub, tmp_path):
    old, new = (new_folder(tmp_path / f"seed{seed}", seed=seed) for seed in (1, 2))
    first = hub.publish("main", old)
    hub.revisions["v1"] = first
    assert files_of(find()) == files_of(old)
    second = hub.publish("main", new)
    assert find().name == first  # what is in the cache is used as it is
    assert files_of(find(revision=second)) == files_of(new)
    asked = len(hub.requests)
    assert find(revision=first).name == first
    assert find(revision=second).name == second
    assert find(revision="main").name == first
    assert len(hub.requests) == asked
    assert find(revision="v1").name == first
    assert find(revision="v1", local_files_only=True).name == first
    error = refused(revision="v2")
    assert (error.kind, "no such revision" in error.detail) == ("NotFound", True)


def test_a_commit_hash_on_an_empty_cache(hub, tmp_path):
    commit = hub.publish("main", new_folder(tmp_path / "old", seed=1))
    hub.publish("main", new_folder(tmp_path / "new", seed=2))
    assert find(revision=commit).name == commit
    assert files_of(find(revision=commit)) == files_of(tmp_path / "old")


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json"])
def test_an_incomplete_snapshot_is_completed(hub, folder, lost):
    commit = hub.publish("main", folder)
    snapshot = find()
    (snapshot / lost).resolve().unlink()
    hub.requests.clear()
    for options in ({}, {"revision": commit}):
        error = refused(local_files_only=True, **options)
        assert (error.kind, error.path) == ("NotFound", NAME)
        assert lost in error.detail
    assert hub.requests == []
    assert find() == snapshot
    assert hub.fetched() == {lost}
    assert files_of(snapshot) == files_of(folder)


@pytest.mark.usefixtures("no_network")
def test_offline(monkeypatch):
    """Neither switch lets a socket be made, and each error says what is missing, and why."""
    text = "no such folder, and the hub's cache lacks the model at the revision 'main', which local_files_only=True"
    assert text in refused(local_files_only=True).detail
    assert "at the revision 'v1'" in refused(local_files_only=True, revision="v1").detail
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "which HF_HUB_OFFLINE forbids to download; allow it once, or give a folder" in refused().detail
    for load in (load_backend("pt").DistilBertModel, DistilBertConfig, DistilBertTokenizerFast, SentenceEncoder):
        assert "HF_HUB_OFFLINE" in refused(lambda load=load: load.from_pretrained(NAME)).detail
        assert "local_files_only" in refused(lambda load=load: load.from_pretrained(NAME, local_files_only=True)).detail


def test_the_cache_makes_no_socket(hub, folder, request, monkeypatch):
    commit = hub.publish("main", folder)
    snapshot = find()
    request.getfixturevalue("no_network")
    assert find() == find(revision="main") == find(revision=commit) == find(local_files_only=True) == snapshot
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find() == find(revision=commit) == snapshot


@pytest.mark.parametrize(
    ("place", "fault", "code", "text"),
    [
        ("api", 404, "RepoNotFound", "no such model on the hub; if it is private, set HF_TOKEN"),
        ("api", 401, "RepoNotFound", "no such model on the hub; if it is private, set HF_TOKEN"),
        ("api", 401, "", "the hub does not allow it (401); set HF_TOKEN"),
        ("api", 403, "GatedRepo", "is gated: accept its terms there, and set HF_TOKEN"),
        ("api", 403, "", "the hub does not allow it (403); set HF_TOKEN"),
        ("api", 429, "", "too many requests from here (429); try again later"),
        ("api", 500, "", "answered with an error (500); try again later"),
        ("api", 503, "", "answered with an error (503); try again later"),
        ("api", "file:///etc/hostname", "", "cannot be reached, or failed (UnsupportedProtocol"),
        ("api", "http://127.0.0.1:1/", "", "cannot be reached, or failed (ConnectError"),
        ("api", send_stalled, "", "cannot be reached, or failed (ReadTimeout"),
        ("api", send_short, "", "cannot be reached, or failed (RemoteProtocolError"),
        ("api", lambda handler, data: handler.wfile.write(b" " * len(data)), "", "failed (JSONDecodeError"),
        ("model.safetensors", 404, "EntryNotFound", "answered with an error (404)"),
        ("model.safetensors", 403, "GatedRepo", "is gated"),
        ("model.safetensors", 429, "", "too many requests from here (429)"),
        ("model.safetensors", 500, "", "answered with an error (500)"),
        ("model.safetensors", "file:///etc/hostname", "", "failed (UnsupportedProtocol"),
        ("model.safetensors", "http://127.0.0.1:1/", "", "failed (ConnectError"),
        ("model.safetensors", send_short, "", "cannot be reached, or failed"),
        ("model.safetensors", send_stalled, "", "failed (ReadTimeout"),
        ("config.json", 500, "", "answered with an error (500)"),
        ("config.json", send_short, "", "cannot be reached, or failed"),
    ],
)
def test_a_fault_is_one_line_and_leaves_no_whole_model(hub, folder, place, fault, code, text):
    hub.publish("main", folder)
    hub.faults[place], hub.error_code = fault, code
    error = refused()
    assert error.kind == "NotFound"
    assert error.path == (NAME if place == "api" else f"{NAME}/{place}")
    assert text in error.detail
    refused(local_files_only=True)
    hub.faults.clear()
    assert files_of(find()) == files_of(folder)


@pytest.mark.usefixtures("hub")
def test_a_hub_that_is_not_there(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert "cannot be reached, or failed (ConnectError" in refused().detail


def test_a_name_that_the_hub_cannot_have(hub):
    for name in ("a--b", "a..b", "owner/model.git"):
        error = refused(lambda name=name: find_folder(name, wanted.model_files))
        assert "this cannot be the id of a model on the hub" in error.detail
    assert hub.requests == []


@pytest.mark.parametrize("commit", ["../../../escape", "main", None])
def test_an_answer_without_a_commit_hash(hub, folder, commit):
    """Its place in the cache would be a folder of any name."""
    hub.publish("main", folder)
    hub.commits[commit] = hub.commits.pop(hub.revisions["main"])
    hub.revisions["main"] = commit
    assert "cannot be reached, or failed" in refused().detail


def test_a_broken_connection_is_taken_up_again(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is kept of an answer that breaks off
    hub.publish("main", folder)
    hub.faults["model.safetensors"] = send_cut
    assert files_of(find()) == files_of(folder)
    ranges = [headers.get("Range") for _, path, headers in hub.requests if path.startswith("/cdn/")]
    assert ranges == [None, f"bytes={(folder / 'model.safetensors').stat().st_size // 2000 * 1000}-"]


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("head_start", ["nothing", "the config"])
def test_a_damaged_download_is_removed(hub, folder, tmp_path, listed, head_start):
    """The sha256 comes with the listing, or with the answer for the file, which names the blob."""
    hub.publish("main", folder)
    if head_start == "the config":
        DistilBertConfig.from_pretrained(NAME)
    hub.listed_digests, hub.faults["model.safetensors"] = listed, send_damaged
    error = refused()
    expected = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert error.kind == "IntegrityMismatch"
    assert f"the hub's has {expected}" in error.detail
    assert not list((tmp_path / "cache").rglob("model.safetensors"))
    assert not list((tmp_path / "cache").rglob(expected))
    refused(local_files_only=True)
    hub.faults.clear()
    assert files_of(find()) == files_of(folder)


def test_a_damaged_download_is_removed_without_links(hub, folder, tmp_path, monkeypatch):
    """Where the cache cannot link, its files bear no digest; the listing has it."""
    monkeypatch.setattr(huggingface_hub.file_download, "are_symlinks_supported", lambda *_: False)
    hub.publish("main", folder)
    hub.faults["model.safetensors"] = send_damaged
    assert refused().kind == "IntegrityMismatch"
    assert not list((tmp_path / "cache").rglob("model.safetensors"))
    hub.faults.clear()
    assert files_of(find()) == files_of(folder)


@pytest.mark.parametrize("pinned", [True, False])
def test_what_was_interrupted_is_checked_when_it_is_completed(hub, folder, monkeypatch, pinned):
    """The process ends between the arrival of the weights and their check: the config, which comes last, is not there."""
    commit = hub.publish("main", folder)
    options = {"revision": commit} if pinned else {}
    hub.faults["model.safetensors"] = send_damaged

    def interrupt(path, _):
        if path.name == "model.safetensors":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hub_module, "_check_digest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            find(**options)
    hub.faults.clear()
    assert refused(**options).kind == "IntegrityMismatch"
    assert files_of(find(**options)) == files_of(folder)


def test_the_token_stays_on_the_hub(hub, folder):
    hub.publish("main", folder)
    find()
    sent = {path.split("/")[1]: headers.get("authorization") for _, path, headers in hub.requests}
    assert sent == {"api": f"Bearer {SECRET}", "someone": f"Bearer {SECRET}", "cdn": None}


def test_a_branch_that_moves_meanwhile(hub, tmp_path):
    """No mixture of two commits, and no newer one under the name of the older."""
    old, new = (new_folder(tmp_path / f"seed{seed}", seed=seed) for seed in (1, 2))
    put(new, "config.json", content=(new / "config.json").read_bytes() + b" " * 20)
    hub.publish("main", old)

    def move(handler, data):
        hub.publish("main", new)
        handler.wfile.write(data)

    hub.faults["model.safetensors"] = move
    assert "changed on the hub" in refused().detail
    hub.faults.clear()
    assert files_of(find()) == files_of(new)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), PermissionError(13, "no"), MemoryError()]
)
def test_what_this_machine_lacks_is_no_fault_of_the_hub(hub, folder, monkeypatch, error):
    def fail(*_, **__):
        raise error

    hub.publish("main", folder)
    monkeypatch.setattr(huggingface_hub.file_download, "http_get", fail)
    with pytest.raises(type(error)):
        find()


def test_the_client_is_optional(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        MissingDependencyError, match=r"There is no folder 'someone/tiny'.*pip install 'distilbert\[hub\]'"
    ):
        find()

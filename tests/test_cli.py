"""The command line: what it says, how it exits, and that a wrong input is one line and writes nothing."""

import hashlib
import importlib
import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conformance import cases
from conformance.mutants import ENCODER, planted
from distilbert import parity, reference
from distilbert.checkpoint.manifest import MANIFEST_FILE
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.config import PoolingConfig
from distilbert.initialization import initial_weights
from distilbert.weight_map import HEADS
from tests.support import DATA, REFERENCE_FOLDERS, ROOT, run_cli, run_python

FOLDER = REFERENCE_FOLDERS[0]


@pytest.fixture
def tiny(tmp_path):
    """A sentence-embedding folder whose weights hide nothing."""
    head = "DistilBertForSentenceEmbedding"
    save_checkpoint(
        tmp_path / "tiny", "safetensors", head, cases.CONFIG, cases.weights(), PoolingConfig(normalize=True)
    )
    return tmp_path / "tiny"


def tree(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_parity_of_all_backends_and_dtypes(tiny, tmp_path):
    for dtype in ("float32", "float64"):
        code, out, err = run_cli("parity", tiny, tiny, "--dtype", dtype, "--json", tmp_path / "r.json")
        assert (code, err) == (0, "")
        assert out.count("PASS: within tolerance") == out.count("PASS: the same bits as from") == 3
        assert "layer 1 attention" in out
        report = json.loads((tmp_path / "r.json").read_text())
        assert [r["backend"] for r in report["results"]] == ["pt", "tf", "flax"] * 2
        assert report["passed"] is True
        assert report["dtype"] == dtype


@pytest.mark.parametrize("mutant", ENCODER, ids=lambda m: m.name)
def test_parity_fails_when_the_reference_is_wrong(tiny, mutant, monkeypatch):
    """The tool itself must notice each planted fault, in the dtype that leaves no room for rounding."""
    head = "DistilBertForSentenceEmbedding"
    original = parity.reference.HEADS[head]
    altered = lambda config, weights, *rest, **inputs: original(config, mutant.alter(weights), *rest, **inputs)  # noqa: E731
    monkeypatch.setitem(parity.reference.HEADS, head, altered)
    with planted(mutant):
        code, out, _ = run_cli("parity", tiny, "--backends", "pt", "--dtype", "float64")
    assert code == 1
    assert "FAIL: " in out
    assert "PASS" not in out


def test_parity_names_the_first_difference(tiny, tmp_path):
    """One weight of layer 1 changed by a thousandth, in a second folder that should hold the same."""
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    (other / MANIFEST_FILE).unlink()
    tensors = load_file(other / "model.safetensors")
    tensors["distilbert.transformer.layer.1.ffn.lin1.weight"][0, 0] += 1e-3
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    code, out, _ = run_cli("parity", tiny, other, "--backends", "flax")
    assert code == 1
    assert "FAIL: distilbert.transformer.layer.1.ffn.lin1.weight has other bits than in the first folder" in out
    assert out.count("PASS") == 1
    row = parity.Row("layer 1 hidden state", 1e-3, 1e-5)
    failed = parity.BackendResult("pt", "f", (parity.Row("embeddings", 0.0, 1e-5), row), other_tensor="", seconds=0.0)
    assert failed.first_failure == "layer 1 hidden state differs by 1.0e-03, allowed 1e-05"


def test_nan_is_never_equal():
    nan = np.array([1.0, np.nan])
    assert parity.largest_difference(nan, nan) == float("inf")
    assert parity.largest_difference(np.ones(2), np.ones(3)) == float("inf")
    assert not parity.Row("x", float("nan"), 1.0).passed


def test_a_difference_that_is_not_finite_fails_and_is_null_in_json(tiny, tmp_path, monkeypatch):
    original = parity.reference.layer_norm
    monkeypatch.setattr(parity.reference, "layer_norm", lambda *arguments: original(*arguments) * np.nan)
    code, out, _ = run_cli("parity", tiny, "--backends", "pt", "--json", tmp_path / "r.json")
    assert code == 1
    assert "FAIL: embeddings differs by inf" in out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["passed"] is False
    assert report["results"][0]["rows"][0]["difference"] is None


def test_convert_and_compare(tmp_path):
    for to in ("tf-h5", "flax-msgpack", "safetensors"):
        code, out, _ = run_cli("convert", FOLDER, tmp_path / to, "--to", to)
        assert code == 0
        assert "DistilBertModel: " in out
        assert f"wrote {tmp_path / to}: config.json, " in out
    code, out, _ = run_cli("parity", *(tmp_path / to for to in ("tf-h5", "flax-msgpack")), "--backends", "pt")
    assert code == 0
    done = run_python("-m", "weights_convert", str(FOLDER), str(tmp_path / "again"), "--to", "tf-h5")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / "tf_model.h5").exists()


def _lfs(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def _truncate(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def _edit(change):
    def edit(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


Q_LIN = "transformer.layer.0.attention.q_lin.weight"
WRONG_FOLDERS = {
    "no folder": (shutil.rmtree, "there is no such folder; give the folder that holds config.json and the weights"),
    "a file": (lambda f: (shutil.rmtree(f), f.write_text("x")), "is not a folder"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no weights (none of model.safetensors,"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: there is no such file"),
    "truncated": (_truncate, "ends 100 bytes too early; copy or download it again"),
    "git-lfs": (_lfs, "a git-lfs pointer, not the file itself: run `git lfs pull`"),
    "wrong shape": (_edit(lambda t: t.update({Q_LIN: t[Q_LIN][1:].copy()})), "has shape (7, 8), must have (8, 8)"),
    "missing": (_edit(lambda t: t.pop(Q_LIN)), f"lacks distilbert.{Q_LIN}"),
    "extra": (_edit(lambda t: t.update({"bogus\x1b[31m": t[Q_LIN]})), r"holds unknown bogus\x1b[31m"),
    "not finite": (_edit(lambda t: t[Q_LIN].__setitem__((0, 0), np.nan)), "holds NaN or infinity"),
    "wrong config": (lambda f: (f / "config.json").write_text('{"dim": 7}'), "dim must be a multiple of n_heads"),
    "not JSON": (lambda f: (f / "config.json").write_text("{"), "is not valid JSON"),
}


@pytest.mark.parametrize("case", WRONG_FOLDERS)
@pytest.mark.parametrize("command", ["parity", "convert"])
def test_a_wrong_folder_is_one_line_and_nothing_is_written(case, command, tmp_path):
    change, text = WRONG_FOLDERS[case]
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(FOLDER / name, folder)
    change(folder)
    before = tree(tmp_path)
    arguments = ["--backends", "pt"] if command == "parity" else [tmp_path / "out", "--to", "tf-h5"]
    code, out, err = run_cli(command, folder, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert text in err
    assert all(c.isprintable() for c in err.rstrip("\n"))
    assert tree(tmp_path) == before
    assert not (tmp_path / "out").exists()


WRONG_USAGE = {
    "no command": ["bogus"],
    "no folder": ["parity"],
    "backend": ["parity", FOLDER, "--backends", "mxnet"],
    "no backend": ["parity", FOLDER, "--backends", ""],
    "twice": ["parity", FOLDER, "--backends", "pt,pt"],
    "dtype": ["parity", FOLDER, "--dtype", "int8"],
    "option": ["parity", FOLDER, "--bogus"],
    "no texts": ["parity", FOLDER, "--texts", "/nowhere"],
    "no tokenizer": ["parity", FOLDER, "--texts", __file__, "--backends", "pt"],
    "format": ["convert", FOLDER, "OUT", "--to", "onnx"],
    "no format": ["convert", FOLDER, "OUT"],
    "layers": ["convert", FOLDER, "OUT", "--to", "safetensors", "--layers", "0,x"],
    "layers that are not there": ["convert", FOLDER, "OUT", "--to", "safetensors", "--layers", "0,7"],
    "shard size": ["convert", FOLDER, "OUT", "--to", "safetensors", "--shard-size", "many"],
    "shards of h5": ["convert", FOLDER, "OUT", "--to", "tf-h5", "--shard-size", "1MB"],
    "inspect nothing": ["inspect", "/nowhere"],
    "verify nothing": ["verify", "/nowhere"],
    "convert dtype": ["convert", FOLDER, "OUT", "--to", "safetensors", "--dtype", "int4"],
    "inside the source": ["convert", FOLDER, FOLDER / "out", "--to", "safetensors"],
    "onto itself": ["convert", FOLDER, FOLDER, "--to", "safetensors"],
    "exists": ["convert", FOLDER, ROOT, "--to", "safetensors"],
}


@pytest.mark.parametrize("case", WRONG_USAGE)
def test_wrong_usage_is_one_line(case, tmp_path):
    arguments = [tmp_path / "out" if argument == "OUT" else argument for argument in WRONG_USAGE[case]]
    before = tree(FOLDER)
    code, _, err = run_cli(*arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert tree(FOLDER) == before


def test_texts_that_are_not_utf_8(minilm, tmp_path):
    for content, text in [
        (b"gr\xfc\xdfe\n", "is not UTF-8 text (byte 2); convert it to UTF-8"),
        (b"\n \n", "holds no text"),
    ]:
        (tmp_path / "texts").write_bytes(content)
        code, _, err = run_cli("parity", minilm / "safetensors", "--texts", tmp_path / "texts", "--backends", "pt")
        assert code == 2
        assert text in err
        assert err.count("\n") == 1


def test_an_environment_that_fails_is_exit_code_3(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distilbert.checkpoint.safetensors.raw_bytes", full)
    code, _, err = run_cli("convert", FOLDER, tmp_path / "out", "--to", "safetensors")
    assert code == 3
    assert "No space left on device" in err
    assert not list(tmp_path.iterdir())


def test_help_and_version():
    assert "0.1.0" in run_cli("--version")[1]
    for arguments, words in [(["--help"], ["convert", "parity"]), (["parity", "--help"], ["--backends", "--texts", "float64"]),
                             (["convert", "--help"], ["SRC", "DST", "flax-msgpack"])]:  # fmt: skip
        done = run_python("-m", "distilbert", *arguments)
        assert done.returncode == 0
        assert all(word in done.stdout for word in words)


def test_parity_of_another_architecture_fails(tiny):
    code, out, _ = run_cli("parity", tiny, FOLDER, "--backends", "pt")
    assert code == 1
    assert "has other bits than in the first folder" in out


@pytest.mark.parametrize("head", [name for name, head in HEADS.items() if head.modules])
def test_parity_runs_the_head_of_the_folder(head, tmp_path, monkeypatch):
    """Its logits are compared; the last bias of the head a hundredth off is noticed in every backend."""
    weights = initial_weights(cases.CONFIG, head)
    save_checkpoint(tmp_path / "head", "safetensors", head, cases.CONFIG, weights)
    code, out, _ = run_cli("parity", tmp_path / "head")
    assert (code, out.count("PASS: within tolerance")) == (0, 3)
    assert "logits, by the largest" in out
    original = reference.HEADS[head]

    def altered(config, weights, **inputs):
        name = list(weights)[-1]
        return original(config, weights | {name: weights[name] + np.float32(0.01)}, **inputs)

    monkeypatch.setitem(reference.HEADS, head, altered)
    code, out, _ = run_cli("parity", tmp_path / "head")
    assert (code, out.count("logits, by the largest differs by")) == (1, 3)


def test_a_tokenizer_of_another_model_is_refused(tiny, minilm):
    shutil.copy(minilm / "safetensors" / "vocab.txt", tiny)
    code, _, err = run_cli("parity", tiny, "--backends", "pt")
    assert code == 2
    assert "the model knows only 99 (vocab_size in config.json)" in err
    assert err.count("\n") == 1


def test_a_place_for_the_report_is_checked_first(tiny, tmp_path):
    code, out, err = run_cli("parity", tiny, "--json", tmp_path)
    assert (code, out) == (2, "")
    assert "is a folder; name a file" in err
    code, out, err = run_cli("parity", tiny, "--json", tmp_path / "no" / "r.json")
    assert (code, out) == (3, "")
    assert "No such file or directory" in err


def test_without_a_command_there_is_help():
    code, out, err = run_cli()
    assert (code, err) == (2, "")
    assert "parity" in out


def test_a_bug_is_one_line_too(monkeypatch):
    monkeypatch.setattr("distilbert.cli.compare", lambda *_, **__: 1 // 0)
    code, _, err = run_cli("parity", FOLDER)
    assert code == 70
    assert err == "error: internal error, please report it: ZeroDivisionError: integer division or modulo by zero\n"


@pytest.mark.parametrize(("signal_number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_conversion_leaves_nothing(signal_number, expected, minilm, tmp_path):
    """At several moments of a real process, from the first import of the command line to its last write."""
    arguments = ["convert", str(minilm / "safetensors"), str(tmp_path / "new" / "out"), "--to", "tf-h5"]
    code = f"import sys, distilbert.__main__ as m; print('ready', file=sys.stderr, flush=True); m.main({arguments!r})"
    codes, early, late = set(), 0.0, 5.0
    delays = [0.05, 0.15, 0.3, 0.45, 0.6, 0.9, 1.4, 2.2]
    for attempt in range(24):
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        assert process.stderr.readline() == "ready\n"
        delay = delays[attempt] if attempt < len(delays) else (early + late) / 2
        time.sleep(delay)
        process.send_signal(signal_number)
        errors = process.communicate(timeout=60)[1]
        codes.add(process.returncode)
        assert "Traceback" not in errors, errors
        if (tmp_path / "new" / "out").exists():  # the signal came too late: then all of it is there
            assert len(list((tmp_path / "new" / "out").iterdir())) == 12
            shutil.rmtree(tmp_path / "new")
        assert not list(tmp_path.iterdir())
        if process.returncode == 0:
            late = min(late, delay)
        elif process.returncode == -signal_number:
            early = max(early, delay)
        if attempt >= len(delays) - 1 and expected in codes:  # on a busy machine the moment in between is sought
            break
    assert codes <= {expected, 0, -signal_number}  # the last: while the command line is not yet, or no longer, there
    assert expected in codes


def test_a_reader_that_has_seen_enough():
    done = run_python("-c", f"""
import subprocess, sys
p = subprocess.Popen([sys.executable, "-m", "distilbert", "parity", {str(FOLDER)!r}, "--backends", "pt"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
p.stdout.close()
print(p.wait(), p.stderr.read())
""")  # fmt: skip
    assert done.stdout.strip() == "-13 b''"


def test_a_verified_conversion_says_so(tmp_path):
    folder = DATA / "bert" / "BertForPreTraining" / "flax"
    code, out, _ = run_cli("convert", folder, tmp_path / "out", "--to", "tf-h5", "--verify", "--layers", "1,0")
    assert code == 0
    assert [f"verified: {name} computes it" in out for name in ("PyTorch", "TensorFlow", "Flax")] == [True] * 3
    assert "16 tensors" not in out
    assert "(next-sentence head)" in out


def test_a_conversion_that_fails_its_proof_is_not_written(tmp_path, monkeypatch):
    """A backend that computes something else, then a writer that turns a kernel."""
    convert = importlib.import_module("weights_convert.convert")  # the package's attribute of that name is the function
    with monkeypatch.context() as patch:
        original = reference.layer_norm
        patch.setattr(reference, "layer_norm", lambda *arguments: original(*arguments) * 1.001)
        code, _, err = run_cli("convert", FOLDER, tmp_path / "out", "--to", "tf-h5", "--verify")
    assert (code, err.count("\n")) == (1, 1)
    assert "error: PyTorch: embeddings differs by" in err
    original = convert.write_checkpoint

    def altered(folder, to, head, config, weights, settings, **options):
        changed = dict(weights)
        changed["distilbert.transformer.layer.0.ffn.lin1.bias"][3] += 1e-3
        original(folder, to, head, config, changed, settings, **options)

    monkeypatch.setattr(convert, "write_checkpoint", altered)
    code, _, err = run_cli("convert", FOLDER, tmp_path / "out", "--to", "safetensors", "--verify")
    assert code == 1
    assert "error: distilbert.transformer.layer.0.ffn.lin1.bias has other bits in the new folder" in err
    assert not list(tmp_path.iterdir())


def test_inspect_says_what_a_folder_holds(tmp_path):
    code, out, err = run_cli("inspect", DATA / "sharded" / "tf", "--json", tmp_path / "r.json")
    assert (code, err) == (0, "")
    for text in ("DistilBertForSequenceClassification, tf-h5 (tf names), float32", "dim 32", "56 tensors",
                 "pre_classifier/kernel:0  float32 [32, 32]", "manifest: absent"):  # fmt: skip
        assert text in out, text
    found = json.loads((tmp_path / "r.json").read_text())
    file = "tf_model-00001-of-00002.h5"
    data = (DATA / "sharded" / "tf" / file).read_bytes()
    assert found["files"][file] == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert found["tensors"]["classifier/bias:0"]["dtype"] == "float32"
    assert (
        found["parameters"] * 4
        == json.loads((DATA / "sharded" / "tf" / "tf_model.h5.index.json").read_text())["metadata"]["total_size"]
    )


def test_inspect_tells_why_a_folder_does_not_load(tiny):
    tensors = load_file(tiny / "model.safetensors")
    save_file({"strange": np.ones(3, np.float32)} | tensors, tiny / "model.safetensors")
    code, out, _ = run_cli("inspect", tiny)
    assert (code, "does not load" in out, "IntegrityMismatch" in out) == (0, True, True)
    assert "manifest: MANIFEST.json does not fit: " in out
    (tiny / MANIFEST_FILE).unlink()
    code, out, _ = run_cli("inspect", tiny)
    assert (code, "does not load" in out, "1 unexpected" in out) == (0, True, True)
    code, _, err = run_cli("inspect", tiny / "1_Pooling")
    assert code == 2
    assert "holds no weights" in err


def test_verify_names_the_file_that_changed(tiny):
    assert run_cli("verify", tiny)[0] == 0
    config = tiny / "config.json"
    config.write_text(config.read_text().replace("gelu", "relu"))
    (tiny / "notes.txt").write_text("mine")
    code, out, _ = run_cli("verify", tiny)
    assert code == 1
    assert f"FAIL: {config}: has " in out
    assert "not listed: notes.txt" in out
    code, _, err = run_cli("parity", tiny, "--backends", "pt")
    assert (code, "IntegrityMismatch" in err) == (2, True)
    assert run_cli("verify", tiny, "--accept")[0] == 0
    code, out, _ = run_cli("verify", tiny)
    assert (code, out.startswith("PASS: ")) == (0, True)
    (tiny / MANIFEST_FILE).unlink()
    code, _, err = run_cli("verify", tiny)
    assert (code, "has no MANIFEST.json" in err) == (2, True)

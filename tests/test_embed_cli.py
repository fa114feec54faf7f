"""`distilbert embed`: a vector per line, all or nothing, and every mistake in one line."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from conformance import cases
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.config import PoolingConfig
from distilbert.errors import DataError
from distilbert.tasks import embedding, files
from distilbert.tasks.embedding import SentenceEncoder
from distilbert.tokenization.fast import DistilBertTokenizerFast
from tests.support import ROOT, SPECIAL_TOKENS, Padded, run_cli

HEAD = "DistilBertForSentenceEmbedding"
LINES = ["w1 w2 w3", "", "w9", "w4 w4 w4 w4 w4 w4", "  w1 w2 w3  ", "w5 w6"]


class Module:
    @staticmethod
    def optimize(model, precision, *, keep_model):
        assert not keep_model
        return Padded(model, precision)


@pytest.fixture(autouse=True)
def _no_engine(monkeypatch):
    monkeypatch.setattr(embedding, "load_inference", lambda _: Module)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "model"
    weights = cases.weights(cases.CONFIG, head=HEAD)
    save_checkpoint(place, "safetensors", HEAD, cases.CONFIG, weights, PoolingConfig())
    words = [f"w{i}" for i in range(cases.CONFIG.vocab_size - len(SPECIAL_TOKENS))]
    DistilBertTokenizerFast({token: i for i, token in enumerate([*SPECIAL_TOKENS, *words])}).save_pretrained(place)
    return place


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


def vectors_of(folder, texts, **options):
    return SentenceEncoder.from_pretrained(folder, precision=None).encode(texts, **options)


def leftovers(path):
    return [file.name for file in path.parent.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("window", [2, 100])
def test_row_i_is_line_i(folder, texts, tmp_path, monkeypatch, window):
    parts = SentenceEncoder.encode_iter
    monkeypatch.setattr(SentenceEncoder, "encode_iter", lambda self, *a, **k: parts(self, *a, **k, window=window))
    out = tmp_path / "vectors.npy"
    code, said, err = run_cli("embed", folder, "--in", texts, "--out", out)
    assert (code, err) == (0, "")
    assert said == f"wrote {out}: 6 vectors of 32 numbers\n"
    found = np.load(out)
    assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_allclose(found, vectors_of(folder, LINES), rtol=0, atol=5e-6)
    assert not leftovers(out)


def test_options(folder, texts, tmp_path):
    out = tmp_path / "vectors.npy"
    out.write_bytes(b"an older one")
    code, _, err = run_cli(
        "embed",
        folder,
        "--in",
        texts,
        "--out",
        out,
        "--normalize",
        "--token-budget",
        30,
        "--progress",
        "--precision",
        "int8",
        "--backend",
        "pt",
    )
    assert (code, err) == (0, "")
    np.testing.assert_allclose(np.load(out), vectors_of(folder, LINES, normalize=True), rtol=0, atol=5e-6)


def test_json_lines(folder, tmp_path):
    lines = tmp_path / "texts.jsonl"
    lines.write_text("".join(json.dumps({"id": i, "text": text}) + "\r\n" for i, text in enumerate(LINES)))
    code, _, _ = run_cli("embed", folder, "--in", lines, "--field", "text", "--out", tmp_path / "v.npy")
    assert code == 0
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), vectors_of(folder, LINES), rtol=0, atol=5e-6)


def test_standard_input_that_ends_without_a_newline(folder, tmp_path, monkeypatch):
    read, write = os.pipe()
    os.write(write, "\n".join(LINES[:3]).encode())
    os.close(write)
    with os.fdopen(read) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        code, _, _ = run_cli("embed", folder, "--in", "-", "--out", tmp_path / "v.npy")
    assert code == 0
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), vectors_of(folder, LINES[:3]), rtol=0, atol=5e-6)


def test_no_line_is_no_vector(folder, tmp_path):
    (tmp_path / "none").touch()
    assert run_cli("embed", folder, "--in", tmp_path / "none", "--out", tmp_path / "v.npy")[0] == 0
    assert np.load(tmp_path / "v.npy").shape == (0, 32)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"a\n\xff\n", (), "texts, line 2: is not UTF-8 text (byte 0); convert it to UTF-8."),
        (b'{"text": "a"}\n[1]\n', ("--field", "text"), "texts, line 2: must be a JSON object with a string 'text'."),
        (b'{"text": 5}', ("--field", "text"), "texts, line 1: must be a JSON object with a string 'text'."),
        (b"plain\n", ("--field", "text"), "texts, line 1: is not JSON."),
        (b"[" * 100_000, ("--field", "text"), "texts, line 1: is not JSON."),
        (b"w1 w2 w3 w4\n", ("--token-budget", 4), "item 0 has 6 tokens, more than token_budget=4"),
        (b"a", ("--token-budget", 0), "token_budget must be a whole number of at least 1, got 0"),
        (b"a", ("--precision", "float16"), "precision must be one of float32, bfloat16, int8, got 'float16'"),
        (b"a", ("--backend", "onnx"), "backend must be one of native, pt, tf, flax, got 'onnx'"),
    ],
)
def test_a_wrong_input_is_one_line_and_writes_nothing(folder, tmp_path, content, options, message):
    (tmp_path / "texts").write_bytes(content)
    out = tmp_path / "v.npy"
    code, said, err = run_cli("embed", folder, "--in", tmp_path / "texts", "--out", out, *options)
    assert (code, said) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not out.exists()
    assert not leftovers(out)


def test_places_that_are_none(folder, texts, tmp_path):
    for source, message in ((tmp_path / "absent", "No such file"), (tmp_path, "cannot be read")):
        code, _, err = run_cli("embed", folder, "--in", source, "--out", tmp_path / "v.npy")
        assert (code, message in err) == (2, True), err
    assert run_cli("embed", folder, "--in", texts, "--out", tmp_path)[0] == 2
    assert run_cli("embed", folder, "--in", texts, "--out", tmp_path / "none" / "v.npy")[0] == 3
    assert run_cli("embed", tmp_path / "absent", "--in", texts, "--out", tmp_path / "v.npy")[0] == 2
    assert run_cli("embed", folder, "--in", texts)[0] == 2


def test_the_file_of_texts_is_not_written(folder, texts, tmp_path):
    before, link = texts.read_bytes(), tmp_path / "link"
    link.symlink_to(texts)
    for out in (texts, link):
        code, _, err = run_cli("embed", folder, "--in", texts, "--out", out)
        assert (code, err) == (2, f"error: --out must be another file than --in, got {out} for both.\n")
    assert texts.read_bytes() == before
    code, _, err = run_cli("embed", folder, "--in", texts, "--out", "-")
    assert (code, err) == (2, "error: --out must be a file, got '-'.\n")


def test_a_wrong_limit_is_refused_before_the_model_is_loaded(texts, tmp_path):
    code, _, err = run_cli("embed", tmp_path / "none", "--in", texts, "--out", tmp_path / "v.npy", "--token-budget", 0)
    assert (code, "token_budget must be" in err) == (2, True)


def test_closed_standard_input(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = run_cli("embed", folder, "--in", "-", "--out", tmp_path / "v.npy")
    assert (code, err) == (2, "error: standard input is closed.\n")


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "texts").write_bytes(b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n")
    with files.open_texts(str(tmp_path / "texts")) as lines:
        assert list(lines) == ["a", "\ufeffb"]


def test_a_long_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 8)
    (tmp_path / "texts").write_text("w1 w2 w3\n")
    with files.open_texts(str(tmp_path / "texts")) as lines, pytest.raises(DataError, match="line 1: is longer than 8"):
        list(lines)


def test_a_failure_half_way_leaves_the_older_file(folder, texts, tmp_path, monkeypatch):
    out = tmp_path / "v.npy"
    out.write_bytes(b"an older one")

    def parts(*_, **__):
        yield np.zeros((3, 32), np.float32)
        raise MemoryError

    monkeypatch.setattr(SentenceEncoder, "encode_iter", parts)
    code, _, err = run_cli("embed", folder, "--in", texts, "--out", out)
    assert (code, err) == (3, "error: out of memory.\n")
    assert out.read_bytes() == b"an older one"
    assert not leftovers(out)


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_it_waits_for_texts(folder, tmp_path, number, expected):
    code = f"""
import tests.test_embed_cli as t
t.embedding.load_inference = lambda _: t.Module
from distilbert.cli import main
main(["embed", {str(folder)!r}, "--in", "-", "--out", {str(tmp_path / "v.npy")!r}])
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=pipe, stderr=pipe, text=True) as process:
        deadline = time.monotonic() + 120
        while not leftovers(tmp_path / "v.npy"):  # it writes to a temporary file, and waits for a first line
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(30) == expected
        assert "Traceback" not in process.stderr.read()
    assert not leftovers(tmp_path / "v.npy")
    assert not (tmp_path / "v.npy").exists()

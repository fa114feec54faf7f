"""The real checkpoint: a trained encoder in three formats, on real texts, in three frameworks."""

import json

import numpy as np
import pytest

from distilbert.tasks.embedding import SentenceEncoder
from distilbert.tokenization.fast import DistilBertTokenizerFast
from tests.support import BACKENDS, DATA, run_cli

GOLDEN = np.load(DATA / "minilm_golden.npz")
TEXTS = GOLDEN["texts"].tolist()


@pytest.fixture(scope="module")
def encoders(minilm):
    formats = ("safetensors", "tf-h5", "flax-msgpack")
    return {
        (backend, name): SentenceEncoder.from_pretrained(minilm / name, backend=backend, precision=None)
        for backend in BACKENDS
        for name in formats
    }


def test_embeddings_of_sentence_transformers(encoders):
    for backend in BACKENDS:
        found = encoders[backend, "safetensors"].encode(TEXTS)
        assert np.abs(found - GOLDEN["embeddings"]).max() < 1e-5, backend


def test_every_format_gives_every_framework_the_same_bits(encoders):
    for backend in BACKENDS:
        first = encoders[backend, "safetensors"]
        for name in ("tf-h5", "flax-msgpack"):
            other = encoders[backend, name]
            weights, others = first.model.weights_by_name(), other.model.weights_by_name()
            assert all(weights[n].tobytes() == others[n].tobytes() for n in weights), (backend, name)
            assert first.encode(TEXTS[:8]).tobytes() == other.encode(TEXTS[:8]).tobytes(), (backend, name)
            assert other.model.pooling.config == first.model.pooling.config


def test_settings_come_from_the_folder(encoders):
    settings = encoders["pt", "safetensors"].model.pooling.config
    assert (settings.mode, settings.normalize, settings.max_seq_length) == ("mean", True, 256)
    assert encoders["pt", "safetensors"].max_length == 256


def test_parity_on_the_command_line(minilm, tmp_path):
    code, out, _ = run_cli("parity", minilm / "safetensors", "--json", tmp_path / "report.json")
    assert code == 0
    assert out.count("PASS") == 3
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"]
    for result in report["results"]:
        assert result["other_tensor"] == ""
        assert [row["place"] for row in result["rows"]][:3] == [
            "embeddings",
            "layer 0 attention",
            "layer 0 hidden state",
        ]
        assert len(result["rows"]) == 14
        assert all(row["difference"] < row["tolerance"] for row in result["rows"])


def test_tokenizer_on_real_texts(minilm):
    tokenizer = DistilBertTokenizerFast.from_pretrained(minilm / "safetensors")
    batch = tokenizer(["", "Hello, wörld!"], padding=True, return_tensors="np")
    assert batch["input_ids"].tolist() == [[101, 102, 0, 0, 0, 0], [101, 7592, 1010, 2088, 999, 102]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0, 0, 0], [1] * 6]

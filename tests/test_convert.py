"""Conversion: between formats bit for bit, and from BERT exactly."""

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from conformance import cases
from distilbert import reference, weight_map
from distilbert.checkpoint.folder import WRITABLE
from distilbert.checkpoint.opening import open_checkpoint
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.config import DistilBertConfig
from distilbert.errors import CheckpointError, ConfigError
from distilbert.initialization import initial_weights
from tests.support import ANY_MODEL, REFERENCE_FOLDERS
from weights_convert import convert

BERT_CONFIG = {
    "model_type": "bert", "vocab_size": 99, "max_position_embeddings": 24, "hidden_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 4, "intermediate_size": 48, "hidden_act": "gelu", "type_vocab_size": 2,
    "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3, "layer_norm_eps": 1e-12, "pad_token_id": 0,
    "auto_map": {"AutoModel": "evil.Model"},
}  # fmt: skip


def bert_tensors(prefix=""):
    """A random BERT under its own names: encoder, token types, pooler and a stored buffer."""
    random = np.random.default_rng(0)
    shapes = {
        "embeddings.word_embeddings.weight": (99, 32),
        "embeddings.position_embeddings.weight": (24, 32),
        "embeddings.token_type_embeddings.weight": (2, 32),
        "pooler.dense.weight": (32, 32),
        "pooler.dense.bias": (32,),
    }
    for norm in ("embeddings", *(f"encoder.layer.{i}.{part}output" for i in range(3) for part in ("attention.", ""))):
        shapes |= {f"{norm}.LayerNorm.weight": (32,), f"{norm}.LayerNorm.bias": (32,)}
    for i in range(3):
        sizes = {"attention.self.query": (32, 32), "attention.self.key": (32, 32), "attention.self.value": (32, 32),
                 "attention.output.dense": (32, 32), "intermediate.dense": (48, 32), "output.dense": (32, 48)}  # fmt: skip
        for name, shape in sizes.items():
            shapes |= {f"encoder.layer.{i}.{name}.weight": shape, f"encoder.layer.{i}.{name}.bias": shape[:1]}
    tensors = {prefix + n: random.normal(0, 0.2, s).astype(np.float32) for n, s in shapes.items()}
    return tensors | {prefix + "embeddings.position_ids": np.arange(24)[None]}


def bert(tensors, ids):
    """BERT with one segment, in float64, written out from its paper with its own names."""

    def get(name):
        return tensors[name].astype(np.float64)

    def dense(x, name):
        return x @ get(f"{name}.weight").T + get(f"{name}.bias")

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * get(f"{name}.weight") + get(f"{name}.bias")

    x = get("embeddings.word_embeddings.weight")[ids] + get("embeddings.token_type_embeddings.weight")[0]
    x = norm(x + get("embeddings.position_embeddings.weight")[: ids.shape[1]], "embeddings.LayerNorm")
    for i in range(3):
        q, k, v = (
            dense(x, f"encoder.layer.{i}.attention.self.{part}").reshape(*x.shape[:2], 4, 8).transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(8)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        context = (weights / weights.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        x = norm(
            dense(context, f"encoder.layer.{i}.attention.output.dense") + x,
            f"encoder.layer.{i}.attention.output.LayerNorm",
        )
        hidden = reference.gelu(dense(x, f"encoder.layer.{i}.intermediate.dense"))
        x = norm(dense(hidden, f"encoder.layer.{i}.output.dense") + x, f"encoder.layer.{i}.output.LayerNorm")
    return x


@pytest.fixture
def bert_folder(tmp_path):
    def make(prefix="", **changes):
        folder = tmp_path / "bert"
        folder.mkdir()
        save_file(bert_tensors(prefix), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(BERT_CONFIG | changes))
        (folder / "vocab.txt").write_text("[PAD]\n")
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": false}')
        return folder

    return make


@pytest.mark.parametrize("to", ANY_MODEL)
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_a_bert_encoder_is_converted_exactly(bert_folder, tmp_path, to, prefix):
    done = convert(bert_folder(prefix), tmp_path / "out", to=to, dtype="float64")
    source = open_checkpoint(tmp_path / "out", "DistilBertModel", dtype="float64")
    assert (source.config.n_layers, source.config.hidden_dim, source.config.dropout) == (3, 48, 0.2)
    assert source.config.attention_dropout == 0.3
    ids = cases.input_ids()
    found = reference.model(source.config, dict(source), ids).last_hidden_state
    np.testing.assert_allclose(found, bert(bert_tensors(), ids), rtol=0, atol=1e-13)
    assert done.report.skipped == {
        prefix + "embeddings.position_ids": "a buffer, not a weight",
        prefix + "embeddings.token_type_embeddings.weight": "row 0 is folded into the position table",
        prefix + "pooler.dense.bias": "DistilBERT has no pooler",
        prefix + "pooler.dense.weight": "DistilBERT has no pooler",
    }
    options = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert options == {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": False}
    assert (tmp_path / "out" / "vocab.txt").exists()
    assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"layer_norm_eps": 1e-5}, ConfigError, "layer_norm_eps must be 1e-12"),
        ({"position_embedding_type": "relative_key"}, ConfigError, "position_embedding_type must be 'absolute'"),
        ({"is_decoder": True}, ConfigError, "is_decoder must be False"),
        ({"hidden_act": "mish"}, ConfigError, "activation must be one of"),
        ({"hidden_size": 64}, CheckpointError, "misshapen"),
        ({"num_hidden_layers": 4}, CheckpointError, "16 missing"),
        ({"num_hidden_layers": 2}, CheckpointError, "16 unexpected"),
    ],
)
def test_a_bert_that_is_no_distilbert_is_refused(bert_folder, tmp_path, changes, error, text):
    with pytest.raises(error, match=text):
        convert(bert_folder(**changes), tmp_path / "out", to="safetensors")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("first", WRITABLE)
@pytest.mark.parametrize("second", WRITABLE)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_round_trips_are_bit_for_bit(tmp_path, first, second, dtype):
    head = "DistilBertForMaskedLM"
    weights = {n: a.astype(cases.np_dtype(dtype)) for n, a in initial_weights(cases.CONFIG, head).items()}
    save_checkpoint(tmp_path / "a", "safetensors", head, cases.CONFIG, weights)
    convert(tmp_path / "a", tmp_path / "b", to=first)
    convert(tmp_path / "b", tmp_path / "c", to=second)
    convert(tmp_path / "c", tmp_path / "d", to="safetensors", dtype=dtype)
    assert sha256(tmp_path / "d" / "model.safetensors") == sha256(tmp_path / "a" / "model.safetensors")
    assert DistilBertConfig.from_pretrained(tmp_path / "d") == DistilBertConfig.from_pretrained(tmp_path / "a")


@pytest.mark.parametrize("folder", REFERENCE_FOLDERS, ids=lambda f: f.name)
def test_a_folder_of_the_reference_converts(folder, tmp_path):
    for to in ANY_MODEL:
        assert convert(folder, tmp_path / to, to=to).head == "DistilBertModel"
        for name, array in open_checkpoint(folder, "DistilBertModel").items():
            assert open_checkpoint(tmp_path / to, "DistilBertModel")[name].tobytes() == array.tobytes()


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_are_named_as_the_reference_names_them(tmp_path):
    import h5py

    head = "DistilBertForMaskedLM"
    save_checkpoint(tmp_path / "h5", "tf-h5", head, cases.CONFIG, initial_weights(cases.CONFIG, head))
    with h5py.File(tmp_path / "h5" / "tf_model.h5") as file:
        names = np.char.decode(np.array(file["vocab_projector"].attrs["weight_names"], "S")).tolist()
    assert names == [
        "tf_distil_bert_for_masked_lm/distilbert/embeddings/word_embeddings/weight:0",
        "tf_distil_bert_for_masked_lm/distilbert/embeddings/position_embeddings/embeddings:0",
        "tf_distil_bert_for_masked_lm/distilbert/embeddings/LayerNorm/gamma:0",
        "tf_distil_bert_for_masked_lm/distilbert/embeddings/LayerNorm/beta:0",
        "tf_distil_bert_for_masked_lm/vocab_projector/bias:0",
    ]


def test_tensors_are_read_one_at_a_time(tmp_path):
    """Progress is told, and the largest tensor bounds what is in memory at once."""
    import tracemalloc

    head, config = "DistilBertModel", DistilBertConfig(vocab_size=2000, n_layers=6, dim=384, hidden_dim=1536)
    save_checkpoint(tmp_path / "a", "safetensors", head, config, initial_weights(config))
    largest = 2000 * 384 * 4
    for to in WRITABLE:
        seen = []
        convert(tmp_path / "a", tmp_path / f"warm-{to}", to=to)  # imports
        tracemalloc.start()
        convert(tmp_path / "a", tmp_path / to, to=to, progress=lambda n, total: seen.append((n, total)))  # noqa: B023
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert seen[-1] == (100, 100)
        assert peak < 4 * largest < 45_000_000, to  # the file has 45 MB


def test_the_names_of_the_table_are_the_released_ones():
    names = list(weight_map.tensor_specs(DistilBertConfig(n_layers=1), "DistilBertForSequenceClassification"))
    block = "distilbert.transformer.layer.0."
    assert names[:5] == [
        "distilbert.embeddings.word_embeddings.weight", "distilbert.embeddings.position_embeddings.weight",
        "distilbert.embeddings.LayerNorm.weight", "distilbert.embeddings.LayerNorm.bias",
        f"{block}attention.q_lin.weight",
    ]  # fmt: skip
    assert names[-4:] == ["pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias"]


def test_a_sentence_folder_with_its_encoder_below(tmp_path):
    encoder = tmp_path / "in" / "0_Transformer"
    save_checkpoint(encoder, "safetensors", "DistilBertModel", cases.CONFIG, cases.weights())
    (encoder / "vocab.txt").write_text("[PAD]\n")
    (tmp_path / "in" / "1_Pooling").mkdir()
    (tmp_path / "in" / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    modules = [{"type": "x.Transformer", "path": "0_Transformer"}, {"type": "x.Pooling", "path": "1_Pooling"}]
    (tmp_path / "in" / "modules.json").write_text(json.dumps(modules))
    done = convert(tmp_path / "in", tmp_path / "out", to="tf-h5")
    assert {"tf_model.h5", "vocab.txt", "modules.json", "1_Pooling/config.json"} <= set(done.files)
    source = open_checkpoint(tmp_path / "out", "DistilBertForSentenceEmbedding")
    assert source.settings["pooling"].mode == "cls"


def test_the_task_head_of_a_bert_is_listed(bert_folder, tmp_path):
    folder = bert_folder("bert.")
    tensors = bert_tensors("bert.") | {"classifier.weight": np.zeros((2, 32), np.float32)}
    save_file(tensors, folder / "model.safetensors")
    done = convert(folder, tmp_path / "out", to="safetensors")
    assert done.report.skipped["classifier.weight"] == "another class's head"


def test_a_failed_conversion_leaves_no_folders(bert_folder, tmp_path):
    with pytest.raises(ConfigError):
        convert(bert_folder(layer_norm_eps=1.0), tmp_path / "new" / "deep" / "out", to="safetensors")
    folder = tmp_path / "nan"
    save_checkpoint(
        folder, "safetensors", "DistilBertModel", cases.CONFIG, {n: a * np.nan for n, a in cases.weights().items()}
    )
    with pytest.raises(CheckpointError, match="holds NaN"):
        convert(folder, tmp_path / "new" / "deep" / "out", to="safetensors")
    assert not (tmp_path / "new").exists()

"""The configuration: what it accepts, refuses, keeps and writes."""

import json

import pytest

from distilbert.config import DistilBertConfig, PoolingConfig
from distilbert.errors import CheckpointError, ConfigError
from tests.support import REFERENCE_FOLDERS


def test_defaults_are_the_released_models():
    config = DistilBertConfig()
    assert (config.n_layers, config.n_heads, config.dim, config.hidden_dim, config.head_dim) == (6, 12, 768, 3072, 64)
    assert (config.vocab_size, config.max_position_embeddings, config.activation) == (30522, 512, "gelu")
    assert (config.dropout, config.qa_dropout, config.seq_classif_dropout, config.num_labels) == (0.1, 0.1, 0.2, 2)


def test_aliases_and_label_counts():
    config = DistilBertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_labels=3)
    assert (config.dim, config.n_layers, config.n_heads) == (64, 2, 4)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 2, 4)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert config.replace(id2label={0: "no", 1: "yes"}).label2id == {"no": 0, "yes": 1}
    assert config.replace(num_labels=5).num_labels == 5
    assert config.replace(hidden_size=32).dim == 32
    assert "hidden_size" not in config.to_dict()


WRONG = {
    "vocab_size must be an integer": {"vocab_size": "x"},
    "n_layers must be an integer from 1": {"n_layers": 0},
    "n_layers must be an integer from 1 to 1024": {"n_layers": 10**9},
    "n_heads must be an integer": {"n_heads": -2},
    "n_layers must be an integer": {"n_layers": True},
    "hidden_dim must be an integer": {"hidden_dim": 10**12},
    "dim must be a multiple of n_heads, got dim=10 and n_heads=12": {"dim": 10},
    "dim must be even with sinusoidal": {"dim": 9, "n_heads": 3, "sinusoidal_pos_embds": True},
    r"dropout must be a number in \[0, 1\), got 1.0": {"dropout": 1.0},
    r"attention_dropout must be a number in \[0, 1\), got -0.1": {"attention_dropout": -0.1},
    r"qa_dropout must be a number in \[0, 1\), got nan": {"qa_dropout": float("nan")},
    "seq_classif_dropout must be a number": {"seq_classif_dropout": "a"},
    "initializer_range must be a number": {"initializer_range": 0},
    "activation must be one of gelu, gelu_new": {"activation": "os.system"},
    "activation must be one of": {"activation": ["gelu"]},
    "pad_token_id must lie below vocab_size, got 30522": {"pad_token_id": 30522},
    "pad_token_id must be an integer": {"pad_token_id": -1},
    "sinusoidal_pos_embds must be true or false": {"sinusoidal_pos_embds": 1},
    "problem_type must be one of": {"problem_type": "foo"},
    "id2label must name the labels 0, 1": {"id2label": {"1": "a"}},
    "id2label must be a mapping": {"id2label": ["a"]},
    "label2id must be a mapping": {"label2id": [1]},
    "num_labels must be the number of labels": {"num_labels": 3, "id2label": {0: "a"}},
    "pruned_heads must leave a head": {"pruned_heads": {0: list(range(12))}},
    "pruned_heads must leave": {"pruned_heads": {6: [0]}},
    "pruned_heads must map a layer": {"pruned_heads": {0: 1}},
    "hidden_size and dim mean the same, got 48 and 64": {"dim": 64, "hidden_size": 48},
    "hidden_dims is not a field of DistilBertConfig; did you mean hidden_dim": {"hidden_dims": 3},
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_value_is_named(text):
    with pytest.raises(ConfigError, match=text):
        DistilBertConfig(**WRONG[text])


def test_it_is_immutable_hashable_and_comparable():
    config = DistilBertConfig()
    with pytest.raises(AttributeError):
        config.dim = 3
    assert config == DistilBertConfig()
    assert hash(config) == hash(DistilBertConfig())
    assert config != config.replace(dim=1536)


@pytest.mark.parametrize("folder", REFERENCE_FOLDERS, ids=lambda f: f.name)
def test_a_file_of_the_reference_survives_a_round_trip(folder, tmp_path):
    before = json.loads((folder / "config.json").read_text())
    DistilBertConfig.from_pretrained(folder).save_pretrained(tmp_path)
    after = json.loads((tmp_path / "config.json").read_text())
    assert after == before | {"tie_word_embeddings": True}
    DistilBertConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == after


def test_a_file_of_transformers_5_is_read_and_unknown_keys_are_kept(tmp_path):
    values = {"model_type": "distilbert", "bos_token_id": None, "eos_token_id": None, "tie_weights_": True, "new": [1]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = DistilBertConfig.from_pretrained(tmp_path, dropout=0.0)
    assert config.dropout == 0.0
    assert config.extra == {k: v for k, v in values.items() if k != "model_type"}
    assert config.to_dict().items() >= values.items()


def test_fields_that_name_code_are_dropped():
    with pytest.warns(UserWarning, match="ignored the code-bearing fields _attn_implementation_internal, auto_map"):
        config = DistilBertConfig.from_dict(
            {"auto_map": {"AutoModel": "evil.py"}, "_attn_implementation_internal": "x/y"}
        )
    assert config.extra == {}


@pytest.mark.parametrize(
    ("content", "error", "text"),
    [
        (b'{"dim": 10}', ConfigError, "config.json: dim must be a multiple"),
        (b'{"model_type": "bert"}', ConfigError, "model_type must be 'distilbert', got 'bert'; convert it first"),
        (b"[]", CheckpointError, "holds a JSON list"),
        (b'{"dim": 1, "dim": 2}', CheckpointError, "names 'dim' twice"),
        (b'{"dropout": NaN}', CheckpointError, "holds the number NaN"),
        (b'{"dim": 768', CheckpointError, "is not valid JSON"),
        (b"\xff\xfe{\x00}\x00", CheckpointError, "is not UTF-8"),
        (b"[" * 100_000, CheckpointError, "nested too deeply"),
        (b'{"dim": ' + b"1" * 5000 + b"}", CheckpointError, "thousands of digits"),
        (b" " * (1 << 20) + b"{}", CheckpointError, "more than the 1048576 allowed"),
    ],
)
def test_a_broken_file_is_one_error(tmp_path, content, error, text):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(error, match=text) as caught:
        DistilBertConfig.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 700


def test_pooling_settings_are_checked():
    with pytest.raises(ConfigError, match="pooling mode must be one of mean, cls, max, mean_sqrt_len, got 'sum'"):
        PoolingConfig("sum")
    with pytest.raises(ConfigError, match="max_seq_length must be an integer"):
        PoolingConfig(max_seq_length=0)

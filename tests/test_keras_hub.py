"""KerasHub presets: those that KerasHub wrote are read with its outputs; those that we write have its structure."""

import json
import shutil

import h5py
import ml_dtypes
import numpy as np
import pytest

from conformance import cases
from distilbert import reference, weight_map
from distilbert.backends import load_backend
from distilbert.checkpoint import keras_hub
from distilbert.checkpoint.manifest import MANIFEST_FILE
from distilbert.checkpoint.opening import find_head, open_checkpoint, read_config
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.config import DistilBertConfig, PoolingConfig
from distilbert.errors import CheckpointError, ConfigError, DistilBertError, TokenizerError
from distilbert.tokenization.fast import DistilBertTokenizerFast
from tests.support import BACKENDS, DATA, run_cli, to_numpy
from tests.test_convert import BERT_CONFIG, bert_tensors
from weights_convert import convert

GOLDENS = {  # by folder, the class
    "backbone": "DistilBertModel",
    "bfloat16": "DistilBertModel",
    "masked_lm": "DistilBertForMaskedLM",
    "classifier": "DistilBertForSequenceClassification",
}
PRESETS = DATA / "keras_hub"
MASKED_LM, CLASSIFIER = GOLDENS["masked_lm"], GOLDENS["classifier"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "é"]


def expected(name):
    """What KerasHub computed, and the inputs as keyword arguments of ours."""
    arrays = dict(np.load(PRESETS / name / "expected.npz"))
    return arrays, {"input_ids": arrays["token_ids"], "attention_mask": arrays["padding_mask"]}


def specification(name, config, weights, inputs):
    """The reference on canonical weights, but with the epsilon that KerasHub's masked-LM head has."""
    if name == "masked_lm":
        x = reference.model(config, weights, **inputs).last_hidden_state
        x = reference.gelu(reference.linear(x, weights, "vocab_transform"))
        centred = x - x.mean(-1, keepdims=True)
        x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        x = x * weights["vocab_layer_norm.weight"] + weights["vocab_layer_norm.bias"]
        return reference.linear(x, weights, "vocab_projector")
    return reference.HEADS[GOLDENS[name]](config, weights, **inputs)[0]


def tree(path):
    """Every group and dataset of an HDF5 file with its attributes, shape, dtype and storage."""
    nodes = {}

    def visit(name, node):
        storage = None if isinstance(node, h5py.Group) else (node.shape, node.dtype, node.chunks, node.compression)
        nodes[name] = (dict(node.attrs), storage)

    with h5py.File(path) as file:
        assert not file.attrs
        file.visititems(visit)
    return nodes


def bits(weights):
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in weights.items()}


@pytest.fixture
def preset(tmp_path):
    """A copy of a golden to spoil: preset(name) or preset(name, file, change of its JSON)."""

    def make(name, file=None, change=None):
        folder = tmp_path / "preset"
        shutil.copytree(PRESETS / name, folder)
        if file:
            values = json.loads((folder / file).read_text())
            change(values)
            (folder / file).write_text(json.dumps(values))
        return folder

    return make


@pytest.mark.parametrize("name", GOLDENS)
def test_a_preset_gives_the_outputs_of_keras_hub(name):
    config = read_config(PRESETS / name)
    assert find_head(PRESETS / name, config) == GOLDENS[name]
    found = open_checkpoint(PRESETS / name, GOLDENS[name], dtype="float64")
    arrays, inputs = expected(name)
    output = specification(name, config, dict(found), inputs)
    assert np.abs(arrays["output"]).max() > 1
    np.testing.assert_allclose(output, arrays["output"], rtol=0, atol=1e-7)  # measured: 1.2e-8, Keras' own rounding
    assert set(found.report.skipped.values()) <= {"the optimizer's state"}
    assert len(found.report.skipped) == {"masked_lm": 2, "classifier": 82}.get(name, 0)


@pytest.mark.parametrize("name", ["backbone", "classifier"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_loads_a_preset(name, backend):
    arrays, inputs = expected(name)
    model = getattr(load_backend(backend), GOLDENS[name]).from_pretrained(PRESETS / name)
    np.testing.assert_allclose(to_numpy(model(**inputs)[0]), arrays["output"], rtol=0, atol=1e-5)


def test_the_configs_of_presets():
    config = read_config(PRESETS / "classifier")
    wanted = DistilBertConfig(
        vocab_size=24, max_position_embeddings=12, n_layers=2, n_heads=4, dim=16, hidden_dim=24, dropout=0.2,
        attention_dropout=0.2, seq_classif_dropout=0.3, num_labels=3,
        extra={"architectures": [CLASSIFIER], "dtype": "float32"},
    )  # fmt: skip
    assert config == wanted
    assert read_config(PRESETS / "bfloat16").extra == {"architectures": ["DistilBertModel"], "dtype": "bfloat16"}
    with pytest.raises(ConfigError, match="this is a KerasHub preset's config"):
        DistilBertConfig.from_pretrained(PRESETS / "classifier")


@pytest.mark.parametrize("head", [GOLDENS["backbone"], MASKED_LM, CLASSIFIER])
def test_the_table_spells_every_name_of_the_files(head):
    name = next(name for name, of in GOLDENS.items() if of == head)
    stored = keras_hub.read(PRESETS / name / "model.weights.h5").info
    specs = weight_map.tensor_specs(read_config(PRESETS / name), head)
    specs.pop(weight_map.TIED_PROJECTOR, None)
    spelled = {spec.stored_name(weight_map.KERAS_HUB): spec for spec in specs.values()}
    assert len(spelled) == len(specs)
    assert spelled.keys() == {name for name in stored if "optimizer" not in name}
    for name, spec in spelled.items():
        assert list(spec.accepted_names(weight_map.KERAS_HUB)) == [name]
        assert spec.stored_shape(weight_map.KERAS_HUB) == stored[name].shape
        array = np.random.default_rng(0).normal(size=spec.shape)
        turned = spec.to_layout(array, weight_map.KERAS_HUB)
        assert turned.shape == stored[name].shape
        assert np.array_equal(spec.from_layout(turned, weight_map.KERAS_HUB), array)


def test_the_layers_are_counted_as_keras_counts():
    names = [
        spec.stored_name(weight_map.KERAS_HUB)
        for spec in weight_map.tensor_specs(DistilBertConfig(n_layers=12)).values()
        if spec.name.endswith("ffn.lin1.bias")
    ]
    counts = ["", *(f"_{i}" for i in range(1, 12))]
    assert names == [f"layers/transformer_encoder{n}/_feedforward_intermediate_dense/vars/1" for n in counts]


@pytest.mark.parametrize("name", GOLDENS)
def test_files_are_built_as_keras_hub_builds_them(name, tmp_path):
    """Bit for bit back to a preset: the same groups, datasets, attributes and numbers, and the same JSON objects."""
    convert(PRESETS / name, tmp_path / "a", to="safetensors")
    done = convert(tmp_path / "a", tmp_path / "b", to="keras-hub")
    assert done.head == GOLDENS[name]
    theirs = {str(file.relative_to(PRESETS / name)) for file in (PRESETS / name).rglob("*") if file.is_file()}
    assert set(done.files) == theirs - {"expected.npz"} | {MANIFEST_FILE}
    for file in (f for f in done.files if f.endswith(".h5")):
        wanted = tree(PRESETS / name / file)
        if file == "task.weights.h5":  # where training left moments, and the preprocessor a group without content
            wanted = {n: node for n, node in wanted.items() if n.split("/")[0] != "preprocessor"}
            wanted = {n: node for n, node in wanted.items() if n not in {f"optimizer/vars/{i}" for i in range(2, 82)}}
        assert tree(tmp_path / "b" / file) == wanted
    mine = keras_hub.read(tmp_path / "b" / "model.weights.h5")
    original = keras_hub.read(PRESETS / name / "model.weights.h5")
    assert bits(mine) == {n: entry for n, entry in bits(original).items() if n in mine}
    assert len(mine) == {"backbone": 36, "bfloat16": 20, "masked_lm": 43, "classifier": 42}[name]
    for file in (f for f in done.files if f.endswith(".json") and f != MANIFEST_FILE):
        wanted, found = (json.loads((folder / file).read_text()) for folder in (PRESETS / name, tmp_path / "b"))
        assert shape_of(found) == shape_of(wanted), file
    if "tokenizer.json" in done.files:
        vocabulary = "assets/tokenizer/vocabulary.txt"
        assert (tmp_path / "b" / vocabulary).read_bytes() == (PRESETS / name / vocabulary).read_bytes()


def shape_of(value):
    """A JSON value without what is ours to choose: our own key, the date, counters of names, lengths of the masking."""
    if isinstance(value, dict):
        left_out = {"distilbert", "date_saved", "mask_selection_length", "special_tokens_in_strings"}
        return {key: shape_of(entry) for key, entry in value.items() if key not in left_out}
    return value.rstrip("_0123456789") if isinstance(value, str) and value.startswith("distil_bert_") else value


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("head", [GOLDENS["backbone"], MASKED_LM, CLASSIFIER])
def test_round_trips_keep_every_bit_and_field(head, dtype, tmp_path):
    config = cases.CONFIG.replace(
        attention_dropout=0.3, seq_classif_dropout=0.4, qa_dropout=0.2, sinusoidal_pos_embds=True, pad_token_id=2,
        initializer_range=0.5, id2label={0: "no", 1: "yes", 2: "maybe"}, problem_type="multi_label_classification",
        extra={"architectures": [head], "dtype": dtype, "finetuning_task": "x"},
    )  # fmt: skip
    weights = cases.weights(config, head, dtype=dtype)
    save_checkpoint(tmp_path / "a", "keras-hub", head, config, weights)
    convert(tmp_path / "a", tmp_path / "b", to="safetensors")
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert read_config(folder) == config
        assert bits(open_checkpoint(folder, head, dtype=dtype)) == bits(weights)


@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_save_presets(backend, tmp_path):
    weights = cases.weights(head=CLASSIFIER)
    model = getattr(load_backend(backend), CLASSIFIER).from_config(cases.CONFIG)
    model.assign(weights)
    model.save_pretrained(tmp_path, "keras-hub")
    assert bits(open_checkpoint(tmp_path, CLASSIFIER)) == bits(weights)
    encoder = open_checkpoint(tmp_path, "DistilBertModel")
    assert encoder.report.skipped["task/layers/dense/vars/0"] == "another class's head"


def test_pooling_lies_beside_a_preset(tmp_path):
    head, pooling = "DistilBertForSentenceEmbedding", PoolingConfig("max", True, 17)
    save_checkpoint(tmp_path, "keras-hub", head, cases.CONFIG, cases.weights(), pooling)
    assert open_checkpoint(tmp_path, head).settings["pooling"] == pooling


@pytest.mark.parametrize(
    ("head", "changes", "text"),
    [
        ("DistilBertForQuestionAnswering", {}, "DistilBertForQuestionAnswering has no counterpart in KerasHub"),
        ("DistilBertForTokenClassification", {}, "DistilBertForTokenClassification has no counterpart"),
        ("DistilBertForMultipleChoice", {}, "DistilBertForMultipleChoice has no counterpart"),
        ("DistilBertModel", {"activation": "relu"}, "activation must be 'gelu'"),
        ("DistilBertModel", {"activation": "gelu_new"}, "activation must be 'gelu'"),
        ("DistilBertModel", {"pruned_heads": {0: [1]}}, "pruned_heads must be empty"),
        (MASKED_LM, {"tie_word_embeddings": False}, "tie_word_embeddings must be true"),
    ],
)
def test_what_keras_hub_cannot_express_is_refused_by_name(head, changes, text, tmp_path):
    config = cases.CONFIG.replace(**changes)
    with pytest.raises(ConfigError, match=text) as caught:
        save_checkpoint(tmp_path / "new", "keras-hub", head, config, cases.weights(config, head))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_an_untied_flag_does_not_matter_without_a_projector(tmp_path):
    config = cases.CONFIG.replace(tie_word_embeddings=False)
    save_checkpoint(tmp_path, "keras-hub", "DistilBertModel", config, cases.weights(config))
    assert not read_config(tmp_path).tie_word_embeddings


def test_an_encoder_takes_the_place_of_another_with_its_head(tmp_path):
    save_checkpoint(tmp_path, "keras-hub", CLASSIFIER, cases.CONFIG, cases.weights(head=CLASSIFIER))
    (tmp_path / "notes.txt").write_text("mine")
    save_checkpoint(tmp_path, "keras-hub", "DistilBertModel", cases.CONFIG, cases.weights())
    left = {"config.json", "metadata.json", "model.weights.h5", "notes.txt", MANIFEST_FILE}
    assert {path.name for path in tmp_path.iterdir()} == left


@pytest.mark.parametrize(
    ("name", "file", "change", "text"),
    [
        ("backbone", "config.json", lambda v: v.update(class_name="BertBackbone"), "a DistilBertBackbone of KerasHub, got 'BertBackbone'"),
        ("backbone", "config.json", lambda v: v.update(class_name=None), "must describe a DistilBertBackbone"),
        ("backbone", "config.json", lambda v: v.pop("config"), "must describe a DistilBertBackbone"),
        ("backbone", "config.json", lambda v: v["config"].pop("num_heads"), "lacks the field num_heads"),
        ("backbone", "config.json", lambda v: v["config"].update(activation="relu"), "has the field activation"),
        ("backbone", "config.json", lambda v: v["config"].update(hidden_dim="16"), "dim must be an integer"),
        ("backbone", "config.json", lambda v: v["config"].update(num_heads=3), "dim must be a multiple of n_heads"),
        ("backbone", "config.json", lambda v: v["config"].update(num_layers=3), "16 missing"),
        ("backbone", "config.json", lambda v: v["config"].update(num_layers=1), "16 unexpected"),
        ("backbone", "config.json", lambda v: v["config"].update(num_heads=2), "12 misshapen|14 misshapen"),
        ("backbone", "config.json", lambda v: v.update(distilbert=[1]), "distilbert must be a JSON object"),
        ("backbone", "config.json", lambda v: v.update(distilbert={"pad_token_id": -1}), "pad_token_id must be"),
        ("classifier", "task.json", lambda v: v.update(class_name="ImageClassifier"), "class_name must be DistilBertMaskedLM or DistilBertTextClassifier, got 'ImageClassifier'"),
        ("classifier", "task.json", lambda v: v["config"].update(num_classes=0), "num_labels must be"),
        ("classifier", "task.json", lambda v: v["config"].update(num_classes=4), "2 misshapen"),
        ("classifier", "task.json", lambda v: v["config"].update(activation="tanh"), "activation must be linear, softmax or sigmoid, got 'tanh'"),
        ("classifier", "task.json", lambda v: v["config"].update(activation={"class_name": "x"}), "activation must be linear"),
        ("classifier", "task.json", lambda v: v["config"].update(hidden_dim=8), "hidden_dim must be the backbone's"),
        ("classifier", "task.json", lambda v: v["config"].update(dropout=2), "seq_classif_dropout must be"),
        ("classifier", "task.json", lambda v: v["config"].update(backbone=None), "must describe a DistilBertBackbone"),
        ("classifier", "task.json", lambda v: v["config"]["backbone"]["config"].update(num_heads=2), "num_heads must be 4"),
        ("masked_lm", "task.json", lambda v: v["config"].update(tied=False), "has the field tied"),
    ],
)  # fmt: skip
def test_what_is_no_preset_of_distilbert_is_one_clear_error(preset, tmp_path, name, file, change, text):
    folder = preset(name, file, change)
    with pytest.raises(DistilBertError, match=text) as caught:
        open_checkpoint(folder, GOLDENS[name])
    assert "\n" not in str(caught.value)
    code, _, error = run_cli("convert", folder, tmp_path / "out", "--to", "safetensors")
    assert (code, error.count("\n")) == (2, 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("activation", "problem_type"),
    [(None, None), ("softmax", "single_label_classification"), ("sigmoid", "multi_label_classification")],
)
def test_an_output_activation_is_the_problem_type(preset, activation, problem_type):
    folder = preset("classifier", "task.json", lambda v: v["config"].update(activation=activation))
    assert read_config(folder).problem_type == problem_type


def test_fields_of_keras_hub_count_over_ours(tmp_path):
    config = cases.CONFIG.replace(id2label={0: "no", 1: "yes", 2: "maybe"})
    save_checkpoint(tmp_path, "keras-hub", "DistilBertModel", config, cases.weights(config))
    values = json.loads((tmp_path / "config.json").read_text())
    values["config"]["dropout"] = 0.5
    values["distilbert"] |= {"activation": "relu", "pruned_heads": {"0": [1]}, "n_layers": 7, "dropout": 0.2}
    (tmp_path / "config.json").write_text(json.dumps(values))
    found = read_config(tmp_path)
    assert (found.dropout, found.activation, found.pruned_heads, found.n_layers) == (0.5, "gelu", {}, 2)
    assert found.id2label[2] == "maybe"


@pytest.mark.parametrize(
    ("file", "name", "text"),
    [
        ("model.weights.h5", "layers/dense/vars/0", "unknown layers/dense/vars/0"),  # a head's place is the other file
        ("model.weights.h5", "task/layers/dense/vars/0", "unknown 'task/layers/dense/vars/0'"),
        ("task.weights.h5", "layers/layer_normalization/vars/0", "unknown task/layers/layer_normalization/vars/0"),
        ("task.weights.h5", "optimizers/vars/0", "unknown task/optimizers/vars/0"),
    ],
)
def test_a_tensor_in_the_wrong_place_is_refused(preset, file, name, text):
    folder = preset("classifier")
    with h5py.File(folder / file, "a") as h5:
        h5[name] = np.zeros((16, 16), np.float32)
    with pytest.raises(CheckpointError, match=text) as caught:
        open_checkpoint(folder, CLASSIFIER)
    assert caught.value.kind == "UnexpectedTensor"


def test_opaque_bytes_are_bfloat16_only_where_an_attribute_says_so(preset):
    folder = preset("bfloat16")
    dataset = "layers/layer_normalization/vars/0"
    with h5py.File(folder / "model.weights.h5", "a") as file:
        exact = np.array(file[dataset]).view(ml_dtypes.bfloat16)
    found = open_checkpoint(folder, "DistilBertModel", dtype="bfloat16")
    assert found["distilbert.embeddings.LayerNorm.weight"].tobytes() == exact.tobytes()
    with h5py.File(folder / "model.weights.h5", "a") as file:
        del file[dataset].attrs["dtype"]
    with pytest.raises(CheckpointError, match="which is not plain numbers"):
        open_checkpoint(folder, "DistilBertModel")


def test_a_head_that_a_preset_lacks_is_missing_or_new(preset):
    folder = preset("masked_lm")
    (folder / "task.weights.h5").unlink()
    with pytest.raises(CheckpointError, match="new_head=True makes the head anew"):
        open_checkpoint(folder, MASKED_LM)
    with pytest.warns(UserWarning, match="new, with initial weights"):
        assert open_checkpoint(folder, CLASSIFIER, new_head=True, num_labels=5)["classifier.bias"].shape == (5,)


@pytest.mark.parametrize("file", ["model.weights.h5", "task.weights.h5"])
def test_damaged_files_end_in_the_error_family(preset, file):
    folder = preset("masked_lm")
    data = (folder / file).read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for size in [*random.integers(0, len(data) - 1, 5), *[None] * 60]:
        mutant = bytearray(data[:size])
        for _ in range(12 if size is None else 0):
            mutant[random.integers(0, min(len(data), 4000))] = random.integers(0, 256)
        (folder / file).write_bytes(mutant)
        try:
            dict(open_checkpoint(folder, MASKED_LM))
        except CheckpointError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("name", ["masked_lm", "classifier"])
def test_texts_have_the_ids_of_keras_hub(name, tmp_path):
    arrays, _ = expected(name)
    wanted = np.split(arrays["ids"], np.cumsum(arrays["counts"])[:-1])
    convert(PRESETS / name, tmp_path / "out", to="safetensors")
    options = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert options == {"tokenizer_class": "DistilBertTokenizer", "do_lower_case": True, "strip_accents": True,
                       "tokenize_chinese_chars": True, "model_max_length": 12}  # fmt: skip
    assert not (tmp_path / "out" / "tokenizer.json").exists()  # Keras' is another file than transformers' of that name
    for folder in (PRESETS / name, tmp_path / "out"):
        found = DistilBertTokenizerFast.from_pretrained(folder)(arrays["texts"].tolist(), max_length=99)["input_ids"]
        assert [ids[1:-1] for ids in found] == [ids.tolist() for ids in wanted]


@pytest.fixture
def source(tmp_path):
    """A masked LM with a tokenizer in the files of transformers: source(options, vocabulary)."""

    def make(options=None, vocabulary=VOCABULARY):
        folder = tmp_path / "source"
        save_checkpoint(folder, "safetensors", MASKED_LM, cases.CONFIG, cases.weights(head=MASKED_LM))
        (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary))
        (folder / "tokenizer_config.json").write_text(json.dumps(options or {}))
        return folder

    return make


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, {"lowercase": True, "strip_accents": True}),
        ({"do_lower_case": False}, {"lowercase": False, "strip_accents": False}),
        ({"strip_accents": False, "model_max_length": 9}, {"lowercase": True, "strip_accents": False}),
        ({"tokenize_chinese_chars": False}, {"lowercase": True, "strip_accents": True, "split_on_cjk": False}),
    ],
)
def test_a_tokenizer_is_packed_with_its_options(source, tmp_path, options, wanted):
    folder = source(options)
    convert(folder, tmp_path / "out", to="keras-hub")
    tokenizer = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert tokenizer["config"].items() >= wanted.items()
    assert ("split_on_cjk" in tokenizer["config"]) == ("split_on_cjk" in wanted)
    task = json.loads((tmp_path / "out" / "task.json").read_text())
    preprocessor = json.loads((tmp_path / "out" / "preprocessor.json").read_text())
    assert task["config"]["preprocessor"] == preprocessor
    assert preprocessor["config"]["tokenizer"] == tokenizer
    assert preprocessor["config"]["sequence_length"] == min(24, options.get("model_max_length", 24))
    convert(tmp_path / "out", tmp_path / "back", to="safetensors")
    for text in ("The cats' É [MASK]", "一cat"):
        ids = [DistilBertTokenizerFast.from_pretrained(f)([text])["input_ids"] for f in (folder, tmp_path / "back")]
        assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("vocabulary", "text"),
    [
        (VOCABULARY[1:], r"lacks \[PAD\]"),
        ([*VOCABULARY, "the"], "gap, a blank or a line end at id 5"),
        ([*VOCABULARY, "a "], "gap, a blank or a line end at id 9"),
    ],
)
def test_a_vocabulary_that_keras_hub_would_read_otherwise_is_refused(source, tmp_path, vocabulary, text):
    with pytest.raises(TokenizerError, match=text):
        convert(source(vocabulary=vocabulary), tmp_path / "out", to="keras-hub")
    assert not (tmp_path / "out").exists()


def test_added_tokens_are_refused(source, tmp_path):
    folder = source()
    content = {
        "model": {"type": "WordPiece", "vocab": {token: i for i, token in enumerate(VOCABULARY)}},
        "normalizer": {
            "type": "BertNormalizer",
            "lowercase": True,
            "strip_accents": None,
            "handle_chinese_chars": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing"},
        "added_tokens": [{"id": len(VOCABULARY), "content": "<extra>"}],
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="adds the tokens '<extra>' to its vocabulary, which KerasHub cannot"):
        convert(folder, tmp_path / "out", to="keras-hub")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda v: v.update(class_name="BertTokenizer"), "KerasHub's DistilBertTokenizer"),
        (lambda v: v["config"].update(suffix_indicator="@@"), "KerasHub's DistilBertTokenizer"),
        (lambda v: v["config"].pop("lowercase"), "not a DistilBERT tokenizer's"),
        (lambda v: v.pop("config"), "not a DistilBERT tokenizer's"),
    ],
)
def test_another_tokenizer_of_keras_hub_is_refused(preset, tmp_path, change, text):
    with pytest.raises(TokenizerError, match=text):
        convert(preset("masked_lm", "tokenizer.json", change), tmp_path / "out", to="safetensors")
    assert not (tmp_path / "out").exists()


def test_a_bert_becomes_a_preset(tmp_path):
    from safetensors.numpy import save_file

    folder = tmp_path / "bert"
    folder.mkdir()
    save_file(bert_tensors(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({k: v for k, v in BERT_CONFIG.items() if k != "auto_map"}))
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY))
    done = convert(folder, tmp_path / "out", to="keras-hub")
    assert set(done.files) == {
        "assets/tokenizer/vocabulary.txt", "config.json", "metadata.json", "model.weights.h5", "tokenizer.json",
        MANIFEST_FILE,
    }  # fmt: skip
    convert(folder, tmp_path / "plain", to="safetensors")
    mine, plain = (open_checkpoint(tmp_path / name, "DistilBertModel") for name in ("out", "plain"))
    assert bits(mine) == bits(plain)
    assert mine.config.attention_dropout == 0.3


def test_a_preset_of_the_hub_may_lie_in_its_cache(tmp_path):
    """There files are links, the vocabulary's two folders below the snapshot."""
    blobs, snapshot = tmp_path / "m" / "blobs", tmp_path / "m" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    for i, file in enumerate(sorted(path for path in (PRESETS / "masked_lm").rglob("*") if path.is_file())):
        place = snapshot / file.relative_to(PRESETS / "masked_lm")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blobs / str(i))
        place.symlink_to(blobs / str(i))
    convert(snapshot, tmp_path / "out", to="safetensors")
    assert (tmp_path / "out" / "vocab.txt").exists()

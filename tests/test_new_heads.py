"""Other heads than the file's: what is kept, what is made anew and said so, and the names that old code uses."""

import warnings

import pytest

from conformance import cases
from distilbert.backends import load_backend
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.errors import CheckpointError, ConfigError
from distilbert.weight_map import HEADS
from tests.support import BACKENDS, run, run_python, without

MODEL, MASKED_LM, SEQUENCE, ANSWERS, TOKENS, CHOICES, SENTENCE = HEADS
NAMES = {0: "no", 1: "perhaps", 2: "yes"}
CONFIG = cases.CONFIG.replace(id2label=NAMES)
CLASSIFIER = ("classifier.weight", "classifier.bias")
ADDED = {head: [n for n in cases.weights(CONFIG, head) if not n.startswith("distilbert.")] for head in HEADS}


def saved(folder, head, config=CONFIG):
    """A checkpoint of the class, and its weights."""
    weights = cases.weights(config, head)
    save_checkpoint(folder, "safetensors", head, config, weights)
    return weights


def load(backend, head, folder, **options):
    """The model, and the lines of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = getattr(load_backend(backend), head).from_pretrained(folder, **options)
    ours = [warning for warning in caught if warning.category is UserWarning]
    assert all(warning.filename == __file__ for warning in ours)  # they point at the call
    return model, [str(warning.message) for warning in ours]


def assert_kept(model, weights, names):
    found = model.weights_by_name()
    assert all(found[name].tobytes() == weights[name].tobytes() for name in names)


def encoder(weights):
    return [name for name in weights if name.startswith("distilbert.")]


def refused(backend, head, folder, **options):
    with pytest.raises(CheckpointError) as caught:
        load(backend, head, folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "labels", [{"num_labels": 5}, {"id2label": dict(enumerate("abcde"))}, {"num_labels": 5, "new_head": True}], ids=str
)
def test_another_number_of_labels_makes_a_new_classifier_and_says_so(backend, tmp_path, labels):
    weights = saved(tmp_path, SEQUENCE)
    model, lines = load(backend, SEQUENCE, tmp_path, **labels)
    assert len(lines) == 1
    assert "\n" not in lines[0]
    assert "new, with initial weights: classifier.weight, classifier.bias; train the model" in lines[0]
    assert tuple(model.load_report.new) == CLASSIFIER
    assert "has the shape (3, 32)" in model.load_report.new["classifier.weight"]
    assert {*model.load_report.skipped} == {*CLASSIFIER}
    assert_kept(model, weights, weights.keys() - {*CLASSIFIER})
    new = model.weights_by_name()
    assert new["classifier.weight"].shape == (5, 32)
    assert 0.01 < new["classifier.weight"].std() < 0.03
    assert not new["classifier.bias"].any()
    assert model.config.num_labels == 5
    assert run(model, cases.input_ids()).logits.shape == (4, 5)


@pytest.mark.parametrize(
    "labels", [{}, {"num_labels": 3}, {"id2label": NAMES}, {"num_labels": 3, "id2label": NAMES}, {"new_head": True}]
)
def test_the_file_s_labels_keep_its_head(backend, tmp_path, labels):
    weights = saved(tmp_path, SEQUENCE)
    model, lines = load(backend, SEQUENCE, tmp_path, **labels)
    assert lines == []
    assert model.load_report.new == {}
    assert model.config.id2label == NAMES
    assert_kept(model, weights, weights)


def test_other_names_for_as_many_labels_keep_the_head(backend, tmp_path):
    weights = saved(tmp_path, SEQUENCE)
    model, lines = load(backend, SEQUENCE, tmp_path, id2label={0: "low", 1: "middle", 2: "high"})
    assert lines == []
    assert model.config.label2id == {"low": 0, "middle": 1, "high": 2}
    assert_kept(model, weights, weights)


def test_labels_that_contradict_each_other_are_refused(backend, tmp_path):
    saved(tmp_path, SEQUENCE)
    with pytest.raises(ConfigError, match="num_labels must be the number of labels in id2label, got 2"):
        load(backend, SEQUENCE, tmp_path, num_labels=2, id2label=NAMES)


@pytest.mark.parametrize("head", [head for head in HEADS if ADDED[head]])
def test_a_base_checkpoint_gets_a_head_when_asked(backend, tmp_path, head):
    weights = saved(tmp_path, MODEL)
    text = refused(backend, head, tmp_path)
    assert ADDED[head][0] in text
    assert "new_head=True makes the head anew" in text
    model, lines = load(backend, head, tmp_path, new_head=True)
    made = [name for name in ADDED[head] if name != "vocab_projector.weight"]  # which is tied
    assert list(model.load_report.new) == made
    assert len(lines) == 1
    assert ", ".join(made) in lines[0]
    assert_kept(model, weights, weights)


@pytest.mark.parametrize("head", [SEQUENCE, TOKENS])
def test_labels_ask_for_a_head_too(backend, tmp_path, head):
    weights = saved(tmp_path, MODEL, CONFIG.replace(id2label=None))
    model, lines = load(backend, head, tmp_path, num_labels=2)
    assert len(lines) == 1
    assert list(model.load_report.new) == ADDED[head]
    assert_kept(model, weights, weights)


def test_labels_that_the_file_has_ask_for_nothing(backend, tmp_path):
    saved(tmp_path, MODEL)
    assert "lacks pre_classifier.weight" in refused(backend, SEQUENCE, tmp_path, num_labels=3)


@pytest.mark.parametrize("head", HEADS)
def test_the_encoder_of_every_head_loads_alone(backend, tmp_path, head):
    weights = saved(tmp_path, head)
    for bare in (MODEL, SENTENCE):
        model, lines = load(backend, bare, tmp_path)
        assert lines == []
        assert_kept(model, weights, encoder(weights))
        stored = [name for name in ADDED[head] if name != "vocab_projector.weight"]
        assert model.load_report.skipped == dict.fromkeys(stored, "another class's head")


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [(MASKED_LM, SEQUENCE), (MASKED_LM, ANSWERS), (ANSWERS, MASKED_LM), (TOKENS, CHOICES), (SEQUENCE, ANSWERS)],
)
def test_one_head_s_encoder_serves_another(backend, tmp_path, stored, wanted):
    weights = saved(tmp_path, stored)
    assert "new_head=True" in refused(backend, wanted, tmp_path)
    model, lines = load(backend, wanted, tmp_path, new_head=True)
    assert len(lines) == 1
    assert {*model.load_report.new} == {*ADDED[wanted]} - {"vocab_projector.weight"}
    assert_kept(model, weights, encoder(weights))


def test_what_two_heads_share_is_kept_and_the_rest_is_new(backend, tmp_path):
    weights = saved(tmp_path, TOKENS)
    model, lines = load(backend, SEQUENCE, tmp_path, new_head=True)
    assert list(model.load_report.new) == ["pre_classifier.weight", "pre_classifier.bias"]
    assert len(lines) == 1
    assert_kept(model, weights, weights)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head", [head for head in HEADS if ADDED[head]])
def test_new_heads_have_the_same_bits_in_every_framework(tmp_path, head, dtype):
    saved(tmp_path, MODEL)
    found = [load(b, head, tmp_path, new_head=True, dtype=dtype)[0].weights_by_name() for b in BACKENDS]
    for name in found[0]:
        assert found[0][name].dtype.name == dtype
        assert len({weights[name].tobytes() for weights in found}) == 1, name
    kernels = [found[0][name].ravel()[:32] for name in ADDED[head] if found[0][name].ndim == 2]
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels)  # each from a seed of its own


def test_a_new_head_survives_a_round_trip_without_a_word(backend, tmp_path):
    saved(tmp_path / "base", MODEL)
    model, _ = load(backend, SEQUENCE, tmp_path / "base", num_labels=5)
    model.save_pretrained(tmp_path / "tuned")
    for other in BACKENDS:
        loaded, lines = load(other, SEQUENCE, tmp_path / "tuned")
        assert lines == []
        assert loaded.config.num_labels == 5
        weights = model.weights_by_name()
        assert_kept(loaded, weights, weights)


@pytest.mark.parametrize(("prefix", "backend"), [("", "pt"), ("TF", "tf"), ("Flax", "flax")])
def test_old_names_resolve_to_their_framework_alone(prefix, backend):
    names = [prefix + head for head in HEADS]
    others = {"pt": "torch", "tf": "tensorflow", "flax": "flax"}
    del others[backend]
    code = f"""{without(*others.values())}
from distilbert import {", ".join(names)}
import distilbert.{backend}
for name in {names!r}:
    found = getattr(distilbert, name)
    assert found is getattr(distilbert.{backend}, name.removeprefix({prefix!r})), name
    assert found.__module__.startswith("distilbert.{backend}."), found
    assert name in distilbert.__all__
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


class TestOldSpellings:
    """Arguments of PyTorch's `from_pretrained` that code written for the reference passes."""

    @pytest.fixture
    def folder(self, tmp_path):
        saved(tmp_path, MODEL)
        return tmp_path

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"torch_dtype": "bfloat16"}, "bfloat16"),
            ({"torch_dtype": "torch.float16"}, "float16"),
            ({"torch_dtype": "bfloat16", "dtype": "float64"}, "float64"),  # as in the reference
            ({"torch_dtype": None, "dtype": "float16"}, "float16"),
            ({"torch_dtype": None}, "float32"),
        ],
    )
    def test_torch_dtype_is_dtype_which_wins(self, folder, options, expected):
        import torch

        for spell in (lambda value: value, lambda value: value and getattr(torch, value.removeprefix("torch."))):
            given = {name: spell(value) for name, value in options.items()}
            model = load_backend("pt").DistilBertModel.from_pretrained(folder, **given)
            assert model.dtype == getattr(torch, expected)

    def test_a_wrong_torch_dtype_is_refused(self, folder):
        with pytest.raises(ValueError, match=r"dtype must be one of .* got 'int8'"):
            load_backend("pt").DistilBertModel.from_pretrained(folder, torch_dtype="int8")

    @pytest.mark.parametrize("options", [{"use_flash_attention_2": True}, {"attn_implementation": "flash_attention_2"}])
    def test_flash_attention_without_cuda_is_one_error_that_names_sdpa(self, folder, monkeypatch, options):
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ValueError, match="sdpa") as caught:
            load_backend("pt").DistilBertModel.from_pretrained(folder, **options)
        assert "CUDA" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_flash_attention_that_is_not_wanted_changes_nothing(self, folder):
        model = load_backend("pt").DistilBertModel.from_pretrained(folder, use_flash_attention_2=False)
        assert model.attn_implementation == "sdpa"

    def test_a_named_kernel_wins_over_the_old_spelling(self, folder):
        options = {"use_flash_attention_2": True, "attn_implementation": "eager"}
        model = load_backend("pt").DistilBertModel.from_pretrained(folder, **options)
        assert model.attn_implementation == "eager"
        assert model.transformer.layer[0].attention.attn_implementation == "eager"

    @pytest.mark.parametrize("backend", ["tf", "flax"])
    def test_other_frameworks_do_not_know_them(self, folder, backend):
        with pytest.raises(ConfigError, match="torch_dtype is not a field"):
            load_backend(backend).DistilBertModel.from_pretrained(folder, torch_dtype="float16")

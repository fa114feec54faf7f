"""BERT checkpoints of the reference, in every dialect: the numbers that it computed from them, and its heads."""

import json
import shutil

import numpy as np
import pytest

from distilbert import reference
from distilbert.backends import load_backend
from distilbert.checkpoint.bert import config_from_bert
from distilbert.checkpoint.opening import open_checkpoint, open_source
from distilbert.errors import CheckpointError
from distilbert.weight_map import BERT, DIALECTS, HEADS, PT, tensor_specs, token_types
from tests.support import DATA, run, to_numpy
from weights_convert import convert

FOLDERS = sorted(path for path in (DATA / "bert").glob("*/*") if path.is_dir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f"{f.parent.name}-{f.name}")
def test_bert_of_every_dialect_gives_its_numbers(folder, tmp_path):
    done = convert(folder, tmp_path / "out", to="safetensors", dtype="float64")
    head = "DistilBertForMaskedLM" if "PreTraining" in str(folder) else "DistilBertForTokenClassification"
    assert done.head == head
    source = open_checkpoint(tmp_path / "out", head, dtype="float64")
    expected = np.load(folder.parent / "expected.npz")
    inputs = {name: expected[name] for name in ("input_ids", "attention_mask")}
    found = reference.HEADS[head](source.config, dict(source), **inputs)
    np.testing.assert_allclose(found.logits, expected["logits"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.hidden_states[-1], expected["last_hidden_state"], rtol=0, atol=1e-12)
    assert {*done.report.skipped.values()} <= {
        "row 0 is folded into the position table", "DistilBERT has no pooler", "next-sentence head",
    }  # fmt: skip


def test_a_head_that_needs_the_pooler_stays_behind(tmp_path):
    folder = tmp_path / "bert"
    shutil.copytree(DATA / "bert" / "BertForTokenClassification" / "pt", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForSequenceClassification"]}))
    done = convert(folder, tmp_path / "out", to="safetensors")
    assert done.head == "DistilBertModel"
    assert done.report.skipped["classifier.weight"] == "another class's head"


def test_token_types_stored_twice_must_agree(tmp_path):
    import h5py

    folder = tmp_path / "bert"
    shutil.copytree(DATA / "bert" / "BertForPreTraining" / "tf", folder)
    name = "mlm___cls/tf_bert_for_pre_training/bert/embeddings/token_type_embeddings/embeddings:0"
    with h5py.File(folder / "tf_model.h5", "a") as file:
        file[name][0, 0] += 1
    with pytest.raises(CheckpointError, match="token_type_embeddings/embeddings:0' twice with different numbers"):
        convert(folder, tmp_path / "out", to="safetensors")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_names_of_bert_are_unique_in_every_dialect(dialect):
    config = config_from_bert(json.loads((FOLDERS[0] / "config.json").read_text()))
    specs = [spec for head in HEADS for spec in tensor_specs(config, head).values() if spec.module.bert]
    names = {name: spec.name for spec in specs for name in spec.accepted_names(BERT[dialect])}
    assert len(names) == sum(len({*s.accepted_names(BERT[dialect])}) for s in {s.name: s for s in specs}.values())
    assert not names.keys() & {*token_types(config).accepted_names(BERT[dialect])}


def test_a_student_has_the_layers_that_were_chosen(tmp_path):
    folder = DATA / "bert" / "BertForPreTraining" / "tf"
    teacher = open_source(folder)
    done = convert(folder, tmp_path / "out", to="flax-msgpack", layers=[1])
    student = open_checkpoint(tmp_path / "out", "DistilBertForMaskedLM")
    assert student.config.n_layers == 1
    for name, array in student.items():
        assert array.tobytes() == teacher[name.replace("layer.0", "layer.1")].tobytes(), name
    assert sum("does not have" in why for why in done.report.skipped.values()) == 16
    assert "distilbert.transformer.layer.0.ffn.lin1.weight" not in done.report.loaded
    seen = []
    convert(
        folder, tmp_path / "turned", to="safetensors", layers=[1, 0], progress=lambda n, total: seen.append((n, total))
    )
    turned = open_source(tmp_path / "turned")
    q_lin = "distilbert.transformer.layer.{}.attention.q_lin.weight"
    assert turned[q_lin.format(0)].tobytes() == teacher[q_lin.format(1)].tobytes()
    assert seen[-1] == (41, 42)  # the tied projector is not read


def test_pruned_heads_go_with_their_layers(tmp_path):
    from distilbert.checkpoint.saving import save_checkpoint
    from distilbert.config import DistilBertConfig
    from distilbert.initialization import initial_weights

    config = DistilBertConfig(
        vocab_size=50, max_position_embeddings=9, n_layers=3, n_heads=4, dim=32, hidden_dim=48, pruned_heads={2: [1, 3]}
    )
    save_checkpoint(tmp_path / "in", "safetensors", "DistilBertModel", config, initial_weights(config))
    convert(tmp_path / "in", tmp_path / "out", to="safetensors", layers=[0, 2])
    assert open_source(tmp_path / "out").config.pruned_heads == {1: (1, 3)}


@pytest.mark.parametrize("layers", [[], [2], [-1], [0, 0]])
def test_layers_that_the_teacher_does_not_have_are_refused(layers, tmp_path):
    with pytest.raises(ValueError, match="layers must be different numbers from 0 to 1"):
        convert(DATA / "bert" / "BertForPreTraining" / "pt", tmp_path / "out", to="safetensors", layers=layers)
    assert not (tmp_path / "out").exists()


def test_the_layout_of_bert_is_the_same_table():
    spec = tensor_specs(config_from_bert(json.loads((FOLDERS[0] / "config.json").read_text())))[
        "distilbert.transformer.layer.1.ffn.lin1.weight"
    ]
    assert spec.stored_name(PT) == "distilbert.transformer.layer.1.ffn.lin1.weight"
    assert [spec.stored_name(BERT[name]) for name in ("pt", "tf", "flax")] == [
        "bert.encoder.layer.1.intermediate.dense.weight",
        "bert/encoder/layer_._1/intermediate/dense/kernel:0",
        "bert.encoder.layer.1.intermediate.dense.kernel",
    ]


def test_the_original_files_of_tensorflow_1_are_named(tmp_path):
    """No well-kept reader of them exists without TensorFlow."""
    (tmp_path / "bert_config.json").write_text("{}")
    (tmp_path / "bert_model.ckpt.index").write_bytes(b"\0")
    with pytest.raises(CheckpointError, match="a checkpoint of TensorFlow 1, which only TensorFlow reads"):
        convert(tmp_path, tmp_path / "../out", to="safetensors")


@pytest.mark.parametrize("backend", ["pt", "tf", "flax"])
def test_a_bert_is_loaded_without_conversion(backend):
    """By its own head's class, and by others, which say what they lack."""
    folder = DATA / "bert" / "BertForTokenClassification" / "tf"
    expected = np.load(folder.parent / "expected.npz")
    inputs = {name: expected[name] for name in ("input_ids", "attention_mask")}
    module = load_backend(backend)
    found = run(module.DistilBertForTokenClassification.from_pretrained(folder), **inputs)
    np.testing.assert_allclose(to_numpy(found.logits), expected["logits"], rtol=0, atol=1e-4)
    found = run(module.DistilBertModel.from_pretrained(folder), **inputs)
    np.testing.assert_allclose(to_numpy(found.last_hidden_state), expected["last_hidden_state"], rtol=0, atol=2e-5)
    with pytest.raises(CheckpointError, match=r"lacks pre_classifier\.weight, pre_classifier\.bias"):
        module.DistilBertForSequenceClassification.from_pretrained(folder)
    with pytest.warns(UserWarning, match=r"new, with initial weights: pre_classifier\.weight"):
        model = module.DistilBertForSequenceClassification.from_pretrained(folder, new_head=True)
    assert model.load_report.new.keys() == {"pre_classifier.weight", "pre_classifier.bias"}


def test_the_state_of_an_optimizer_is_listed(tmp_path):
    import h5py

    folder = tmp_path / "bert"
    shutil.copytree(DATA / "bert" / "BertForTokenClassification" / "tf", folder)
    with h5py.File(folder / "tf_model.h5", "a") as file:
        file["optimizer_weights/Adam/m/bert/pooler/kernel:0"] = np.ones(3, np.float32)
    done = convert(folder, tmp_path / "out", to="safetensors")
    assert done.report.skipped["optimizer_weights/Adam/m/bert/pooler/kernel:0"] == "the optimizer's state"

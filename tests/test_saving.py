"""Saving over a former model: what was its own goes, what is the user's stays, and the new model is what loads."""

import json
import shutil

import numpy as np
import pytest

from conformance import cases
from distilbert import DistilBertTokenizerFast
from distilbert.checkpoint.manifest import MANIFEST_FILE
from distilbert.checkpoint.opening import open_checkpoint, open_source
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.config import DenseConfig, PoolingConfig
from distilbert.errors import CheckpointError, ConfigError, TokenizerError
from distilbert.initialization import initial_weights
from tests.support import DATA, SPECIAL_TOKENS, run_cli
from weights_convert import convert

SENTENCE = cases.SENTENCE
WORDS = "distilbert.embeddings.word_embeddings.weight"


def save(folder, head="DistilBertModel", seed=0, pooling=None, to="safetensors"):
    weights = initial_weights(cases.CONFIG, head, seed=seed, pooling=pooling)
    save_checkpoint(folder, to, head, cases.CONFIG, weights, pooling)
    return weights


def test_an_encoder_below_is_not_taken_for_the_new_one(tmp_path):
    save(tmp_path / "0_Transformer", seed=1)
    modules = [{"type": "x.Transformer", "path": "0_Transformer"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    weights = save(tmp_path, seed=2)
    assert open_checkpoint(tmp_path, "DistilBertModel")[WORDS].tobytes() == weights[WORDS].tobytes()


def test_a_classifier_is_not_taken_for_the_former_sentence_encoder(tmp_path):
    save(tmp_path, SENTENCE, pooling=PoolingConfig("cls", True, dense=DenseConfig(8)))
    (tmp_path / "notes.txt").write_text("mine")
    save(tmp_path, "DistilBertForSequenceClassification")
    assert open_source(tmp_path).head == "DistilBertForSequenceClassification"
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"notes.txt", "config.json", "model.safetensors", MANIFEST_FILE}
    code, out, _ = run_cli("inspect", tmp_path)
    assert (code, "DistilBertForSequenceClassification" in out) == (0, True)


def test_a_plainer_pooling_takes_the_place_of_the_former(tmp_path):
    save(tmp_path, SENTENCE, pooling=PoolingConfig("cls", True, dense=DenseConfig(8)))
    save(tmp_path, SENTENCE, pooling=PoolingConfig())
    assert {path.name for path in tmp_path.iterdir() if path.is_dir() and any(path.iterdir())} == {"1_Pooling"}
    assert open_checkpoint(tmp_path, SENTENCE).settings["pooling"] == PoolingConfig()


@pytest.mark.parametrize(
    "name", ["model-best-of-three.safetensors", "model-1-of-2.safetensors", "model-00001-of-x.bin"]
)
def test_a_file_that_only_looks_like_a_part_stays(tmp_path, name):
    (tmp_path / name).write_text("mine")
    save(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_another_task_takes_its_preprocessor_along(tmp_path):
    shutil.copytree(DATA / "keras_hub" / "masked_lm", tmp_path / "preset")
    save(tmp_path / "preset", "DistilBertForSequenceClassification", to="keras-hub")
    assert not (tmp_path / "preset" / "preprocessor.json").exists()
    assert (tmp_path / "preset" / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("file", "change"),
    [("1_Pooling/config.json", {"include_prompt": False}), ("sentence_bert_config.json", {"do_lower_case": True})],
)
def test_settings_that_change_embeddings_are_refused_by_name(tmp_path, file, change):
    save(tmp_path, SENTENCE, pooling=PoolingConfig())
    (tmp_path / MANIFEST_FILE).unlink()
    values = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(values | change))
    with pytest.raises(ConfigError, match=next(iter(change))):
        open_checkpoint(tmp_path, SENTENCE)


def test_the_manifest_of_an_encoder_below_counts_too(tmp_path):
    save(tmp_path / "0_Transformer")
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "x.Transformer", "path": "0_Transformer"}]))
    open_checkpoint(tmp_path, "DistilBertModel")
    file = tmp_path / "0_Transformer" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    for load in (lambda: open_checkpoint(tmp_path, "DistilBertModel"), lambda: open_source(tmp_path)):
        with pytest.raises(CheckpointError) as caught:
            load()
        assert caught.value.kind == "IntegrityMismatch"


def test_a_tokenizer_is_held_to_the_manifest(tmp_path):
    save(tmp_path / "in")
    (tmp_path / "in" / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, "a", "b"]))
    convert(tmp_path / "in", tmp_path / "out", to="tf-h5")
    DistilBertTokenizerFast.from_pretrained(tmp_path / "out")
    (tmp_path / "out" / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, "b", "a"]))
    with pytest.raises(TokenizerError, match="has other bytes"):
        DistilBertTokenizerFast.from_pretrained(tmp_path / "out")
    open_checkpoint(tmp_path / "out", "DistilBertModel")  # which does not read it


def test_a_classifier_on_a_pooler_is_no_token_classifier(tmp_path):
    folder = tmp_path / "bert"
    shutil.copytree(DATA / "bert" / "BertForTokenClassification" / "pt", folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"architectures": ["BertForSequenceClassification"]}))
    with pytest.raises(CheckpointError, match="lacks classifier") as caught:
        open_checkpoint(folder, "DistilBertForTokenClassification")
    assert caught.value.kind == "MissingTensor"


def test_a_folded_table_that_the_dtype_cannot_hold_is_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "bert"
    shutil.copytree(DATA / "bert" / "BertForTokenClassification" / "pt", folder)
    tensors = {name: array.astype(np.float16) for name, array in load_file(folder / "model.safetensors").items()}
    for name in ("position_embeddings", "token_type_embeddings"):
        tensors[f"bert.embeddings.{name}.weight"][0] = 40_000
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="float16 cannot hold") as caught:
        convert(folder, tmp_path / "out", to="safetensors")
    assert caught.value.kind == "NonFinite"
    convert(folder, tmp_path / "wide", to="safetensors", dtype="float32")


def test_weights_of_another_family_are_one_line(tmp_path):
    shutil.copy(DATA / "keras_hub" / "backbone" / "model.weights.h5", tmp_path)
    shutil.copy(DATA / "bert" / "BertForTokenClassification" / "pt" / "config.json", tmp_path)
    code, _, err = run_cli("convert", tmp_path, tmp_path / "../out", "--to", "safetensors")
    assert (code, err.count("\n")) == (2, 1)
    assert "holds weights as keras-hub names them" in err


def test_a_preset_without_a_vocabulary_brings_no_tokenizer(tmp_path):
    shutil.copytree(DATA / "keras_hub" / "backbone", tmp_path / "preset")
    (tmp_path / "preset" / "assets" / "tokenizer" / "vocabulary.txt").unlink()
    done = convert(tmp_path / "preset", tmp_path / "out", to="safetensors")
    assert {*done.files} == {"config.json", "model.safetensors", MANIFEST_FILE}


def test_inspect_describes_what_it_can(tmp_path):
    save(tmp_path / "model", SENTENCE, pooling=PoolingConfig(dense=DenseConfig(8)))
    (tmp_path / "model" / MANIFEST_FILE).write_text("{")
    (tmp_path / "model" / "README.md").symlink_to("/etc/hostname")
    code, out, err = run_cli("inspect", tmp_path / "model")
    assert (code, err) == (0, "")
    assert "2_Dense/linear.weight  float32 [8, 32]" in out
    assert "is not valid JSON" in out.partition("manifest: ")[2]
    assert "README.md" not in out
    code, out, _ = run_cli("inspect", DATA / "bert" / "BertForPreTraining" / "flax")
    assert "flax-msgpack (bert-flax names)" in out

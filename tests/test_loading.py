"""Strict loading: every tensor accounted for, the same in every backend, and nothing assigned on failure."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conformance import cases
from distilbert.backends import load_backend
from distilbert.checkpoint.folder import FORMATS, REFERENCE_FORMATS, WRITABLE
from distilbert.checkpoint.manifest import MANIFEST_FILE
from distilbert.checkpoint.opening import find_head, open_checkpoint, read_config
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.config import DistilBertConfig, PoolingConfig
from distilbert.errors import CheckpointError, ConfigError
from distilbert.initialization import initial_weights
from distilbert.weight_map import HEADS
from tests.support import REFERENCE_FOLDERS, new_model

CONFIG = cases.CONFIG
Q_LIN = "distilbert.transformer.layer.0.attention.q_lin.weight"
WORDS = "distilbert.embeddings.word_embeddings.weight"


@pytest.fixture
def folder(tmp_path):
    """A checkpoint as others leave it: without a manifest, so that tests can change it."""
    save_checkpoint(tmp_path / "model", "safetensors", "DistilBertModel", CONFIG, cases.weights())
    (tmp_path / "model" / MANIFEST_FILE).unlink()
    return tmp_path / "model"


def edit(folder, change):
    """Rewrite the tensors of a safetensors folder."""
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refused(folder, head="DistilBertModel", **options):
    with pytest.raises(CheckpointError) as caught:
        dict(open_checkpoint(folder, head, **options))
    assert "\n" not in str(caught.value)
    return caught.value


def test_all_misfits_are_named_in_one_error(folder):
    def change(tensors):
        tensors["extra.weight"] = np.zeros(3, np.float32)
        tensors[Q_LIN] = tensors[Q_LIN][:, :-1].copy()
        del tensors[WORDS]

    edit(folder, change)
    error = refused(folder)
    assert error.kind == "MissingTensor"
    for text in ("1 missing, 1 unexpected, 1 misshapen", WORDS, "extra.weight", "(32, 31), must have (32, 32)"):
        assert text in error.detail


def test_unknown_tensors_are_skipped_when_asked_to(folder):
    edit(folder, lambda tensors: tensors.update({"extra.weight": np.zeros(3, np.float32)}))
    assert refused(folder).kind == "UnexpectedTensor"
    assert open_checkpoint(folder, "DistilBertModel", strict=False).report.skipped == {"extra.weight": "unknown"}


@pytest.mark.parametrize("prefix", ["module.", "bert.", "model.distilbert."])
def test_a_wrong_prefix_is_refused(folder, prefix):
    def change(tensors):
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    edit(folder, change)
    assert "36 missing, 36 unexpected" in refused(folder).detail


def test_known_variants_load_the_same_bits(folder):
    """Without the base prefix, with old norm names, with a stored buffer, with another class's head."""

    def change(tensors):
        for name in list(tensors):
            plain = name.removeprefix("distilbert.")
            if "norm" in plain.lower():
                plain = plain.replace(".weight", ".gamma").replace(".bias", ".beta")
            tensors[plain] = tensors.pop(name)
        tensors["embeddings.position_ids"] = np.arange(24)[None]
        tensors["classifier.weight"] = np.zeros((2, 32), np.float32)

    edit(folder, change)
    source = open_checkpoint(folder, "DistilBertModel")
    for name, array in cases.weights().items():
        assert np.array_equal(source[name], array), name
    assert len(source.report.renamed) == 36
    assert source.report.skipped == {
        "embeddings.position_ids": "a buffer, not a weight", "classifier.weight": "another class's head",
    }  # fmt: skip
    assert "36 tensors loaded" in str(source.report)
    assert json.loads(json.dumps(source.report.to_dict()))["skipped"]


def test_numbers_that_are_not_finite_are_refused_by_place(folder):
    for bad in (np.nan, np.inf):
        edit(folder, lambda tensors, bad=bad: tensors[Q_LIN].__setitem__((3, 5), bad))
        error = refused(folder)
        assert error.kind == "NonFinite"
        assert "[3, 5]" in error.detail


def test_integers_are_no_weights(folder):
    edit(folder, lambda tensors: tensors.update({Q_LIN: tensors[Q_LIN].astype(np.int32)}))
    assert refused(folder).kind == "DtypeUnsupported"


def test_a_missing_head_needs_to_be_asked_for(folder):
    error = refused(folder, "DistilBertForSequenceClassification")
    assert "pre_classifier.weight" in error.detail
    with pytest.warns(UserWarning, match="new, with initial weights: pre_classifier.weight"):
        source = open_checkpoint(folder, "DistilBertForSequenceClassification", new_head=True)
    assert sorted(source.report.new) == [
        "classifier.bias",
        "classifier.weight",
        "pre_classifier.bias",
        "pre_classifier.weight",
    ]
    assert source["classifier.weight"].shape == (3, 32)
    assert 0 < source["pre_classifier.weight"].std() < 0.03


def test_tied_projector(tmp_path):
    """Absent: tied. Present and equal: loaded. Present and different: refused, unless the config unties."""
    head = "DistilBertForMaskedLM"
    weights = initial_weights(CONFIG, head)
    save_checkpoint(tmp_path, "safetensors", head, CONFIG, weights)
    assert "vocab_projector.weight" not in load_file(tmp_path / "model.safetensors")
    source = open_checkpoint(tmp_path, head)
    assert np.array_equal(source["vocab_projector.weight"], weights[WORDS])
    assert source.report.tied == ("vocab_projector.weight",)
    edit(tmp_path, lambda tensors: tensors.update({"vocab_projector.weight": tensors[WORDS].copy()}))
    assert np.array_equal(open_checkpoint(tmp_path, head)["vocab_projector.weight"], weights[WORDS])
    edit(tmp_path, lambda tensors: tensors.update({"vocab_projector.weight": tensors[WORDS] + 1}))
    assert refused(tmp_path, head).kind == "TiedTensorsDiffer"
    untied = open_checkpoint(tmp_path, head, tie_word_embeddings=False)
    assert np.array_equal(untied["vocab_projector.weight"], weights[WORDS] + 1)


def test_a_stored_position_table_wins_over_the_flag(folder):
    source = open_checkpoint(folder, "DistilBertModel", sinusoidal_pos_embds=True)
    name = "distilbert.embeddings.position_embeddings.weight"
    assert np.array_equal(source[name], cases.weights()[name])
    edit(folder, lambda tensors: tensors.pop(name))
    assert name in refused(folder).detail
    made = open_checkpoint(folder, "DistilBertModel", sinusoidal_pos_embds=True)
    assert made[name][0].tolist() == [0, 1] * 16
    assert "sinusoidal" in made.report.new[name]


def test_embeddings_stored_twice_must_agree(tmp_path):
    import h5py

    head = "DistilBertForMaskedLM"
    save_checkpoint(tmp_path, "tf-h5", head, CONFIG, initial_weights(CONFIG, head))
    assert len(open_checkpoint(tmp_path, head).report.loaded) == 41
    (tmp_path / MANIFEST_FILE).unlink()
    with h5py.File(tmp_path / "tf_model.h5", "a") as file:
        file["vocab_projector/tf_distil_bert_for_masked_lm/distilbert/embeddings/word_embeddings/weight:0"][0, 0] = 5
    assert "twice with different numbers" in refused(tmp_path, head).detail


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_dtypes_on_load_and_save(tmp_path, backend, dtype):
    weights = cases.weights(dtype=dtype)
    for name in WRITABLE:
        save_checkpoint(tmp_path / name, name, "DistilBertModel", CONFIG, weights)
        stored = "float32" if (name, dtype) == ("tf-h5", "bfloat16") else dtype  # HDF5 has no bfloat16
        assert read_config(tmp_path / name).extra["dtype"] == stored
        module = load_backend(backend)
        with module.exact(dtype):
            model = module.DistilBertModel.from_pretrained(tmp_path / name, dtype=dtype)
            found = model.weights_by_name()
        assert all(found[n].tobytes() == a.tobytes() and found[n].dtype == a.dtype for n, a in weights.items())
        default = module.DistilBertModel.from_pretrained(tmp_path / name)
        assert {a.dtype.name for a in default.weights_by_name().values()} == {"float32"}
        assert bool(default.load_report.cast) == (stored != "float32")


@pytest.mark.parametrize("name", WRITABLE)
def test_save_and_load_between_backends(tmp_path, backend, name):
    """What one backend saves, each loads with the same bits, pooling included."""
    pooling = PoolingConfig("max", True, 17)
    model = new_model(backend, head="DistilBertForSentenceEmbedding", pooling=pooling)
    model.save_pretrained(tmp_path, name)
    for other in ("pt", "tf", "flax"):
        loaded = load_backend(other).DistilBertForSentenceEmbedding.from_pretrained(tmp_path)
        assert loaded.pooling.config == pooling
        assert loaded.config == read_config(tmp_path)
        for n, array in cases.weights().items():
            assert loaded.weights_by_name()[n].tobytes() == array.tobytes(), n
        bare = load_backend(other).DistilBertModel.from_pretrained(tmp_path)
        assert bare.weights_by_name().keys() == cases.weights().keys()
    assert read_config(tmp_path).extra["architectures"] == ["DistilBertModel"]


def test_a_second_format_in_a_folder_is_refused(folder):
    with pytest.raises(CheckpointError, match=r"holds model\.safetensors; two weight files"):
        new_model("pt").save_pretrained(folder, "tf-h5")
    with pytest.raises(CheckpointError, match="is not a format to write; choose from safetensors, torch-bin, tf-h5"):
        new_model("pt").save_pretrained(folder, "onnx")


def test_the_head_of_a_folder_is_found(tmp_path):
    for head in HEADS:
        if head == "DistilBertForSentenceEmbedding":
            continue
        save_checkpoint(tmp_path / head, "safetensors", head, CONFIG, initial_weights(CONFIG, head))
        config = DistilBertConfig.from_pretrained(tmp_path / head)
        assert find_head(tmp_path / head, config) == head
        unnamed = config.replace(extra={})
        expected = head.replace("MultipleChoice", "SequenceClassification")  # the same modules
        assert find_head(tmp_path / head, unnamed) == expected


@pytest.mark.parametrize(
    ("modules", "text"),
    [
        (
            [{"type": "a.Transformer", "path": ""}, {"type": "a.CNN", "path": "2"}],
            "modules of type CNN are not supp",
        ),
        ([{"type": "a.Transformer", "path": "../x"}], "lies outside the folder"),
        ({"a": 1}, "must be a list of modules"),
    ],
)
def test_sentence_folders_that_would_change_the_embedding_are_refused(folder, modules, text):
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ConfigError, match=text):
        open_checkpoint(folder, "DistilBertForSentenceEmbedding")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
        ({"pooling_mode": "max"}, "max"),
        ({"pooling_mode": ["mean"]}, "mean"),
        ({"pooling_mode": "lasttoken"}, None),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, None),
    ],
)
def test_pooling_files_old_and_new(folder, content, expected):
    from distilbert.checkpoint.sentence_transformers import read_pooling

    modules = [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **content}))
    if expected is None:
        with pytest.raises(ConfigError, match="pooling must be exactly one of mean, cls, max, mean_sqrt_len"):
            read_pooling(folder)
    else:
        assert read_pooling(folder)[1].mode == expected


def test_every_format_is_preferred_in_order(tmp_path):
    for name in reversed(REFERENCE_FORMATS):
        file = FORMATS[name].file
        (tmp_path / file).write_bytes((REFERENCE_FOLDERS[0] / file).read_bytes())
        (tmp_path / "config.json").write_bytes((REFERENCE_FOLDERS[0] / "config.json").read_bytes())
        assert open_checkpoint(tmp_path, "DistilBertModel").path.name == file


def test_numbers_that_the_dtype_cannot_hold_are_refused(folder):
    edit(folder, lambda tensors: tensors[Q_LIN].__setitem__((0, 0), 1e6))
    assert "that float16 cannot" in refused(folder, dtype="float16").detail
    assert dict(open_checkpoint(folder, "DistilBertModel", dtype="bfloat16"))


def test_a_loaded_model_can_be_a_static_argument(folder):
    import jax
    from flax import nnx

    model = load_backend("flax").DistilBertModel.from_pretrained(folder)
    graph, state = nnx.split(model)
    assert hash(graph) == hash(graph)
    call = jax.jit(lambda g, s: nnx.merge(g, s)(cases.input_ids()).last_hidden_state, static_argnums=0)
    assert call(graph, state).shape == (4, 12, 32)
    assert len(repr(model.load_report)) < 400


def test_a_module_outside_its_folder_is_refused(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (folder / "enc").symlink_to(tmp_path / "elsewhere")
    (folder / "modules.json").write_text(json.dumps([{"type": "x.Transformer", "path": "enc"}]))
    with pytest.raises(ConfigError, match="lies outside the folder"):
        open_checkpoint(folder, "DistilBertForSentenceEmbedding")


@pytest.mark.parametrize("architectures", [5, "DistilBertModel", [None], ["Other"], {}])
def test_odd_architectures_do_not_matter(folder, architectures):
    config = DistilBertConfig.from_pretrained(folder).replace(extra={"architectures": architectures})
    assert find_head(folder, config) == "DistilBertModel"


@pytest.mark.parametrize("dialect", ["keras", "bert", "mlx", ""])
def test_an_unknown_dialect_is_read_as_pytorch(folder, dialect):
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", metadata={"format": dialect})
    assert len(open_checkpoint(folder, "DistilBertModel").report.loaded) == 36


@pytest.mark.parametrize("dialect", ["tf", "flax"])
def test_safetensors_of_tensorflow_and_flax(folder, dialect):
    """Their dialects: TensorFlow's or Flax's names and orientation in a safetensors file."""
    from distilbert.weight_map import DIALECTS, tensor_specs

    layout = DIALECTS[dialect]
    turned = {
        spec.stored_name(layout): np.ascontiguousarray(spec.to_layout(cases.weights()[name], layout))
        for name, spec in tensor_specs(CONFIG).items()
    }
    assert any("kernel" in name for name in turned)
    save_file(turned, folder / "model.safetensors", metadata={"format": dialect})
    source = open_checkpoint(folder, "DistilBertModel")
    assert all(np.array_equal(source[name], array) for name, array in cases.weights().items())
    assert len(source.report.transposed) == 12

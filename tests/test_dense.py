"""A dense layer behind the pooling: read, run, trained, saved and converted, the same in every backend and format."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from conformance import cases
from conformance.adapters import make
from conformance.comparison import STEP
from distilbert import parity, reference, reference_training
from distilbert.backends import load_backend
from distilbert.checkpoint.folder import WRITABLE
from distilbert.checkpoint.manifest import MANIFEST_FILE
from distilbert.checkpoint.opening import open_checkpoint
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.checkpoint.sentence_transformers import read_pooling
from distilbert.config import DENSE_ACTIVATIONS, DenseConfig, DistilBertConfig, PoolingConfig
from distilbert.errors import CheckpointError, ConfigError
from distilbert.initialization import initial_weights
from distilbert.tasks.embedding import SentenceEncoder
from distilbert.weight_map import HEADS
from tests.masked_lm import number_of_trained_tensors
from tests.support import BACKENDS, DATA, new_model, run, run_cli, run_python, to_numpy
from weights_convert import convert

HEAD = cases.SENTENCE
WEIGHT, BIAS = "pooling.dense.weight", "pooling.dense.bias"
POOLING = PoolingConfig("mean_sqrt_len", True, 17, DenseConfig(20))
PLAIN = PoolingConfig("cls", dense=DenseConfig(40, bias=False, activation="identity"))
CONFIG = cases.CONFIG.replace(n_layers=1)
INPUTS = {"input_ids": cases.input_ids(), "attention_mask": cases.masks()["right padding"]}
GOLDENS = ["dense-tanh", "dense-identity"]  # built, saved and computed by sentence-transformers 6.2


def weights(pooling=POOLING, dtype="float32"):
    return cases.weights(CONFIG, HEAD, dtype=dtype, pooling=pooling)


def model_of(backend, pooling=POOLING, dtype="float32"):
    return new_model(backend, CONFIG, weights(pooling, dtype), HEAD, pooling=pooling)


def load(backend, folder, **options):
    return getattr(load_backend(backend), HEAD).from_pretrained(folder, **options)


def same(found, expected):
    return found.keys() == expected.keys() and all(
        found[n].tobytes() == a.tobytes() and found[n].shape == a.shape and found[n].dtype == a.dtype
        for n, a in expected.items()
    )


@pytest.fixture
def folder(tmp_path):
    """A checkpoint as others leave it: without a manifest, so that tests can change it."""
    save_checkpoint(tmp_path / "model", "safetensors", HEAD, CONFIG, weights(), POOLING)
    (tmp_path / "model" / MANIFEST_FILE).unlink()
    return tmp_path / "model"


def edit_json(path, **changes):
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


def edit_dense(folder, change):
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    path = folder / "2_Dense" / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


class TestGoldens:
    @pytest.mark.parametrize("name", GOLDENS)
    def test_embeddings_of_sentence_transformers(self, backend, name):
        golden = np.load(DATA / name / "expected.npz")
        encoder = SentenceEncoder.from_pretrained(DATA / name, backend=backend)
        found = encoder.encode(golden["texts"].tolist())
        assert found.shape == golden["embeddings"].shape
        assert np.abs(found - golden["embeddings"]).max() < 2e-6  # measured: 5e-7

    @pytest.mark.parametrize("name", GOLDENS)
    def test_the_specification_computes_them_too(self, name):
        golden = np.load(DATA / name / "expected.npz")
        source = open_checkpoint(DATA / name, HEAD)
        batch = SentenceEncoder.from_pretrained(DATA / name).tokenizer(
            golden["texts"].tolist(), padding=True, truncation=True, return_tensors="np"
        )
        pooling = source.settings["pooling"]
        found = reference.sentence_embedding(source.config, dict(source), pooling=pooling, **batch).embeddings
        assert np.abs(found - golden["embeddings"]).max() < 1e-12

    def test_what_the_folders_say(self):
        (_, tanh, _), (encoder, plain, place) = (read_pooling(DATA / name) for name in GOLDENS)
        assert tanh == PoolingConfig("mean", normalize=True, dense=DenseConfig(20))
        assert plain == PoolingConfig("cls", dense=DenseConfig(40, bias=False, activation="identity"))
        assert place == (encoder / "2_Dense", 32)

    @pytest.mark.parametrize("name", GOLDENS)
    def test_every_format_keeps_the_bits(self, name, tmp_path):
        """From the command line; a pickled layer becomes safetensors, beside weights of any format."""
        source = dict(open_checkpoint(DATA / name, HEAD))
        folders = [tmp_path / to for to in WRITABLE]
        for to, target in zip(WRITABLE, folders, strict=True):
            code, out, _ = run_cli("convert", DATA / name, target, "--to", to)
            assert code == 0
            assert "2_Dense/model.safetensors" in out
            assert same(dict(open_checkpoint(target, HEAD)), source)
            assert not {WEIGHT, "linear.weight"} & set(open_checkpoint(target, cases.MODEL).report.loaded)
        assert convert(folders[1], tmp_path / "back", to="safetensors").head == cases.MODEL
        assert same(dict(open_checkpoint(tmp_path / "back", HEAD)), source)

    def test_parity_on_the_command_line(self, tmp_path):
        """Every backend agrees; another layer in the second folder is named, and so is one that computes something else."""
        first, second = DATA / "dense-tanh", tmp_path / "second"
        convert(first, second, to="flax-msgpack")
        code, out, _ = run_cli("parity", first, second)
        assert (code, out.count("PASS")) == (0, 6), out
        assert parity.SENTENCE_EMBEDDING in out
        edit_dense(second, lambda tensors: tensors["linear.bias"].__setitem__(0, 1))
        code, out, _ = run_cli("parity", first, second, "--backends", "pt")
        assert code == 1
        assert f"FAIL: {BIAS} has other bits" in out
        edit_json(second / "2_Dense" / "config.json", activation_function="torch.nn.modules.linear.Identity")
        assert "FAIL: the pooling settings has other bits" in run_cli("parity", first, second, "--backends", "pt")[1]


@pytest.mark.parametrize("pooling", [POOLING, PLAIN], ids=["tanh", "identity"])
class TestEveryBackend:
    def test_a_seed_gives_the_bits_that_the_encoder_has_without_the_layer(self, pooling):
        models = [getattr(load_backend(b), HEAD).from_config(CONFIG, seed=5, pooling=pooling) for b in BACKENDS]
        expected = initial_weights(CONFIG, HEAD, seed=5, pooling=pooling)
        assert all(same(model.weights_by_name(), expected) for model in models)
        assert {number_of_trained_tensors(model) for model in models} == {len(expected)}  # no bias where there is none
        assert same(initial_weights(CONFIG, HEAD, seed=5), {n: a for n, a in expected.items() if "dense" not in n})
        assert expected[WEIGHT].std() == pytest.approx(0.02, rel=0.2)
        assert (BIAS in expected) == pooling.dense.bias

    @pytest.mark.parametrize("name", WRITABLE)
    def test_saved_by_one_and_loaded_by_all(self, pooling, backend, name, tmp_path):
        model_of(backend, pooling).save_pretrained(tmp_path, name)
        for other in BACKENDS:
            loaded = load(other, tmp_path)
            assert loaded.pooling.config == pooling
            assert same(loaded.weights_by_name(), weights(pooling))
        assert load_file(tmp_path / "2_Dense" / "model.safetensors").keys() == (
            {"linear.weight", "linear.bias"} if pooling.dense.bias else {"linear.weight"}
        )
        modules = json.loads((tmp_path / "modules.json").read_text())
        assert [module["path"] for module in modules] == [
            "",
            "1_Pooling",
            "2_Dense",
            *["3_Normalize"] * pooling.normalize,
        ]
        assert all(module["type"] == f"sentence_transformers.models.{kind}" for module, kind in zip(modules, ("Transformer", "Pooling", "Dense", "Normalize"), strict=False))  # fmt: skip

    def test_pruning_and_resizing_leave_the_layer_alone(self, pooling, backend, tmp_path):
        model = model_of(backend, pooling).prune_heads({0: [1]}).resize_token_embeddings(120)
        model.resize_position_embeddings(30)
        dense = {name: array for name, array in weights(pooling).items() if "dense" in name}
        assert dense
        assert same({name: model.weights_by_name()[name] for name in dense}, dense)
        expected = reference.sentence_embedding(model.config, model.weights_by_name(), pooling=pooling, **INPUTS)
        np.testing.assert_allclose(to_numpy(run(model, **INPUTS).embeddings), expected.embeddings, rtol=0, atol=5e-6)
        model.save_pretrained(tmp_path)
        assert parity.digests(load(backend, tmp_path)) == parity.digests(model)


def test_one_step_of_training_is_the_specifications():
    """The layer's gradient and step too, on all three; and it is among what decays, its bias not."""
    gradients = reference_training.gradients(HEAD, CONFIG, weights(), INPUTS, pooling=POOLING)
    after = reference_training.step(HEAD, CONFIG, weights(), gradients, pooling=POOLING, **STEP)
    for backend in BACKENDS:
        found, stepped = make(backend, HEAD, CONFIG, weights(), pooling=POOLING).step(INPUTS, **STEP)
        assert found.keys() == stepped.keys() == gradients.keys() == weights().keys()
        for name in (n for n in gradients if "pooling" in n):
            np.testing.assert_allclose(found[name], gradients[name], rtol=0, atol=1e-5 * np.abs(gradients[name]).max())
            np.testing.assert_allclose(stepped[name], after[name], rtol=0, atol=1e-6)
            assert np.abs(after[name] - weights()[name]).max() > 1e-5


@pytest.mark.parametrize("activation", DENSE_ACTIVATIONS)
def test_every_activation_is_saved_and_computed(backend, activation, tmp_path):
    pooling = PoolingConfig(dense=DenseConfig(20, activation=activation))
    model_of(backend, pooling).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "2_Dense" / "config.json").read_text())
    name = stored["activation_function"].removeprefix("torch.nn.modules.").split(".")
    layer = getattr(getattr(torch.nn.modules, name[0]), name[1])()  # what sentence-transformers imports
    model = load(backend, tmp_path)
    assert model.pooling.config == pooling
    pooled = reference.sentence_embedding(CONFIG, weights(pooling), **INPUTS).embeddings
    inner = reference.linear(pooled, weights(pooling), "pooling.dense")
    expected = layer(torch.from_numpy(inner)).numpy()
    np.testing.assert_allclose(to_numpy(run(model, **INPUTS).embeddings), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_the_layer_has_the_encoders_dtype(backend, dtype, tmp_path):
    module = load_backend(backend)
    with module.exact(dtype):
        model_of(backend, dtype=dtype).save_pretrained(tmp_path)
        assert same(load(backend, tmp_path, dtype=dtype).weights_by_name(), weights(dtype=dtype))
    narrow = load(backend, tmp_path)
    assert {array.dtype.name for array in narrow.weights_by_name().values()} == {"float32"}
    assert narrow.load_report.cast[WEIGHT] == f"{dtype} to float32"


def test_a_conversion_keeps_a_dtype_that_only_the_layer_has(folder, tmp_path):
    edit_dense(folder, lambda tensors: tensors.update({n: a.astype(np.float16) for n, a in tensors.items()}))
    given = dict(open_checkpoint(folder, HEAD))
    convert(folder, tmp_path / "out", to="tf-h5")
    stored = load_file(tmp_path / "out" / "2_Dense" / "model.safetensors")
    assert {array.dtype.name for array in stored.values()} == {"float16"}
    assert same(dict(open_checkpoint(tmp_path / "out", HEAD)), given)


def test_gradient_checkpointing_changes_no_embedding(backend):
    model = model_of(backend)
    expected = to_numpy(run(model, **INPUTS).embeddings)
    assert np.array_equal(to_numpy(run(model.gradient_checkpointing_enable(), **INPUTS).embeddings), expected)


def test_the_report_lists_the_layer(backend, folder):
    report = load(backend, folder).load_report
    assert report.loaded[-2:] == (WEIGHT, BIAS)
    assert report.renamed == {"2_Dense/linear.weight": WEIGHT, "2_Dense/linear.bias": BIAS}
    assert not report.new
    assert WEIGHT not in load_backend(backend).DistilBertModel.from_pretrained(folder).load_report.loaded


def test_an_encoders_file_never_holds_the_layer(folder):
    tensors = load_file(folder / "model.safetensors")
    assert not any("dense" in name for name in tensors)
    save_file(tensors | {WEIGHT: weights()[WEIGHT]}, folder / "model.safetensors")
    for head in (HEAD, cases.MODEL):
        with pytest.raises(CheckpointError, match=f"holds unknown {WEIGHT}"):
            open_checkpoint(folder, head)


def test_a_bert_with_a_dense_layer_is_converted(tmp_path):
    """LaBSE is one. The layer goes through unchanged, in the dtype that is asked for."""
    folder = tmp_path / "bert"
    shutil.copytree(DATA / "dense-tanh", folder)
    given = dict(open_checkpoint(folder, HEAD))
    from distilbert.weight_map import BERT, tensor_specs

    config = DistilBertConfig.from_pretrained(folder)
    tensors = {spec.stored_name(BERT["pt"]): given[name] for name, spec in tensor_specs(config).items()}
    tensors["bert.embeddings.token_type_embeddings.weight"] = np.zeros((2, config.dim), np.float32)
    save_file(tensors, folder / "model.safetensors")
    bert = {
        "model_type": "bert", "vocab_size": config.vocab_size, "hidden_size": config.dim, "num_hidden_layers": 1,
        "num_attention_heads": 4, "intermediate_size": config.hidden_dim, "max_position_embeddings": 16,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(bert))
    done = convert(folder, tmp_path / "out", to="flax-msgpack", dtype="float64")
    assert "2_Dense/linear.bias" in done.report.renamed
    assert same(dict(open_checkpoint(tmp_path / "out", HEAD)), given)
    assert load_file(tmp_path / "out" / "2_Dense" / "model.safetensors")["linear.weight"].dtype == np.float64


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "kind", "text"),
        [
            (lambda t: t.update({"linear.weight": t["linear.weight"].T.copy()}), "ShapeMismatch", "'linear.weight' has shape (32, 20), must have (20, 32)"),
            (lambda t: t.update({"linear.bias": t["linear.bias"][:-1].copy()}), "ShapeMismatch", "'linear.bias' has shape (19,), must have (20,)"),
            (lambda t: t.pop("linear.weight"), "MissingTensor", f"1 missing, 0 unexpected, 0 misshapen tensors: lacks {WEIGHT}"),
            (lambda t: t.pop("linear.bias"), "MissingTensor", f"lacks {BIAS}"),
            (lambda t: t.update({"other": np.zeros(1, np.float32)}), "UnexpectedTensor", "holds unknown other"),
            (lambda t: t.update({WEIGHT: t.pop("linear.weight")}), "MissingTensor", f"holds unknown {WEIGHT}"),
            (lambda t: t.update({"linear.bias": t["linear.bias"].astype(np.int32)}), "DtypeUnsupported", "holds integers in linear.bias"),
            (lambda t: t["linear.weight"].__setitem__((3, 5), np.nan), "NonFinite", "NaN or infinity in 'linear.weight' at [3, 5]"),
            (lambda t: t["linear.weight"].__setitem__((0, 0), 1e6), "NonFinite", "that float16 cannot"),
        ],
    )  # fmt: skip
    def test_weights_that_do_not_fit(self, folder, change, kind, text):
        """By name and file, whether or not a new head is allowed; nothing is made anew."""
        edit_dense(folder, change)
        for options in ({}, {"new_head": True}):
            with pytest.raises(CheckpointError) as caught:
                dict(open_checkpoint(folder, HEAD, dtype="float16", **options))
            assert (caught.value.kind, caught.value.path) == (kind, str(folder / "2_Dense" / "model.safetensors"))
            assert text in caught.value.detail
            assert "new_head" not in caught.value.detail
        assert dict(open_checkpoint(folder, cases.MODEL))  # the encoder alone does not need it

    def test_unknown_tensors_are_skipped_when_asked_to(self, folder):
        edit_dense(folder, lambda tensors: tensors.update({"other": np.zeros(1, np.float32)}))
        assert open_checkpoint(folder, HEAD, strict=False).report.skipped == {"2_Dense/other": "unknown"}

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
    def test_files_that_are_missing(self, folder, name):
        (folder / "2_Dense" / name).unlink()
        with pytest.raises(CheckpointError, match="2_Dense") as caught:
            open_checkpoint(folder, HEAD)
        assert caught.value.kind == "NotFound"

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"activation_function": "torch.nn.modules.activation.Sigmoid"}, "activation_function must be one of torch.nn.modules.linear.Identity, "),
            ({"activation_function": "os.system"}, "got 'os.system'"),
            ({"activation_function": ["torch.nn.modules.activation.Tanh"]}, "activation_function must be one of"),
            ({"activation_function": None}, "activation_function must be one of"),
            ({"use_residual": True}, "use_residual must be False, got True"),
            ({"module_input_name": "token_embeddings"}, "module_input_name must be 'sentence_embedding', got 'token_embeddings'"),
            ({"module_output_name": "other"}, "module_output_name must be 'sentence_embedding', got 'other'"),
            ({"out_features": 0}, "out_features must be an integer from 1 to 65536, got 0"),
            ({"out_features": ...}, "out_features must be an integer from 1 to 65536, got None"),
            ({"out_features": "20"}, "out_features must be an integer"),
            ({"bias": 1}, "bias must be true or false, got 1"),
            ({"in_features": 31}, "in_features must be 32, the dim of the encoder, got 31"),
            ({"in_features": ...}, "in_features must be 32, the dim of the encoder, got None"),
        ],
    )  # fmt: skip
    def test_settings_that_would_change_the_embedding(self, folder, changes, text):
        edit_json(folder / "2_Dense" / "config.json", **changes)
        with pytest.raises(ConfigError) as caught:
            open_checkpoint(folder, HEAD)
        assert str(folder / "2_Dense" / "config.json") in str(caught.value)
        assert text in str(caught.value)
        assert run_cli("convert", folder, folder.parent / "out", "--to", "tf-h5")[0] == 2
        assert not (folder.parent / "out").exists()

    def test_what_need_not_be_said(self, folder):
        """Without its optional keys, a layer is one with tanh and bias; a null name of the output is the input's."""
        edit_json(folder / "2_Dense" / "config.json", activation_function=..., bias=..., module_output_name=None)
        assert read_pooling(folder).pooling == POOLING

    def test_a_normalization_of_something_else(self, folder):
        edit_json(folder / "3_Normalize" / "config.json", module_input_name="token_embeddings")
        with pytest.raises(ConfigError, match=r"3_Normalize.*module_input_name must be 'sentence_embedding'"):
            open_checkpoint(folder, HEAD)
        shutil.rmtree(folder / "3_Normalize")  # as version 2 leaves it
        assert read_pooling(folder).pooling.normalize

    @pytest.mark.parametrize(
        "kinds",
        [
            ("Transformer", "Pooling", "Dense", "Dense"),
            ("Transformer", "Dense", "Pooling"),
            ("Transformer", "Pooling", "Normalize", "Dense"),
            ("Transformer", "Dense"),
            ("Transformer", "Pooling", "Pooling"),
            ("Pooling", "Transformer"),
        ],
        ids="-".join,
    )
    def test_modules_in_another_order(self, folder, kinds):
        places = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense", "Normalize": "3_Normalize"}
        modules = [{"type": f"sentence_transformers.models.{kind}", "path": places[kind]} for kind in kinds]
        (folder / "modules.json").write_text(json.dumps(modules))
        text = f"at most one Dense, at most one Normalize, in this order, got {', '.join(kinds)}"
        with pytest.raises(ConfigError, match=text):
            open_checkpoint(folder, HEAD)

    @pytest.mark.parametrize("path", ["../elsewhere", "/etc", "link"])
    def test_a_layer_outside_the_folder(self, folder, path):
        shutil.copytree(folder / "2_Dense", folder.parent / "elsewhere")
        (folder / "link").symlink_to(folder.parent / "elsewhere")
        modules = json.loads((folder / "modules.json").read_text())
        modules[2]["path"] = path
        (folder / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(ConfigError, match="a module lies outside the folder"):
            open_checkpoint(folder, HEAD)

    def test_a_file_outside_the_folder(self, folder):
        file = folder / "2_Dense" / "model.safetensors"
        file.rename(folder.parent / "elsewhere")
        file.symlink_to(folder.parent / "elsewhere")
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(folder, HEAD)
        assert caught.value.kind == "UnsafeLink"

    def test_a_pickle_that_would_run(self, folder):
        (folder / "2_Dense" / "model.safetensors").unlink()
        torch.save({"linear.weight": torch.nn.Linear(32, 20)}, folder / "2_Dense" / "pytorch_model.bin")
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(folder, HEAD)
        assert caught.value.kind == "UnsafePickle"

    def test_a_former_layer_goes_in_whatever_format(self, folder):
        (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
        model_of("pt").save_pretrained(folder)
        assert {path.name for path in (folder / "2_Dense").iterdir()} == {"model.safetensors", "config.json"}
        assert same(dict(open_checkpoint(folder, HEAD)), weights())

    def test_weights_of_another_width(self, backend):
        model = model_of(backend)
        before = model.weights_by_name()
        for wrong in (weights(PLAIN), initial_weights(CONFIG, HEAD), weights() | {WEIGHT: weights()[WEIGHT].T}):
            with pytest.raises(ValueError, match=r"pooling\.dense"):
                model.assign(wrong)
        assert same(model.weights_by_name(), before)

    def test_settings_in_code(self):
        for wrong, text in [
            ({"out_features": 0}, "out_features must be an integer from 1 to 65536"),
            ({"out_features": 3, "bias": None}, "bias must be true or false"),
            ({"out_features": 3, "activation": "gelu_new"}, "dense activation must be one of identity, tanh, relu, gelu, silu"),
        ]:  # fmt: skip
            with pytest.raises(ConfigError, match=text):
                DenseConfig(**wrong)
        with pytest.raises(ConfigError, match="dense must be a DenseConfig or None, got"):
            PoolingConfig(dense={"out_features": 3})
        with pytest.raises(ConfigError, match=r"activation must be one of gelu, .*, got 'identity'"):
            CONFIG.replace(activation="identity")  # the encoder has no block without an activation


def test_no_other_class_has_the_layer():
    """Its place in the weight table belongs to a pooling, not to a head; `from_config` of another class takes none."""
    for head in HEADS.keys() - {HEAD}:
        assert not any("pooling" in name for name in initial_weights(CONFIG, head))
        with pytest.raises(TypeError, match="pooling"):
            getattr(load_backend("pt"), head).from_config(CONFIG, pooling=POOLING)


def test_settings_survive_a_dict():
    for pooling in (POOLING, PLAIN, PoolingConfig("max")):
        assert PoolingConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(pooling)))) == pooling


class TestFrameworks:
    def test_a_keras_file_of_a_functional_model(self, tmp_path):
        """Trained inside another model, saved, and loaded in a new process with the same outputs."""
        import keras

        keras.utils.set_random_seed(0)
        ids, mask = (keras.Input((None,), dtype="int32", name=name) for name in INPUTS)
        encoder = model_of("tf")
        model = keras.Model([ids, mask], keras.layers.Dense(2)(encoder(ids, mask).embeddings))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer="adam", loss=loss)
        model.fit(INPUTS, np.array([0, 1, 1, 0]), epochs=1, verbose=0)
        assert not np.array_equal(encoder.weights_by_name()[WEIGHT], weights()[WEIGHT])
        model.save(tmp_path / "model.keras")
        np.savez(tmp_path / "data.npz", expected=model.predict(INPUTS, verbose=0), **INPUTS)
        code = f"""
import numpy as np, keras, distilbert.tf
data = np.load({str(tmp_path / "data.npz")!r})
model = keras.models.load_model({str(tmp_path / "model.keras")!r})
found = model.predict({{k: data[k] for k in ("input_ids", "attention_mask")}}, verbose=0)
assert np.abs(found - data["expected"]).max() < 1e-6, np.abs(found - data["expected"]).max()
print("same")
"""
        done = run_python("-c", code)
        assert done.stdout.strip().endswith("same"), done.stderr

    @pytest.mark.parametrize("pooling", [POOLING, PLAIN], ids=["tanh", "identity"])
    def test_a_keras_file_of_the_model(self, pooling, tmp_path):
        import keras

        model = model_of("tf", pooling)
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        assert again.pooling.config == pooling
        assert same(again.weights_by_name(), weights(pooling))
        assert len(again.trainable_variables) == len(weights(pooling))

    def test_a_state_dict_has_the_layer_by_its_canonical_name(self):
        model = model_of("pt")
        assert {WEIGHT, BIAS} <= model.state_dict().keys()
        assert {name for name, _ in model.named_parameters()} == weights().keys()
        fresh = getattr(load_backend("pt"), HEAD)(CONFIG, POOLING)
        fresh.load_state_dict(model.state_dict())
        assert same(fresh.weights_by_name(), weights())

    def test_jit_and_split(self):
        from flax import nnx

        model = model_of("flax")
        found = nnx.jit(lambda m, given: m(**given).embeddings)(model, INPUTS)
        np.testing.assert_allclose(found, model(**INPUTS).embeddings, rtol=0, atol=2e-6)
        graph, state = nnx.split(model)
        assert same(nnx.merge(graph, state).weights_by_name(), weights())

    def test_the_constructor_draws_the_layer(self, backend):
        options = {}
        if backend == "flax":
            from flax import nnx

            options["rngs"] = nnx.Rngs(0)
        model = getattr(load_backend(backend), HEAD)(CONFIG, POOLING, **options)
        drawn = model.weights_by_name()
        assert drawn[WEIGHT].shape == (20, 32)
        assert drawn[WEIGHT].std() == pytest.approx(0.02, rel=0.2)
        assert not drawn[BIAS].any()

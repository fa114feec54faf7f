"""Changes of a model's size: vocabulary, positions, attention heads; the same facts in every backend."""

import json

import ml_dtypes
import numpy as np
import pytest

from conformance import cases
from distilbert import reference
from distilbert.backends import load_backend
from distilbert.errors import ConfigError
from distilbert.positions import sinusoidal_table
from distilbert.weight_map import POSITION_EMBEDDINGS, PROJECTOR_BIAS, TIED_PROJECTOR, WORD_EMBEDDINGS
from tests.masked_lm import (
    CONFIG,
    IDS,
    INPUTS,
    LEARNING,
    MASKED_LM,
    NEXT,
    TOLERANCE,
    assert_close,
    assert_same_bits,
    gradients,
    in_next_framework,
    masked_lm,
    number_of_trained_tensors,
    step,
)
from tests.support import ANY_MODEL, BACKENDS, new_model, run, to_numpy


class TestTokenEmbeddings:
    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("size", [120, 40])
    def test_rows_that_stay_keep_their_bits(self, backend, tied, size):
        model = masked_lm(backend, tie_word_embeddings=tied)
        before, kept = model.weights_by_name(), min(size, 99)
        assert model.resize_token_embeddings(size) is model
        after = model.weights_by_name()
        for name in (WORD_EMBEDDINGS, TIED_PROJECTOR, PROJECTOR_BIAS):
            assert after[name].shape == (size, *before[name].shape[1:])
            assert after[name][:kept].tobytes() == before[name][:kept].tobytes()
        assert not after[PROJECTOR_BIAS][kept:].any()
        assert (after[TIED_PROJECTOR].tobytes() == after[WORD_EMBEDDINGS].tobytes()) == tied
        changed = {WORD_EMBEDDINGS, TIED_PROJECTOR, PROJECTOR_BIAS}
        assert all(after[name].tobytes() == before[name].tobytes() for name in before.keys() - changed)
        assert model.config == model.distilbert.config == CONFIG.replace(vocab_size=size, tie_word_embeddings=tied)

    @pytest.mark.parametrize(("size", "multiple", "expected"), [(99, 64, 128), (64, 64, 64), (65, 8, 72), (5, 1, 5)])
    def test_the_size_is_rounded_up_to_a_multiple(self, backend, size, multiple, expected):
        model = masked_lm(backend).resize_token_embeddings(size, pad_to_multiple_of=multiple)
        assert model.config.vocab_size == expected
        assert model.weights_by_name()[WORD_EMBEDDINGS].shape == (expected, 32)

    def test_new_rows_are_normal_and_the_same_in_every_framework(self):
        found = {
            backend: masked_lm(backend, initializer_range=0.05, tie_word_embeddings=False)
            .resize_token_embeddings(4099, seed=3)
            .weights_by_name()
            for backend in BACKENDS
        }
        assert_same_bits(found["tf"], found["pt"])
        assert_same_bits(found["flax"], found["pt"])
        for name in (WORD_EMBEDDINGS, TIED_PROJECTOR):
            new = found["pt"][name][99:]
            assert new.std() == pytest.approx(0.05, rel=0.03)
            assert abs(new.mean()) < 0.001
            assert np.abs(new).max() > 0.15  # not truncated
        assert not np.array_equal(found["pt"][WORD_EMBEDDINGS][99:], found["pt"][TIED_PROJECTOR][99:])
        other = masked_lm("pt", initializer_range=0.05).resize_token_embeddings(4099, seed=4).weights_by_name()
        assert not np.array_equal(found["pt"][WORD_EMBEDDINGS][99:], other[WORD_EMBEDDINGS][99:])

    @pytest.mark.parametrize("tied", [True, False])
    def test_old_logits_stay_and_new_ids_run(self, backend, tied):
        model = masked_lm(backend, tie_word_embeddings=tied)
        before = to_numpy(run(model, **INPUTS).logits)
        model.resize_token_embeddings(120)
        assert_close(to_numpy(run(model, **INPUTS).logits)[..., :99], before, atol=1e-6)
        ids = IDS + 21  # up to 119
        expected = reference.HEADS[MASKED_LM](model.config, model.weights_by_name(), input_ids=ids).logits
        assert_close(run(model, ids).logits, expected, TOLERANCE)
        with pytest.raises(ValueError, match="input_ids must lie in 0 to 119"):
            model(IDS + 22)

    @pytest.mark.parametrize("head", [cases.MODEL, cases.SEQUENCE, cases.SENTENCE])
    def test_models_without_a_projector_are_resized_too(self, backend, head):
        model = new_model(backend, CONFIG, cases.weights(CONFIG, head), head).resize_token_embeddings(120)
        expected = reference.HEADS[head](model.config, model.weights_by_name(), input_ids=IDS + 21)
        assert_close(run(model, IDS + 21)[0], expected[0], TOLERANCE)

    def test_training_reaches_new_rows(self, backend):
        model = masked_lm(backend, n_layers=1).resize_token_embeddings(120)
        before, inputs = model.weights_by_name(), LEARNING | {"input_ids": IDS + 21}
        found = gradients(model, inputs)
        used = np.unique(inputs["input_ids"][inputs["attention_mask"] == 1])
        used = used[used >= 99]
        assert used.size
        assert np.abs(found[WORD_EMBEDDINGS][used]).max(axis=1).min() > 0
        after = step(model, inputs)
        assert (after[WORD_EMBEDDINGS][used] != before[WORD_EMBEDDINGS][used]).any(axis=1).all()
        assert after[PROJECTOR_BIAS][99:].any()

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_another_framework_loads_the_same_bits(self, backend, tmp_path, dtype):
        model = masked_lm(backend, dtype).resize_token_embeddings(120)
        loaded = in_next_framework(model, tmp_path, dtype=dtype)
        assert loaded.config.vocab_size == 120
        assert model.weights_by_name()[WORD_EMBEDDINGS].dtype.name == dtype
        assert_same_bits(loaded.weights_by_name(), model.weights_by_name())

    def test_a_bfloat16_model_rounds_its_new_rows(self, backend):
        model = masked_lm(backend, "bfloat16").resize_token_embeddings(120)
        exact = masked_lm(backend).resize_token_embeddings(120).weights_by_name()[WORD_EMBEDDINGS][99:]
        found = model.weights_by_name()[WORD_EMBEDDINGS][99:]
        assert found.tobytes() == exact.astype(ml_dtypes.bfloat16).tobytes()
        assert "bfloat16" in str(run(model, IDS + 21).logits.dtype)

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ((0,), "new_num_tokens must be a positive integer, got 0"),
            ((-1,), "new_num_tokens must be a positive integer, got -1"),
            ((True,), "new_num_tokens must be a positive integer, got True"),
            ((3.5,), "new_num_tokens must be a positive integer, got 3.5"),
            ((None,), "new_num_tokens must be a positive integer, got None"),
            ((120, 0), "pad_to_multiple_of must be a positive integer, got 0"),
            ((7,), "pad_token_id must lie below vocab_size, got 7 with vocab_size=7"),
            ((1 << 25,), "vocab_size must be an integer from 1 to 16777216"),
        ],
    )
    def test_a_wrong_size_changes_nothing(self, backend, arguments, text):
        model = masked_lm(backend, pad_token_id=7)
        config, before = model.config, model.weights_by_name()
        with pytest.raises(ValueError, match=text) as caught:
            model.resize_token_embeddings(*arguments)
        assert "\n" not in str(caught.value)
        assert model.config is model.distilbert.config is config
        assert_same_bits(model.weights_by_name(), before)


class TestPositionEmbeddings:
    @pytest.mark.parametrize("size", [40, 12])
    def test_learned_rows_that_stay_keep_their_bits(self, backend, size):
        model = masked_lm(backend)
        before, kept = model.weights_by_name(), min(size, 24)
        assert model.resize_position_embeddings(size) is model
        after = model.weights_by_name()
        assert after[POSITION_EMBEDDINGS].shape == (size, 32)
        assert after[POSITION_EMBEDDINGS][:kept].tobytes() == before[POSITION_EMBEDDINGS][:kept].tobytes()
        assert all(after[name].tobytes() == before[name].tobytes() for name in before if name != POSITION_EMBEDDINGS)
        assert model.config == model.distilbert.config == CONFIG.replace(max_position_embeddings=size)

    def test_new_learned_rows_are_normal_and_the_same_in_every_framework(self):
        found = {
            backend: new_model(backend).resize_position_embeddings(4024, seed=3).weights_by_name()[POSITION_EMBEDDINGS]
            for backend in BACKENDS
        }
        assert found["pt"][24:].std() == pytest.approx(CONFIG.initializer_range, rel=0.03)
        assert found["pt"].tobytes() == found["tf"].tobytes() == found["flax"].tobytes()

    @pytest.mark.parametrize("sinusoidal", [False, True])
    def test_longer_inputs_run_after_growth(self, backend, sinusoidal):
        config, weights = CONFIG.replace(sinusoidal_pos_embds=sinusoidal), cases.weights()
        if sinusoidal:
            weights[POSITION_EMBEDDINGS] = sinusoidal_table(24, 32)
        model, long = new_model(backend, config, weights), IDS.reshape(1, 48)
        with pytest.raises(ValueError, match="48 tokens per row, more than max_position_embeddings=24"):
            model(long)
        trained = number_of_trained_tensors(model)
        model.resize_position_embeddings(48)
        assert number_of_trained_tensors(model) == trained == 36 - sinusoidal
        grown = model.weights_by_name()
        if sinusoidal:
            assert grown[POSITION_EMBEDDINGS].tobytes() == sinusoidal_table(48, 32).tobytes()
        expected = reference.model(model.config, grown, long).last_hidden_state
        assert_close(run(model, long).last_hidden_state, expected, TOLERANCE)

    def test_longer_inputs_are_refused_after_shrinking(self, backend):
        model = new_model(backend)
        before = to_numpy(run(model, IDS).last_hidden_state)
        model.resize_position_embeddings(12)
        assert_close(run(model, IDS).last_hidden_state, before)
        model.resize_position_embeddings(11)
        with pytest.raises(ValueError, match="12 tokens per row, more than max_position_embeddings=11"):
            model(IDS)

    @pytest.mark.parametrize("sinusoidal", [False, True])
    def test_another_framework_loads_the_same_bits(self, backend, tmp_path, sinusoidal):
        """With the sinusoidal flag too, though the stored rows here are not the sinusoid's: they win."""
        model = masked_lm(backend, sinusoidal_pos_embds=sinusoidal).resize_position_embeddings(40)
        table = model.weights_by_name()[POSITION_EMBEDDINGS]
        assert table[:24].tobytes() == cases.weights()[POSITION_EMBEDDINGS].tobytes()
        assert (table[24:].tobytes() == sinusoidal_table(40, 32)[24:].tobytes()) == sinusoidal
        loaded = in_next_framework(model, tmp_path)
        assert loaded.config.max_position_embeddings == 40
        assert_same_bits(loaded.weights_by_name(), model.weights_by_name())
        assert number_of_trained_tensors(loaded) == number_of_trained_tensors(model)

    @pytest.mark.parametrize("size", [0, -1, True, 3.5, None, 1 << 21])
    def test_a_wrong_size_changes_nothing(self, backend, size):
        model = new_model(backend)
        with pytest.raises(ValueError, match=r"(new_num_position|max_position)_embeddings must be .* integer"):
            model.resize_position_embeddings(size)
        assert model.config is CONFIG
        assert_same_bits(model.weights_by_name(), cases.weights())


class TestPrunedHeads:
    def test_they_are_masked_heads(self, backend):
        model = masked_lm(backend)
        expected = run(model, **INPUTS, head_mask=np.array([[1, 0, 1, 1], [0, 1, 0, 1]], np.float32)).logits
        assert model.prune_heads({0: [1], 1: [2, 0]}) is model
        assert_close(run(model, **INPUTS).logits, expected)
        assert model.config.pruned_heads == model.distilbert.config.pruned_heads == {0: (1,), 1: (0, 2)}
        assert model.weights_by_name()["distilbert.transformer.layer.1.attention.q_lin.weight"].shape == (16, 32)

    def test_twice_in_two_steps_is_once(self, backend):
        """Heads keep the numbers that they have in the unpruned model."""
        once = masked_lm(backend).prune_heads({0: [3], 1: [1, 2]})
        twice = masked_lm(backend).prune_heads({1: [1]}).prune_heads({1: {2, 1}, 0: (3,)}).prune_heads({0: range(3, 4)})
        assert once.config == twice.config
        assert_same_bits(twice.weights_by_name(), once.weights_by_name())
        assert_close(run(twice, **INPUTS).logits, run(once, **INPUTS).logits, atol=0)

    @pytest.mark.parametrize("name", ANY_MODEL)
    def test_a_file_remembers_them(self, backend, tmp_path, name):
        model = masked_lm(backend).prune_heads({0: [1], 1: [0, 2]})
        model.save_pretrained(tmp_path, name)
        assert json.loads((tmp_path / "config.json").read_text())["pruned_heads"] == {"0": [1], "1": [0, 2]}
        loaded = load_backend(NEXT[backend]).DistilBertForMaskedLM.from_pretrained(tmp_path)
        assert loaded.config.pruned_heads == model.config.pruned_heads
        assert_same_bits(loaded.weights_by_name(), model.weights_by_name())
        assert_close(run(loaded, **INPUTS).logits, run(model, **INPUTS).logits, TOLERANCE)
        assert_same_bits(loaded.prune_heads({0: [2]}).weights_by_name(), model.prune_heads({0: [2]}).weights_by_name())

    def test_training_reaches_what_is_left(self, backend):
        model = masked_lm(backend, n_layers=1).prune_heads({0: [1]})
        found = gradients(model, LEARNING)
        kernels = [found[f"distilbert.transformer.layer.0.attention.{part}.weight"] for part in ("q_lin", "out_lin")]
        assert sorted(kernels[0].shape) == sorted(kernels[1].shape) == [24, 32]
        assert all(np.abs(kernel).min() > 0 for kernel in kernels)

    @pytest.mark.parametrize(
        "heads",
        [
            {2: [0]},
            {-1: [0]},
            {0: [4]},
            {0: [-1]},
            {0: [0, 1, 2, 3]},
            {1: [1, 2, 3]},  # one is gone already
            {0: [True]},
            {0: [0.5]},
            {0.5: [0]},
            {"first": [0]},
            {0: ["1", 2]},
            {0: 1},
            {0: None},
            [0, 1],
        ],
        ids=str,
    )
    def test_wrong_heads_change_nothing(self, backend, heads):
        model = masked_lm(backend).prune_heads({1: [0]})
        config, before = model.config, model.weights_by_name()
        with pytest.raises(ConfigError, match="pruned_heads") as caught:
            model.prune_heads(heads)
        assert "\n" not in str(caught.value)
        assert model.config is model.distilbert.config is config
        assert_same_bits(model.weights_by_name(), before)

    def test_layers_may_be_named_as_json_names_them(self, backend):
        model = masked_lm(backend).prune_heads({1: [0]}).prune_heads({"1": [2]})
        assert_same_bits(model.weights_by_name(), masked_lm(backend).prune_heads({1: [0, 2]}).weights_by_name())


class TestKeras:
    """What Keras keeps of a model beside its variables follows too."""

    def test_the_order_of_variables_stays(self):
        model, changed = masked_lm("tf", tie_word_embeddings=False), masked_lm("tf", tie_word_embeddings=False)
        changed.resize_token_embeddings(120).resize_position_embeddings(40).prune_heads({0: [1]})
        before, after = ([v.path.removeprefix(m.name) for v in m.trainable_variables] for m in (model, changed))
        assert after == before

    def test_what_was_frozen_can_be_thawed(self):
        model = masked_lm("tf", tie_word_embeddings=False)
        trained = number_of_trained_tensors(model)
        model.distilbert.trainable = False
        frozen = number_of_trained_tensors(model)
        model.resize_token_embeddings(120).prune_heads({0: [1]})
        assert number_of_trained_tensors(model) == frozen
        model.distilbert.trainable = True
        assert number_of_trained_tensors(model) == trained

    def test_predict_and_fit_see_the_new_model(self):
        model = masked_lm("tf", n_layers=1)
        model.compile("sgd")
        model.predict(INPUTS, verbose=0)
        model.fit(LEARNING, verbose=0)
        model.resize_token_embeddings(120).prune_heads({0: [1]})
        assert_close(model.predict(INPUTS, verbose=0).logits, run(model, **INPUTS).logits, TOLERANCE)
        before = model.weights_by_name()
        model.compile("sgd")
        model.fit(LEARNING, verbose=0)
        assert not np.array_equal(model.weights_by_name()[WORD_EMBEDDINGS], before[WORD_EMBEDDINGS])

    def test_a_keras_file_holds_the_new_model(self, tmp_path):
        import keras

        model = masked_lm("tf", tie_word_embeddings=False)
        model.resize_token_embeddings(120).resize_position_embeddings(40).prune_heads({0: [1]})
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        assert loaded.config == model.config
        assert_same_bits(loaded.weights_by_name(), model.weights_by_name())

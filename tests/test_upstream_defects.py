"""Defects of other DistilBERTs that users know, each with the test that it is not here. Versions: of transformers."""

import numpy as np
import pytest

from conformance import cases
from conformance.adapters import ADAPTERS
from distilbert import reference
from distilbert.backends import load_backend
from distilbert.config import DistilBertConfig
from distilbert.errors import ConfigError
from distilbert.positions import sinusoidal_table
from distilbert.weight_map import HEADS, POSITION_EMBEDDINGS, WORD_EMBEDDINGS
from tests.support import new_model, run, to_numpy

IDS, MASKS = cases.input_ids(), cases.masks()
KERNELS = ("pt-eager", "pt-sdpa", "tf", "flax-eager", "flax-xla")
TRAINED = [head for head in HEADS if cases.targets(head)]
ROUNDING = 5e-6  # of float32 in the tiny model


def model_of(kernel, head=cases.MODEL, config=cases.CONFIG):
    return new_model(kernel, config, cases.weights(config, head), head)


def inputs_of(head, **inputs):
    """The inputs per token as the class takes them."""
    inputs = inputs or {"input_ids": IDS, "attention_mask": MASKS["right padding"]}
    return {n: x.reshape(2, 2, *x.shape[1:]) for n, x in inputs.items()} if head == cases.CHOICES else inputs


def specified(head, config=cases.CONFIG, **inputs):
    return reference.HEADS[head](config, cases.weights(config, head), **inputs)


def assert_close(found, expected, atol=ROUNDING):
    np.testing.assert_allclose(to_numpy(found), to_numpy(expected), rtol=0, atol=atol)


def fresh(backend, head, config):
    """A model with the framework's own initial weights."""
    model_class = getattr(load_backend(backend), head)
    if backend != "flax":
        return model_class(config)
    from flax import nnx

    return model_class(config, rngs=nnx.Rngs(0))


def number_of_trained(model):
    """How many parameters the framework itself would train."""
    if hasattr(model, "trainable_variables"):
        return len(model.trainable_variables)
    if hasattr(model, "parameters"):
        return sum(p.requires_grad for p in model.parameters())
    import jax
    from flax import nnx

    return len(jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize("head", HEADS)
def test_float16_with_padding_is_a_number(backend, head):
    """Flax 4.57 subtracts 1e30 in float16: NaN in every output."""
    model = new_model(backend, weights=cases.weights(head=head, dtype="float16"), head=head)
    assert np.isfinite(to_numpy(run(model, **inputs_of(head))[0])).all()


@pytest.mark.parametrize("head", HEADS)
def test_hidden_states_stand_before_attentions(backend, head):
    """Flax 4.57 returns the tuple (last_hidden_state, attentions, hidden_states)."""
    output = run(model_of(backend, head), **inputs_of(head), output_hidden_states=True, output_attentions=True)
    *_, hidden_states, attentions = output
    assert [to_numpy(x).shape for x in hidden_states] == [(4, 12, 32)] * 3
    assert [to_numpy(x).shape for x in attentions] == [(4, 4, 12, 12)] * 2


@pytest.mark.parametrize("head", HEADS)
def test_a_head_mask_acts(backend, head):
    """Flax 4.57 and PyTorch 5.23 take head_mask and ignore it; TensorFlow 4.57 refuses it."""
    inputs = inputs_of(head) | {"head_mask": np.array([[1, 0, 1, 0.5], [0, 1, 1, 1]], np.float32)}
    model = model_of(backend, head)
    found, without = run(model, **inputs)[0], run(model, **inputs_of(head))[0]
    assert_close(found, specified(head, **inputs)[0], 1e-5)
    assert np.abs(to_numpy(found) - to_numpy(without)).max() > 0.01


def test_an_untied_projector_is_used(backend, tmp_path):
    """TensorFlow 4.57 ignores tie_word_embeddings=False and computes logits by the word embeddings."""
    config = cases.CONFIG.replace(tie_word_embeddings=False)
    model = model_of(backend, cases.MASKED_LM, config)
    model.save_pretrained(tmp_path)
    for one in (model, type(model).from_pretrained(tmp_path)):
        assert_close(run(one, IDS).logits, specified(cases.MASKED_LM, config, input_ids=IDS).logits, 1e-5)


class TestSinusoidalPositions:
    """TensorFlow 4.57 ignores the flag, Flax 4.57 drops a stored table, PyTorch 5.23 trains the table."""

    config = cases.CONFIG.replace(sinusoidal_pos_embds=True)

    def test_a_fresh_model_has_the_sinusoid(self, backend):
        for model in (
            fresh(backend, cases.MODEL, self.config),
            load_backend(backend).DistilBertModel.from_config(self.config),
        ):
            assert np.array_equal(model.weights_by_name()[POSITION_EMBEDDINGS], sinusoidal_table(24, 32))

    def test_a_stored_table_wins(self, backend, tmp_path):
        model_of(backend, cases.MODEL, self.config).save_pretrained(tmp_path)
        loaded = load_backend(backend).DistilBertModel.from_pretrained(tmp_path)
        stored = cases.weights()[POSITION_EMBEDDINGS]
        assert loaded.config.sinusoidal_pos_embds
        assert np.array_equal(loaded.weights_by_name()[POSITION_EMBEDDINGS], stored)
        assert_close(run(loaded, IDS).last_hidden_state, specified(cases.MODEL, input_ids=IDS).last_hidden_state)

    def test_the_table_is_not_trained(self, backend, tmp_path):
        model_of(backend, cases.MASKED_LM, self.config).save_pretrained(tmp_path)
        loaded = load_backend(backend).DistilBertForMaskedLM.from_pretrained(tmp_path)
        for model in (fresh(backend, cases.MASKED_LM, self.config), loaded):
            assert POSITION_EMBEDDINGS not in model.trained_parameters()
            assert number_of_trained(model) == len(model.trained_parameters()) == len(model.tensor_specs()) - 2


@pytest.mark.parametrize("head", TRAINED)
def test_integers_of_either_width_are_labels(backend, head):
    """PyTorch 4.57 raises for int32 labels."""
    model, targets = model_of(backend, head), cases.targets(head)
    losses = [
        to_numpy(run(model, **inputs_of(head), **{n: x.astype(kind) for n, x in targets.items()}).loss)
        for kind in (np.int32, np.int64)
    ]
    assert losses[0] == losses[1]
    assert_close(losses[0], specified(head, **inputs_of(head), **targets).loss)


class TestMultipleChoice:
    def test_hidden_states_or_attentions_alone_are_returned(self, backend):
        """Flax 4.57 drops the first extra element: asked for hidden states alone, it returns none."""
        model = model_of(backend, cases.CHOICES)
        states = run(model, **inputs_of(cases.CHOICES), output_hidden_states=True)
        maps = run(model, **inputs_of(cases.CHOICES), output_attentions=True)
        assert [len(states.hidden_states), states.attentions] == [3, ()]
        assert [maps.hidden_states, len(maps.attentions)] == [(), 2]
        assert [to_numpy(x).shape for x in states.hidden_states] == [(4, 12, 32)] * 3
        assert [to_numpy(x).shape for x in maps.attentions] == [(4, 4, 12, 12)] * 2

    def test_position_ids_have_the_axes_of_the_input(self, backend):
        """PyTorch 5.23 does not flatten (batch, num_choices, seq) position_ids: a shape error."""
        positions = np.random.default_rng(3).integers(0, 24, IDS.shape)
        inputs = inputs_of(cases.CHOICES, input_ids=IDS, position_ids=positions)
        assert_close(run(model_of(backend, cases.CHOICES), **inputs).logits, specified(cases.CHOICES, **inputs).logits)


@pytest.mark.parametrize("sinusoidal", [False, True])
def test_more_positions_take_longer_input(backend, sinusoidal):
    """PyTorch 4.57 and 5.23: an AttributeError for a sinusoid; else a buffer of the old length, and rows of N(0, 1)."""
    config = cases.CONFIG.replace(sinusoidal_pos_embds=sinusoidal, max_position_embeddings=8)
    model = model_of(backend, cases.MODEL, config).resize_position_embeddings(400)
    table = model.weights_by_name()[POSITION_EMBEDDINGS]
    assert model.config.max_position_embeddings == len(table) == 400
    if sinusoidal:
        assert np.array_equal(table[8:], sinusoidal_table(400, 32)[8:])
    else:
        assert table[8:].std() == pytest.approx(0.02, rel=0.03)
    ids = np.tile(IDS, (1, 30))[:, :350]
    expected = reference.model(model.config, model.weights_by_name(), ids).last_hidden_state
    assert_close(run(model, ids).last_hidden_state, expected, 1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_every_kernel_starts_from_the_same_normal_distribution(backend, head):
    """Flax 4.57 draws output layers by lecun_normal, TensorFlow 4.57 truncates; neither has a zero row for padding."""
    config = DistilBertConfig(
        vocab_size=2000, max_position_embeddings=64, n_layers=1, n_heads=2, dim=64, hidden_dim=128, num_labels=50,
        pad_token_id=3, initializer_range=0.05, tie_word_embeddings=False,
    )  # fmt: skip
    for model in (fresh(backend, head, config), getattr(load_backend(backend), head).from_config(config)):
        specs, weights = model.tensor_specs(), model.weights_by_name()
        assert not weights[WORD_EMBEDDINGS][3].any()
        for name, array in weights.items():
            if specs[name].module.kind == "norm" or specs[name].leaf == "bias":
                assert (array == (specs[name].leaf == "weight")).all(), name
            else:
                assert array.std() == pytest.approx(0.05, rel=4 / np.sqrt(2 * array.size) + 0.002), name
        assert np.abs(weights[WORD_EMBEDDINGS]).max() > 0.15  # three standard deviations


def test_a_row_without_a_key_attends_uniformly_in_every_kernel():
    """PyTorch 5.23: uniform under eager, a zero vector under sdpa, 1.8e-2 apart."""
    for mask in ("one row all masked", "all rows masked", "4-D per head"):
        expected = specified(cases.MODEL, input_ids=IDS, attention_mask=MASKS[mask])
        for kernel in KERNELS:
            model = model_of(kernel)
            assert_close(run(model, IDS, MASKS[mask]).last_hidden_state, expected.last_hidden_state)
            for one, other in zip(
                run(model, IDS, MASKS[mask], output_attentions=True).attentions, expected.attentions, strict=True
            ):
                assert_close(one, other)
    uniform = specified(cases.MODEL, input_ids=IDS, attention_mask=MASKS["all rows masked"]).attentions[0]
    assert_close(uniform, np.full((4, 4, 12, 12), 1 / 12))


@pytest.mark.parametrize("kernel", KERNELS)
def test_attentions_are_not_empty_under_a_fused_kernel(kernel):
    """PyTorch 5.23 returns () under sdpa; flash attention of 4.57 returns its output in their place."""
    found = run(model_of(kernel), IDS, output_attentions=True).attentions
    for one, other in zip(found, specified(cases.MODEL, input_ids=IDS).attentions, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("head", HEADS)
def test_no_argument_is_swallowed(backend, head):
    """PyTorch 5.23 takes any keyword, token_type_ids among them, and ignores it."""
    model = model_of(backend, head)
    for name, text in (
        ("token_type_ids", "token_type_ids is not an argument: DistilBERT has no token types"),
        ("atention_mask", "atention_mask is not an argument; did you mean attention_mask"),
        ("return_dict", "return_dict is not an argument"),
        ("num_items_in_batch", "num_items_in_batch is not an argument"),
    ):
        with pytest.raises(TypeError, match=text):
            model(**inputs_of(head), **{name: IDS})
    if head not in TRAINED:
        with pytest.raises(TypeError, match="labels is not an argument"):
            model(**inputs_of(head), labels=IDS)


@pytest.mark.parametrize("head", TRAINED)
def test_where_no_target_counts_the_loss_is_zero(backend, head):
    """PyTorch and TensorFlow 4.57: NaN when all labels are -100, or all positions lie outside the sequence."""
    ignored = {name: np.full_like(target, -100) for name, target in cases.targets(head).items()}
    assert to_numpy(run(model_of(backend, head), **inputs_of(head), **ignored).loss) == 0


@pytest.mark.parametrize("head", [cases.MASKED_LM, cases.ANSWERS])
def test_where_no_target_counts_the_gradient_is_zero(backend, head):
    """As above: NaN, which an optimizer writes into every weight."""
    ignored = {name: np.full_like(target, -100) for name, target in cases.targets(head).items()}
    adapter = ADAPTERS[backend](model_of(backend, head), "float32")
    for name, gradient in adapter.by_name(adapter.differentiate(inputs_of(head) | ignored)).items():
        assert (to_numpy(gradient) == 0).all(), name


def test_positions_outside_the_sequence_do_not_count(backend):
    """PyTorch makes 0 of a negative position, which then counts; TensorFlow 4.57 raises."""
    model, inputs = model_of(backend, cases.ANSWERS), inputs_of(cases.ANSWERS)
    outside = {"start_positions": np.array([-1, 3, 12, -100]), "end_positions": np.array([99, 5, 12, -2])}
    inside = {"start_positions": np.array([3]), "end_positions": np.array([5])}
    found = to_numpy(run(model, **inputs, **outside).loss)
    assert_close(found, run(model, **{n: x[1:2] for n, x in inputs.items()}, **inside).loss)
    assert_close(found, specified(cases.ANSWERS, **inputs, **outside).loss)


def test_a_misspelt_problem_type_is_refused():
    """PyTorch 5.23 returns the loss None."""
    with pytest.raises(ConfigError, match=r"problem_type must be one of regression, .*got 'multi_label'"):
        cases.CONFIG.replace(problem_type="multi_label")


def test_labels_do_not_change_the_config(backend):
    """PyTorch writes the problem type of the first call into the config: the next call with other labels then fails."""
    model, inputs = model_of(backend, cases.SEQUENCE), inputs_of(cases.SEQUENCE)
    before = model.config.to_dict()
    for labels in (np.array([2, 0, 1, 1]), np.eye(4, 3, dtype=np.float32)):
        loss = run(model, **inputs, labels=labels).loss
        assert_close(loss, specified(cases.SEQUENCE, **inputs, labels=labels).loss)
    assert model.config.problem_type is None
    assert model.config.to_dict() == before


@pytest.mark.parametrize("value", [2, 0.5, -1, -10000.0, np.nan])
def test_a_mask_of_other_values_is_refused(kernel, value):
    """PyTorch 4.57: eager drops exact zeros, sdpa all but ones; TensorFlow and Flax 4.57 calculate with the value."""
    for name in ("right padding", "4-D"):
        mask = MASKS[name].astype(np.float32)
        mask[..., 0] = value
        with pytest.raises(ValueError, match=f"attention_mask must hold only 1 .* got {value}"):
            model_of(kernel)(IDS, mask)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", [bool, np.int32, np.float32])
def test_masks_of_more_axes_and_any_dtype_are_right_in_every_kernel(kernel, kind):
    """PyTorch 5.23 adds a 4-D mask of bool to the scores under eager, raises for one of int under sdpa."""
    model = model_of(kernel)
    for name in ("3-D", "4-D", "4-D per head"):
        expected = specified(cases.MODEL, input_ids=IDS, attention_mask=MASKS[name]).last_hidden_state
        assert_close(run(model, IDS, MASKS[name].astype(kind)).last_hidden_state, expected)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_numbers_of_numpy_are_labels_of_a_regression(backend, shape, kind):
    """TensorFlow 4.57 raises for NumPy labels with one label."""
    config, labels = cases.CONFIG.replace(num_labels=1), np.array([2.5, -1, 0, 3]).astype(kind).reshape(shape)
    found = run(model_of(backend, cases.SEQUENCE, config), **inputs_of(cases.SEQUENCE), labels=labels).loss
    expected = specified(cases.SEQUENCE, config, **inputs_of(cases.SEQUENCE), labels=labels).loss
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_ids_and_positions_out_of_range_are_refused(backend, head):
    """Flax 4.57 returns NaN without a word, also for input that is too long."""
    model = model_of(backend, head)
    too_large, negative = IDS.copy(), IDS.copy()
    too_large[1, 2], negative[1, 2] = 99, -1
    for inputs, text in (
        ({"input_ids": too_large}, r"input_ids must lie in 0 to 98 \(vocab_size=99\), got 99"),
        ({"input_ids": negative}, r"input_ids must lie in 0 to 98 \(vocab_size=99\), got -1"),
        ({"input_ids": IDS, "position_ids": np.full_like(IDS, 24)}, "position_ids must lie in 0 to 23"),
        ({"input_ids": np.ones((4, 25), int)}, "input_ids has 25 tokens per row, more than max_position_embeddings=24"),
    ):
        with pytest.raises(ValueError, match=text):
            model(**inputs_of(head, **inputs))


def test_the_variance_takes_two_passes(backend):
    """Flax takes E[x^2] - E[x]^2 by default: 3e-3 off at a mean of 100, in every LayerNorm of the model."""
    embeds = np.random.default_rng(5).normal(100.0, 1.0, (2, 3, 32)).astype(np.float32)
    weights = cases.weights()
    for layer in range(2):  # biases that keep the mean of what is normalized at 100
        for norm in ("sa_layer_norm", "output_layer_norm"):
            weights[f"distilbert.transformer.layer.{layer}.{norm}.bias"] += 100
    expected = reference.model(cases.CONFIG, weights, inputs_embeds=embeds)
    found = run(new_model(backend, weights=weights), inputs_embeds=embeds, output_hidden_states=True)
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert_close(one, other, 2e-4)  # float32 steps of 8e-6 at 100


@pytest.mark.parametrize("head", TRAINED)
def test_a_loss_is_one_number(backend, head):
    """TensorFlow 4.57 returns vectors of (batch,) or (1,); Flax 4.57 has no losses at all."""
    loss = run(model_of(backend, head), **inputs_of(head), **cases.targets(head)).loss
    assert to_numpy(loss).shape == ()
    assert_close(loss, specified(head, **inputs_of(head), **cases.targets(head)).loss)


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_several_labels_at_once(backend, problem_type, kind):
    """TensorFlow 4.57 knows no multi-label classification and ignores problem_type."""
    config = cases.CONFIG.replace(problem_type=problem_type)
    labels = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]).astype(kind)
    model, inputs = model_of(backend, cases.SEQUENCE, config), inputs_of(cases.SEQUENCE)
    if problem_type is None and kind is np.int64:  # integers are single labels unless the config says otherwise
        with pytest.raises(ValueError, match=r"labels must have the shape \(4,\).*set problem_type in the config"):
            run(model, **inputs, labels=labels)
        return
    found, expected = (
        run(model, **inputs, labels=labels).loss,
        specified(cases.SEQUENCE, config, **inputs, labels=labels).loss,
    )
    assert_close(found, expected)

"""The three backends against the specification: same tests, same tolerances."""

import numpy as np
import pytest

from conformance import cases
from distilbert import reference
from distilbert.backends import load_backend
from distilbert.config import POOLING_MODES, DistilBertConfig, PoolingConfig
from distilbert.initialization import initial_weights
from tests.support import REFERENCE_FOLDERS, new_model, run, to_numpy

IDS, MASKS = cases.input_ids(), cases.masks()


def assert_close(found, expected):
    """In float32: measured 2.1e-6 over all masks and kernels; the weakest planted fault shows with 3.1e-5."""
    np.testing.assert_allclose(to_numpy(found), expected, rtol=0, atol=5e-6)


def assert_same_output(found, expected):
    for name in ("hidden_states", "attentions"):
        for one, other in zip(getattr(found, name), getattr(expected, name), strict=True):
            assert_close(one, other)


@pytest.mark.parametrize("kind", [bool, np.int32, np.int64, np.float32, np.float64])
def test_a_mask_of_any_dtype_means_the_same(kernel, kind):
    model, mask = new_model(kernel), MASKS["right padding"]
    expected = to_numpy(run(model, IDS, mask).last_hidden_state)
    assert np.array_equal(to_numpy(run(model, IDS.astype(np.int32), mask.astype(kind)).last_hidden_state), expected)


def test_packed_sequences_equal_separate_calls(kernel):
    """A block-diagonal mask and restarting positions: three sequences of four tokens in a row."""
    model = new_model(kernel)
    packed = run(model, IDS, MASKS["3-D"], position_ids=np.tile(np.arange(4), 3)[None]).last_hidden_state
    separate = run(model, IDS.reshape(-1, 4)).last_hidden_state
    np.testing.assert_allclose(to_numpy(packed).reshape(-1, 4, 32), to_numpy(separate), rtol=0, atol=5e-6)
    leaking = run(model, IDS, position_ids=np.tile(np.arange(4), 3)[None]).last_hidden_state
    assert np.abs(to_numpy(leaking).reshape(-1, 4, 32) - to_numpy(separate)).max() > 0.1


def test_positions_embeddings_and_head_mask(kernel):
    model, weights = new_model(kernel), cases.weights()
    positions = np.random.default_rng(3).integers(0, 24, IDS.shape)
    embeds = np.random.default_rng(4).normal(size=(*IDS.shape, 32)).astype(np.float32)
    heads = np.array([[1, 0, 1, 0.5], [0, 1, 1, 1]], np.float32)
    for inputs in (
        {"input_ids": IDS, "position_ids": positions},
        {"inputs_embeds": embeds},
        {"inputs_embeds": embeds, "position_ids": positions[:1], "attention_mask": MASKS["holes"]},
        {"input_ids": IDS, "head_mask": heads},
        {"input_ids": IDS, "head_mask": heads[0], "attention_mask": MASKS["left padding"]},
    ):
        expected = reference.model(cases.CONFIG, weights, **inputs)
        assert_close(run(model, **inputs).last_hidden_state, expected.last_hidden_state)
        assert_same_output(run(model, **inputs, output_hidden_states=True, output_attentions=True), expected)


@pytest.mark.parametrize("mode", POOLING_MODES)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mask", ["none", "right padding", "holes", "one row all masked"])
def test_pooling(backend, mode, normalize, mask):
    pooling = PoolingConfig(mode, normalize)
    expected = reference.sentence_embedding(
        cases.CONFIG, cases.weights(), pooling=pooling, input_ids=IDS, attention_mask=MASKS[mask]
    ).embeddings
    model = new_model(backend, head="DistilBertForSentenceEmbedding", pooling=pooling)
    assert_close(run(model, IDS, MASKS[mask]).embeddings, expected)


@pytest.mark.parametrize("sinusoidal", [False, True])
def test_initial_weights_are_bitwise_equal_in_three_frameworks(sinusoidal):
    config = cases.CONFIG.replace(sinusoidal_pos_embds=sinusoidal)
    expected = initial_weights(config, seed=7)
    assert not expected["distilbert.embeddings.word_embeddings.weight"][0].any()
    for backend in ("pt", "tf", "flax"):
        found = load_backend(backend).DistilBertModel.from_config(config, seed=7).weights_by_name()
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert found[name].dtype == np.float32
            assert found[name].tobytes() == array.tobytes(), name
    other = initial_weights(config, seed=8)
    assert not np.array_equal(
        other["distilbert.transformer.layer.0.ffn.lin1.weight"],
        expected["distilbert.transformer.layer.0.ffn.lin1.weight"],
    )


def test_the_constructor_draws_by_the_same_rule(backend):
    config = cases.CONFIG.replace(vocab_size=4000, initializer_range=0.05, pad_token_id=3)
    module = load_backend(backend)
    if backend == "flax":
        from flax import nnx

        model = module.DistilBertModel(config, rngs=nnx.Rngs(0))
    else:
        model = module.DistilBertModel(config)
    for name, array in model.weights_by_name().items():
        if name.endswith("bias"):
            assert not array.any(), name
        elif name.lower().removesuffix(".weight").endswith("norm"):
            assert (array == 1).all(), name
        elif array.size > 100_000:
            assert array.std() == pytest.approx(0.05, rel=0.02), name
            assert np.abs(array).max() > 0.15, name  # not truncated
    assert not model.weights_by_name()["distilbert.embeddings.word_embeddings.weight"][3].any()


def test_pruned_heads_equal_masked_heads(kernel):
    """A layer built without two of its heads computes what the whole layer does with those heads masked."""
    config = cases.CONFIG.replace(pruned_heads={1: [0, 2]})
    kept, weights = np.repeat([False, True, False, True], 8), cases.weights()
    pruned = dict(weights)
    for part, axis in (("q_lin", 0), ("k_lin", 0), ("v_lin", 0), ("out_lin", 1)):
        name = f"distilbert.transformer.layer.1.attention.{part}"
        pruned[f"{name}.weight"] = weights[f"{name}.weight"].compress(kept, axis)
        if axis == 0:
            pruned[f"{name}.bias"] = weights[f"{name}.bias"].compress(kept)
    expected = reference.model(cases.CONFIG, weights, IDS, head_mask=[[1, 1, 1, 1], [0, 1, 0, 1]])
    assert_close(run(new_model(kernel, config, pruned), IDS).last_hidden_state, expected.last_hidden_state)


def test_what_was_not_asked_for_is_empty(backend):
    output = run(new_model(backend), IDS)
    assert output.hidden_states == ()
    assert output.attentions == ()
    asked = new_model(backend, cases.CONFIG.replace(output_hidden_states=True, output_attentions=True))
    assert [len(part) for part in run(asked, IDS)[1:]] == [3, 2]
    assert run(asked, IDS, output_hidden_states=False, output_attentions=False)[1:] == ((), ())


WRONG_CALLS = {
    "nothing": ({}, ValueError, "exactly one of input_ids and inputs_embeds must be given, got neither"),
    "both": ({"input_ids": IDS, "inputs_embeds": np.zeros((4, 12, 32))}, ValueError, "exactly one of .* got both"),
    "rank": ({"input_ids": IDS[0]}, ValueError, r"input_ids must have the shape \(batch, seq\), got \(12,\)"),
    "no token": ({"input_ids": IDS[:, :0]}, ValueError, "at least one token"),
    "small ids": ({"input_ids": IDS.astype(np.uint8)}, ValueError, "dtype int32 or int64, got uint8"),
    "float ids": ({"input_ids": IDS.astype(np.float32)}, ValueError, "dtype int32 or int64, got float32"),
    "id too large": ({"input_ids": IDS + 80}, ValueError, r"input_ids must lie in 0 to 98 \(vocab_size=99\), got 1"),
    "id beyond int32": ({"input_ids": IDS + 2**32}, ValueError, "input_ids must lie in 0 to 98"),
    "negative id": ({"input_ids": IDS - 99}, ValueError, "input_ids must lie in .* got -9"),
    "too long": ({"input_ids": np.ones((1, 25), int)}, ValueError, "25 tokens per row, more than max_position_embedd"),
    "width": ({"inputs_embeds": np.zeros((1, 2, 31))}, ValueError, r"\(batch, seq, dim=32\), got \(1, 2, 31\)"),
    "mask shape": ({"input_ids": IDS, "attention_mask": np.ones((4, 11))}, ValueError, "attention_mask must have the"),
    "mask value": ({"input_ids": IDS, "attention_mask": np.full((4, 12), 2)}, ValueError, "only 1 .keep. .* got 2"),
    "mask half": ({"input_ids": IDS, "attention_mask": np.full((4, 12), 0.5)}, ValueError, "got 0.5"),
    "position": ({"input_ids": IDS, "position_ids": IDS}, ValueError, "position_ids must lie in 0 to 23"),
    "positions": ({"input_ids": IDS, "position_ids": IDS[0]}, ValueError, "position_ids must have the shape"),
    "head mask": ({"input_ids": IDS, "head_mask": np.ones(3)}, ValueError, r"head_mask must have .* got \(3,\)"),
    "token types": ({"input_ids": IDS, "token_type_ids": IDS}, TypeError, "DistilBERT has no token types"),
    "typo": ({"input_ids": IDS, "attention_maks": IDS}, TypeError, "did you mean attention_mask"),
}


@pytest.mark.parametrize("case", WRONG_CALLS)
def test_wrong_calls_are_refused_by_name(backend, case):
    inputs, error, text = WRONG_CALLS[case]
    for head in ("DistilBertModel", "DistilBertForSentenceEmbedding"):
        with pytest.raises(error, match=text):
            new_model(backend, head=head)(**inputs)


def test_a_sentence_embedding_needs_a_mask_of_tokens(backend):
    with pytest.raises(ValueError, match=r"shape \(batch, seq\) for a sentence embedding"):
        new_model(backend, head="DistilBertForSentenceEmbedding")(IDS, MASKS["3-D"])


def test_wrong_settings_are_refused():
    with pytest.raises(
        ValueError, match="attn_implementation must be one of sdpa, eager, flash_attention_2, got 'flash'"
    ):
        new_model("pt").set_attn_implementation("flash")
    for backend in ("pt", "tf", "flax"):
        with pytest.raises(ValueError, match="dtype must be one of"):
            load_backend(backend).DistilBertModel.from_pretrained(REFERENCE_FOLDERS[0], dtype="int8")
    with pytest.raises(ValueError, match="float64 needs JAX's x64 mode"):
        load_backend("flax").DistilBertModel.from_pretrained(REFERENCE_FOLDERS[0], dtype="float64")


def test_a_row_does_not_depend_on_its_neighbours(kernel):
    """Alone and unpadded, or in a padded batch: the same numbers to rounding."""
    model, mask = new_model(kernel), MASKS["right padding"]
    together = to_numpy(run(model, IDS, mask).last_hidden_state)
    for row, length in enumerate(mask.sum(1)):
        alone = to_numpy(run(model, IDS[row : row + 1, :length]).last_hidden_state)
        np.testing.assert_allclose(together[row, :length], alone[0], rtol=0, atol=5e-6)


def test_base_size(backend):
    """Released size, random weights: the rounding stays within the bound that the design sets for it."""
    config = DistilBertConfig(n_layers=6)
    weights = initial_weights(config)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 32))
    expected = reference.model(config, weights, ids)
    model = load_backend(backend).DistilBertModel.from_config(config)
    found = run(model, ids, output_hidden_states=True)
    worst = max(np.abs(to_numpy(a) - b).max() for a, b in zip(found.hidden_states, expected.hidden_states, strict=True))
    assert worst < 2e-5


def gradients_are_finite(backend, model, ids, mask):
    """Whether every gradient of the summed embeddings is a number."""
    if backend == "pt":
        model(ids, mask).embeddings.sum().backward()
        return all(p.grad.isfinite().all() for p in model.parameters())
    if backend == "tf":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            total = tf.reduce_sum(model(ids, mask).embeddings)
        found = tape.gradient(total, model.trainable_variables)
        return all(np.isfinite(tf.convert_to_tensor(g)).all() for g in found)
    import jax
    from flax import nnx

    return all(np.isfinite(g).all() for g in jax.tree.leaves(nnx.grad(lambda m: m(ids, mask).embeddings.sum())(model)))


@pytest.mark.parametrize("mode", ["mean", "max"])
@pytest.mark.parametrize("mask", ["one row all masked", "all rows masked"])
def test_gradients_are_finite_when_a_row_has_no_token(backend, mode, mask):
    model = new_model(backend, head="DistilBertForSentenceEmbedding", pooling=PoolingConfig(mode, normalize=True))
    assert gradients_are_finite(backend, model, IDS, MASKS[mask])


def test_weights_are_assigned_all_or_none(backend):
    model = new_model(backend)
    before = {name: array.copy() for name, array in model.weights_by_name().items()}
    name = "distilbert.transformer.layer.1.output_layer_norm.bias"
    wrong = {n: a + 1 for n, a in cases.weights().items()}
    for change, text in [
        (lambda w: w.pop(name), f"missing: \\['{name}'\\]"),
        (lambda w: w.update(extra=w[name]), "unknown: \\['extra'\\]"),
        (lambda w: w.update({name: w[name][:-1]}), f"{name} must have the shape \\(32,\\), got \\(31,\\)"),
    ]:
        weights = dict(wrong)
        change(weights)
        with pytest.raises(ValueError, match=text):
            model.assign(weights)
        assert all(np.array_equal(model.weights_by_name()[n], a) for n, a in before.items())
    source = cases.weights()
    model.assign(source)
    source[name][...] = 7  # the model has its own copy
    assert np.array_equal(model.weights_by_name()[name], before[name])


def test_arrays_of_any_memory_layout(kernel):
    model, mask = new_model(kernel), MASKS["right padding"]
    expected = to_numpy(run(model, IDS[:, ::-1].copy(), mask[:, ::-1].copy()).last_hidden_state)
    frozen = IDS[:, ::-1]
    frozen.flags.writeable = False
    assert np.array_equal(to_numpy(run(model, frozen, mask[:, ::-1]).last_hidden_state), expected)


def test_what_pruned_heads_make_ambiguous_is_refused(backend):
    config = cases.CONFIG.replace(pruned_heads={0: [1]})
    model = load_backend(backend).DistilBertModel.from_config(config)
    with pytest.raises(ValueError, match="head_mask cannot be used with pruned_heads"):
        model(IDS, head_mask=np.ones(4, np.float32))
    with pytest.raises(ValueError, match="attention_mask must have the shape"):
        model(IDS, MASKS["4-D per head"])
    assert to_numpy(model(IDS, MASKS["4-D"]).last_hidden_state).shape == (4, 12, 32)


def test_an_encoder_leaves_the_model_as_it_was(backend, minilm):
    """A model in training mode embeds without dropout, and is in training mode afterwards."""
    from distilbert.tasks.embedding import SentenceEncoder

    encoder = SentenceEncoder.from_pretrained(minilm / "safetensors", backend=backend, precision=None)
    calm = encoder.encode(["one text", "another"])
    assert encoder.encode("one text").shape == (384,)
    np.testing.assert_allclose(encoder.encode("one text"), calm[0], rtol=0, atol=1e-6)
    if backend != "tf":
        encoder.model.train()
        np.testing.assert_allclose(encoder.encode(["one text", "another"]), calm, rtol=0, atol=1e-6)
        one, other = (
            to_numpy(encoder.model(**encoder.tokenizer("one text", return_tensors="np")).embeddings) for _ in range(2)
        )
        assert np.abs(one - other).max() > 1e-4
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        encoder.encode(["a"], batch_size=0)

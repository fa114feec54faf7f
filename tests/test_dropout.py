"""Dropout: only in training, only at the documented places, each with its own rate; elsewhere the specification holds.

Every place is seen by itself: its rate is 0.4 and all others 0, and what comes before and after it is computed by the
specification from what the model returns. Axes: batch, seq, dim, n_heads.
"""

import math

import numpy as np
import pytest

from conformance import cases
from distilbert import reference
from distilbert.backends import load_backend
from distilbert.weight_map import HEADS
from tests.support import new_model, run, to_numpy

RATE = 0.4
RATES = ("dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout")
OF_HEAD = {
    cases.TOKENS: "dropout",
    cases.ANSWERS: "qa_dropout",
    cases.SEQUENCE: "seq_classif_dropout",
    cases.CHOICES: "seq_classif_dropout",
}
COPIES = 100
MASK = np.concatenate([cases.masks()["holes"]] * COPIES)
INPUTS = {"input_ids": np.concatenate([cases.input_ids()] * COPIES), "attention_mask": MASK}
FULL = {"output_hidden_states": True, "output_attentions": True}
LAYERS = [f"distilbert.transformer.layer.{i}" for i in range(cases.CONFIG.n_layers)]
DIM = cases.CONFIG.dim


def config_with(*names):
    """The rates of these names are RATE, all others 0. As many labels as dimensions: see `weights_of`."""
    rates = {name: RATE if name in names else 0.0 for name in RATES}
    return cases.CONFIG.replace(id2label={i: str(i) for i in range(DIM)}, **rates)


def weights_of(config, head=cases.MODEL):
    """As everywhere, but an output layer copies its inputs to the logits, as many as it has logits."""
    weights = cases.weights(config, head)
    for name in ("classifier", "qa_outputs"):
        if f"{name}.weight" in weights:
            weights[f"{name}.weight"] = np.eye(*weights[f"{name}.weight"].shape, dtype=np.float32)
            weights[f"{name}.bias"] = np.zeros_like(weights[f"{name}.bias"])
    return weights


def seeded_model(kernel, config, head=cases.MODEL, weights=None):
    """A model whose dropout is the same in every run of these tests."""
    if kernel == "tf":
        import keras

        keras.utils.set_random_seed(5)
    if kernel.startswith("pt"):
        import torch

        torch.manual_seed(5)
    return new_model(kernel, config, weights_of(config, head) if weights is None else weights, head)


def in_training(module, *arguments, **inputs):
    """Call a model or a part of one with dropout."""
    if type(module).__module__.startswith("distilbert.tf"):
        return module(*arguments, **inputs, training=True)
    module.train()
    return module(*arguments, **inputs)


def trained_run(model, **inputs):
    with load_backend(type(model).__module__.split(".")[1]).exact("float32"):
        return in_training(model, **inputs)


def in_choices(inputs, head):
    return {n: x.reshape(-1, 2, 12) for n, x in inputs.items()} if head == cases.CHOICES else inputs


def assert_close(found, expected):
    np.testing.assert_allclose(to_numpy(found), to_numpy(expected), rtol=0, atol=2e-5)


def assert_dropped(found, calm, *, copies=COPIES):
    """`found` is `calm` with 0.4 of its elements zero, each by its own chance, and the others divided by 0.6.

    Both: (batch, ...), a batch of `copies` equal ones.
    """
    found, calm = to_numpy(found), to_numpy(calm)
    assert found.shape == calm.shape
    calm_zero = np.abs(calm) < 1e-9
    dropped = (found == 0) & ~calm_zero
    assert_close(found, np.where(dropped, 0.0, calm / (1 - RATE)))
    count = (~calm_zero).sum()
    assert abs(dropped.sum() / count - RATE) < 4 * math.sqrt(RATE * (1 - RATE) / count)
    per_copy = calm.reshape(copies, -1, *calm.shape[1:])
    deviation = found.reshape(per_copy.shape).mean(0) - per_copy.mean(0)
    sigma = np.abs(per_copy.mean(0)) * math.sqrt(RATE / (1 - RATE) / copies)
    assert (np.abs(deviation) <= 5 * sigma + 1e-5).all()  # the mean of many repetitions is the calm result
    if calm_zero.any():
        return
    for axis in range(found.ndim):  # were a chance shared along an axis, all or none would be dropped along it
        expected = math.sqrt(RATE * (1 - RATE) / found.shape[axis])
        assert dropped.mean(axis).std() == pytest.approx(expected, rel=0.15)


def embedded():
    """The embedding output by the specification."""
    return reference.model(cases.CONFIG, cases.weights(), **INPUTS).hidden_states[0]


def block(x, weights, layer, factors=1.0):
    """One layer without dropout by the specification, its probabilities times `factors`."""
    keep = reference.keep_mask(MASK, *MASK.shape)
    return reference.block(to_numpy(x), weights, LAYERS[layer], cases.CONFIG, keep, factors)


class TestEncoder:
    def test_the_embedding_output_is_dropped_after_its_layer_norm(self, backend):
        model = seeded_model(backend, config_with("dropout"))
        one, other = (trained_run(model, **INPUTS, **FULL).hidden_states[0] for _ in range(2))
        assert_dropped(one, embedded())
        assert (to_numpy(one) != to_numpy(other)).mean() > 0.4

    def test_the_feed_forward_output_is_dropped_after_lin2(self, backend):
        config = config_with("dropout")
        model, x = seeded_model(backend, config), embedded().astype(np.float32)
        native = run(model, **INPUTS, output_hidden_states=True).hidden_states[0]
        for layer in range(config.n_layers):
            with load_backend(backend).exact("float32"):
                found = in_training(model.transformer.layer[layer].ffn, native)
            assert_dropped(found, reference.feed_forward(x, weights_of(config), f"{LAYERS[layer]}.ffn", config))

    def test_nothing_else_in_a_block_is_dropped(self, kernel):
        """Above all not the output of out_lin: where the feed-forward output is zero, blocks are as without dropout."""
        config = config_with("dropout")
        weights = weights_of(config)
        for name in [name for name in weights if "ffn.lin2" in name]:
            weights[name] = np.zeros_like(weights[name])
        model = seeded_model(kernel, config, weights=weights)
        for options in (FULL, {"output_hidden_states": True}):  # the plain and the fused kernel
            states = trained_run(model, **INPUTS, **options).hidden_states
            for layer in range(config.n_layers):
                assert_close(states[layer + 1], block(states[layer], weights, layer)[0])

    def test_probabilities_are_dropped_and_nothing_else_with_attention_dropout(self, backend):
        """What is returned are the probabilities after dropout: those that the values were weighted with."""
        config = config_with("attention_dropout")
        weights, masks = weights_of(config), []
        output = trained_run(seeded_model(backend, config), **INPUTS, **FULL)
        assert_close(output.hidden_states[0], embedded())
        for layer, found in enumerate(map(to_numpy, output.attentions)):
            before, after = output.hidden_states[layer : layer + 2]
            calm = block(before, weights, layer)[1]
            masks.append(found != 0)
            assert_close(after, block(before, weights, layer, masks[-1] / (1 - RATE))[0])
            if layer == 0:  # later layers have another input in each copy
                assert_dropped(found, calm)
            assert np.abs(found.sum(-1) - 1).max() > 0.3  # rows need not sum to 1
        assert 0.3 < (masks[0] != masks[1])[:, :, :, 0].mean() < 0.6  # of two layers; the first key is always kept

    @pytest.mark.parametrize("kernel", ["pt-sdpa", "flax-xla"])
    def test_the_fused_kernels_drop_probabilities_too(self, kernel):
        """Their output, linear in the probabilities, has the mean of the calm output and the spread of the plain one."""
        config = config_with("attention_dropout")
        model, name = seeded_model(kernel, config), f"{LAYERS[0]}.attention"
        x = run(model, **INPUTS, output_hidden_states=True).hidden_states[0]
        calm = reference.self_attention(to_numpy(x), weights_of(config), name, config, np.True_, 1.0)[0]
        with load_backend(kernel.partition("-")[0]).exact("float32"):
            fused, plain = (
                to_numpy(in_training(model.transformer.layer[0].attention, x, None, None, attentions)[0])
                for attentions in (False, True)
            )
        fused, plain, calm = (array.reshape(COPIES, 4, 12, DIM) for array in (fused, plain, calm))
        spread = fused.std(0)
        assert (np.abs(fused.mean(0) - calm[0]) < 5 * spread / math.sqrt(COPIES)).all()
        assert spread.mean() == pytest.approx(plain.std(0).mean(), rel=0.05)
        assert spread.min() > 0

    def test_pytorchs_fused_kernel_drops_with_the_given_rate(self):
        """With the unit matrix as values its context is the probabilities."""
        import torch

        from distilbert.pt.attention import attend_fused

        torch.manual_seed(5)
        q, k = (torch.randn(1, 4, 12, 12).repeat(COPIES, 1, 1, 1) for _ in range(2))
        values = torch.eye(12).expand_as(q)
        assert_dropped(attend_fused(q, k, values, None, RATE), attend_fused(q, k, values, None, 0.0))

    @pytest.mark.parametrize("rate", ["qa_dropout", "seq_classif_dropout"])
    def test_the_rates_of_heads_do_not_act_in_the_encoder(self, backend, rate):
        config = config_with(rate)
        found = trained_run(seeded_model(backend, config), **INPUTS, **FULL)
        expected = reference.model(config, weights_of(config), **INPUTS)
        for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
            assert_close(one, other)


def before_the_output_layer(head, weights, hidden):
    """What the output layer of a head gets without dropout, as many of its elements as there are logits."""
    if head in (cases.SEQUENCE, cases.CHOICES):
        pooled = np.maximum(reference.linear(hidden[:, 0], weights, "pre_classifier"), 0.0)
        return pooled if head == cases.SEQUENCE else pooled[:, 0].reshape(-1, 2)
    return hidden if head == cases.TOKENS else hidden[:, :, :2]


def logits_of(head, output):
    """Of a model with the weights of `weights_of`: the elements that its output layer got."""
    if head == cases.ANSWERS:
        return np.stack([to_numpy(output.start_logits), to_numpy(output.end_logits)], -1)
    return to_numpy(output.logits)


class TestHeads:
    @pytest.mark.parametrize("rate", RATES)
    @pytest.mark.parametrize("head", OF_HEAD)
    def test_each_head_drops_before_its_output_layer_with_its_own_rate_only(self, backend, head, rate):
        """Of the classifiers after the ReLU: what the hidden states make of pre_classifier, then zeros."""
        config = config_with(rate)
        output = trained_run(seeded_model(backend, config, head), **in_choices(INPUTS, head), output_hidden_states=True)
        hidden = to_numpy(output.hidden_states[-1])
        calm, found = before_the_output_layer(head, weights_of(config, head), hidden), logits_of(head, output)
        if OF_HEAD[head] != rate:
            assert_close(found, calm)
        elif rate == "dropout":  # which acts in the encoder too: each copy is a case of its own
            assert_dropped(found, calm, copies=1)
        else:
            assert_dropped(found, calm)

    @pytest.mark.parametrize("rate", RATES)
    def test_the_masked_lm_head_drops_nothing(self, backend, rate):
        config = config_with(rate)
        output = trained_run(seeded_model(backend, config, cases.MASKED_LM), **INPUTS, output_hidden_states=True)
        hidden, weights = to_numpy(output.hidden_states[-1]), weights_of(config, cases.MASKED_LM)
        assert_close(output.logits, reference.vocab_logits(hidden, weights, config))

    def test_pooling_drops_nothing(self, backend):
        config = config_with(*RATES)
        output = trained_run(seeded_model(backend, config, cases.SENTENCE), **INPUTS, output_hidden_states=True)
        expected = reference.pool(to_numpy(output.hidden_states[-1]), MASK, reference.PoolingConfig())
        assert_close(output.embeddings, expected)


@pytest.mark.parametrize("head", HEADS)
def test_outside_of_training_nothing_is_dropped(kernel, head):
    """Also after training, and the same in every call: the specification's numbers."""
    config = config_with(*RATES)
    weights = cases.weights(config, head)
    model = seeded_model(kernel, config, head, weights)
    few = in_choices({"input_ids": cases.input_ids(), "attention_mask": cases.masks()["holes"]}, head)
    one, noisy = run(model, **few), trained_run(model, **few)
    if kernel != "tf":
        model.eval()
    other = run(model, **few, **({"training": False} if kernel == "tf" else {}))
    assert np.array_equal(to_numpy(one[0]), to_numpy(other[0]))
    assert np.abs(to_numpy(noisy[0]) - to_numpy(one[0])).max() > 0.05
    assert_close(one[0], reference.HEADS[head](config, weights, **few)[0])

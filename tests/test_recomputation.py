"""Gradient checkpointing: the same numbers, computed twice; the same facts in every backend."""

import numpy as np
import pytest

from conformance.adapters import ADAPTERS
from distilbert.backends import load_backend
from distilbert.weight_map import WORD_EMBEDDINGS
from tests.masked_lm import (
    INPUTS,
    LEARNING,
    assert_close,
    assert_close_by_name,
    backend_of,
    gradients,
    masked_lm,
)
from tests.support import new_model, run, to_numpy


def seeded(backend, **changes):
    """A masked LM in training mode whose dropout is always the same, and its inputs."""
    if backend == "tf":
        import keras

        keras.utils.set_random_seed(5)
    model = masked_lm(backend, **changes)
    if backend == "tf":
        return model, LEARNING | {"training": True}
    if backend == "pt":
        import torch

        torch.manual_seed(5)
    model.train()
    return model, LEARNING


def counted(backend, calls):
    """The activation, which notes when it is computed."""
    function = load_backend(backend).model.ACTIVATIONS["gelu"]

    def activation(x):
        if backend == "flax":
            import jax

            jax.debug.callback(lambda: calls.append(1))
        else:
            calls.append(1)
        return function(x)

    return activation


class TestGradientCheckpointing:
    @pytest.fixture(autouse=True)
    def quick_compilation(self):
        """XLA's optimizations of graphs that run once take most of the time."""
        import jax

        before = jax.config.read("jax_disable_most_optimizations")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", before)

    @pytest.mark.parametrize("options", [{}, {"output_attentions": True, "output_hidden_states": True}])
    def test_loss_and_gradients_stay(self, kernel, options):
        model, inputs = masked_lm(kernel, n_layers=1), LEARNING | options
        loss, expected = to_numpy(run(model, **inputs).loss), gradients(model, inputs)
        states = run(model, **inputs)[2:]
        assert model.gradient_checkpointing_enable() is model
        assert_close(run(model, **inputs).loss, loss, atol=1e-6)
        assert_close_by_name(gradients(model, inputs), expected)
        for found, before in zip(run(model, **inputs)[2:], states, strict=True):
            assert len(found) == len(before)
            for one, other in zip(found, before, strict=True):
                assert_close(one, other)

    def test_the_recomputation_drops_what_the_first_one_dropped(self, kernel):
        rates = {"n_layers": 1, "dropout": 0.4, "attention_dropout": 0.4}
        backend = kernel.partition("-")[0]
        model, inputs = seeded(backend, **rates)
        expected, later = gradients(model, inputs), gradients(model, inputs)
        assert np.abs(expected[WORD_EMBEDDINGS] - later[WORD_EMBEDDINGS]).max() > 1e-3  # dropout acts
        model, inputs = seeded(backend, **rates)
        model.gradient_checkpointing_enable()
        assert_close_by_name(gradients(model, inputs), expected)
        assert_close_by_name(gradients(model, inputs), later)  # the generators went on as they do without

    def test_each_block_is_computed_twice_until_disabled(self, backend, monkeypatch):
        calls = []
        monkeypatch.setitem(load_backend(backend).model.ACTIVATIONS, "gelu", counted(backend, calls))
        model = new_model(backend)
        for change, expected in (
            (lambda: model, 2),
            (model.gradient_checkpointing_enable, 4),
            (model.gradient_checkpointing_disable, 2),
        ):
            change()
            calls.clear()
            gradients(model, INPUTS)
            assert len(calls) == expected

    @pytest.mark.parametrize("backend", ["tf", "flax"])
    def test_compiled_gradients_are_the_same(self, backend):
        found, options = [], {"output_attentions": True, "output_hidden_states": True}
        for change in ("gradient_checkpointing_disable", "gradient_checkpointing_enable"):
            model, inputs = seeded(backend, n_layers=1, dropout=0.4, attention_dropout=0.4)
            getattr(model, change)()
            found.append(compiled_gradients(model, inputs | options))
        assert_close_by_name(found[1], found[0])

    def test_the_head_mask_has_a_gradient(self, backend):
        """As it has without: what a study of the heads' importance needs."""
        mask = np.full((1, 4), 0.5, np.float32)
        model = masked_lm(backend, n_layers=1)
        expected = gradient_of_head_mask(model, mask)
        assert np.abs(expected).min() > 0
        model.gradient_checkpointing_enable()
        np.testing.assert_allclose(gradient_of_head_mask(model, mask), expected, rtol=0, atol=1e-6)

    def test_keras_fit_follows_the_switch(self, monkeypatch):
        calls = []
        monkeypatch.setitem(load_backend("tf").model.ACTIVATIONS, "gelu", counted("tf", calls))
        model = masked_lm("tf", n_layers=1)
        model.compile("sgd", jit_compile=False)
        model.fit(LEARNING, verbose=0)
        plain = len(calls)
        calls.clear()
        model.gradient_checkpointing_enable()
        model.fit(LEARNING, verbose=0)
        assert len(calls) > plain


def compiled_gradients(model, inputs):
    """As `gradients`, from tf.function or nnx.jit."""
    adapter = ADAPTERS[backend_of(model)](model, "float32")
    if backend_of(model) == "tf":
        import tensorflow as tf

        found = tf.function(lambda: adapter.differentiate(inputs))()
    else:
        from flax import nnx

        found = nnx.jit(lambda m: ADAPTERS["flax"](m, "float32").differentiate(inputs))(model)
    return {name: np.array(gradient) for name, gradient in adapter.by_name(found).items()}


def gradient_of_head_mask(model, mask):
    backend = backend_of(model)
    if backend == "pt":
        import torch

        mask = torch.tensor(mask, requires_grad=True)
        return torch.autograd.grad(model(**LEARNING, head_mask=mask).loss, mask)[0].numpy()
    if backend == "tf":
        import tensorflow as tf

        mask = tf.constant(mask)
        with tf.GradientTape() as tape:
            tape.watch(mask)
            loss = model(**LEARNING, head_mask=mask).loss
        return tape.gradient(loss, mask).numpy()
    import jax

    return np.asarray(jax.grad(lambda factors: model(**LEARNING, head_mask=factors).loss)(mask))

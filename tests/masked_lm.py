"""A masked LM in each backend, its gradients and steps: what the tests of sizes, tying and recomputation share."""

import numpy as np

from conformance import cases
from conformance.adapters import ADAPTERS
from distilbert.backends import load_backend
from tests.support import new_model, to_numpy

CONFIG, MASKED_LM, IDS = cases.CONFIG, cases.MASKED_LM, cases.input_ids()
INPUTS = {"input_ids": IDS, "attention_mask": cases.masks()["right padding"]}
LEARNING = INPUTS | cases.targets(MASKED_LM)
NEXT = {"pt": "tf", "tf": "flax", "flax": "pt"}
TOLERANCE = 5e-6  # between a float32 model and the specification, as conformance has it
ROUNDING = 5e-6  # between two float32 models: the tolerance of the specification; 4.2e-6 measured without AVX-512


def masked_lm(backend, dtype="float32", **changes):
    config = CONFIG.replace(**changes)
    return new_model(backend, config, cases.weights(config, MASKED_LM, dtype=dtype), MASKED_LM)


def in_next_framework(model, folder, **options):
    """The model, saved and loaded by another backend."""
    backend = backend_of(model)
    model.save_pretrained(folder)
    return getattr(load_backend(NEXT[backend]), type(model).__name__).from_pretrained(folder, **options)


def backend_of(model):
    return type(model).__module__.split(".")[1]


def gradients(model, inputs):
    """Of the loss, by canonical name, in the framework's orientation."""
    adapter = ADAPTERS[backend_of(model)](model, "float32")
    with adapter.module.exact("float32"):
        found = adapter.by_name(adapter.differentiate(inputs))
    return {name: np.array(adapter.array(gradient)) for name, gradient in found.items()}


def step(model, inputs):
    """One step of AdamW: the trained tensors after it, by canonical name."""
    return ADAPTERS[backend_of(model)](model, "float32").step(inputs, learning_rate=0.01)[1]


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def assert_close(found, expected, atol=ROUNDING):
    np.testing.assert_allclose(to_numpy(found), to_numpy(expected), rtol=0, atol=atol)


def assert_close_by_name(found, expected, atol=1e-6):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=atol, err_msg=name)


def number_of_trained_tensors(model):
    backend = backend_of(model)
    if backend == "pt":
        return sum(p.requires_grad for p in model.parameters())
    if backend == "tf":
        return len(model.trainable_variables)
    import jax
    from flax import nnx

    return len(jax.tree.leaves(nnx.state(model, nnx.Param)))

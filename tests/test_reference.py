"""The specification itself, against the reference implementation's float64 results and against planted faults."""

import math

import numpy as np
import pytest

from conformance import cases
from conformance.mutants import MUTANTS, planted
from distilbert import reference
from distilbert.checkpoint.loading import open_checkpoint
from distilbert.config import PoolingConfig
from distilbert.positions import sinusoidal_table
from tests.support import KERNELS, REFERENCE_FOLDERS, new_model, reference_case, run, to_numpy


@pytest.mark.parametrize("folder", REFERENCE_FOLDERS, ids=lambda f: f.name)
def test_reference_agrees_with_the_reference_implementation(folder):
    inputs, expected = reference_case(folder)
    source = open_checkpoint(folder, "DistilBertModel", dtype="float64")
    output = reference.model(source.config, dict(source), inputs["input_ids"], inputs["attention_mask"])
    np.testing.assert_allclose(output.last_hidden_state, expected["last_hidden_state"], rtol=0, atol=1e-12)
    for i, hidden in enumerate(output.hidden_states):
        np.testing.assert_allclose(hidden, expected[f"hidden_states.{i}"], rtol=0, atol=1e-12)
    for i, attention in enumerate(output.attentions):
        np.testing.assert_allclose(attention, expected[f"attentions.{i}"], rtol=0, atol=1e-12)


def test_activations_at_known_points():
    one = np.array([1.0])
    known = {
        "gelu": 0.5 * (1 + math.erf(1 / math.sqrt(2))),
        "gelu_new": 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * 1.044715)),
        "quick_gelu": 1 / (1 + math.exp(-1.702)),
        "relu": 1.0,
        "silu": 1 / (1 + math.exp(-1)),
        "swish": 1 / (1 + math.exp(-1)),
        "tanh": math.tanh(1),
    }
    assert {name: pytest.approx(f(one)[0], abs=1e-15) for name, f in reference.ACTIVATIONS.items()} == known


def test_sinusoidal_table_is_the_papers():
    table = sinusoidal_table(20, 8)
    assert table[0].tolist() == [0, 1] * 4
    for p, j in [(1, 0), (3, 5), (19, 6)]:
        angle = p / 10000 ** (2 * (j // 2) / 8)
        assert table[p, j] == np.float32(math.cos(angle) if j % 2 else math.sin(angle))


def test_a_row_without_a_token_is_pooled_to_zero():
    hidden = np.random.default_rng(0).normal(size=(2, 3, 4))
    mask = np.array([[1, 1, 0], [0, 0, 0]])
    for mode in ("mean", "max", "mean_sqrt_len"):
        pooled = reference.pool(hidden, mask, PoolingConfig(mode, normalize=True))
        assert np.linalg.norm(pooled[0]) == pytest.approx(1.0)
        assert not pooled[1].any()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_backend_notices_every_mutant(kernel, mutant):
    """A comparison that passes must fail when the reference is made wrong."""
    weights, ids, mask = cases.weights(), cases.input_ids(), cases.masks()["right padding"]
    model = new_model(kernel, head="DistilBertForSentenceEmbedding")
    output = run(model, ids, mask, output_hidden_states=True)

    def largest(weights):
        expected = reference.sentence_embedding(cases.CONFIG, weights, PoolingConfig(), ids, mask)
        pairs = [
            *zip(output.hidden_states, expected.hidden_states, strict=True),
            (output.embeddings, expected.embeddings),
        ]
        return max(np.abs(to_numpy(found) - wanted).max() for found, wanted in pairs)

    assert largest(weights) < cases.TOLERANCES["float32"]
    with planted(mutant):
        assert largest(mutant.alter(weights)) > 2 * cases.TOLERANCES["float32"]

"""The specification itself, against the reference implementation's float64 results and against central differences."""

import math

import numpy as np
import pytest

from conformance import cases, goldens
from conformance.comparison import differences, output_parts
from distilbert import reference, reference_training, weight_map
from distilbert.checkpoint.opening import open_checkpoint
from distilbert.config import PoolingConfig
from distilbert.positions import sinusoidal_table


@pytest.mark.parametrize("folder", goldens.FOLDERS, ids=lambda f: f.name)
def test_reference_agrees_with_the_reference_implementation(folder):
    """Outputs, every hidden state and attention map, loss and every gradient, in float64."""
    head, inputs, expected = goldens.head_of(folder), goldens.inputs(folder), goldens.expected(folder)
    source = open_checkpoint(folder, head, dtype="float64")
    found = output_parts(reference.HEADS[head](source.config, dict(source), **inputs))
    if "gradients" in expected:
        found["gradients"] = reference_training.gradients(head, source.config, dict(source), inputs)
        assert len(found["gradients"]) > 35
    worst = differences(expected, found)
    assert worst.keys() == expected.keys()
    assert max(worst["outputs"], worst["loss"]) < 1e-14
    assert worst.get("gradients", 0) < 1e-12  # measured 8e-14


def loss_of(case, weights):
    output = reference.HEADS[case.head](case.config, weights, **case.settings, **case.inputs())
    return reference_training.objective(output)


@pytest.mark.parametrize(
    "case",
    [case for case in cases.cases() if case.dtype == "float64"],
    ids=lambda case: f"{case.head.removeprefix('DistilBert')}-{case.option.name}-{case.mask}",
)
def test_gradients_equal_central_differences(case):
    """Each tensor moved a little along a random direction: what the loss does, and what the gradient says it does.

    A tied projector moves with the word embeddings. Measured: at most 1.3e-9 of the largest derivative, which is what the
    step leaves of rounding and curvature.
    """
    weights, random, step = {n: w.astype(np.float64) for n, w in case.weights().items()}, np.random.default_rng(0), 2e-6
    gradients = reference_training.gradients(case.head, case.config, weights, case.inputs(), **case.settings)
    assert gradients.keys() == weight_map.trained(case.config, case.head, **case.settings).keys()
    said, done = {}, {}
    for name, gradient in gradients.items():
        direction = random.normal(size=gradient.shape)
        if name == weight_map.WORD_EMBEDDINGS:
            direction[case.config.pad_token_id] = 0.0  # its looked-up row gets no gradient on purpose
        also = weight_map.tied(case.config, case.head) if name == weight_map.WORD_EMBEDDINGS else ()
        moved = [weights[name] + sign * step * direction for sign in (1, -1)]
        ahead, back = (weights | dict.fromkeys((name, *also), tensor) for tensor in moved)
        said[name] = (gradient * direction).sum()
        done[name] = (loss_of(case, ahead) - loss_of(case, back)) / (2 * step)
    largest = max(map(abs, said.values())) or 1.0
    assert max(abs(said[name] - done[name]) for name in said) < 1e-8 * largest


def test_adamw_is_the_papers():
    """Two numbers by hand: the first step moves each weight by the learning rate, after the decay."""
    moved = reference_training.adamw(
        np.array([2.0, -4.0]), np.array([0.5, -3.0]), learning_rate=0.1, weight_decay=0.01, eps=0.0
    )
    np.testing.assert_allclose(moved, [2.0 - 0.1 - 0.1 * 0.01 * 2.0, -4.0 + 0.1 + 0.1 * 0.01 * 4.0], rtol=1e-15)


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
        "identity": 1,
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
        pooled = reference.sentence_vectors(hidden, mask, PoolingConfig(mode, normalize=True), {})
        assert np.linalg.norm(pooled[0]) == pytest.approx(1.0)
        assert not pooled[1].any()

"""The specification of training, against central differences, formulas by hand, and what weights that sum to 1 promise."""

import dataclasses
import math

import numpy as np
import pytest

from conformance.loss_cases import LEARNT, loss_cases
from conformance.objective_cases import OPTIMIZATION, STUDENT, TEACHER, StepCase, objective_cases
from distilbert import reference_losses, reference_objectives, reference_training, weight_map
from distilbert.training.batches import normalized

STEP = 2e-6


def identity(case):
    return case.name


@pytest.mark.parametrize("case", [c for c in loss_cases() if c.dtype == "float64"], ids=identity)
def test_gradients_of_losses_equal_central_differences(case):
    """Measured: at most 6e-9, of numbers up to 12. A zero vector has no neighbourhood: it does not move."""
    random, given = np.random.default_rng(0), case.arguments()
    given = {name: x if x.dtype.kind == "i" else x.astype(np.float64) for name, x in given.items()}
    found = case.expected()["gradients"]
    assert found.keys() == given.keys() & set(LEARNT)
    for name, gradient in found.items():
        if name.startswith("teacher"):
            assert not gradient.any()
            continue
        size = np.linalg.norm(given[name], axis=-1, keepdims=True) if given[name].ndim == 2 else 1.0
        direction = random.normal(size=gradient.shape) * np.minimum(size, 1.0)

        def loss(by, name=name, direction=direction):
            moved = given | {name: given[name] + by * direction}
            return getattr(reference_losses, case.function)(**moved, **case.options)[0]

        assert (loss(STEP) - loss(-STEP)) / (2 * STEP) == pytest.approx((gradient * direction).sum(), abs=2e-8)


@pytest.mark.parametrize("case", [c for c in objective_cases() if c.dtype == "float64"], ids=identity)
def test_gradients_of_objectives_equal_central_differences(case):
    """Each tensor moved along a random direction, through the whole model. Measured: 2e-9 of the largest derivative."""
    batch, objective, random = case.batch(), case.objective, np.random.default_rng(0)
    weights = {name: w.astype(np.float64) for name, w in case.student().items()}
    taught = reference_objectives.teach(TEACHER, case.teacher(), batch.inputs, batch.targets, objective)

    def distil(changed):
        given = (batch.inputs, batch.targets, batch.weights, objective, taught)
        return reference_objectives.distillation(STUDENT, weights | changed, *given)

    def loss(changed):
        return sum(objective.alphas[name] * value for name, value in distil(changed)[0].items())

    parts, gradients = distil({})
    assert list(parts) == [name for name, alpha in objective.alphas.items() if alpha]
    assert gradients.keys() == weight_map.trained(STUDENT, objective.head).keys()
    said, done = {}, {}
    for name, gradient in gradients.items():
        direction, also = random.normal(size=gradient.shape), ()
        if name == weight_map.WORD_EMBEDDINGS:
            direction[STUDENT.pad_token_id], also = 0.0, weight_map.tied(STUDENT, objective.head)
        ahead, back = (dict.fromkeys((name, *also), weights[name] + by * direction) for by in (STEP, -STEP))
        said[name], done[name] = (gradient * direction).sum(), (loss(ahead) - loss(back)) / (2 * STEP)
    largest = max(map(abs, said.values()))
    assert max(abs(said[name] - done[name]) for name in said) < 1e-8 * largest


def test_losses_by_hand():
    logits, teacher = np.array([[math.log(3.0), 0.0]]), np.array([[0.0, 0.0]])  # softmax 3/4, 1/4; and 1/2, 1/2
    value, gradient = reference_losses.weighted_cross_entropy(logits, [1], [2.0])
    assert value == pytest.approx(2 * math.log(4))
    np.testing.assert_allclose(gradient, [[1.5, -1.5]])
    value, gradient = reference_losses.distillation_loss(logits, teacher, np.array([1.0]), temperature=1.0)
    assert value == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))
    np.testing.assert_allclose(gradient, [[0.25, -0.25]])
    doubled = reference_losses.distillation_loss(2 * logits, teacher, np.array([1.0]), temperature=2.0)
    assert doubled[0] == pytest.approx(4 * value)
    np.testing.assert_allclose(doubled[1], 2 * gradient)
    assert reference_losses.weighted_squared_error(np.array([[3.0, 5.0]]), [[1.0, 4.0]], [[0.5]])[0] == 2.5
    value = reference_losses.weighted_binary_cross_entropy(np.array([math.log(3.0)]), [0.25], [1.0])[0]
    assert value == pytest.approx(-0.25 * math.log(0.75) - 0.75 * math.log(0.25))
    vectors = np.array([[3.0, 4.0], [0.0, 0.0]])
    assert reference_losses.cosine_loss(vectors, np.array([[4.0, 3.0], [1.0, 0.0]]), [0.5, 0.5])[0] == 0.5 * 0.04 + 0.5
    pairs = np.eye(2)
    value = reference_losses.multiple_negatives_ranking_loss(pairs, pairs, scale=math.log(3.0))[0]
    assert value == pytest.approx(math.log(4 / 3))


def test_a_pair_of_weight_0_does_not_exist():
    random = np.random.default_rng(0)
    anchors, positives = random.normal(size=(2, 5, 4))
    some = np.array([0.25, 0.75])
    alone, (of_anchors, of_positives) = reference_losses.multiple_negatives_ranking_loss(
        anchors[:2], positives[:2], weights=some
    )
    value, gradients = reference_losses.multiple_negatives_ranking_loss(
        anchors, positives, weights=np.concatenate([some, np.zeros(3)])
    )
    assert value == pytest.approx(alone, rel=1e-15)
    for gradient, wanted in zip(gradients, (of_anchors, of_positives), strict=True):
        np.testing.assert_allclose(gradient, np.concatenate([wanted, np.zeros((3, 4))]), atol=1e-15)


def test_a_ranking_loss_without_weights_is_the_reference_s():
    random = np.random.default_rng(0)
    anchors, positives = random.normal(size=(2, 5, 4))
    value, gradients = reference_losses.multiple_negatives_ranking_loss(anchors, positives)
    wanted = reference_training.reference.multiple_negatives_ranking_loss(anchors, positives)
    assert value == pytest.approx(wanted, rel=1e-14)
    of_both = reference_training.ranking_loss(np.concatenate([anchors, positives]))
    np.testing.assert_allclose(np.concatenate(gradients), of_both, rtol=1e-12)


def test_micro_batches_take_the_step_of_the_whole_batch():
    """Weights sum to 1 over the step, so only they say how it is cut; and clipping sees the sum."""
    case = StepCase("whole", OPTIMIZATION)
    objective, weights = case.models.objective, case.models.student()
    whole = case.models.batch()
    taught = reference_objectives.teach(TEACHER, case.models.teacher(), whole.inputs, whole.targets, objective)
    whole = dataclasses.replace(whole, teacher=taught)
    cut = [whole.take(np.array(rows), np.ones(len(rows), np.bool_)) for rows in ((3,), (1, 0), (2,))]
    one, several = (
        reference_objectives.step(STUDENT, weights, batches, objective, OPTIMIZATION, 1e-3)
        for batches in ([whole], cut)
    )
    assert one[0].loss == pytest.approx(several[0].loss, rel=1e-13)
    assert one[0].gradient_norm > 2 * OPTIMIZATION.max_grad_norm
    assert reference_objectives.global_norm(several[1]) == pytest.approx(OPTIMIZATION.max_grad_norm, rel=1e-13)
    for name, tensor in one[2].items():
        np.testing.assert_allclose(several[2][name], tensor, rtol=1e-12, atol=1e-15)
    assert normalized([whole])[0].weights.keys() == whole.weights.keys()


def test_gradients_shorter_than_the_limit_are_left_alone():
    gradients = {"a": np.array([3.0]), "b": np.array([[4.0]])}
    for limit in (5.0, None):
        assert reference_objectives.clipped(gradients, limit) == gradients
    halved = reference_objectives.clipped(gradients, 2.5)
    assert (halved["a"].item(), halved["b"].item()) == (1.5, 2.0)


def test_adamw_goes_on_as_its_running_means_do():
    """Three steps by the recursion of the paper's algorithm 2."""
    random, betas, rate, decay, eps = np.random.default_rng(0), (0.9, 0.99), 0.1, 0.01, 1e-8
    weight, gradients = random.normal(size=4), random.normal(size=(3, 4))
    wanted, mean, square, earlier = weight, 0.0, 0.0, []
    for number, gradient in enumerate(gradients, start=1):
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        square = betas[1] * square + (1 - betas[1]) * gradient**2
        corrected = mean / (1 - betas[0] ** number), square / (1 - betas[1] ** number)
        wanted = wanted - rate * (corrected[0] / (np.sqrt(corrected[1]) + eps) + decay * wanted)
        weight = reference_training.adamw(
            weight, gradient, *earlier, learning_rate=rate, weight_decay=decay, betas=betas, eps=eps
        )
        earlier.insert(0, gradient)
        np.testing.assert_allclose(weight, wanted, rtol=1e-13)
    np.testing.assert_allclose(reference_training.moment(earlier, betas[0]), mean, rtol=1e-13)

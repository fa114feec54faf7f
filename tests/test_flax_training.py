"""Training in Flax NNX: losses, what a step minimises for every task, the trainer, devices and processes.

Axes: rows, choices, seq, n (chosen positions), pairs.
"""

import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from conformance import cases
from distilbert import flax, reference, reference_training
from distilbert.flax import devices, losses, objectives, training
from distilbert.training.batches import Batch, normalized
from distilbert.training.objective import HEAD_OF, Objective
from distilbert.training.trainer import Optimization
from tests.predictions import check_predictions
from tests.support import ROOT

RATES = dict.fromkeys(("dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout"), 0.0)
DROPPING = cases.CONFIG.replace(n_layers=1, max_position_embeddings=32)
STILL = DROPPING.replace(**RATES)
ROWS, SEQ, LABELS = 8, 16, 3
WITHOUT_KL = ("regression", "sentence_embedding")
KINDS = ("weight", "mean", "square")


@pytest.fixture(autouse=True, scope="module")
def session():
    """Most of the time would be XLA's, for programs that run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    with training.session():
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def new_model(task, config=STILL, seed=0):
    return getattr(flax, HEAD_OF[task]).from_config(config, seed=seed)


def new_trainer(task, config=STILL, *, objective=None, teacher=None, **options):
    """With a teacher all losses, else the task's own, unless an objective is given."""
    objective = objective or (everything(task) if teacher else Objective(task))
    return training.trainer(new_model(task, config), objective, Optimization(**options), teacher)


def taught_trainer(task, **options):
    """One for which the tests here compile the same programs."""
    return new_trainer(task, teacher=new_model(task, seed=7), **options)


def everything(task):
    """All losses that the task has."""
    return Objective(task, 1.0, 0.0 if task in WITHOUT_KL else 0.5, 0.5, 0.25)


def new_batch(task, seed=0, rows=ROWS):
    """Ragged rows with targets, which count unequally."""
    random = np.random.default_rng(seed)
    leading = (rows, 2) if task == "multiple_choice" else (rows,)
    mask = (np.arange(SEQ) < random.integers(3, SEQ + 1, leading)[..., None]).astype(np.int32)
    ids = (random.integers(5, STILL.vocab_size, mask.shape) * mask).astype(np.int32)
    targets, weights = targets_of(task, random, mask)
    weights["hidden"] = mask.sum(-1).astype(np.float32) if task == "sentence_embedding" else mask.astype(np.float32)
    return Batch({"input_ids": ids, "attention_mask": mask}, targets, weights, paired=task == "sentence_embedding")


def targets_of(task, random, mask):
    rows = len(mask)
    counts = random.uniform(0.5, 2, rows).astype(np.float32)
    if task == "masked_lm":
        positions = np.flatnonzero(mask * (random.random(mask.shape) < 0.4)).astype(np.int32)
        counts = random.uniform(0.5, 2, positions.shape).astype(np.float32)
        labels = random.integers(0, STILL.vocab_size, positions.shape).astype(np.int32)
        return {"positions": positions, "labels": labels}, {"labels": counts, "logits": counts}
    if task == "question_answering":
        ends = {f"{end}_positions": random.integers(0, 3, rows).astype(np.int32) for end in ("start", "end")}
        return ends, {**dict.fromkeys(ends, counts), "logits": counts}
    if task == "sentence_embedding":
        return {}, {"labels": counts[: rows // 2]}
    shape = mask.shape if task == "token_classification" else (rows, LABELS) if "_label_" not in task else (rows,)
    if task in ("single_label_classification", "multiple_choice"):
        return {"labels": random.integers(0, 2, rows).astype(np.int32)}, {"labels": counts, "logits": counts}
    if task == "token_classification":
        labels = random.integers(0, LABELS, shape).astype(np.int32)
        return {"labels": np.where(mask, labels, -100)}, dict.fromkeys(("labels", "logits"), mask.astype(np.float32))
    each = random.uniform(0.5, 2, (rows, LABELS)).astype(np.float32)
    labels = random.normal(size=each.shape) if task == "regression" else random.integers(0, 2, each.shape)
    return {"labels": labels.astype(np.float32)}, {"labels": each, "logits": each}


def run_steps(trainer, steps, *, start=0, rate=1e-3, rows=(8, 6)):
    """Steps of two micro-batches each, of so many rows."""
    task = trainer.recipe.objective.task
    results = []
    for step in range(start, start + steps):
        batches = [new_batch(task, seed=10 * step + i, rows=rows[i]) for i in range(2)]
        results.append(trainer.step(step, normalized(batches), rate))
    return results


def assert_equal(one, other, *, rtol=0.0, atol=0.0):
    """States of the same names and dtypes; to the bit unless said otherwise."""
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        np.testing.assert_allclose(one[name], other[name], rtol=rtol, atol=atol, err_msg=name)


def softmax_log(x):
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


class TestLosses:
    """Against the formulas in float64."""

    def drawn(self, *shape, seed=0):
        return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 3

    def test_cross_entropy_counts_by_weight_and_ignores_what_does_not_count(self):
        logits, labels = self.drawn(2, 3, 5), np.array([[0, -100, 4], [2, 99, 1]])
        weights = np.array([[0.5, 0.0, 0.25], [1.0, 0.0, 2.0]], np.float32)
        expected = -sum(
            weights[i, j] * softmax_log(logits)[i, j, labels[i, j]] for i in range(2) for j in range(3) if weights[i, j]
        )

        def loss(logits):
            return losses.weighted_cross_entropy(logits, labels, weights)

        assert float(loss(logits)) == pytest.approx(expected, rel=1e-6)
        gradient = np.asarray(jax.grad(loss)(jax.numpy.asarray(logits)))
        assert np.isfinite(gradient).all()
        assert (gradient[weights == 0] == 0).all()
        assert (gradient[weights != 0] != 0).all()

    def test_squared_error_and_binary_cross_entropy(self):
        x, y, weights = self.drawn(4, 3), self.drawn(4, 3, seed=1), np.abs(self.drawn(4, 3, seed=2))
        expected = (weights.astype(np.float64) * (x.astype(np.float64) - y) ** 2).sum()
        assert float(losses.weighted_squared_error(x, y, weights)) == pytest.approx(expected, rel=1e-6)
        expected = (weights[:, :1].astype(np.float64) * (x.astype(np.float64) - y) ** 2).sum()
        assert float(losses.weighted_squared_error(x, y, weights[:, :1])) == pytest.approx(expected, rel=1e-6)
        labels, x = (y > 0).astype(np.float32), x.astype(np.float64)
        both = labels * np.log1p(np.exp(-x)) + (1 - labels) * np.log1p(np.exp(x))
        found = losses.weighted_binary_cross_entropy(x.astype(np.float32), labels, weights)
        assert float(found) == pytest.approx((weights * both).sum(), rel=1e-6)

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
    def test_distillation_is_the_divergence_at_a_temperature(self, temperature):
        student, teacher, weights = self.drawn(4, 7), self.drawn(4, 7, seed=1), np.abs(self.drawn(4, seed=2))
        s, t = softmax_log(student / np.float64(temperature)), softmax_log(teacher / np.float64(temperature))
        expected = temperature**2 * (weights * (np.exp(t) * (t - s)).sum(-1)).sum()
        given = {"temperature": temperature}
        assert float(losses.distillation_loss(student, teacher, weights, **given)) == pytest.approx(expected, rel=1e-5)
        of_both = jax.grad(lambda s, t: losses.distillation_loss(s, t, weights, **given), (0, 1))
        of_student, of_teacher = map(np.asarray, of_both(*map(jax.numpy.asarray, (student, teacher))))
        slope = temperature * weights[:, None] * (np.exp(s) - np.exp(t))
        np.testing.assert_allclose(of_student, slope, rtol=1e-4, atol=1e-5)
        assert (of_teacher == 0).all()

    @pytest.mark.parametrize("temperature", [0.5, 2.0])
    def test_classes_at_the_lowest_number_have_no_part_in_it(self, temperature):
        lowest = np.finfo(np.float32).min
        student, teacher, weights = self.drawn(3, 4), self.drawn(3, 4, seed=1), np.ones(3, np.float32)
        longer = [jax.numpy.asarray(np.concatenate([x, np.full((3, 2), lowest)], 1)) for x in (student, teacher)]
        loss = functools.partial(losses.distillation_loss, weights=weights, temperature=temperature)
        assert float(loss(*longer)) == pytest.approx(float(loss(student, teacher)), rel=1e-6)
        gradient = np.asarray(jax.grad(loss)(*longer))
        assert np.isfinite(gradient).all()
        assert (gradient[:, 4:] == 0).all()

    def test_cosine(self):
        x, y, weights = self.drawn(4, 5), self.drawn(4, 5, seed=1), np.abs(self.drawn(4, seed=2))
        x[1] = 0.0
        cosines = (reference.unit(x.astype(np.float64)) * reference.unit(y.astype(np.float64))).sum(-1)
        assert cosines[1] == 0.0
        expected = (weights * (1 - cosines)).sum()
        assert float(losses.cosine_loss(x, y, weights)) == pytest.approx(expected, rel=1e-6)
        of_both = jax.grad(losses.cosine_loss, (0, 1))(*map(jax.numpy.asarray, (x, y, weights)))
        assert np.isfinite(of_both[0]).all()
        assert (np.asarray(of_both[1]) == 0).all()

    def test_a_pair_of_weight_0_does_not_exist(self):
        a, b, weights = self.drawn(5, 6), self.drawn(5, 6, seed=1), np.array([1, 0, 0.5, 0, 2], np.float32)
        loss, kept = losses.multiple_negatives_ranking_loss, weights != 0
        some = float(loss(a[kept], b[kept], weights=weights[kept]))
        assert float(loss(a, b, weights=weights)) == pytest.approx(some, rel=1e-6)
        equal = float(loss(a, b, weights=np.full(5, 0.2, np.float32)))
        assert float(loss(a, b)) == pytest.approx(equal, rel=1e-6)


@pytest.mark.parametrize("task", HEAD_OF)
def test_every_task_learns_from_labels_and_teacher(task):
    trainer, objective = taught_trainer(task), everything(task)
    batches = normalized([new_batch(task)])
    results = [trainer.step(step, batches, 3e-3) for step in range(12)]
    assert results[-1].loss < 0.9 * results[0].loss
    assert results[0].parts.keys() == {name for name, alpha in objective.alphas.items() if alpha}
    for found in results:
        assert found.loss == pytest.approx(objectives.total(found.parts, objective), rel=1e-5)
        assert found.gradient_norm > 0
    assert trainer.state()["count"] == 12


class TestStep:
    def test_it_is_adamw_behind_clipping(self):
        before = new_model("token_classification").weights_by_name()
        trainer = taught_trainer("token_classification", weight_decay=0.1, max_grad_norm=0.01)
        result = trainer.step(0, normalized([new_batch("token_classification")]), 1e-2)
        assert result.gradient_norm > 0.1
        state, specs = trainer.state(), trainer.model.tensor_specs()
        clipped = {name: state[f"mean/{name}"].astype(np.float64) / 0.1 for name in specs}
        assert np.sqrt(sum((g**2).sum() for g in clipped.values())) == pytest.approx(0.01, rel=1e-5)
        for name, gradient in clipped.items():
            decay = 0.1 if specs[name].is_kernel else 0.0
            weight = before[name].astype(np.float64)
            after = reference_training.adamw(weight, gradient, learning_rate=1e-2, weight_decay=decay)
            np.testing.assert_allclose(state[f"weight/{name}"], after, rtol=0, atol=2e-6, err_msg=name)
            np.testing.assert_allclose(state[f"square/{name}"], 1e-3 * gradient**2, rtol=1e-4, atol=1e-12)
        assert_equal({n: state[f"weight/{n}"] for n in specs}, trainer.weights())

    def test_micro_batches_add_up_to_the_batch(self):
        batch = normalized([new_batch("masked_lm")])[0]
        parts = [batch.take(np.array(rows), np.ones(4, bool)) for rows in ([0, 3, 4, 6], [7, 1, 2, 5])]
        whole, cut = (taught_trainer("masked_lm") for _ in range(2))
        for step in range(2):
            one, other = whole.step(step, [batch], 1e-3), cut.step(step, parts, 1e-3)
            assert one.parts == pytest.approx(other.parts, rel=1e-4)
            assert one.loss == pytest.approx(other.loss, rel=1e-5)
            assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-5)

    @pytest.mark.parametrize("task", ["sentence_embedding", "masked_lm"])
    def test_rows_that_only_fill_up_change_nothing(self, task):
        batch = normalized([new_batch(task, rows=6)])[0]
        units, added = (3, [1]) if batch.paired else (6, [0, 1])
        longer = batch.take(
            np.append(np.arange(units), added), np.append(np.ones(units, bool), np.zeros_like(added) > 0)
        )
        assert (batch.rows, longer.rows) == (6, 8)
        one, other = (taught_trainer(task).step(0, [x], 1e-3) for x in (batch, longer))
        assert one.parts == pytest.approx(other.parts, rel=1e-5)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-5)

    def test_a_step_that_is_not_finite_changes_nothing(self):
        trainer = taught_trainer("single_label_classification")
        batch = normalized([new_batch("single_label_classification")])[0]
        trainer.step(0, [batch], 1e-3)
        before = trainer.state()
        for bad in (np.inf, np.nan):
            labels = np.full_like(batch.weights["labels"], bad)
            worse = dataclasses.replace(batch, weights=batch.weights | {"labels": labels})
            assert not np.isfinite(trainer.step(1, [batch, worse], 1e-3).loss)
            assert_equal(before, trainer.state())
        assert trainer.step(1, [batch], 1e-3).loss > 0
        assert trainer.state()["count"] == 2

    def test_half_precision_is_near_and_keeps_float32(self):
        task, results = "masked_lm", {}
        for precision in ("float32", "bfloat16"):
            trainer = new_trainer(
                task, precision=precision, teacher=new_model(task, seed=7), objective=everything(task)
            )
            results[precision] = [trainer.step(i, normalized([new_batch(task)]), 1e-3) for i in range(5)]
            state = trainer.state()
            assert all(array.dtype == np.float32 for name, array in state.items() if name != "count")
        for one, other in zip(*results.values(), strict=True):
            assert one.loss == pytest.approx(other.loss, rel=1e-2)
            assert one.loss != other.loss

    def test_gradients_of_a_frequent_word_are_summed_in_float32(self):
        """In bfloat16 a sum stops growing at 256 times what is added."""
        found, task, name = [], "sentence_embedding", "distilbert.embeddings.word_embeddings.weight"
        batch = new_batch(task, rows=64)
        ids = np.where(batch.inputs["attention_mask"], 7, 0).astype(np.int32)
        taught = {"hidden": np.random.default_rng(1).normal(size=(1, STILL.dim)).repeat(64, 0).astype(np.float32)}
        batch = dataclasses.replace(batch, inputs=batch.inputs | {"input_ids": ids}, teacher=taught)
        for precision in ("float32", "bfloat16"):
            trainer = new_trainer(task, precision=precision, objective=Objective(task, 0.0, alpha_mse=1.0))
            trainer.step(0, normalized([batch]), 1e-3)
            found.append(trainer.state()[f"mean/{name}"][7].astype(np.float64))
        assert np.linalg.norm(found[1] - found[0]) < 0.02 * np.linalg.norm(found[0])

    def test_recomputed_blocks_give_the_same(self):
        task = "single_label_classification"
        one, other = (
            new_trainer(task, DROPPING, gradient_checkpointing=on).step(0, normalized([new_batch(task)]), 1e-3)
            for on in (False, True)
        )
        assert one.loss == pytest.approx(other.loss, rel=1e-6)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-5)

    def test_a_teacher_may_have_spoken_before(self):
        task = "question_answering"
        objective, teacher, batch = everything(task), new_model(task, seed=7), normalized([new_batch(task)])[0]
        taught = jax.jit(lambda inputs, targets: objectives.teach(teacher, inputs, targets, objective))
        found = {name: np.asarray(array) for name, array in taught(dict(batch.inputs), dict(batch.targets)).items()}
        asked = new_trainer(task, teacher=teacher).step(0, [batch], 1e-3)
        told = new_trainer(task, objective=objective).step(0, [dataclasses.replace(batch, teacher=found)], 1e-3)
        assert told.loss == pytest.approx(asked.loss, rel=1e-6)
        assert told.gradient_norm == pytest.approx(asked.gradient_norm, rel=1e-5)
        assert_equal(teacher.weights_by_name(), new_model(task, seed=7).weights_by_name())

    def test_dropout_is_a_function_of_seed_step_and_micro_batch(self):
        batch = normalized([new_batch("single_label_classification")])[0]

        def loss(step, batches, **options):
            trainer = new_trainer("single_label_classification", DROPPING, **options)
            return trainer.step(step, batches, 1e-3).loss

        assert loss(3, [batch]) == loss(3, [batch])
        assert len({loss(3, [batch]), loss(4, [batch]), loss(3, [batch], seed=1)}) == 3
        assert loss(3, [batch, batch]) != pytest.approx(2 * loss(3, [batch]), rel=1e-4)

    def test_batches_have_few_shapes(self):
        for parts in (1, 4, 6):
            sizes = [training.filled_size(size, parts) for size in range(1, 600)]
            assert all(size % parts == 0 and size >= n for n, size in enumerate(sizes, 1))
            assert all(size <= 1.125 * n + parts for n, size in enumerate(sizes, 1))
            assert len(set(sizes)) < 64
        trainer = taught_trainer("masked_lm")
        trainer.step(0, normalized([new_batch("masked_lm")]), 1e-3)
        before = training.gradients._cache_size()
        for seed in range(1, 6):  # as many rows, and other positions
            trainer.step(0, normalized([new_batch("masked_lm", seed)]), 1e-3)
        assert training.gradients._cache_size() == before

    @pytest.mark.parametrize("task", ["single_label_classification", "masked_lm", "sentence_embedding"])
    def test_a_last_batch_is_filled_up_to_the_shape_of_the_others(self, task):
        whole, last = new_batch(task, rows=8), new_batch(task, 1, rows=6)
        filled = dataclasses.replace(last, full=4 if last.paired else 8)
        first, second, alone = (new_trainer(task) for _ in range(3))
        first.step(0, normalized([whole]), 1e-3)
        first.predict(whole)
        before = training.gradients._cache_size(), training.predict._cache_size()
        found, predicted = second.step(0, normalized([filled]), 1e-3), second.predict(filled)
        assert (training.gradients._cache_size(), training.predict._cache_size()) == before
        expected = alone.step(0, normalized([last]), 1e-3)
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)
        assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-5)
        assert_equal(predicted, alone.predict(last), rtol=1e-4, atol=1e-5)

    def test_chosen_positions_grow_with_the_rows(self):
        batch = new_batch("masked_lm", rows=40)
        n = len(batch.targets["positions"])
        found = training.filled(dataclasses.replace(batch, full=64), 1)
        assert found.rows == 64
        assert n * 1.6 <= len(found.targets["positions"]) < n * 1.6 + 64
        assert not found.weights["labels"][n:].any()

    def test_lengths_are_multiples_of_32_as_far_as_the_positions_reach(self):
        assert new_trainer("regression").length_multiple == 32
        assert new_trainer("regression", STILL.replace(max_position_embeddings=24)).length_multiple == 8


class TestState:
    def test_a_run_goes_on_to_the_bit(self):
        task = "single_label_classification"
        straight, first, second = (new_trainer(task, DROPPING) for _ in range(3))
        expected = run_steps(straight, 10)
        found = run_steps(first, 5)
        state = first.state()
        copy = {name: array.copy() for name, array in state.items()}
        run_steps(first, 2)
        assert_equal(copy, state)  # it shares no memory with the trainer
        second.restore(state)
        assert_equal(copy, second.state())
        assert_equal(second.weights(), {name: copy[f"weight/{name}"] for name in second.weights()})
        found += run_steps(second, 5, start=5)
        assert found == expected
        assert_equal(straight.state(), second.state())
        assert_equal(copy, state)

    def test_it_has_canonical_names_and_shapes(self):
        trainer = new_trainer("masked_lm", STILL.replace(sinusoidal_pos_embds=True))
        trainer.step(0, normalized([new_batch("masked_lm")]), 1e-3)
        weights, state = trainer.weights(), trainer.state()
        names = weights.keys() - {"vocab_projector.weight", "distilbert.embeddings.position_embeddings.weight"}
        assert state.keys() == {f"{kind}/{name}" for kind in KINDS for name in names} | {"count"}
        for name in names:
            np.testing.assert_array_equal(state[f"weight/{name}"], weights[name])
            assert state[f"mean/{name}"].shape == state[f"square/{name}"].shape == weights[name].shape
        assert state["count"].dtype == np.int64
        fixed = new_model("masked_lm", STILL.replace(sinusoidal_pos_embds=True)).weights_by_name()
        name = "distilbert.embeddings.position_embeddings.weight"
        np.testing.assert_array_equal(weights[name], fixed[name])

    def test_that_of_another_model_is_refused(self):
        trainer = new_trainer("regression")
        state = trainer.state()
        with pytest.raises(ValueError, match=r"missing: \['count'\]"):
            trainer.restore({name: array for name, array in state.items() if name != "count"})
        with pytest.raises(ValueError, match=r"mean/classifier.bias must have the shape \(3,\), got \(4,\)"):
            trainer.restore(state | {"mean/classifier.bias": np.zeros(4, np.float32)})
        assert_equal(state, trainer.state())


@pytest.mark.parametrize("task", ["masked_lm", "question_answering", "sentence_embedding"])
def test_predictions_are_the_models(task):
    trainer, batch = new_trainer(task, DROPPING), new_batch(task, rows=18)
    found = trainer.predict(batch)
    with trainer.model.evaluating() as model:
        output = jax.jit(lambda inputs: model(**inputs))(dict(batch.inputs))
    check_predictions(found, output, batch, task, 2e-6)


class TestRefusals:
    def test_another_class_or_dtype(self):
        with pytest.raises(ValueError, match="regression trains a DistilBertForSequenceClassification, got a"):
            training.trainer(new_model("masked_lm"), Objective("regression"), Optimization())
        model = new_model("regression")
        model.assign({name: array.astype("bfloat16") for name, array in model.weights_by_name().items()})
        with pytest.raises(ValueError, match="must be float32 to be trained, got bfloat16"):
            training.trainer(model, Objective("regression"), Optimization())
        with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, got 'float16'"):
            new_trainer("regression", precision="float16")

    def test_an_objective_without_its_teacher(self):
        trainer = new_trainer("regression", objective=everything("regression"))
        with pytest.raises(ValueError, match="needs a teacher"):
            trainer.step(0, [new_batch("regression")], 1e-3)

    def test_devices_and_threads_that_there_are_not(self):
        with (
            pytest.raises(ValueError, match="devices must be at most 1, which JAX finds here"),
            training.session(devices=2),
        ):
            pass
        with pytest.raises(ValueError, match=r"threads must be .* with which JAX computes already, got 77"):
            devices.prepare(77, None)
        with pytest.raises(ValueError, match="devices must be at least 1, got 0"):
            devices.prepare(None, 0)


RUNS = ("single_label_classification", "masked_lm", "sentence_embedding")


OPTIONS = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": ""}


def report(number, *tasks):
    """Ten steps of each task on so many devices of this process: losses, norms, a hash of the last state."""
    found = {}
    with training.session(devices=number) as session:
        for task in tasks:
            teacher = new_model(task, seed=7) if task == "masked_lm" else None
            objective = everything(task) if teacher else Objective(task)
            trainer = new_trainer(task, DROPPING, objective=objective, teacher=teacher)
            results = run_steps(trainer, 10, rows=(6, 6))
            digest = hashlib.sha256()
            for _, array in sorted(trainer.state().items()):
                digest.update(array.tobytes())
            predicted = trainer.predict(new_batch(task)).popitem()[1]
            found[task] = [[[r.loss, r.gradient_norm] for r in results], digest.hexdigest(), float(predicted.sum())]
        flags = [trainer.agree(False), trainer.agree(session.rank == 0)]
    return [[*dataclasses.astuple(session)], flags, found]


def start(number, *tasks, **environment):
    code = f"import json; from tests.test_flax_training import report; print(json.dumps(report({number}, *{tasks})))"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | OPTIONS | environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def read(process):
    """What it wrote last; before that, the processes' own messages."""
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return json.loads(out.splitlines()[-1])


def assert_near(found, expected):
    for task, (results, _, predicted) in found.items():
        np.testing.assert_allclose(results, expected[task][0], rtol=1e-5, err_msg=task)
        assert predicted == pytest.approx(expected[task][2], rel=1e-4, abs=1e-4)


def test_four_devices_give_what_one_gives():
    other = start(4, *RUNS)
    alone = report(1, *RUNS)
    session, flags, found = read(other)
    assert session == [0, 1, 4, "cpu"]
    assert flags == [False, True]
    assert found.keys() == {*RUNS}
    assert_near(found, alone[2])

"""Training in TensorFlow: the losses, what a step minimises for every task, the trainer, and several devices."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from conformance import cases
from distilbert import tf as backend
from distilbert.tf import losses, objectives, training
from distilbert.training.batches import normalized
from distilbert.training.objective import HEAD_OF, Objective
from distilbert.training.trainer import Optimization
from tests.predictions import check_predictions
from tests.support import ROOT
from tests.training_batches import LABELS, ROWS, SEQ, new_batch, same, softmax

NOISY = dataclasses.replace(cases.CONFIG, n_layers=1)  # one layer: most of the time goes into tracing
STILL = dataclasses.replace(NOISY, dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0, qa_dropout=0.0)
TASKS = tuple(HEAD_OF)
WITH_CLASSES = [task for task in TASKS if task not in ("regression", "sentence_embedding")]


def new_model(task, config=STILL, seed=0):
    return getattr(backend, HEAD_OF[task]).from_config(config, seed=seed)


def new_teacher(task, config=STILL):
    """Another model, whose outputs are far from even."""
    return new_model(task, dataclasses.replace(config, initializer_range=0.3), seed=7)


def new_trainer(task, config=STILL, *, objective=None, teacher=None, **options):
    return training.trainer(new_model(task, config), objective or Objective(task), Optimization(**options), teacher)


def drawn(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape))


def with_gradients(loss, *inputs):
    """The loss of the inputs, and its gradients."""
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        found = loss(*inputs)
    return float(found), [None if g is None else g.numpy() for g in tape.gradient(found, inputs)]


def largest_difference(one, other):
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def everything(task):
    """The objective with every loss that the task has."""
    return Objective(task, 1.0, float(task in WITH_CLASSES), 0.5, 0.25)


def run_steps(trainer, batches, steps=5, first=0):
    """That many steps on the same micro-batches; the last one's result."""
    for step in range(first, first + steps):
        result = trainer.step(step, batches, 1e-3)
    return result


def traces(trainer):
    return trainer._gradients.experimental_get_tracing_count()


def test_cross_entropy_by_weight():
    logits, labels = drawn(2, 3, 5), np.array([[0, 4, -100], [1, 9, 2]], np.int32)
    weights = np.array([[1.0, 0.5, 0.0], [2.0, 0.0, 0.25]], np.float32)
    loss, (gradient,) = with_gradients(lambda x: losses.weighted_cross_entropy(x, labels, weights), logits)
    p = softmax(logits.numpy())
    assert loss == pytest.approx(-sum(w * np.log(p[*i, labels[i]]) for i, w in np.ndenumerate(weights) if w), rel=1e-12)
    assert not gradient[0, 2].any()
    assert not gradient[1, 1].any()
    assert np.allclose(gradient[0, 1], 0.5 * (p[0, 1] - np.eye(5)[4]), atol=1e-12)


def test_squared_error_and_binary_cross_entropy_by_weight():
    x, y, weights = (np.random.default_rng(i).uniform(size=(4, 3)) for i in range(3))
    error = losses.weighted_squared_error(tf.constant(x), y, weights[:, :1])
    assert float(error) == pytest.approx((weights[:, :1] * (x - y) ** 2).sum(), rel=1e-12)
    found = losses.weighted_binary_cross_entropy(tf.constant(x), y, weights)
    p = 1 / (1 + np.exp(-x))
    assert float(found) == pytest.approx(-(weights * (y * np.log(p) + (1 - y) * np.log(1 - p))).sum(), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_distillation_loss(temperature):
    student, teacher, weights = drawn(6, 7), drawn(6, 7, seed=1), np.random.default_rng(2).uniform(size=6)
    loss, (gradient, of_teacher) = with_gradients(
        lambda x, y: losses.distillation_loss(x, y, weights, temperature=temperature), student, teacher
    )
    s, t = (softmax(x.numpy() / temperature) for x in (student, teacher))
    assert loss == pytest.approx(temperature**2 * (weights * (t * np.log(t / s)).sum(-1)).sum(), rel=1e-12)
    assert np.allclose(gradient, temperature * weights[:, None] * (s - t), atol=1e-12)
    assert of_teacher is None


def test_distillation_of_logits_that_padding_replaced():
    lowest = np.finfo(np.float32).min
    student, teacher = tf.constant([[1.0, 2.0, lowest]]), tf.constant([[2.0, 1.0, lowest]])
    for temperature in (0.25, 2.0):

        def loss(x, y, temperature=temperature):
            return losses.distillation_loss(x, y, tf.ones(1), temperature=temperature)

        found, (gradient, _) = with_gradients(loss, student, teacher)
        assert found == pytest.approx(float(loss(student[:, :2], teacher[:, :2])))
        assert np.isfinite(gradient).all()


def test_cosine_loss():
    student, teacher, weights = drawn(2, 3, 5).numpy(), drawn(2, 3, 5, seed=1), np.full((2, 3), 0.3)
    student[0, 0] = 0.0
    loss, (gradient, of_teacher) = with_gradients(
        lambda x, y: losses.cosine_loss(x, y, weights), tf.constant(student), teacher
    )
    lengths = np.maximum(np.linalg.norm(student, axis=-1), 1e-300) * np.linalg.norm(teacher, axis=-1)
    assert loss == pytest.approx((weights * (1 - (student * teacher.numpy()).sum(-1) / lengths)).sum(), rel=1e-12)
    assert np.isfinite(gradient).all()
    assert of_teacher is None


def test_ranking_loss_by_weight():
    anchors, positives = (tf.cast(drawn(5, 8, seed=i), tf.float32) for i in range(2))
    plain = losses.multiple_negatives_ranking_loss(anchors, positives)
    even = losses.multiple_negatives_ranking_loss(anchors, positives, weights=tf.fill(5, 0.2))
    assert float(even) == pytest.approx(float(plain), rel=1e-6)
    some = np.array([0.5, 0.0, 0.3, 0.0, 0.2], np.float32)
    a, p = anchors.numpy()[some != 0], positives.numpy()[some != 0]
    weighted = losses.multiple_negatives_ranking_loss(anchors, positives, weights=some)
    alone = losses.multiple_negatives_ranking_loss(tf.constant(a), tf.constant(p), weights=some[some != 0])
    assert float(weighted) == pytest.approx(float(alone), rel=1e-6)


def test_answers_are_compared_with_the_teacher_on_real_tokens():
    batch, objective = new_batch("question_answering"), everything("question_answering")
    both = (drawn(ROWS, 2, SEQ), drawn(ROWS, 2, SEQ, seed=1))
    outputs = (SimpleNamespace(start_logits=x[:, 0], end_logits=x[:, 1]) for x in both)
    student, teacher = (objectives.answer_logits(output, batch.inputs["attention_mask"]) for output in outputs)
    divergence, error = 0.0, 0.0
    for row, length in enumerate(batch.inputs["attention_mask"].sum(1)):
        for end in range(2):
            s, t = student[row, end, :length].numpy(), teacher[row, end, :length].numpy()
            p, q = softmax(t / objective.temperature), softmax(s / objective.temperature)
            divergence += batch.weights["logits"][row] * (p * np.log(p / q)).sum() * objective.temperature**2 / 2
            error += batch.weights["logits"][row] * ((s - t) ** 2).sum() / 2
    found = objectives.divergence(student, teacher, batch.weights["logits"], objective)
    assert float(found) == pytest.approx(divergence, rel=1e-6)
    found = objectives.squared_error({"logits": student}, {"logits": teacher}, batch.weights, objective.task)
    assert float(found) == pytest.approx(error, rel=1e-6)


def test_each_of_several_labels_is_a_distribution():
    batch, objective = new_batch("multi_label_classification"), everything("multi_label_classification")
    student, teacher = drawn(ROWS, LABELS), drawn(ROWS, LABELS, seed=1)
    s, t = (1 / (1 + np.exp(-x.numpy() / objective.temperature)) for x in (student, teacher))
    each = t * np.log(t / s) + (1 - t) * np.log((1 - t) / (1 - s))
    found = objectives.divergence(student, teacher, batch.weights["logits"], objective)
    assert float(found) == pytest.approx(objective.temperature**2 * (batch.weights["logits"] * each).sum(), rel=1e-6)


def problem_type(task):
    return task if HEAD_OF[task] == "DistilBertForSequenceClassification" else None


@pytest.mark.parametrize("task", [task for task in TASKS if task not in ("masked_lm", "sentence_embedding")])
def test_even_weights_give_the_loss_of_the_head(task):
    batch, model = new_batch(task), new_model(task, dataclasses.replace(STILL, problem_type=problem_type(task)))
    counted = {name: (array != 0).astype(np.float32) for name, array in batch.weights.items()}
    batch = normalized([dataclasses.replace(batch, weights=counted)])[0]
    if task == "question_answering":  # the head itself lets answers be in padding
        batch.inputs["attention_mask"][:] = 1
    found = objectives.losses(model, batch.inputs, batch.targets, batch.weights, Objective(task), {})
    assert float(found["task"]) == pytest.approx(float(model(**batch.inputs, **batch.targets).loss), rel=1e-5)


def test_the_loss_of_a_masked_lm():
    batch, model = new_batch("masked_lm"), new_model("masked_lm")
    labels = np.full(ROWS * SEQ, -100)
    labels[batch.targets["positions"]] = batch.targets["labels"]
    even = {"labels": np.full(len(batch.targets["labels"]), 1 / len(batch.targets["labels"]), np.float32)}
    found = objectives.losses(model, batch.inputs, batch.targets, even, Objective("masked_lm"), {})
    own = model(**batch.inputs, labels=labels.reshape(ROWS, SEQ)).loss
    assert float(found["task"]) == pytest.approx(float(own), rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_from_step_to_prediction(task):
    """Its loss falls, in one trace; rows of weight 0 and cuts change nothing; a teacher may have been run before."""
    objective, teacher, batch = everything(task), new_teacher(task, NOISY), new_batch(task)
    trainer = new_trainer(task, objective=objective, teacher=teacher)
    fresh, first = trainer.state(), trainer.step(0, [batch], 1e-3)
    before = trainer.state()
    assert first.parts.keys() == {name for name, alpha in objective.alphas.items() if alpha}
    assert first.loss == pytest.approx(objectives.total(first.parts, objective))

    units = ROWS // 2 if batch.paired else ROWS
    filled = batch.take(np.r_[np.arange(units), 0, 0], np.r_[np.ones(units, bool), False, False])
    cuts = () if batch.paired else ([4, 1], [0, 5], [2, 3])  # pairs of one micro-batch rank against each other
    cut = [batch.take(np.array(rows), np.ones(2, bool)) for rows in cuts] or [batch]
    for batches in ([filled], cut):
        trainer.restore(fresh)
        result = trainer.step(0, batches, 1e-3)
        assert result.parts == pytest.approx(first.parts, rel=1e-5)
        assert result.gradient_norm == pytest.approx(first.gradient_norm, rel=1e-5)
        assert largest_difference(trainer.state(), before) < 2e-5

    given = objectives.teach(teacher, batch.inputs, batch.targets, objective)
    stored = dataclasses.replace(batch, teacher={name: x.numpy() for name, x in given.items()})
    weights = teacher.weights_by_name()
    assert traces(trainer) == 1
    trainer.restore(fresh)
    assert trainer.step(0, [stored], 1e-3).parts == pytest.approx(first.parts, rel=1e-6)
    assert same(weights, teacher.weights_by_name())
    assert run_steps(trainer, [batch], 15, first=1).loss < 0.95 * first.loss
    assert_predictions(trainer, batch, task)


def assert_predictions(trainer, batch, task):
    check_predictions(trainer.predict(batch), trainer.model(**batch.inputs), batch, task)


def test_a_masked_lm_computes_logits_at_the_positions_only_and_is_traced_once(monkeypatch):
    trainer, rows = new_trainer("masked_lm"), []
    own = trainer.model.vocab_logits
    monkeypatch.setattr(trainer.model, "vocab_logits", lambda hidden: rows.append(hidden.shape) or own(hidden))
    for seed, (row_count, seq) in enumerate(((2, 9), (5, 24), (3, 4))):
        assert np.isfinite(trainer.step(seed, [new_batch("masked_lm", seed, row_count, seq)], 1e-3).loss)
    assert rows == [(None, 32)]
    batch = new_batch("masked_lm")
    without = {name: array[:0] for name, array in batch.targets.items()}
    empty = {"labels": batch.weights["labels"][:0]}
    result = trainer.step(3, [dataclasses.replace(batch, targets=without, weights=batch.weights | empty)], 1e-3)
    assert (result.loss, result.gradient_norm) == (0.0, 0.0)
    assert traces(trainer) == 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_run_has_the_same_bits(precision):
    batches = normalized([new_batch("masked_lm", seed) for seed in range(2)])
    options = {"objective": everything("masked_lm"), "teacher": new_teacher("masked_lm"), "precision": precision}
    straight, after = (new_trainer("masked_lm", NOISY, **options) for _ in range(2))
    run_steps(straight, batches, 5)
    middle = straight.state()
    last = run_steps(straight, batches, 5, first=5)
    keras.random.normal((3,))
    after.restore(middle)
    assert same(after.state(), middle)
    assert run_steps(after, batches, 5, first=5) == last
    assert same(straight.state(), after.state())
    assert same(straight.weights(), after.weights())
    assert straight.state()["count"] == 10
    assert {layer.dtype_policy.name for layer in straight.model._flatten_layers()} == {"float32"}


def test_dropout_is_a_function_of_seed_step_and_micro_batch():
    batch = new_batch("token_classification")
    trainer, other = (new_trainer("token_classification", NOISY, seed=seed) for seed in (0, 1))
    first = trainer.step(0, [batch], 0.0).loss
    assert trainer.step(0, [batch], 0.0).loss == first
    half = normalized([batch, batch])
    losses_found = [first, trainer.step(1, [batch], 0.0).loss, other.step(0, [batch], 0.0).loss]
    losses_found.append(trainer.step(0, half, 0.0).loss)
    assert len(set(losses_found)) == 4
    trainer.model(**batch.inputs, training=True)  # the layers have generators of their own again


def test_each_dropout_draws_its_own():
    model = new_model("token_classification", cases.CONFIG)
    places = training.dropouts(model)
    assert len(places) == 2 * cases.CONFIG.n_layers + 2
    before = [layer.seed_generator for layer in places]
    with training.computing(model, "float32"):
        training.seed_dropout(model, tf.constant(5))
        assert len({tuple(layer.seed_generator.next().numpy()) for layer in places}) == len(places)
    assert [layer.seed_generator for layer in places] == before


def test_what_is_not_finite_leaves_weights_and_moments_alone():
    trainer, batch = new_trainer("regression"), new_batch("regression")
    run_steps(trainer, [batch], 2)
    before = trainer.state()
    nan, huge = (
        dataclasses.replace(batch, targets={"labels": np.full_like(batch.targets["labels"], x)})
        for x in (np.nan, 1.8e19)
    )
    assert np.isnan(trainer.step(2, [nan], 1e-3).loss)
    result = trainer.step(2, [huge], 1e-3)
    assert (np.isfinite(result.loss), np.isinf(result.gradient_norm)) == (True, True)
    assert same(trainer.state(), before)
    trainer.step(2, [batch], 1e-3)
    assert trainer.state()["count"] == 3


def test_a_state_holds_what_is_trained():
    trainer = new_trainer("masked_lm")
    state = trainer.state()
    names = {f"{kind}/{name}" for kind in ("weight", "mean", "square") for name in trainer.model.trained_parameters()}
    assert state.keys() == names | {"count"}
    assert state["count"].dtype == np.int64
    assert {array.dtype.name for name, array in state.items() if name != "count"} == {"float32"}
    assert state["mean/vocab_transform.weight"].shape == trainer.model.tensor_specs()["vocab_transform.weight"].shape
    assert trainer.weights().keys() == trainer.model.tensor_specs().keys()
    state["weight/vocab_projector.bias"][:] = 1
    assert not trainer.state()["weight/vocab_projector.bias"].any()


def test_the_state_of_another_model_is_refused():
    trainer = new_trainer("regression")
    state, before = trainer.state(), trainer.state()
    with pytest.raises(ValueError, match=r"missing: \['mean/classifier.bias'\]"):
        trainer.restore({name: array + 1 for name, array in state.items() if name != "mean/classifier.bias"})
    wrong = {name: array + 1 for name, array in state.items()} | {"weight/classifier.bias": np.zeros(7, np.float32)}
    with pytest.raises(ValueError, match=r"weight/classifier.bias must have the shape \(3,\), got \(7,\)"):
        trainer.restore(wrong)
    assert same(trainer.state(), before)


def gradients_of(trainer, batch, step=0):
    """By canonical name in canonical orientation, float64."""
    specs, found = trainer.model.tensor_specs(), trainer.differentiate(batch, step, 0)[1]
    named = zip(trainer.parameters, found, strict=True)
    return {n: specs[n].from_layout(g.numpy(), backend.pretrained.LAYOUT).astype(np.float64) for n, g in named}


@pytest.mark.parametrize("limit", [None, 0.25])
def test_a_step_is_that_of_adamw_behind_clipping(limit):
    options = {"betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.1, "max_grad_norm": limit}
    trainer, batch = new_trainer("regression", **options), new_batch("regression")
    trainer.step(0, [batch], 1e-2)
    before, gradients = trainer.state(), gradients_of(trainer, batch)
    norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    assert norm > 0.25
    assert trainer.step(1, [batch], 3e-3).gradient_norm == pytest.approx(norm, rel=1e-6)
    after, scale = trainer.state(), 1.0 if limit is None else limit / norm
    for name, g in gradients.items():
        mean = 0.8 * before[f"mean/{name}"] + 0.2 * g * scale
        square = 0.9 * before[f"square/{name}"] + 0.1 * (g * scale) ** 2
        decay = 0.1 if trainer.model.tensor_specs()[name].is_kernel else 0.0
        move = (mean / (1 - 0.8**2)) / (np.sqrt(square / (1 - 0.9**2)) + 1e-2) + decay * before[f"weight/{name}"]
        assert np.allclose(after[f"weight/{name}"], before[f"weight/{name}"] - 3e-3 * move, rtol=0, atol=1e-7), name
        assert np.allclose(after[f"mean/{name}"], mean, rtol=1e-5, atol=1e-9), name


def test_the_norm_of_many_gradients_is_exact():
    gradient = np.random.default_rng(0).normal(size=20 * 2**20).astype(np.float32)
    found = float(tf.linalg.global_norm([tf.constant(gradient)]))
    assert found == pytest.approx(float(np.linalg.norm(gradient.astype(np.float64))), rel=1e-5)


def test_bfloat16_is_near_float32():
    batch, results = new_batch("masked_lm"), []
    for precision in ("float32", "bfloat16"):
        options = {"objective": everything("masked_lm"), "teacher": new_teacher("masked_lm"), "precision": precision}
        trainer = new_trainer("masked_lm", **options)
        results.append(run_steps(trainer, [batch], 3))
        assert {variable.dtype for _, _, variable in trainer.slots()} == {"float32"}
    assert results[1].loss != results[0].loss
    assert results[1].loss == pytest.approx(results[0].loss, rel=2e-2)
    assert_predictions(trainer, batch, "masked_lm")


def test_checkpointing_changes_nothing():
    batch, results = new_batch("token_classification"), []
    for checkpointing in (False, True):
        options = {"gradient_checkpointing": checkpointing}
        trainer = new_trainer("token_classification", NOISY, **options)
        result = run_steps(trainer, [batch], 2)
        assert trainer.model.distilbert.transformer.gradient_checkpointing == checkpointing
        results.append((trainer.state(), result))
    (plain, one), (recomputed, two) = results
    assert two.loss == pytest.approx(one.loss, rel=1e-6)
    assert two.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-5)
    assert largest_difference(plain, recomputed) < 2e-5


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="masked_lm trains a DistilBertForMaskedLM, got a DistilBertForTokenClass"):
        training.trainer(new_model("token_classification"), Objective("masked_lm"), Optimization())
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, got 'float16'"):
        new_trainer("regression", precision="float16")
    half = backend.DistilBertForSequenceClassification(STILL, dtype="bfloat16")
    with pytest.raises(ValueError, match="must be float32 to be trained, got bfloat16"):
        training.trainer(half, Objective("regression"), Optimization())
    with pytest.raises(ValueError, match="needs a teacher"):
        new_trainer("regression", objective=everything("regression")).step(0, [new_batch("regression")], 1e-3)
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"), training.session(threads=0):
        pass


def test_a_session_that_comes_too_late_is_refused():
    tf.zeros(()).numpy()
    with pytest.raises(ValueError, match="has computed already: threads=7 can be chosen only"):
        training.session(threads=7).__enter__()
    with pytest.raises(ValueError, match="has computed already: devices=9 can be chosen only"):
        training.session(devices=9).__enter__()
    with training.session() as session:
        assert (session.rank, session.processes, session.devices) == (0, 1, 1)


DISTRIBUTED = ("single_label_classification", "masked_lm", "sentence_embedding")


def curves(devices, tasks=DISTRIBUTED, steps=10):
    """Steps of tasks without dropout. Five rows: the share of the last device is filled up."""
    found = {}
    with training.session(devices=devices) as session:
        for task in tasks:
            objective = everything(task) if task == "masked_lm" else Objective(task)
            teacher = new_teacher(task) if objective.needs_teacher else None
            trainer = new_trainer(task, objective=objective, teacher=teacher)
            batches = normalized([new_batch(task, seed, rows=6 if "embedding" in task else 5) for seed in range(2)])
            results = [trainer.step(step, batches, 1e-3) for step in range(steps)]
            total = float(sum(np.abs(array).sum() for array in trainer.weights().values()))
            found[task] = [[r.loss, r.gradient_norm, *r.parts.values(), total] for r in results]
        found["agree"] = [trainer.agree(session.rank == session.processes - 1), trainer.agree(False)]
        found["session"] = dataclasses.asdict(session)
    return found


def bits(devices):
    """A digest of weights and moments after six steps with dropout, and after three, and three of another trainer.

    The models are made outside of the session, so that several devices train copies.
    """
    batches, digests = normalized([new_batch("token_classification", seed) for seed in range(2)]), []
    with training.session(devices=devices):
        pass  # which settles the devices before the first model is made
    models = [new_model("token_classification", NOISY) for _ in range(2)]
    with training.session(devices=devices) as session:
        straight, after = (training.trainer(m, Objective("token_classification"), Optimization()) for m in models)
        assert (straight.model is models[0]) == (session.devices == 1)
        run_steps(straight, batches, 3)
        after.restore(straight.state())
        for trainer in (straight, after):
            run_steps(trainer, batches, 3, first=3)
            state = trainer.state()
            digests.append(hashlib.sha256(b"".join(state[name].tobytes() for name in sorted(state))).hexdigest())
    return digests


def start(code, **environment):
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""} | environment
    command = [sys.executable, "-c", f"import json; from tests.test_tf_training import *; print(json.dumps({code}))"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result_of(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def test_two_devices_compute_what_one_does():
    tasks = DISTRIBUTED[1:]
    other = start(f"curves(2, {tasks}, 5)")
    one, two = curves(1, tasks, 5), result_of(other)
    assert two["session"] == {"rank": 0, "processes": 1, "devices": 2, "kind": "cpu"}
    assert two["agree"] == [True, False]
    for task in tasks:
        assert np.allclose(two[task], one[task], rtol=1e-5, atol=0), task

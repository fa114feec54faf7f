"""Training in PyTorch: the losses, what a step minimises for every task, the trainer, and several processes."""

import dataclasses
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conformance import cases
from distilbert import pt
from distilbert.pt import losses, objectives, training
from distilbert.pt.packed import packed, packing_of
from distilbert.training.batches import normalized
from distilbert.training.objective import HEAD_OF, Objective
from distilbert.training.trainer import Optimization
from tests.predictions import check_predictions
from tests.support import run_python
from tests.training_batches import LABELS, ROWS, SEQ, new_batch, same, softmax

STILL = dataclasses.replace(cases.CONFIG, dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0, qa_dropout=0.0)
TASKS = tuple(HEAD_OF)
WITH_CLASSES = [task for task in TASKS if task not in ("regression", "sentence_embedding")]


@pytest.fixture(autouse=True, scope="module")
def one_session():
    with training.session(threads=1):
        yield


@pytest.fixture(autouse=True)
def same_draws():
    torch.manual_seed(0)


def new_model(task, config=STILL, seed=0):
    return getattr(pt, HEAD_OF[task]).from_config(config, seed=seed)


def new_teacher(task, config=STILL):
    """Another model, whose outputs are far from even."""
    return new_model(task, dataclasses.replace(config, initializer_range=0.3), seed=7)


def new_trainer(task, config=STILL, *, objective=None, teacher=None, **options):
    objective = objective or Objective(task)
    return training.trainer(new_model(task, config), objective, Optimization(**options), teacher)


def tensors(arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


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


def test_cross_entropy_by_weight():
    logits, labels = (
        torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True),
        torch.tensor([[0, 4, -100], [1, 9, 2]]),
    )
    weights = torch.tensor([[1.0, 0.5, 0.0], [2.0, 0.0, 0.25]])
    loss = losses.weighted_cross_entropy(logits, labels, weights)
    loss.backward()
    p = softmax(logits.detach().numpy())
    expected = -sum(w * np.log(p[i, j, labels[i, j]]) for (i, j), w in np.ndenumerate(weights.numpy()) if w)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert logits.grad[0, 2].eq(0).all()
    assert logits.grad[1, 1].eq(0).all()
    assert np.allclose(logits.grad[0, 1], 0.5 * (p[0, 1] - np.eye(5)[4]), atol=1e-12)


def test_squared_error_and_binary_cross_entropy_by_weight():
    x, y, weights = (torch.rand(4, 3, dtype=torch.float64) for _ in range(3))
    error = losses.weighted_squared_error(x, y, weights[:, :1])
    assert error.item() == pytest.approx((weights.numpy()[:, :1] * (x.numpy() - y.numpy()) ** 2).sum(), rel=1e-12)
    found = losses.weighted_binary_cross_entropy(x, y, weights)
    p = 1 / (1 + np.exp(-x.numpy()))
    entropy = -(y.numpy() * np.log(p) + (1 - y.numpy()) * np.log(1 - p))
    assert found.item() == pytest.approx((weights.numpy() * entropy).sum(), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_distillation_loss(temperature):
    student, teacher = (torch.randn(6, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weights = torch.rand(6)
    loss = losses.distillation_loss(student, teacher, weights, temperature=temperature)
    loss.backward()
    s, t = (softmax(x.detach().numpy() / temperature) for x in (student, teacher))
    expected = temperature**2 * (weights.numpy() * (t * np.log(t / s)).sum(-1)).sum()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert np.allclose(student.grad, temperature * weights.numpy()[:, None] * (s - t), atol=1e-12)
    assert teacher.grad is None


def test_distillation_of_logits_that_padding_replaced():
    lowest = torch.finfo(torch.float32).min
    student, teacher = torch.tensor([[1.0, 2.0, lowest]], requires_grad=True), torch.tensor([[2.0, 1.0, lowest]])
    for temperature in (0.25, 2.0):
        loss = losses.distillation_loss(student, teacher, torch.ones(1), temperature=temperature)
        short = losses.distillation_loss(student[:, :2], teacher[:, :2], torch.ones(1), temperature=temperature)
        assert loss.item() == pytest.approx(short.item())
        assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_cosine_loss():
    student, teacher = (torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    with torch.no_grad():
        student[0, 0] = 0.0
    weights = torch.rand(2, 3)
    loss = losses.cosine_loss(student, teacher, weights)
    loss.backward()
    s, t = student.detach().numpy(), teacher.detach().numpy()
    cosine = (s * t).sum(-1) / np.maximum(np.linalg.norm(s, axis=-1), 1e-300) / np.linalg.norm(t, axis=-1)
    assert loss.item() == pytest.approx((weights.numpy() * (1 - cosine)).sum(), rel=1e-12)
    assert student.grad.isfinite().all()
    assert teacher.grad is None


def test_ranking_loss_by_weight():
    anchors, positives = torch.randn(5, 8), torch.randn(5, 8)
    plain = losses.multiple_negatives_ranking_loss(anchors, positives)
    even = losses.multiple_negatives_ranking_loss(anchors, positives, weights=torch.full((5,), 0.2))
    assert even.item() == pytest.approx(plain.item(), rel=1e-6)
    some = torch.tensor([0.5, 0.0, 0.3, 0.0, 0.2])
    kept = some != 0
    weighted = losses.multiple_negatives_ranking_loss(anchors, positives, weights=some)
    alone = losses.multiple_negatives_ranking_loss(anchors[kept], positives[kept], weights=some[kept])
    assert weighted.item() == pytest.approx(alone.item(), rel=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_the_loss_of_every_task_falls(task):
    trainer = new_trainer(task, cases.CONFIG, objective=everything(task), teacher=new_teacher(task))
    batches = [new_batch(task)]
    first, last = trainer.step(0, batches, 1e-3), run_steps(trainer, batches, 15, first=1)
    assert last.loss < 0.95 * first.loss
    assert first.parts.keys() == {name for name, alpha in everything(task).alphas.items() if alpha}
    assert first.loss == pytest.approx(objectives.total(first.parts, everything(task)))


@pytest.mark.parametrize("task", [task for task in TASKS if task not in ("masked_lm", "sentence_embedding")])
def test_even_weights_give_the_loss_of_the_head(task):
    batch, model = new_batch(task), new_model(task, dataclasses.replace(STILL, problem_type=problem_type(task)))
    counted = {name: (array != 0).astype(np.float32) for name, array in batch.weights.items()}
    batch = normalized([dataclasses.replace(batch, weights=counted)])[0]
    if task == "question_answering":  # the head itself lets answers be in padding
        batch.inputs["attention_mask"][:] = 1
    own = model(**batch.inputs, **batch.targets).loss
    arguments = (tensors(batch.inputs), tensors(batch.targets), tensors(batch.weights))
    found = objectives.losses(model, *arguments, Objective(task), {})
    assert found["task"].item() == pytest.approx(own.item(), rel=1e-5)


def problem_type(task):
    return task if HEAD_OF[task] == "DistilBertForSequenceClassification" else None


def test_the_loss_of_a_masked_lm():
    batch, model = new_batch("masked_lm"), new_model("masked_lm")
    labels = np.full(ROWS * SEQ, -100)
    labels[batch.targets["positions"]] = batch.targets["labels"]
    even = np.full(len(batch.targets["labels"]), 1 / len(batch.targets["labels"]), np.float32)
    arguments = (tensors(batch.inputs), tensors(batch.targets), {"labels": torch.from_numpy(even)})
    found = objectives.losses(model, *arguments, Objective("masked_lm"), {})
    own = model(**batch.inputs, labels=labels.reshape(ROWS, SEQ)).loss
    assert found["task"].item() == pytest.approx(own.item(), rel=1e-5)


def test_answers_are_compared_with_the_teacher_on_real_tokens():
    batch, objective = new_batch("question_answering"), everything("question_answering")
    weights, mask = tensors(batch.weights), torch.from_numpy(batch.inputs["attention_mask"])
    drawn = (SimpleNamespace(start_logits=x[:, 0], end_logits=x[:, 1]) for x in torch.randn(2, ROWS, 2, SEQ).double())
    student, teacher = (objectives.answer_logits(output, mask) for output in drawn)
    divergence, error = 0.0, 0.0
    for row, length in enumerate(batch.inputs["attention_mask"].sum(1)):
        for end in range(2):
            s, t = student[row, end, :length].numpy(), teacher[row, end, :length].numpy()
            p, q = softmax(t / objective.temperature), softmax(s / objective.temperature)
            divergence += batch.weights["logits"][row] * (p * np.log(p / q)).sum() * objective.temperature**2 / 2
            error += batch.weights["logits"][row] * ((s - t) ** 2).sum() / 2
    found = objectives.divergence(student, teacher, weights["logits"], objective)
    assert found.item() == pytest.approx(divergence, rel=1e-6)
    found = objectives.squared_error({"logits": student}, {"logits": teacher}, weights, objective.task)
    assert found.item() == pytest.approx(error, rel=1e-6)


def test_each_of_several_labels_is_a_distribution():
    batch, objective = new_batch("multi_label_classification"), everything("multi_label_classification")
    student, teacher = torch.randn(2, ROWS, LABELS, dtype=torch.float64)
    s, t = (1 / (1 + np.exp(-x.numpy() / objective.temperature)) for x in (student, teacher))
    each = t * np.log(t / s) + (1 - t) * np.log((1 - t) / (1 - s))
    found = objectives.divergence(student, teacher, torch.from_numpy(batch.weights["logits"]), objective)
    assert found.item() == pytest.approx(objective.temperature**2 * (batch.weights["logits"] * each).sum(), rel=1e-6)


def test_a_masked_lm_computes_logits_at_the_positions_only(monkeypatch):
    model, batch, rows = new_model("masked_lm"), new_batch("masked_lm"), []
    own = model.vocab_logits
    monkeypatch.setattr(model, "vocab_logits", lambda hidden: rows.append(len(hidden)) or own(hidden))
    new = training.trainer(model, everything("masked_lm"), Optimization(), new_teacher("masked_lm"))
    new.step(0, [batch], 1e-3)
    assert rows == [len(batch.targets["positions"])]


@pytest.mark.parametrize("task", TASKS)
def test_packing_changes_nothing(task, monkeypatch):
    batch, teacher, results = new_batch(task), new_teacher(task), []
    for switch in ("on", "off"):
        if switch == "off":
            monkeypatch.setattr("distilbert.pt.model.packing_of", lambda _: None)
        trainer = new_trainer(task, objective=everything(task), teacher=teacher)
        results.append((run_steps(trainer, [batch], 1), trainer.gradients.numpy()))
    (packed_result, packed_gradients), (padded_result, padded_gradients) = results
    assert packed_result.parts == pytest.approx(padded_result.parts, rel=1e-5)
    assert np.abs(packed_gradients - padded_gradients).max() < 2e-6


def test_packing_with_any_lengths_and_holes():
    model = new_model("masked_lm").distilbert
    ids = np.random.default_rng(0).integers(1, 99, (5, SEQ))
    mask = (np.arange(SEQ) < np.array([3, 12, 3, 1, 7])[:, None]).astype(np.int64)
    mask[1, 4:6] = 0
    packing = packing_of(torch.from_numpy(mask))
    assert packing.runs == [(1, 10), (1, 7), (2, 3), (1, 1)]
    plain = model(ids, mask, output_hidden_states=True)
    with packed(model):
        found = model(ids, mask, output_hidden_states=True)
    for a, b in zip(plain.hidden_states, found.hidden_states, strict=True):
        kept = torch.from_numpy(mask)[:, :, None]
        assert (a * kept - b).abs().max() < 2e-6
    assert model(ids, mask).last_hidden_state.equal(plain.last_hidden_state)


def test_rows_whose_first_token_is_dropped_stay_padded():
    assert packing_of(torch.tensor([[1, 1, 0], [0, 1, 1]])) is None
    assert packing_of(torch.tensor([[1, 1, 0], [0, 0, 0]])) is None
    assert packing_of(None) is None


@pytest.mark.parametrize("task", [task for task in TASKS if task != "sentence_embedding"])
def test_micro_batches_are_one_batch(task):
    batch, teacher = new_batch(task), new_teacher(task)
    parts = [batch.take(np.array(rows), np.ones(2, bool)) for rows in ([4, 1], [0, 5], [2, 3])]
    one, three = (new_trainer(task, objective=everything(task), teacher=teacher) for _ in range(2))
    for step in range(3):
        whole, cut = one.step(step, [batch], 1e-3), three.step(step, parts, 1e-3)
        assert cut.parts == pytest.approx(whole.parts, rel=1e-5)
        assert cut.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-5)
    assert largest_difference(one.weights(), three.weights()) < 1e-5


@pytest.mark.parametrize("task", TASKS)
def test_rows_of_weight_0_change_nothing(task):
    batch, teacher = new_batch(task), new_teacher(task)
    units = ROWS // 2 if batch.paired else ROWS
    filled = batch.take(np.r_[np.arange(units), 0, 0], np.r_[np.ones(units, bool), False, False])
    one, more = (new_trainer(task, objective=everything(task), teacher=teacher) for _ in range(2))
    a, b = one.step(0, [batch], 1e-3), more.step(0, [filled], 1e-3)
    assert b.parts == pytest.approx(a.parts, rel=1e-5)
    assert largest_difference({"": one.gradients.numpy()}, {"": more.gradients.numpy()}) < 1e-5 * a.gradient_norm


def test_a_share_without_positions():
    batch = new_batch("masked_lm")
    empty = {name: array[:0] for name, array in batch.targets.items()}
    weights = {**{name: array[:0] for name, array in batch.weights.items()}, "hidden": batch.weights["hidden"]}
    bare = dataclasses.replace(batch, targets=empty, weights=weights)
    trainer = new_trainer("masked_lm", objective=everything("masked_lm"), teacher=new_teacher("masked_lm"))
    result = trainer.step(0, [bare], 1e-3)
    assert result.parts["task"] == result.parts["kl"] == 0
    assert result.gradient_norm > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_run_has_the_same_bits(precision):
    batches = normalized([new_batch("masked_lm", seed) for seed in range(2)])
    arguments = {
        "objective": everything("masked_lm"),
        "teacher": new_teacher("masked_lm"),
        "precision": precision,
    }
    straight, before, after = (new_trainer("masked_lm", cases.CONFIG, **arguments) for _ in range(3))
    last = run_steps(straight, batches, 10)
    run_steps(before, batches, 5)
    torch.rand(3)
    after.restore(before.state())
    assert same(after.state(), before.state())
    assert run_steps(after, batches, 5, first=5) == last
    assert same(straight.state(), after.state())
    assert same(straight.weights(), after.weights())
    assert straight.state()["count"] == 10


def test_dropout_is_a_function_of_seed_step_and_micro_batch():
    batch = new_batch("token_classification")
    first = [new_trainer("token_classification", cases.CONFIG, seed=seed).step(step, [batch], 0.0).loss
             for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))]  # fmt: skip
    assert first[0] == first[1]
    assert len(set(first)) == 3
    half = normalized([batch, batch])
    assert new_trainer("token_classification", cases.CONFIG).step(0, half, 0.0).loss not in first
    second = new_trainer("token_classification", cases.CONFIG)
    second.place = second.place._replace(rank=1)
    assert second.step(0, [batch], 0.0).loss not in first


def test_what_is_not_finite_leaves_weights_and_moments_alone(monkeypatch):
    trainer, batch = new_trainer("regression"), new_batch("regression")
    run_steps(trainer, [batch], 2)
    before = trainer.state()
    wrong = dataclasses.replace(batch, targets={"labels": np.full_like(batch.targets["labels"], np.nan)})
    assert np.isnan(trainer.step(2, [wrong], 1e-3).loss)
    with monkeypatch.context() as patched:
        patched.setattr(training, "global_norm", lambda _: float("inf"))
        assert np.isfinite(trainer.step(2, [batch], 1e-3).loss)
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
    assert trainer.weights().keys() == names_of(trainer.model)
    state["weight/vocab_projector.bias"][:] = 1
    assert not trainer.state()["weight/vocab_projector.bias"].any()


def names_of(model):
    return model.tensor_specs().keys()


def test_the_state_of_another_model_is_refused():
    trainer = new_trainer("regression")
    state, before = trainer.state(), trainer.state()
    with pytest.raises(ValueError, match=r"missing: \['mean/classifier.bias'\]"):
        trainer.restore({name: array + 1 for name, array in state.items() if name != "mean/classifier.bias"})
    wrong = {name: array + 1 for name, array in state.items()} | {"weight/classifier.bias": np.zeros(7, np.float32)}
    with pytest.raises(ValueError, match=r"weight/classifier.bias must have the shape \(3,\), got \(7,\)"):
        trainer.restore(wrong)
    assert same(trainer.state(), before)


def test_gradients_are_clipped_to_the_norm():
    batch, options = new_batch("regression"), {"eps": 1.0, "weight_decay": 0.0}  # with a large epsilon size matters
    free, same_again, clipped = (
        new_trainer("regression", max_grad_norm=limit, **options) for limit in (None, 1e6, 0.25)
    )
    norm = free.step(0, [batch], 1e-3).gradient_norm
    assert norm > 0.25
    assert same_again.step(0, [batch], 1e-3).gradient_norm == clipped.step(0, [batch], 1e-3).gradient_norm == norm
    assert same(free.state(), same_again.state())
    for name in free.parameters:
        mean = free.state()[f"mean/{name}"] * min(1.0, 0.25 / norm)
        assert np.allclose(clipped.state()[f"mean/{name}"], mean, rtol=1e-5, atol=1e-12)


def test_the_norm_of_many_gradients_is_exact():
    gradients = torch.randn(20 * 2**20)
    assert training.global_norm(gradients) == pytest.approx(float(gradients.double().norm()), rel=1e-6)


def test_a_step_is_that_of_adamw():
    trainer, batch = new_trainer("regression", betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1, max_grad_norm=None), None
    batch = new_batch("regression")
    trainer.step(0, [batch], 1e-2)
    before = trainer.state()
    trainer.step(1, [batch], 3e-3)
    after, gradients = trainer.state(), {n: p.grad.double().cpu().numpy() for n, p in trainer.parameters.items()}
    for name, g in gradients.items():
        mean = 0.8 * before[f"mean/{name}"] + 0.2 * g
        square = 0.9 * before[f"square/{name}"] + 0.1 * g**2
        decay = 0.1 if trainer.model.tensor_specs()[name].is_kernel else 0.0
        move = (mean / (1 - 0.8**2)) / (np.sqrt(square / (1 - 0.9**2)) + 1e-6) + decay * before[f"weight/{name}"]
        assert np.allclose(after[f"weight/{name}"], before[f"weight/{name}"] - 3e-3 * move, atol=1e-7), name


def test_bfloat16_is_near_float32():
    batch, results = new_batch("masked_lm"), []
    for precision in ("float32", "bfloat16"):
        trainer = new_trainer(
            "masked_lm", objective=everything("masked_lm"), teacher=new_teacher("masked_lm"), precision=precision
        )
        results.append(run_steps(trainer, [batch], 3))
        assert {p.dtype for p in trainer.parameters.values()} == {torch.float32}
    assert results[1].loss != results[0].loss
    assert results[1].loss == pytest.approx(results[0].loss, rel=2e-2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_checkpointing_changes_no_bit(precision):
    batch, results = new_batch("token_classification"), []
    for checkpointing in (False, True):
        options = {"gradient_checkpointing": checkpointing, "precision": precision}
        trainer = new_trainer("token_classification", cases.CONFIG, **options)
        run_steps(trainer, [batch], 2)
        assert trainer.model.distilbert.transformer.gradient_checkpointing == checkpointing
        results.append(trainer.state())
    assert same(*results)


@pytest.mark.parametrize("task", TASKS)
def test_what_a_teacher_gave_before_is_as_its_run(task):
    teacher, batch, objective = new_teacher(task, cases.CONFIG).train(), new_batch(task), everything(task)
    given = objectives.teach(teacher, tensors(batch.inputs), tensors(batch.targets), objective)
    assert not any(x.requires_grad for x in given.values())
    stored = dataclasses.replace(batch, teacher={name: x.numpy() for name, x in given.items()})
    before = teacher.weights_by_name()
    run, read = new_trainer(task, objective=objective, teacher=teacher), new_trainer(task, objective=objective)
    assert run.step(0, [batch], 1e-3) == read.step(0, [stored], 1e-3)
    assert same(run.state(), read.state())
    assert same(teacher.weights_by_name(), before)
    with pytest.raises(ValueError, match="needs a teacher"):
        read.step(1, [batch], 1e-3)


@pytest.mark.parametrize("task", TASKS)
def test_predictions_are_what_the_model_returns(task):
    trainer, batch = new_trainer(task, cases.CONFIG), new_batch(task)
    run_steps(trainer, [batch], 1)
    found, again = trainer.predict(batch), trainer.predict(batch)
    with trainer.model.evaluating() as model:
        output = model(**batch.inputs)
    assert same(found, again)
    check_predictions(found, output, batch, task)
    assert not trainer.model.training


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="masked_lm trains a DistilBertForMaskedLM, got a DistilBertForTokenClass"):
        training.trainer(new_model("token_classification"), Objective("masked_lm"), Optimization())
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, got 'float16'"):
        new_trainer("regression", precision="float16")
    half = new_model("regression").to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"must be float32 to be trained, got bfloat16"):
        training.trainer(half, Objective("regression"), Optimization())
    for options, text in (({"threads": 0}, "threads must be at least 1, got 0"), ({"devices": 2}, "nproc-per-node 2")):
        with pytest.raises(ValueError, match=text), training.session(**options):
            pass


def test_a_session_sets_the_threads_and_restores_them():
    before = torch.get_num_threads()
    with training.session(threads=2) as session:
        assert torch.get_num_threads() == 2
        assert (session.rank, session.processes, session.devices) == (0, 1, 1)
        assert session.kind == ("gpu" if torch.cuda.is_available() else "cpu")
    assert torch.get_num_threads() == before


PROCESSES = ("single_label_classification", "masked_lm", "sentence_embedding")


def curves(path):
    """Ten steps of three tasks, written by the first process. Five rows: the share of the last is filled up."""
    with training.session(threads=1) as session:
        found = {}
        for task in PROCESSES:
            objective = Objective(task) if task != "masked_lm" else everything(task)
            teacher = new_teacher(task) if objective.needs_teacher else None
            trainer = new_trainer(task, objective=objective, teacher=teacher)
            batches = normalized([new_batch(task, seed, rows=6 if "embedding" in task else 5) for seed in range(2)])
            results = [trainer.step(step, batches, 1e-3) for step in range(10)]
            total = float(sum(np.abs(array).sum() for array in trainer.weights().values()))
            found[task] = [[r.loss, r.gradient_norm, *r.parts.values(), total] for r in results]
        found["agree"] = [trainer.agree(session.rank == session.processes - 1), trainer.agree(False)]
        if session.rank == 0:
            path.write_text(json.dumps({"processes": session.processes, **found}))


def test_two_processes_compute_what_one_does(tmp_path):
    code = (
        f"from pathlib import Path; from tests.test_pt_training import curves; curves(Path({str(tmp_path)!r}) / 'two')"
    )
    (tmp_path / "run.py").write_text(code)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "run.py")]
    environment = os.environ | {"PYTHONPATH": ".", "CUDA_VISIBLE_DEVICES": ""}
    result = run_python(*launcher, env=environment)
    assert result.returncode == 0, result.stderr
    curves(tmp_path / "one")
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["agree"] == [True, False]
    for task in PROCESSES:
        assert np.allclose(two[task], one[task], rtol=1e-5, atol=0), task

"""Batches of every task for the tests of trainers, and how their results are compared."""

import numpy as np

from conformance import cases
from distilbert.training.batches import Batch, normalized

ROWS, SEQ, LABELS = 6, 12, 3


def new_batch(task, seed=0, rows=ROWS, seq=SEQ):
    """Ragged rows with targets for the task, and weights that are not all equal and sum to 1."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(3, seq + 1, (rows, 2) if task == "multiple_choice" else (rows,))
    lengths.flat[0] = seq
    mask = (np.arange(seq) < lengths[..., None]).astype(np.int32)
    ids = (draw.integers(1, cases.CONFIG.vocab_size, mask.shape) * mask).astype(np.int32)
    targets, weights = targets_of(task, draw, mask)
    batch = Batch({"input_ids": ids, "attention_mask": mask}, targets, weights, paired=task == "sentence_embedding")
    return normalized([batch])[0]


def targets_of(task, draw, mask):
    rows, some = len(mask), draw.uniform(0.5, 1.5, len(mask)).astype(np.float32)
    hidden = mask.astype(np.float32)
    if task == "masked_lm":
        positions = np.flatnonzero(mask)[::3].astype(np.int32)
        each = draw.uniform(0.5, 1.5, len(positions)).astype(np.float32)
        labels = draw.integers(0, cases.CONFIG.vocab_size, len(positions)).astype(np.int32)
        return {"positions": positions, "labels": labels}, {"labels": each, "logits": each, "hidden": hidden}
    if task == "sentence_embedding":
        return {}, {"labels": some[: rows // 2], "hidden": some}
    if task == "question_answering":
        ends = {name: draw.integers(0, 3, rows).astype(np.int32) for name in ("start_positions", "end_positions")}
        return ends, {**dict.fromkeys(ends, some), "logits": some, "hidden": hidden}
    if task == "token_classification":
        labels = np.where(mask, draw.integers(0, LABELS, mask.shape), -100).astype(np.int32)
        return {"labels": labels}, dict.fromkeys(("labels", "logits", "hidden"), hidden)
    if task in ("multi_label_classification", "regression"):
        labels = draw.integers(0, 2, (rows, LABELS)).astype(np.float32)
        each = np.repeat(some[:, None], LABELS, 1)
        return {"labels": labels}, {"labels": each, "logits": each, "hidden": hidden}
    labels = draw.integers(0, 2, rows).astype(np.int32)
    return {"labels": labels}, {"labels": some, "logits": some, "hidden": hidden}


def softmax(x):
    return np.exp(x - x.max(-1, keepdims=True)) / np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)


def same(one, other):
    """Whether two states are equal bit for bit."""
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)

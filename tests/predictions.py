"""What `Trainer.predict` must return, from what the model returns."""

import numpy as np

from tests.support import to_numpy


def expected_predictions(output, batch, task):
    """By name, float64."""
    if task == "sentence_embedding":
        return {"embeddings": to_numpy(output.embeddings)}
    if task == "question_answering":  # no answer is in padding
        mask, least = batch.inputs["attention_mask"], np.finfo(np.float32).min
        return {name: np.where(mask, to_numpy(getattr(output, name)), least) for name in ("start_logits", "end_logits")}
    logits = to_numpy(output.logits)
    if task != "masked_lm":
        return {"logits": logits}
    logits, labels = logits.reshape(-1, logits.shape[-1])[batch.targets["positions"]], batch.targets["labels"]
    largest = logits.max(-1)
    total = largest + np.log(np.exp(logits - largest[:, None]).sum(-1))
    return {"tokens": logits.argmax(-1), "losses": total - logits[np.arange(len(labels)), labels]}


def check_predictions(found, output, batch, task, tolerance=1e-5):
    """Names, dtype, shapes and values."""
    expected = expected_predictions(output, batch, task)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert array.dtype.kind == "i" if name == "tokens" else array.dtype == np.float32
        assert array.shape == expected[name].shape
        assert np.abs(array - expected[name]).max() < tolerance

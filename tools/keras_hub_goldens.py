"""Presets that KerasHub itself wrote, and what it computes from them: tests/data/keras_hub, written anew.

Run by hand, in an environment that holds only it (`make interop` makes one): tools/keras_hub_goldens.py. Weights are
random with norm scales that are not 1 and biases that are not 0; outputs are KerasHub's own in float64.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}

import keras
import numpy as np
from keras_hub import models

FOLDER = Path(__file__).parent.parent / "tests" / "data" / "keras_hub"
SIZES = {"num_heads": 4, "hidden_dim": 16, "intermediate_dim": 24, "max_sequence_length": 12, "dropout": 0.2}
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *"abcdefgh",
    *(f"##{c}" for c in "abcdefgh"),
    "the",
    ",",
    "一",
]
TEXTS = ["the bad cafe", "Bad, DEAF éd!", "", "一a zz"]


def main() -> None:
    """Write a backbone, one in bfloat16, a masked LM with its preprocessor, and a classifier that was being trained."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    save("backbone", fill(backbone(2)))
    tokenizer().save_to_preset(FOLDER / "backbone")
    save("bfloat16", fill(backbone(1, dtype="bfloat16")))
    preprocessor = models.DistilBertMaskedLMPreprocessor(tokenizer(), sequence_length=12, mask_selection_length=4)
    save("masked_lm", fill(models.DistilBertMaskedLM(backbone(2), preprocessor=preprocessor)))
    preprocessor = models.DistilBertTextClassifierPreprocessor(tokenizer(), sequence_length=12)
    classifier = models.DistilBertTextClassifier(backbone(2), num_classes=3, dropout=0.3, preprocessor=preprocessor)
    classifier.optimizer.build(classifier.trainable_variables)
    save("classifier", fill(classifier))


def backbone(layers: int, dtype: str = "float32") -> Any:
    """A tiny encoder, the first model of its session as far as names go."""
    keras.utils.clear_session(free_memory=False)
    return models.DistilBertBackbone(vocabulary_size=len(VOCABULARY), num_layers=layers, dtype=dtype, **SIZES)


def tokenizer() -> Any:
    """An uncased tokenizer."""
    return models.DistilBertTokenizer(VOCABULARY, lowercase=True, strip_accents=True)


def fill(model: Any) -> Any:
    """The model with random weights."""
    random = np.random.default_rng(0)
    for variable in model.weights:
        mean = 0.7 if variable.path.endswith("gamma") else 0.0
        variable.assign(random.normal(mean, 0.4, variable.shape))
    return model


def save(name: str, model: Any) -> None:
    """Save the preset with inputs, float64 outputs and, where it has a tokenizer, token ids."""
    folder = FOLDER / name
    model.save_to_preset(folder)
    metadata = json.loads((folder / "metadata.json").read_text())
    (folder / "metadata.json").write_text(json.dumps(metadata | {"date_saved": "2026-01-01@00:00:00"}, indent=4))
    random = np.random.default_rng(1)
    inputs = {
        "token_ids": random.integers(0, len(VOCABULARY), (3, 12)),
        "padding_mask": np.array([[1] * 12, [1] * 7 + [0] * 5, [1, 0, 1, 1, 0, 1] * 2]),
    }
    if name == "masked_lm":
        inputs["mask_positions"] = np.tile(np.arange(12), (3, 1))
    exact = type(model).from_preset(str(folder), dtype="float64")
    arrays = inputs | {"output": np.asarray(exact(inputs))}
    if name in ("masked_lm", "classifier"):
        ids = [np.asarray(model.preprocessor.tokenizer(text)) for text in TEXTS]
        arrays |= {"texts": np.array(TEXTS), "ids": np.concatenate(ids), "counts": np.array([len(row) for row in ids])}
    np.savez_compressed(folder / "expected.npz", **arrays)


if __name__ == "__main__":
    main()

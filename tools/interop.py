"""Do the reference systems read what we write? Run by `make interop`, in environments that hold only them.

Each loads the folders that `make parity` and `tools/interop_folders.py` made, must report no missing and no unexpected
tensor, and must compute what it computes from its own files: the golden embeddings of sentence-transformers, and the
float64 outputs of the golden models.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}

import numpy as np
import torch
import transformers

ROOT = Path(__file__).parent.parent
MINILM = ROOT / "build" / "minilm"
MODELS = ROOT / "build" / "interop" / "folders"
GOLDENS = ROOT / "conformance" / "goldens"
GOLDEN = np.load(ROOT / "tests" / "data" / "minilm_golden.npz")
TOLERANCE = 1e-5
NAME = f"transformers {transformers.__version__}"
# The classes of the reference by prefix, with the formats of ours that they read and the arguments that they need.
READERS: dict[str, dict[str, dict[str, Any]]] = {
    "": {"safetensors": {}, "safetensors-parts": {}, "torch-bin": {}, "torch-bin-parts": {}},
    "TF": {"tf-h5": {}, "safetensors": {"from_pt": True}, "torch-bin": {"from_pt": True}},
    "Flax": {"flax-msgpack": {}, "flax-msgpack-parts": {}, "safetensors": {}, "torch-bin": {"from_pt": True}},
}
# Flax computes the sinusoidal table anew, so that a stored one, the same, is the only tensor without a use.
COMPUTED = re.compile(r": \{\(('distilbert', )?'embeddings', 'position_embeddings', '(embedding|kernel|weight)'\)\}")
Arrays = dict[str, np.ndarray[Any, Any]]


def main() -> None:
    """Check every class that the installed transformers has."""
    prefixes = [""] if int(transformers.__version__.split(".")[0]) > 4 else ["", "TF", "Flax"]  # 5 has PyTorch only
    check_embeddings(prefixes)
    for prefix in prefixes:
        for form, options in READERS[prefix].items():
            folders = sorted(folder for folder in MODELS.glob(f"*/{form}") if folder.is_dir())
            expect(len(folders), 12, f"models written as {form}")
            worst = max(difference(prefix, folder, options) for folder in folders)
            say(f"{NAME} {prefix or 'PyTorch'} classes, {form}: {worst:.1e} from the golden outputs of 12 models")
            expect(worst < TOLERANCE, True, f"{prefix}{form}")
    if "--sentence-transformers" in sys.argv:
        check_sentence_transformers()
    if "--ctranslate2" in sys.argv:
        check_ctranslate2()


def difference(prefix: str, folder: Path, options: dict[str, Any]) -> float:
    """The largest difference of a model's outputs from the golden ones, which are float64, by their largest entry."""
    golden = GOLDENS / folder.parent.name
    model_class = getattr(transformers, f"{prefix}DistilBert{golden.name.split('-')[0]}")
    inputs, expected = np.load(golden / "inputs.npz"), np.load(golden / "expected.npz")
    found = outputs(model_class, folder, {name: inputs[name] for name in ("input_ids", "attention_mask")}, options)
    names = [name for name in expected if name in found]
    expect(len(names) > 0, True, f"outputs of {model_class.__name__}")
    return max(float(np.abs(found[name] - expected[name]).max() / np.abs(expected[name]).max()) for name in names)


def outputs(model_class: Any, folder: Path, inputs: Arrays, options: dict[str, Any]) -> Arrays:
    """What a model computes, from a load that left nothing out."""
    if model_class.__name__.startswith("Flax"):
        with complaints() as lines:
            model = model_class.from_pretrained(folder, **options)
        complained = [line for line in lines if not (model.config.sinusoidal_pos_embds and COMPUTED.search(line))]
        expect(complained, [], f"{model_class.__name__} from {folder}: complaints")
        return {name: np.asarray(value) for name, value in model(**inputs).items()}
    model, info = model_class.from_pretrained(folder, output_loading_info=True, **options)
    named = [*info["missing_keys"], *info["unexpected_keys"], *info.get("mismatched_keys", [])]
    misfits = [key for key in named if not str(key).startswith("dropout")]  # TensorFlow counts layers without weights
    expect(misfits, [], f"{model_class.__name__} from {folder}: keys that do not fit")
    if model_class.__name__.startswith("TF"):
        return {name: np.asarray(value) for name, value in model(**inputs).items()}
    with torch.no_grad():
        found = model.eval()(**{name: torch.tensor(value) for name, value in inputs.items()})
    return {name: value.numpy() for name, value in found.items()}


class complaints(logging.Handler):  # noqa: N801 - a context
    """The lines in which a load says that weights are missing or were not used."""

    def __enter__(self) -> list[str]:
        self.lines: list[str] = []
        logging.getLogger("transformers").addHandler(self)
        return self.lines

    def emit(self, record: logging.LogRecord) -> None:
        """Keep such a line."""
        line = record.getMessage()
        if "not initialized" in line or "not used" in line or "were not" in line:
            self.lines.append(line)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("transformers").removeHandler(self)


def check_embeddings(prefixes: list[str]) -> None:
    """The encoder in each framework gives the golden embeddings of real texts."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM / "safetensors")
    batch = dict(tokenized(tokenizer))
    expect(sorted(batch), ["attention_mask", "input_ids"], "the tokenizer's outputs")
    for prefix, form in (("", "safetensors"), ("TF", "tf-h5"), ("Flax", "flax-msgpack")):
        if prefix in prefixes:
            model_class = getattr(transformers, f"{prefix}DistilBertModel")
            hidden = outputs(model_class, MINILM / form, batch, {})["last_hidden_state"]
            report(f"{NAME} {model_class.__name__}", pooled(hidden, batch["attention_mask"]))


def tokenized(tokenizer: Any) -> Any:
    """The golden texts as padded arrays."""
    limit = int(GOLDEN["max_seq_length"])
    return tokenizer(GOLDEN["texts"].tolist(), padding=True, truncation=True, max_length=limit, return_tensors="np")


def pooled(hidden: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Pool as the folder says: mean, unit length."""
    mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def check_sentence_transformers() -> None:
    """It opens the folder as its own."""
    import sentence_transformers

    model = sentence_transformers.SentenceTransformer(str(MINILM / "safetensors"))
    report(f"sentence-transformers {sentence_transformers.__version__}", model.encode(GOLDEN["texts"].tolist()))


def check_ctranslate2() -> None:
    """Its converter takes the folder, and its encoder gives the golden embeddings."""
    import ctranslate2

    with tempfile.TemporaryDirectory() as folder:
        converter = ctranslate2.converters.TransformersConverter(str(MINILM / "safetensors"))
        converter.convert(f"{folder}/model")
        encoder = ctranslate2.Encoder(f"{folder}/model", device="cpu")
        batch = tokenized(transformers.AutoTokenizer.from_pretrained(MINILM / "safetensors"))
        hidden = np.concatenate(list(encoded(encoder, batch)))
        report(f"CTranslate2 {ctranslate2.__version__}", hidden)


def encoded(encoder: Any, batch: Any) -> Iterator[np.ndarray[Any, Any]]:
    """The embedding of each text, run alone."""
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        output = encoder.forward_batch([ids[mask == 1].tolist()])
        hidden = np.array(output.last_hidden_state)
        yield pooled(hidden, np.ones(hidden.shape[:2]))


def report(name: str, embeddings: np.ndarray[Any, Any]) -> None:
    """Print the largest difference from the golden embeddings; end when it is too large."""
    worst = float(np.abs(embeddings - GOLDEN["embeddings"]).max())
    say(f"{name}: {worst:.1e} from the golden embeddings")
    expect(worst < TOLERANCE, True, name)


def expect(found: Any, wanted: Any, what: str) -> None:
    """End with a line when something is not as it must be."""
    if found != wanted:
        sys.exit(f"FAIL {what}: got {found}, wanted {wanted}")


def say(line: str) -> None:
    """Print at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

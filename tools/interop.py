"""Do the reference systems read what we write? Run by `make interop`, in environments that hold only them.

Each loads the folders that `make parity` made, must report no missing and no unexpected tensor, and must compute the
golden embeddings of sentence-transformers.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}

import numpy as np
import torch
import transformers

ROOT = Path(__file__).parent.parent
FOLDERS = ROOT / "build" / "minilm"
GOLDEN = np.load(ROOT / "tests" / "data" / "minilm_golden.npz")
TOLERANCE = 1e-5


def main() -> None:
    """Check every class that the installed transformers has."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDERS / "safetensors")
    texts = GOLDEN["texts"].tolist()
    batch = tokenizer(
        texts, padding=True, truncation=True, max_length=int(GOLDEN["max_seq_length"]), return_tensors="np"
    )
    expect(sorted(batch), ["attention_mask", "input_ids"], "the tokenizer's outputs")
    for prefix, folder in (("", "safetensors"), ("TF", "tf-h5"), ("Flax", "flax-msgpack")):
        name = f"{prefix}DistilBertModel"
        if prefix and int(transformers.__version__.split(".")[0]) > 4:
            continue  # version 5 has PyTorch only
        check(name, hidden_states(getattr(transformers, name), FOLDERS / folder, batch), batch["attention_mask"])
    if "--sentence-transformers" in sys.argv:
        from sentence_transformers import SentenceTransformer

        found = SentenceTransformer(str(FOLDERS / "safetensors")).encode(texts)
        report("SentenceTransformer", found)


def hidden_states(model_class: Any, folder: Path, batch: Any) -> np.ndarray[Any, Any]:
    """The last hidden state, from a load that left nothing out."""
    if model_class.__name__.startswith("Flax"):
        return np.asarray(model_class.from_pretrained(folder)(**batch).last_hidden_state)
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    expect(
        list(info["missing_keys"]) + list(info["unexpected_keys"]), [], f"{model_class.__name__}: keys that do not fit"
    )
    if model_class.__name__.startswith("TF"):
        return model(**batch).last_hidden_state.numpy()
    with torch.no_grad():
        return model.eval()(**{k: torch.tensor(v) for k, v in batch.items()}).last_hidden_state.numpy()


def check(name: str, hidden: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> None:
    """Pool as the folder says (mean, unit length) and compare."""
    pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
    report(name, pooled / np.linalg.norm(pooled, axis=1, keepdims=True))


def report(name: str, embeddings: np.ndarray[Any, Any]) -> None:
    """Print the largest difference from the golden embeddings; end when it is too large."""
    difference = float(np.abs(embeddings - GOLDEN["embeddings"]).max())
    sys.stdout.write(f"transformers {transformers.__version__} {name}: {difference:.1e} from the golden embeddings\n")
    expect(difference < TOLERANCE, True, name)


def expect(found: Any, wanted: Any, what: str) -> None:
    """End with a line when something is not as it must be."""
    if found != wanted:
        sys.exit(f"FAIL {what}: got {found}, wanted {wanted}")


if __name__ == "__main__":
    main()

"""Write `tests/data/dense-*`: tiny models that sentence-transformers built and saved, and the embeddings it computes.

Run in an environment that holds only sentence-transformers 6.2.0 and torch 2.13.0: `python tools/dense_goldens.py`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from torch import nn

DATA = Path(__file__).parent.parent / "tests" / "data"
VOCABULARY = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "and", "cat", "dog", "end", "for", "from", "in", "is", "it",
    "jump", "long", "lay", "mat", "of", "on", "over", "river", "run", "sat", "sea", "ship", "sun", "the", "to", "was",
    "##s", "##ing", ".", ",",
]  # fmt: skip
TEXTS = [
    "The cat sat on the mat.",
    "A dog was running in the sun, and it jumps over a river.",
    "sea",
    "",
    "The ships lay long in the sea, for it is the end of a run from the river to the sea.",
]
KEPT = ("config.json", "modules.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json",
        "tokenizer_config.json", "sentence_bert_config.json")  # fmt: skip


def main() -> None:
    """Write both folders."""
    torch.manual_seed(0)
    write("dense-tanh", "mean", Dense(32, 20), Normalize())
    write("dense-identity", "cls", Dense(32, 40, bias=False, activation_function=nn.Identity()), as_pickle=True)


def write(name: str, mode: str, dense: Dense, *more: nn.Module, as_pickle: bool = False) -> None:
    """Build a model, save it, keep the files that matter, and add what it computes in float64."""
    with tempfile.TemporaryDirectory() as scratch:
        encoder = Transformer(save_encoder(Path(scratch) / "encoder"), max_seq_length=14)
        model = SentenceTransformer(modules=[encoder, Pooling(32, pooling_mode=mode), dense, *more], device="cpu")
        model.save_pretrained(str(Path(scratch) / "saved"), create_model_card=False)
        folder = Path(scratch) / "saved" / "2_Dense"
        if as_pickle:
            (folder / "model.safetensors").unlink()
            dense.save(str(folder), safe_serialization=False)
        shutil.rmtree(DATA / name, ignore_errors=True)
        for file in sorted((Path(scratch) / "saved").rglob("*")):
            if file.name in KEPT:
                target = DATA / name / file.relative_to(folder.parent)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    embeddings = model.double().eval().encode(TEXTS, convert_to_numpy=True)
    np.savez(DATA / name / "expected.npz", texts=np.array(TEXTS), embeddings=embeddings.astype(np.float64))


def save_encoder(folder: Path) -> str:
    """An untrained encoder whose tensors all matter, and its tokenizer."""
    config = transformers.DistilBertConfig(
        vocab_size=len(VOCABULARY), max_position_embeddings=16, n_layers=1, n_heads=4, dim=32, hidden_dim=48
    )
    model = transformers.DistilBertModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if name.endswith("orm.weight") else 0.0, 0.2)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY))
    transformers.DistilBertTokenizer.from_pretrained(folder).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    main()

"""Write the files in tests/data/{sharded,bert} with the reference implementation; run in the environment `interop4`.

    build/interop4/bin/python tools/reference_files.py

Sharded: a sequence classifier of the goldens in parts, as each of its three frameworks writes them. Bert: tiny models
with random weights, in every dialect, with what the PyTorch one computes in float64.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}

import numpy as np
import torch
import transformers

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "data"
GOLDEN = ROOT / "conformance" / "goldens" / "ForSequenceClassification-1"
HEAD = "DistilBertForSequenceClassification"
SHARD = "60KB"
BERT = {"BertForPreTraining": ("pt", "bin", "tf", "tf-safetensors", "flax"), "BertForTokenClassification": ("tf", "pt")}
CONFIG = transformers.BertConfig(
    vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
    max_position_embeddings=16, num_labels=3,
)  # fmt: skip
IDS, MASK = [[2, 5, 7, 9, 3], [2, 8, 3, 0, 0]], [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


def main() -> None:
    """Write everything anew."""
    for prefix, file, folder in (
        ("", "model.safetensors", "pt"),
        ("TF", "tf_model.h5", "tf"),
        ("Flax", "flax_model.msgpack", "flax"),
    ):
        with tempfile.TemporaryDirectory() as alone:
            for name in ("config.json", file):
                shutil.copy(GOLDEN / name, alone)
            model = getattr(transformers, prefix + HEAD).from_pretrained(alone)
        model.save_pretrained(DATA / "sharded" / folder, max_shard_size=SHARD)
        if not prefix:
            model.save_pretrained(DATA / "sharded" / "bin", max_shard_size=SHARD, safe_serialization=False)
    for name, forms in BERT.items():
        write_bert(name, forms)


def write_bert(name: str, forms: tuple[str, ...]) -> None:
    """One class in several dialects, and its outputs."""
    torch.manual_seed(1)
    model = getattr(transformers, name)(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    folder = DATA / "bert" / name
    model.save_pretrained(folder / "pt")
    for form in forms:
        if form == "bin":
            model.save_pretrained(folder / form, safe_serialization=False)
        elif form != "pt":
            prefix = "Flax" if form == "flax" else "TF"
            other = getattr(transformers, prefix + name).from_pretrained(folder / "pt", from_pt=True)
            other.save_pretrained(folder / form, safe_serialization=form.endswith("safetensors"))
    found = model.double().eval()(torch.tensor(IDS), attention_mask=torch.tensor(MASK), output_hidden_states=True)
    logits = found.prediction_logits if name == "BertForPreTraining" else found.logits
    np.savez(
        folder / "expected.npz",
        input_ids=np.array(IDS),
        attention_mask=np.array(MASK),
        logits=logits.detach().numpy(),
        last_hidden_state=found.hidden_states[-1].detach().numpy(),
    )


if __name__ == "__main__":
    main()

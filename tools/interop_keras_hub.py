"""Does KerasHub read what we write? Run by `make interop`, with PYTHONPATH=. in an environment that has KerasHub.

Presets of each class that KerasHub has, in each dtype, must load there with the outputs of the specification, its
tokenizer must give our ids, and the preset that KerasHub saves again must hold the same bits. The real checkpoint that
`make parity` made must give the golden embeddings of sentence-transformers, from texts on.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"KERAS_BACKEND": os.environ.get("KERAS_BACKEND", "tensorflow"), "TF_CPP_MIN_LOG_LEVEL": "3"}

import h5py
import keras
import keras_hub
import numpy as np

from conformance import cases
from distilbert import reference
from distilbert.checkpoint.keras_hub import TASK_WEIGHTS_FILE
from distilbert.checkpoint.saving import save_checkpoint
from distilbert.tokenization.fast import DistilBertTokenizerFast
from weights_convert import convert

ROOT = Path(__file__).parent.parent
TOLERANCE = 1e-5
DTYPES = {"float64": "float64", "float32": "float32", "float16": "float32", "bfloat16": "float32"}  # stored, computed
CLASSES = {
    "DistilBertBackbone": cases.MODEL,
    "DistilBertMaskedLM": cases.MASKED_LM,
    "DistilBertTextClassifier": cases.SEQUENCE,
}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz.,!", "##s", "the", "cat"]
TEXTS = ["The cats, the CÁT!", "a [MASK] z.", "", "zebra 一 cat"]


def main() -> None:
    """Check every class in every dtype, then the real checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        for name, head in CLASSES.items():
            for stored, computed in DTYPES.items():
                check(Path(folder) / name / stored, name, head, stored, computed)
        check_real(Path(folder) / "minilm")


def check(folder: Path, name: str, head: str, stored: str, computed: str) -> None:
    """Write a preset as `distilbert convert` does, let KerasHub load and run it, and save it again."""
    weights = cases.weights(head=head, dtype=stored)
    save_checkpoint(folder / "source", "safetensors", head, cases.CONFIG, weights)
    tokens = VOCABULARY + [f"[unused{i}]" for i in range(cases.CONFIG.vocab_size - len(VOCABULARY))]
    (folder / "source" / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    convert(folder / "source", folder / "preset", to="keras-hub")
    model = getattr(keras_hub.models, name).from_preset(str(folder / "preset"), dtype=computed)
    batch, seq = cases.BATCH, cases.SEQ
    mask = cases.masks()["right padding"]
    inputs = {"token_ids": cases.input_ids(), "padding_mask": mask}
    if head == cases.MASKED_LM:
        inputs["mask_positions"] = np.tile(np.arange(seq), (batch, 1))
        model.masked_lm_head._intermediate_layer_norm.epsilon = 1e-12  # noqa: SLF001 - KerasHub has 1e-5
    found = keras.ops.convert_to_numpy(model(inputs))
    wanted = reference.HEADS[head](cases.CONFIG, weights, input_ids=cases.input_ids(), attention_mask=mask)[0]
    report(f"{name} from {stored}", found, wanted)
    check_tokenizer(folder)
    again = getattr(keras_hub.models, name).from_preset(str(folder / "preset"), dtype=stored)
    again.save_to_preset(str(folder / "again"))
    for file in ("model.weights.h5", TASK_WEIGHTS_FILE):
        if (folder / "preset" / file).exists():
            expect(datasets(folder / "again" / file), datasets(folder / "preset" / file), f"{name} saved again: {file}")


def check_tokenizer(folder: Path) -> None:
    """KerasHub's tokenizer gives our ids."""
    theirs = keras_hub.models.DistilBertTokenizer.from_preset(str(folder / "preset"))
    ours = DistilBertTokenizerFast.from_pretrained(folder / "source")
    ids = [[2, *np.asarray(theirs(text)).tolist(), 3] for text in TEXTS]
    expect(ids, ours(TEXTS)["input_ids"], "ids")
    expect((folder / "preset" / "preprocessor.json").exists(), (folder / "preset" / "task.json").exists(), "files")


def datasets(path: Path) -> dict[str, tuple[str, bytes]]:
    """The weights of an HDF5 file: type and bytes by name."""
    found: dict[str, tuple[str, bytes]] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and not name.startswith("optimizer/"):
            found[name] = (str(node.dtype), np.array(node).tobytes())

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def check_real(folder: Path) -> None:
    """The real checkpoint, converted: texts through KerasHub's preprocessor and backbone to embeddings."""
    golden = np.load(ROOT / "tests" / "data" / "minilm_golden.npz")
    convert(ROOT / "build" / "minilm" / "safetensors", folder, to="keras-hub")
    tokenizer = keras_hub.models.DistilBertTokenizer.from_preset(str(folder))
    length = int(golden["max_seq_length"])
    pack = keras_hub.models.DistilBertTextClassifierPreprocessor(tokenizer, sequence_length=length)
    backbone = keras_hub.models.DistilBertBackbone.from_preset(str(folder))
    texts = golden["texts"].tolist()
    ours = DistilBertTokenizerFast.from_pretrained(ROOT / "build" / "minilm" / "safetensors")
    inputs = {name: keras.ops.convert_to_numpy(value) for name, value in pack(np.array(texts)).items()}
    same = [
        ids == row[kept].tolist()
        for ids, row, kept in zip(
            ours(texts, truncation=True, max_length=length)["input_ids"],
            inputs["token_ids"],
            inputs["padding_mask"].astype(bool),
            strict=True,
        )
    ]
    hidden, mask = keras.ops.convert_to_numpy(backbone(inputs)), inputs["padding_mask"][:, :, None]
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    found = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    sys.stdout.write(f"{sum(same)} of {len(same)} texts have the same ids in KerasHub\n")
    expect(sum(same) >= len(same) - 1, True, "texts with the same ids")  # one has what KerasHub tokenizes otherwise
    report("the real checkpoint", found[same], golden["embeddings"][same])


def report(what: str, found: Any, wanted: Any) -> None:
    """Print the largest difference; end when it is too large."""
    difference = float(np.abs(found - wanted).max())
    sys.stdout.write(f"keras_hub {keras_hub.__version__} on {keras.backend.backend()}: {what}: {difference:.1e}\n")
    expect(difference < TOLERANCE, True, what)


def expect(found: Any, wanted: Any, what: str) -> None:
    """End with a line when something is not as it must be."""
    if found != wanted:
        sys.exit(f"FAIL {what}: got {found}, wanted {wanted}")


if __name__ == "__main__":
    main()

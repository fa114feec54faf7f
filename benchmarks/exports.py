"""The same random weights at base size in every peer's own format.

    PYTHON -m benchmarks.exports FORMAT FOLDER

writes FOLDER/FORMAT, which appears only when it is complete. PYTHON is the interpreter that has what the format needs.
Other formats are made from FOLDER/base, which our package writes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.engines import ROOT
from benchmarks.peers import INTEROP5, MODELS, OURS, RUNTIMES

CALIBRATION = 64  # texts of the workloads' kind that int8 ranges are taken from
INPUTS = ("input_ids", "attention_mask")


class Format(NamedTuple):
    """What writes a format, in which virtual environment, and the format that it is made of."""

    write: Callable[[Path, Path], None]
    home: str
    source: str | None


def base(models: Path, target: Path) -> None:
    """Our own model, seed 0, as safetensors, with the tokenizer that some peers insist on."""
    from distilbert.config import DistilBertConfig
    from distilbert.pt import DistilBertModel

    DistilBertModel.from_config(DistilBertConfig(), seed=0).save_pretrained(target)
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(models.parent / "minilm" / "safetensors" / name, target)


def converted(models: Path, target: Path) -> None:
    """A format that `distilbert convert` writes, named by the folder."""
    from weights_convert import convert

    target.rmdir()
    convert(models / "base", target, to=target.name.removesuffix(".part"))


def onnx(models: Path, target: Path) -> None:
    """The export of transformers' model, with free batch and length."""
    import torch
    import transformers

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = transformers.DistilBertModel.from_pretrained(models / "base", attn_implementation="eager")

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids, attention_mask=attention_mask).last_hidden_state

    ids = torch.ones((2, 16), dtype=torch.int64)
    axes = {str(name): {0: "batch", 1: "seq"} for name in (*INPUTS, "last_hidden_state")}
    torch.onnx.export(
        Encoder().eval(), (ids, ids), str(target / "model.onnx"), input_names=list(INPUTS),
        output_names=["last_hidden_state"], dynamic_axes=axes, opset_version=17, dynamo=False,
    )  # fmt: skip


def onnx_fused(models: Path, target: Path) -> None:
    """That export after ONNX Runtime's optimizer for transformers."""
    from onnxruntime.transformers import optimizer

    source = str(models / "onnx" / "model.onnx")
    fused = optimizer.optimize_model(source, model_type="bert", num_heads=12, hidden_size=768, opt_level=0)
    fused.save_model_to_file(str(target / "model.onnx"))


def onnx_int8(models: Path, target: Path) -> None:
    """Dynamic quantization of the export."""
    _quantize(models / "onnx" / "model.onnx", target)


def onnx_fused_int8(models: Path, target: Path) -> None:
    """Dynamic quantization of the fused export."""
    _quantize(models / "onnx-fused" / "model.onnx", target)


def _quantize(source: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        source, target / "model.onnx", weight_type=QuantType.QInt8, per_channel=True,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )  # fmt: skip


def openvino_int8(models: Path, target: Path) -> None:
    """Post-training quantization by NNCF, with its settings for transformers."""
    import nncf
    import openvino

    model = openvino.Core().read_model(models / "onnx" / "model.onnx")
    data = nncf.Dataset(list(_calibration()))
    found = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=CALIBRATION)
    openvino.save_model(found, target / "model.xml", compress_to_fp16=False)


def _calibration() -> Iterator[dict[str, Any]]:
    generator = np.random.default_rng(1)
    for length in generator.integers(4, 128, CALIBRATION):
        ids = generator.integers(1000, 30_522, (1, length))
        yield {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def ctranslate2(models: Path, target: Path) -> None:
    """By its own converter; int8 is made of it when it is loaded."""
    import ctranslate2 as peer

    peer.converters.TransformersConverter(str(models / "base")).convert(str(target), force=True)


FORMATS = {
    "base": Format(base, OURS, None),
    "tf-h5": Format(converted, OURS, "base"),
    "flax-msgpack": Format(converted, OURS, "base"),
    "keras-hub": Format(converted, OURS, "base"),
    "onnx": Format(onnx, RUNTIMES, "base"),
    "onnx-fused": Format(onnx_fused, RUNTIMES, "onnx"),
    "onnx-int8": Format(onnx_int8, RUNTIMES, "onnx"),
    "onnx-fused-int8": Format(onnx_fused_int8, RUNTIMES, "onnx-fused"),
    "openvino-int8": Format(openvino_int8, RUNTIMES, "onnx"),
    "ctranslate2": Format(ctranslate2, INTEROP5, "base"),
}


def ensure(name: str, environment: Mapping[str, str]) -> None:
    """Write a format into MODELS unless it is there, and what it is made of before it.

    Raises:
        CalledProcessError: it could not be written; the log beside it says why.
    """
    if (MODELS / name).exists():
        return
    _, home, source = FORMATS[name]
    if source is not None:
        ensure(source, environment)
    MODELS.mkdir(parents=True, exist_ok=True)
    command = [str(ROOT / home / "bin" / "python"), "-m", "benchmarks.exports", name, str(MODELS)]
    with (MODELS / f"{name}.log").open("w") as log:
        subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=True)  # noqa: S603


def main() -> None:
    """Write one format."""
    name, models = sys.argv[1], Path(sys.argv[2]).absolute()
    part = models / f"{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    FORMATS[name].write(models, part)
    part.rename(models / name)


if __name__ == "__main__":
    main()

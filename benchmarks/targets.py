"""What is claimed: which engine has to be how many times as fast as whom, how exact, how small; and what came out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.measuring import seconds_of
from benchmarks.peers import PEERS
from benchmarks.statistics import Ratio, paired_ratio
from benchmarks.workloads import WORKLOADS

Results = Mapping[str, Any]
FLOAT32_BYTES = 265_446_912  # of a DistilBertModel's weights at base size


class Measured(NamedTuple):
    """What came out: a number to compare with the target, as it is shown, and whom it is against."""

    value: float
    shown: str
    against: str


@dataclasses.dataclass(frozen=True)
class Target:
    """A claim. `measure` gives None where it was not measured; `most` says that the goal must not be exceeded."""

    title: str
    against: str
    goal: float
    measure: Callable[[Results], Measured | None]
    most: bool = False

    def met(self, found: Measured) -> bool:
        """Whether it holds."""
        return found.value <= self.goal if self.most else found.value >= self.goal


def ratios(cell: Mapping[str, Any], ours: str, peers: tuple[str, ...]) -> dict[str, Ratio]:
    """How many times as fast as each peer that was timed; none when ours was not."""
    if ours not in cell["turns"]:
        return {}
    mine = seconds_of(cell, ours)
    return {name: paired_ratio(mine, seconds_of(cell, name)) for name in peers if name in cell["turns"]}


def speed(group: str, workload: str, ours: str, *peers: str) -> Callable[[Results], Measured | None]:
    """Ours by the fastest of the peers, named with those that have no time; 0 if ours failed."""

    def measure(results: Results) -> Measured | None:
        cell = results["cells"].get(f"{group}/{workload}")
        if cell and ours in cell["failed"]:
            return Measured(0.0, "failed", "")
        found = ratios(cell, ours, peers) if cell else {}
        if not found:
            return None
        best = min(found, key=lambda name: found[name].median)
        absent = [PEERS[name].title for name in peers if name not in found]
        without = f"; without {', '.join(absent)}" if absent else ""
        return Measured(found[best].median, str(found[best]), PEERS[best].title + without)

    return measure


def cold(peer: str) -> Callable[[Results], Measured | None]:
    """How many times as long as ours another takes to the first embedding."""

    def measure(results: Results) -> Measured | None:
        if "cold start" not in results:
            return None
        seconds = results["cold start"]["seconds"]
        ratio = paired_ratio(seconds["ours"], seconds[peer])
        return Measured(ratio.median, str(ratio), results["cold start"]["titles"][peer])

    return measure


def error(engines: tuple[str, ...], field: str) -> Callable[[Results], Measured | None]:
    """The worst of the engines in any workload, a failed one first; `field` is one of `benchmarks.checking.Check`."""

    def measure(results: Results) -> Measured | None:
        found = [
            (
                math.inf if name in cell["failed"] else cell["checks"][name][field],
                f"{PEERS[name].title}: {WORKLOADS[cell['workload']].title}",
            )
            for cell in results["cells"].values()
            for name in engines
            if name in cell["checks"] or name in cell["failed"]
        ]
        if not found:
            return None
        value, where = max(found)
        return Measured(value, "failed" if value == math.inf else f"{value:.1e}", f"worst: {where}")

    return measure


def memory(name: str) -> Callable[[Results], Measured | None]:
    """Anonymous memory that an engine holds after it was loaded, by the weights in float32."""

    def measure(results: Results) -> Measured | None:
        if name not in results["engines"]:
            return None
        part = results["engines"][name]["memory"] / FLOAT32_BYTES
        return Measured(part, f"{part:.2f}", "the weights in float32")

    return measure


def accuracy(field: str) -> Callable[[Results], Measured | None]:
    """A number that `benchmarks.int8_accuracy` found."""

    def measure(results: Results) -> Measured | None:
        found = results.get("int8 accuracy")
        return Measured(found[field], f"{found[field]:.4f}", f"{found['texts']} texts") if found else None

    return measure


TORCH = ("torch-sdpa", "torch-eager", "torch-compiled")
ONNX = ("onnx", "onnx-fused")
OTHERS = (*ONNX, "openvino-float32", "ctranslate2-float32")
INT8 = ("onnx-int8", "onnx-fused-int8", "openvino-int8", "ctranslate2-int8")
TF = ("tf-peer-graph", "tf-peer-xla")
FIXED, SENTENCES, QUERY = "fixed-4", "sentences-32", "query"
FLOAT32 = ("pt-float32", "tf-float32", "flax-float32")
BFLOAT16 = ("pt-bfloat16", "tf-bfloat16", "flax-bfloat16")

TARGETS = (
    Target("float32, 4 x 128", "best of ONNX Runtime, OpenVINO, CTranslate2, torch", 1.05,
           speed("float32", FIXED, "pt-float32", *OTHERS, *TORCH)),
    Target("float32, sentences", "CTranslate2", 1.2, speed("float32", SENTENCES, "pt-float32", "ctranslate2-float32")),
    Target("float32, sentences", "ONNX Runtime", 2.4, speed("float32", SENTENCES, "pt-float32", *ONNX)),
    Target("float32, sentences", "transformers", 2.8, speed("float32", SENTENCES, "pt-float32", *TORCH)),
    Target("float32, one query", "best peer", 1.05, speed("float32", QUERY, "pt-float32", *OTHERS, *TORCH)),
    Target("bfloat16, 4 x 128", "OpenVINO", 1.05, speed("bfloat16", FIXED, "pt-bfloat16", "openvino-bfloat16")),
    Target("bfloat16, sentences", "OpenVINO", 1.9, speed("bfloat16", SENTENCES, "pt-bfloat16", "openvino-bfloat16")),
    Target("bfloat16, one query", "OpenVINO", 1.1, speed("bfloat16", QUERY, "pt-bfloat16", "openvino-bfloat16")),
    Target("int8, 4 x 128", "best peer", 1.1, speed("int8", FIXED, "pt-int8", *INT8)),
    Target("int8, sentences", "best peer", 1.2, speed("int8", SENTENCES, "pt-int8", *INT8)),
    Target("int8, one query", "best peer", 1.05, speed("int8", QUERY, "pt-int8", *INT8)),
    Target("TensorFlow float32, sentences", "transformers 4.57", 2.3, speed("tf", SENTENCES, "tf-float32", *TF)),
    Target("TensorFlow bfloat16, sentences", "transformers 4.57", 4.0, speed("tf", SENTENCES, "tf-bfloat16", *TF)),
    Target("TensorFlow float32, 4 x 128", "transformers 4.57", 1.05, speed("tf", FIXED, "tf-float32", *TF)),
    Target("TensorFlow bfloat16, 4 x 128", "transformers 4.57", 1.8, speed("tf", FIXED, "tf-bfloat16", *TF)),
    Target("Flax, sentences", "transformers 4.57, jitted", 2.2, speed("flax", SENTENCES, "flax-float32", "flax-peer")),
    Target("Flax, 4 x 128", "transformers 4.57, jitted", 1.1, speed("flax", FIXED, "flax-float32", "flax-peer")),
    Target("PyTorch, equal lengths", "the model itself", 0.97, speed("float32", FIXED, "pt-float32", "pt-plain")),
    Target("TensorFlow, equal lengths", "the model itself", 0.97, speed("tf", FIXED, "tf-float32", "tf-plain")),
    Target("Flax, equal lengths", "the model itself", 0.97, speed("flax", FIXED, "flax-float32", "flax-plain")),
    Target("first embedding", "sentence-transformers", 3.0, cold("sentence-transformers")),
    Target("first embedding", "transformers", 1.5, cold("transformers")),
    Target("largest difference, float32", "float64", 2e-5, error(FLOAT32, "largest"), most=True),
    Target("relative error, bfloat16", "float64", 4e-3, error(BFLOAT16, "relative"), most=True),
    Target("memory, PyTorch int8", "the weights in float32", 0.4, memory("pt-int8"), most=True),
    Target("int8 on real texts: cosine of all but 1 %", "float32", 0.99, accuracy("cosine")),
    Target("int8 on real texts: recall@1 lost", "float32", 0.005, accuracy("recall lost"), most=True),
)  # fmt: skip

"""How long it takes from the start of a process to the first embedding, and to import alone.

    python -m benchmarks.cold_start FOLDER

Fresh processes in turns, in an order that is drawn anew each round; files are in the page cache, Python's compiled
modules are written. All read the same folder and must give the same vector.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.engines import ROOT
from benchmarks.peers import INTEROP5, OURS
from benchmarks.statistics import paired_ratio

ROUNDS = 7
TEXT = "How long does it take until the first sentence is embedded?"
TOLERANCE = 1e-4
END = "import json, sys; print(json.dumps([float(x) for x in vector]), flush=True)"
IMPORTED = "vector = []"


class Program(NamedTuple):
    """A title, the virtual environment, and code that makes `vector` of `folder` and `text`."""

    title: str
    home: str
    code: str


PROGRAMS = {
    "ours": Program(
        "distilbert, SentenceEncoder",
        OURS,
        "from distilbert.tasks.embedding import SentenceEncoder\n"
        "vector = SentenceEncoder.from_pretrained(folder).encode(text)",
    ),
    "ours, in PyTorch": Program(
        "distilbert, SentenceEncoder with a model of PyTorch",
        OURS,
        "from distilbert.tasks.embedding import SentenceEncoder\n"
        "vector = SentenceEncoder.from_pretrained(folder, backend='pt').encode(text)",
    ),
    "sentence-transformers": Program(
        "sentence-transformers 6.2",
        INTEROP5,
        "from sentence_transformers import SentenceTransformer\n"
        "vector = SentenceTransformer(folder, device='cpu').encode(text)",
    ),
    "transformers": Program(
        "transformers 5.23, DistilBertModel and its tokenizer, pooled by hand",
        INTEROP5,
        "import torch\n"
        "from transformers import DistilBertModel, DistilBertTokenizerFast\n"
        "tokenizer = DistilBertTokenizerFast.from_pretrained(folder)\n"
        "model = DistilBertModel.from_pretrained(folder).eval()\n"
        "with torch.inference_mode():\n"
        "    hidden = model(**tokenizer(text, return_tensors='pt')).last_hidden_state\n"
        "vector = torch.nn.functional.normalize(hidden.mean(1)).numpy()[0]",
    ),
    "ours, import": Program("import distilbert", OURS, f"import distilbert\n{IMPORTED}"),
    "ours, model class": Program(
        "from distilbert.pt import DistilBertModel", OURS, f"from distilbert.pt import DistilBertModel\n{IMPORTED}"
    ),
    "torch, import": Program("import torch, which the next ones include", OURS, f"import torch\n{IMPORTED}"),
    "transformers, model class": Program(
        "from transformers import DistilBertModel", INTEROP5, f"from transformers import DistilBertModel\n{IMPORTED}"
    ),
    "sentence-transformers, import": Program(
        "import sentence_transformers", INTEROP5, f"import sentence_transformers\n{IMPORTED}"
    ),
}


def measure(folder: Path, *, rounds: int = ROUNDS) -> dict[str, Any]:
    """Seconds of each program in each round, after one that does not count.

    Raises:
        ValueError: embeddings differ.
    """
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    vectors = {name: run(program, folder)[1] for name, program in PROGRAMS.items()}
    first = vectors["ours"]
    for name, vector in vectors.items():
        if vector.size and not np.allclose(vector, first, atol=TOLERANCE):
            raise ValueError(f"{name} and ours give different embeddings.")
    draw = random.Random(0)  # noqa: S311 - nothing secret
    for _ in range(rounds):
        for name in draw.sample(list(PROGRAMS), len(PROGRAMS)):
            seconds[name].append(run(PROGRAMS[name], folder)[0])
    return {"seconds": seconds, "titles": {name: program.title for name, program in PROGRAMS.items()}}


def run(program: Program, folder: Path) -> tuple[float, np.ndarray[Any, Any]]:
    """Seconds until the program has its vector, and the vector."""
    code = f"folder, text = {str(folder)!r}, {TEXT!r}\n{program.code}\n{END}"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    command = [str(ROOT / program.home / "bin" / "python"), "-c", code]
    begin = time.perf_counter()
    with subprocess.Popen(  # noqa: S603 - our own code
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    ) as process:
        line = next((line for line in process.stdout or () if line.startswith("[")), None)
        passed = time.perf_counter() - begin
    if line is None:
        raise RuntimeError(f"{program.title}: ended with {process.returncode}.")
    return passed, np.array(json.loads(line))


def rows(found: dict[str, Any]) -> Sequence[Sequence[str]]:
    """A table of the report: each program's time, and how many times as long as ours it takes."""
    seconds = found["seconds"]
    table = [("from the start of a process", "seconds", "times ours")]
    for name, title in found["titles"].items():
        ours = "ours" if name in ("ours", "sentence-transformers", "transformers") else "ours, model class"
        ratio = "" if name.startswith("ours") else str(paired_ratio(seconds[ours], seconds[name]))
        table.append((title, f"{np.median(seconds[name]):.2f}", ratio))
    return table


def main() -> None:
    """Measure and print."""
    found = measure(Path(sys.argv[1]).absolute())
    sys.stdout.writelines(" | ".join(row) + "\n" for row in rows(found))


if __name__ == "__main__":
    main()

"""What `benchmarks.training` times: the training steps of one engine, in a process of its own interpreter.

    PYTHON -m benchmarks.training_engines ENGINE FOLDER

Read by the others' interpreters: it imports our package only for our engines. An order is {"inputs": FILE}: a step is
taken on each batch of the file, and the answer holds the seconds of all, and the losses of each.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.engines import Answer, serve
from benchmarks.inference_engines import settle

THREADS = 2
LEARNING_RATE, WEIGHT_DECAY, LARGEST_NORM = 5e-5, 0.0, 1.0  # transformers' defaults
OURS, PEER = "ours", "transformers"
NEEDED, EVERYWHERE = "needed", "everywhere"  # where the logits of a distillation are
TEACHER, STUDENT = "teacher", "student"  # folders
LASTING = ExitStack()  # what ends with the process
KINDS = ("inputs", "targets", "weights")

Arrays = dict[str, NDArray[Any]]
Groups = dict[str, Arrays]  # a batch's arrays by kind and name
Losses = dict[str, float]
Step = Callable[[int, Groups], Losses]


def ours(folder: Path) -> tuple[Step, Answer]:
    """Fine-tuning by our trainer."""
    import torch

    from distilbert.pt import DistilBertForSequenceClassification
    from distilbert.training.objective import Objective

    model = DistilBertForSequenceClassification.from_pretrained(folder)
    return _our_step(model, Objective("single_label_classification"), None), {"torch": torch.__version__}


def distillation(folder: Path) -> tuple[Step, Answer]:
    """Distillation by our trainer, with the paper's three losses."""
    import torch

    from distilbert.pt import DistilBertForMaskedLM
    from distilbert.training.objective import Objective

    teacher, student = (DistilBertForMaskedLM.from_pretrained(folder / name) for name in (TEACHER, STUDENT))
    objective = Objective("masked_lm", alpha_task=2.0, alpha_kl=5.0, alpha_cos=1.0)
    return _our_step(student, objective, teacher), {"torch": torch.__version__}


def _our_step(model: Any, objective: Any, teacher: Any) -> Step:
    from distilbert.pt.training import session, trainer
    from distilbert.training.batches import Batch, normalized
    from distilbert.training.trainer import Optimization

    LASTING.enter_context(session(threads=THREADS))
    optimization = Optimization(weight_decay=WEIGHT_DECAY, max_grad_norm=LARGEST_NORM)
    training = trainer(model, objective, optimization, teacher)

    def step(number: int, groups: Groups) -> Losses:
        found = training.step(number, normalized([Batch(**groups)]), LEARNING_RATE)
        return {"loss": found.loss, **found.parts}

    return step


def transformers(folder: Path) -> tuple[Step, Answer]:
    """Fine-tuning as transformers' Trainer does it: forward with labels, backward, clipping, fused AdamW."""
    import torch
    import transformers as library

    torch.set_num_threads(THREADS)
    model = library.DistilBertForSequenceClassification.from_pretrained(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)

    def step(number: int, groups: Groups) -> Losses:
        del number
        arrays = {**groups["inputs"], **groups["targets"]}
        loss = model(**{name: torch.from_numpy(array).long() for name, array in arrays.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": loss.item()}

    return step, {"torch": torch.__version__, "transformers": library.__version__}


LOADERS: dict[str, Callable[[Path], tuple[Step, Answer]]] = {
    OURS: ours,
    PEER: transformers,
    NEEDED: distillation,
    EVERYWHERE: distillation,
}


def read(file: Path) -> Iterator[Groups]:
    """The batches of a file, whose arrays are named NUMBER/KIND/NAME."""
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    count = 1 + max(int(name.split("/")[0]) for name in arrays)
    for number in range(count):
        starts = {kind: f"{number}/{kind}/" for kind in KINDS}
        yield {
            kind: {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
            for kind, start in starts.items()
        }


def start() -> tuple[Answer, Callable[[Answer], Answer]]:
    """Load the engine of the command line."""
    name, folder = sys.argv[1:]
    step, versions = LOADERS[name](Path(folder))
    taken = 0

    def do(order: Answer) -> Answer:
        nonlocal taken
        batches, losses = list(read(Path(order["inputs"]))), list[Losses]()
        gc.collect()
        begin = time.perf_counter()
        for batch in batches:
            taken += 1
            losses.append(step(taken, batch))
        seconds = time.perf_counter() - begin
        settle()
        return {"seconds": seconds, "losses": losses}

    return {"versions": versions}, do


if __name__ == "__main__":
    serve(start)

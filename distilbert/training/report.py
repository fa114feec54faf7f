"""What a run did, for people and for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distilbert.backends import BACKENDS

ENOUGH, SHARE = 200, 0.98  # steps after which a loss should have fallen, below that share of its first fifth


@dataclass(frozen=True)
class Report:
    """What a run did.

    steps: of the whole run, also before it was broken off. tokens, seconds: of what this process did. metrics: of the
    evaluation whose model was kept, None where not finite; {} without evaluations. skipped_examples: how many, by what
    was wrong with them, of the training data, and of the data to evaluate on; first_faults: where the first ones are.
    rank: of the process that reports; only the first has something to say.
    hint: what may be wrong with a run that learned nothing.
    """

    folder: str
    head: str
    backend: str
    steps: int
    tokens: int
    seconds: float
    best_step: int
    metrics: Mapping[str, float | None]
    skipped_examples: Mapping[str, int]
    skipped_evaluation: Mapping[str, int]
    first_faults: Sequence[str]
    skipped_steps: int
    rank: int = 0
    hint: str = ""

    def lines(self) -> list[str]:
        """What a user wants to know, a line each; nothing on processes but the first."""
        if self.rank:
            return []
        speed = f", {self.tokens / self.seconds:,.0f} tokens a second" if self.tokens else ""
        found = [f"{self.head}, {BACKENDS[self.backend]}: {self.steps} steps, {self.tokens:,} tokens now{speed}"]
        if self.metrics:
            shown = {name: "not finite" if value is None else f"{value:.4g}" for name, value in self.metrics.items()}
            values = ", ".join(f"{name} {value}" for name, value in shown.items())
            found.append(f"best after step {self.best_step}: {values}")
        for what, skipped in (("examples", self.skipped_examples), ("to evaluate on", self.skipped_evaluation)):
            found += [f"skipped {count} {what}: {reason}" for reason, count in skipped.items()]
        found += [f"the first: {fault}" for fault in self.first_faults[:1]]
        if self.skipped_steps:
            found.append(f"skipped {self.skipped_steps} steps whose loss or gradient was not finite")
        return [*found, *([self.hint] if self.hint else []), f"wrote {self.folder}"]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        return dataclasses.asdict(self)


def hint(losses: Sequence[float]) -> str:
    """What to try where the losses of the steps did not fall; "" where they did, or are too few to tell."""
    fifth = len(losses) // 5
    if len(losses) < ENOUGH or np.mean(losses[-fifth:]) < SHARE * np.mean(losses[:fifth]):
        return ""
    return f"the loss has not fallen in {len(losses)} steps: try another learning rate, and look at the labels"

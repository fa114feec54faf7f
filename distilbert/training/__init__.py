"""Fine-tuning and distillation: what training needs and no framework owns, from data to the loop and its checkpoints.

Names are resolved when they are used: importing this package imports no framework.
"""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {
    "DistillationArguments": "distilbert.training.arguments",
    "Report": "distilbert.training.report",
    "TrainingArguments": "distilbert.training.arguments",
    "distill": "distilbert.training.run",
    "search": "distilbert.training.tuning",
    "train": "distilbert.training.run",
}

__all__ = [*_PLACES]  # noqa: PLE0604 # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

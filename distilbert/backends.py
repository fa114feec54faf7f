"""The three backends by name, imported only when one is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType

BACKENDS = {"pt": "PyTorch", "tf": "TensorFlow", "flax": "Flax"}


def load_backend(name: str) -> ModuleType:
    """The module `distilbert.<name>`.

    Raises:
        ValueError: there is no such backend. MissingDependencyError: its framework cannot be imported.
    """
    return importlib.import_module(f"distilbert.{check_backends([name])[0]}")


def check_backends(names: Iterable[str]) -> list[str]:
    """`names`, each known and named once.

    Raises:
        ValueError: one is not, or there is none.
    """
    names = list(names)
    if not names or len(set(names)) < len(names) or not set(names) <= BACKENDS.keys():
        raise ValueError(f"backends must be some of {','.join(BACKENDS)}, got {','.join(names)!r}.")
    return names

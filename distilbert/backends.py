"""The three backends by name, imported only when one is asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from types import ModuleType

from distilbert.errors import MissingDependencyError

BACKENDS = {"pt": "PyTorch", "tf": "TensorFlow", "flax": "Flax"}
NATIVE = "native"  # distilbert.native: frozen models without any framework


def load_backend(name: str) -> ModuleType:
    """The module `distilbert.<name>`.

    Raises:
        ValueError: there is no such backend. MissingDependencyError: its framework cannot be imported.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}.")
    return importlib.import_module(f"distilbert.{name}")


def load_inference(name: str) -> ModuleType:
    """The module `distilbert.<name>.inference`, which has `optimize`.

    Raises:
        ValueError, MissingDependencyError: as `load_backend`.
    """
    return importlib.import_module(f"{load_backend(name).__name__}.inference")


def check_backends(names: Iterable[str]) -> list[str]:
    """`names`, each known and named once.

    Raises:
        ValueError: one is not, or there is none.
    """
    names = list(names)
    if not names or len(set(names)) < len(names) or not set(names) <= BACKENDS.keys():
        raise ValueError(f"backends must be some of {','.join(BACKENDS)}, got {','.join(names)!r}.")
    return names


def first_installed() -> str:
    """The first backend whose framework is installed, without importing it; the first of all if none is."""
    packages = {"pt": "torch", "tf": "tensorflow", "flax": "flax"}
    return next((name for name in BACKENDS if importlib.util.find_spec(packages[name])), next(iter(BACKENDS)))


def installed_backends() -> list[str]:
    """The backends whose framework can be imported, which this does.

    Raises:
        MissingDependencyError: none can.
    """
    found: list[str] = []
    missing: MissingDependencyError | None = None
    for name in BACKENDS:
        try:
            load_backend(name)
        except MissingDependencyError as error:
            missing = missing or error
        else:
            found.append(name)
    if not found and missing is not None:
        raise missing
    return found

"""Packages that only some uses need: imported where they are used, with the install command when they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from distilbert.errors import MissingDependencyError


def require(package: str, *, extra: str, needed_for: str) -> Any:
    """The imported package.

    Raises:
        MissingDependencyError: it cannot be imported; the message says what it is for and how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingDependencyError(package, extra, needed_for, str(error)) from None

"""The error family: what went wrong, where, and what to do, in one line.

Everything that a user's file or argument can cause is a `ValueError`; what the environment lacks (a package, disk
space, a permission) is not. Messages escape control characters, because names in foreign files end up in terminals.
"""

from __future__ import annotations

import os
from typing import Literal

MAX_MESSAGE = 500  # characters: a hostile name must not fill the terminal

Kind = Literal[
    "BadMagic",
    "DestinationExists",
    "DtypeUnsupported",
    "DuplicateName",
    "HeaderInvalid",
    "HeaderTooLarge",
    "IncompleteSave",
    "IntegrityMismatch",
    "MissingTensor",
    "NonFinite",
    "NotFound",
    "NotRegularFile",
    "OffsetInvalid",
    "PathEscape",
    "ResourceLimit",
    "ShapeMismatch",
    "SizeMismatch",
    "TiedTensorsDiffer",
    "Truncated",
    "UnexpectedTensor",
    "UnsafeLink",
    "UnsafePickle",
    "VersionUnsupported",
]


def escape(text: str, limit: int = MAX_MESSAGE) -> str:
    """`text` on one line: unprintable characters escaped, cut at `limit` characters."""
    start = text[: limit + 1]  # escaping never shortens: what follows would be cut
    line = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in start)
    return line if len(line) <= limit else line[: limit - 3] + "..."


class DistilBertError(ValueError):
    """Base of all errors that a wrong file, folder or argument causes. The command line exits with 2."""


class CheckpointError(DistilBertError):
    """A checkpoint cannot be read or written as asked.

    `path` is the file or folder, `kind` one of a fixed set of names (for programs), `detail` a sentence (for people).
    """

    def __init__(self, path: str | os.PathLike[str], kind: Kind, detail: str) -> None:
        super().__init__(escape(f"{os.fspath(path)}: {detail} [{kind}]"))
        self.path, self.kind, self.detail = os.fspath(path), kind, detail


class ConfigError(DistilBertError):
    """A configuration value has the wrong type, lies outside its range, or contradicts another."""

    def __init__(self, message: str) -> None:
        super().__init__(escape(message))


class TokenizerError(DistilBertError):
    """Tokenizer files are missing, broken, or describe another kind of tokenizer."""

    def __init__(self, message: str) -> None:
        super().__init__(escape(message))


class DataError(DistilBertError):
    """A text or data file cannot be used."""

    def __init__(self, message: str) -> None:
        super().__init__(escape(message))


class TrainingError(DistilBertError):
    """A run cannot go on: its loss is not finite, or it does not fit what it is to go on from."""

    def __init__(self, message: str) -> None:
        super().__init__(escape(message))


class StoppedError(Exception):
    """A run was told to end by a signal, and has saved. The command line exits with 128 and the signal's number."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped after step {step}, which is saved: the same command goes on from there.")
        self.number = number


class VerificationError(DistilBertError):
    """What was made is not what it should be, so it was not put in place. The command line exits with 1."""

    def __init__(self, message: str) -> None:
        super().__init__(escape(message))


class MissingDependencyError(ImportError):
    """An optional package is not installed. The message holds the command that installs it; exit code 3."""

    def __init__(self, package: str, extra: str, needed_for: str, cause: str = "") -> None:
        why = f" ({cause})" if cause else ""
        super().__init__(
            escape(
                f"{needed_for} needs the package {package}, which cannot be imported{why}: "
                f"run `pip install 'distilbert[{extra}]'`."
            )
        )

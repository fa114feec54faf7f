"""The signatures of everything public, as `signatures.json` writes them down: each backend is held to that file.

`idiom` says what a framework adds: Keras its `training` and the options of a layer, NNX its `rngs`.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distilbert.backends import load_backend

SPEC: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("signatures.json").read_text())


def differences(backend: str) -> list[str]:
    """Every public function of the backend whose signature is not the written one, with both; [] when all agree."""
    found = list(_functions(backend))
    return [
        f"{name} must be ({', '.join(wanted)}), got ({', '.join(got)})" for name, wanted, got in found if wanted != got
    ]


def _functions(backend: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """(name, written signature, found signature) of every public function of the backend."""
    module, idiom = load_backend(backend), SPEC["idiom"][backend]
    for name, written in SPEC["call"].items():
        head = getattr(module, name)
        yield name, written, _parameters(getattr(head, idiom["runs by"]), idiom.get("call", []))
        yield f"{name}(...)", SPEC["construct"][name], _parameters(head.__init__, idiom.get("construct", []))
        for method, parameters in SPEC["methods"].items():
            yield f"{name}.{method}", parameters, _parameters(getattr(head, method))
    for part in ("losses", "objectives", "training"):
        functions = importlib.import_module(f"distilbert.{backend}.{part}")
        for name, written in SPEC[part].items():
            yield f"{part}.{name}", written, _parameters(getattr(functions, name), idiom.get(part, []))


def _parameters(function: Callable[..., Any], idiom: list[str] | None = None) -> list[str]:
    """The parameters as they are written in a definition, without `self` and without what the framework adds."""
    texts: list[str] = []
    for parameter in inspect.signature(inspect.unwrap(function)).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in texts:
            texts.append("*")
        texts.append(_text(parameter))
    return [text for text in texts if text != "self" and text not in (idiom or [])]


def _text(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
    return f"{stars}{parameter.name}{default}"

"""The folder layout of sentence-transformers: modules.json, 1_Pooling, 2_Normalize, sentence_bert_config.json.

Reads what its versions 2 to 6 write; writes the form that all of them read.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path, PurePosixPath
from typing import Any, cast

from distilbert.checkpoint import safely
from distilbert.config import POOLING_MODES, DistilBertConfig, PoolingConfig
from distilbert.errors import ConfigError

MODULES_FILE = "modules.json"
POOLING_FILE = "1_Pooling/config.json"
LENGTH_FILES = ("sentence_bert_config.json", "sentence_distilbert_config.json")

_MODULES = ("Transformer", "Pooling", "Normalize")
_LEGACY_KEYS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
}
_CURRENT_NAMES = {"mean": "mean", "cls": "cls", "max": "max", "mean_sqrt_len_tokens": "mean_sqrt_len"}


def is_sentence_folder(folder: Path) -> bool:
    """Whether `folder` has a modules.json."""
    return os.path.lexists(folder / MODULES_FILE)


def read_pooling(folder: Path) -> tuple[Path, PoolingConfig]:
    """The folder of the encoder and the pooling settings. Without a modules.json: the folder itself, the defaults.

    Raises:
        ConfigError: a module or a pooling mode that would change the embeddings and is not supported.
    """
    if not is_sentence_folder(folder):
        return folder, PoolingConfig()
    places = _modules(folder)
    encoder = places["Transformer"]
    settings = _read_mode(places["Pooling"] / "config.json") if "Pooling" in places else PoolingConfig()
    return encoder, PoolingConfig(settings.mode, "Normalize" in places, _read_length(encoder))


def _modules(folder: Path) -> dict[str, Path]:
    """The folder of each module, by its type (the last part of a dotted name)."""
    path = folder / MODULES_FILE
    try:
        entries = safely.parse_json(b'{"modules":' + safely.read_bytes(path, 1 << 20) + b"}", path)["modules"]
        found = [(str(entry["type"]).rsplit(".", 1)[-1], PurePosixPath(entry["path"])) for entry in entries]
    except (KeyError, TypeError):
        raise ConfigError(f"{path}: must be a list of modules with type and path.") from None
    for kind in dict.fromkeys(kind for kind, _ in found):
        if kind not in _MODULES:
            raise ConfigError(f"{path}: modules of type {kind} are not supported.")
    if not found or tuple(kind for kind, _ in found) != _MODULES[: len(found)]:
        raise ConfigError(f"{path}: must list {', '.join(_MODULES)}, in this order; the last ones may be absent.")
    places = {kind: folder / place for kind, place in found}
    if not all(_lies_in(folder, place) for place in places.values()):
        raise ConfigError(f"{path}: a module lies outside the folder.")
    return places


def _lies_in(folder: Path, place: Path) -> bool:
    """Whether `place`, after every link, is below `folder`; what links to itself, or is no possible name, is not."""
    try:
        with contextlib.suppress(FileNotFoundError):
            place.stat()
        return Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder))
    except (OSError, ValueError):
        return False


def _read_mode(path: Path) -> PoolingConfig:
    values = safely.read_json(path)
    if "pooling_mode" in values:
        modes = values["pooling_mode"] if isinstance(values["pooling_mode"], list) else [values["pooling_mode"]]
    else:
        modes = [key for key, value in values.items() if key.startswith("pooling_mode_") and value is True]
    names = _CURRENT_NAMES | {key: mode for mode, key in _LEGACY_KEYS.items()}
    if len(cast("list[Any]", modes)) != 1 or str(modes[0]) not in names:
        raise ConfigError(f"{path}: pooling must be exactly one of {', '.join(POOLING_MODES)}, got {modes!r}.")
    return PoolingConfig(names[str(modes[0])])


def _read_length(encoder: Path) -> int | None:
    for name in LENGTH_FILES:
        if (encoder / name).is_file():
            return safely.read_json(encoder / name).get("max_seq_length")
    return None


def write_pooling(folder: Path, config: DistilBertConfig, pooling: PoolingConfig) -> None:
    """Write the settings beside the encoder in `folder`; the weights and config.json are the encoder's."""
    kinds = [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        *([("2_Normalize", "Normalize")] * pooling.normalize),
    ]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    modes = {key: mode == pooling.mode for mode, key in _LEGACY_KEYS.items()}
    safely.write_json(folder / POOLING_FILE, {"word_embedding_dimension": config.dim, **modes})
    length = {"max_seq_length": pooling.max_seq_length, "do_lower_case": False}
    safely.write_json(folder / LENGTH_FILES[0], length)
    if pooling.normalize:
        (folder / "2_Normalize").mkdir(exist_ok=True)
        safely.write_json(folder / "2_Normalize" / "config.json", {})
    safely.write_json(folder / MODULES_FILE, modules)

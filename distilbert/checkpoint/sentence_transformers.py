"""The folder layout of sentence-transformers: modules.json, 1_Pooling, 2_Dense, 3_Normalize, sentence_bert_config.json.

Reads what its versions 2 to 6 write; writes the form that all of them read. The class names in these files are looked
up in tables, never imported.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

from distilbert.checkpoint import safely, safetensors
from distilbert.checkpoint.folder import FORMATS
from distilbert.checkpoint.tensors import Array, TensorInfo
from distilbert.config import CONFIG_FILE, POOLING_MODES, DenseConfig, DistilBertConfig, PoolingConfig
from distilbert.errors import ConfigError
from distilbert.weight_map import SENTENCE, dense_specs

MODULES_FILE, SETTINGS_FILE = "modules.json", "config_sentence_transformers.json"
DENSE_PLACE, DENSE_FORMAT = "2_Dense", "safetensors"  # where the dense layer is written, and how
LENGTH_FILES = ("sentence_bert_config.json", "sentence_distilbert_config.json")

_PLACES = ("1_Pooling", DENSE_PLACE, "2_Normalize", "3_Normalize")  # of modules, where we write them
_LEGACY_KEYS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
}
_ORDER = ("Transformer", "Pooling", "Dense", "Normalize")
_ACTIVATIONS = {
    "identity": "torch.nn.modules.linear.Identity",
    "tanh": "torch.nn.modules.activation.Tanh",
    "relu": "torch.nn.modules.activation.ReLU",
    "gelu": "torch.nn.modules.activation.GELU",
    "silu": "torch.nn.modules.activation.SiLU",
}
# What modules behind the pooling may say and compute what ours do; the first is the default.
_ALLOWED = {
    "module_input_name": ("sentence_embedding",),
    "module_output_name": (None, "sentence_embedding"),
    "use_residual": (False,),
}
_CURRENT_NAMES = {"mean": "mean", "cls": "cls", "max": "max", "mean_sqrt_len_tokens": "mean_sqrt_len"}


class DenseFolder(NamedTuple):
    """Where the weights of a dense layer lie, and the width of the vectors that they are for."""

    path: Path
    in_features: int


class SentenceFolder(NamedTuple):
    """What lies where: the folder of the encoder, the pooling settings, and the dense layer if they have one."""

    encoder: Path
    pooling: PoolingConfig
    dense: DenseFolder | None = None


def is_sentence_folder(folder: Path) -> bool:
    """Whether `folder` has a modules.json."""
    return os.path.lexists(folder / MODULES_FILE)


def module_files(folder: Path) -> set[str]:
    """The files in `folder` that make a sentence encoder of it, where we write them: a save must not leave old ones."""
    found = {name for name in (MODULES_FILE, *LENGTH_FILES) if (folder / name).is_file()}
    for place in (folder / name for name in _PLACES):
        if place.is_dir() and not place.is_symlink():
            found |= {f"{place.name}/{path.name}" for path in place.iterdir() if path.is_file()}
    return found


def read_pooling(folder: Path) -> SentenceFolder:
    """What lies in `folder`. Without a modules.json: the encoder in the folder itself, and the default settings.

    Raises:
        ConfigError: a module or a pooling mode that would change the embeddings and is not supported.
    """
    if not is_sentence_folder(folder):
        return SentenceFolder(folder, PoolingConfig())
    places = read_modules(folder)
    encoder = places["Transformer"]
    mode = _read_mode(places["Pooling"] / CONFIG_FILE) if "Pooling" in places else PoolingConfig().mode
    dense, dense_folder = _read_dense(places["Dense"]) if "Dense" in places else (None, None)
    if "Normalize" in places and (places["Normalize"] / CONFIG_FILE).is_file():  # version 2 writes none
        _read_module(places["Normalize"] / CONFIG_FILE)
    pooling = PoolingConfig(mode, "Normalize" in places, _read_length(encoder), dense)
    return SentenceFolder(encoder, pooling, dense_folder)


def read_modules(folder: Path) -> dict[str, Path]:
    """The folder of each module that modules.json names, by its type, which is the last part of a dotted name.

    Raises:
        ConfigError: it is no list of modules that we know, in the order that we know, or a folder lies outside.
    """
    path = folder / MODULES_FILE
    try:
        entries = safely.parse_json(b'{"modules":' + safely.read_bytes(path, 1 << 20) + b"}", path)["modules"]
        found = [(str(entry["type"]).rsplit(".", 1)[-1], PurePosixPath(entry["path"])) for entry in entries]
    except (KeyError, TypeError):
        raise ConfigError(f"{path}: must be a list of modules with type and path.") from None
    places = {kind: folder / place for kind, place in found}
    kinds = [kind for kind, _ in found]
    for kind in kinds:
        if kind not in _ORDER:
            raise ConfigError(f"{path}: modules of type {kind} are not supported.")
    ordered = kinds == [kind for kind in _ORDER if kind in places]
    if not ordered or "Transformer" not in places or ("Pooling" not in places and len(kinds) > 1):
        order = "one Transformer, one Pooling, at most one Dense, at most one Normalize, in this order"
        raise ConfigError(f"{path}: modules must be {order}, got {', '.join(kinds)}.")
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


def _read_mode(path: Path) -> str:
    values = safely.read_json(path)
    if "pooling_mode" in values:
        modes = values["pooling_mode"] if isinstance(values["pooling_mode"], list) else [values["pooling_mode"]]
    else:
        modes = [key for key, value in values.items() if key.startswith("pooling_mode_") and value is True]
    names = _CURRENT_NAMES | {key: mode for mode, key in _LEGACY_KEYS.items()}
    if len(cast("list[Any]", modes)) != 1 or str(modes[0]) not in names:
        raise ConfigError(f"{path}: pooling must be exactly one of {', '.join(POOLING_MODES)}, got {modes!r}.")
    if values.get("include_prompt", True) is not True:
        raise ConfigError(f"{path}: include_prompt must be true, got {values['include_prompt']!r}: prompts are tokens.")
    return names[str(modes[0])]


def _read_module(path: Path) -> dict[str, Any]:
    """The settings of a module that turns one sentence vector into another."""
    values = safely.read_json(path)
    for name, allowed in _ALLOWED.items():
        if values.get(name, allowed[0]) not in allowed:
            raise ConfigError(f"{path}: {name} must be {allowed[-1]!r}, got {values[name]!r}.")
    return values


def _read_dense(folder: Path) -> tuple[DenseConfig, DenseFolder]:
    path = folder / CONFIG_FILE
    values = _read_module(path)
    names = {name: activation for activation, name in _ACTIVATIONS.items()}
    given = values.get("activation_function", _ACTIVATIONS["tanh"])
    if not isinstance(given, str) or given not in names:
        raise ConfigError(f"{path}: activation_function must be one of {', '.join(names)}, got {given!r}.")
    try:
        dense = DenseConfig(cast("int", values.get("out_features")), values.get("bias", True), names[given])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return dense, DenseFolder(folder, cast("int", values.get("in_features")))


def _read_length(encoder: Path) -> int | None:
    for name in LENGTH_FILES:
        if (encoder / name).is_file():
            values = safely.read_json(encoder / name)
            if values.get("do_lower_case"):
                detail = "do_lower_case must be false; let the tokenizer's own option lower the case"
                raise ConfigError(f"{encoder / name}: {detail}.")
            return values.get("max_seq_length")
    return None


def write_pooling(
    folder: Path,
    config: DistilBertConfig,
    pooling: PoolingConfig,
    dtypes: Mapping[str, str],
    read_one: Callable[[str], Array],
) -> None:
    """Write what lies beside the encoder in `folder`: settings, and the dense layer, read by canonical name."""
    kinds = ["Transformer", "Pooling", *["Dense"] * (pooling.dense is not None), *["Normalize"] * pooling.normalize]
    places = {kind: f"{i}_{kind}" if i else "" for i, kind in enumerate(kinds)}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(places.items())
    ]
    modes = {key: mode == pooling.mode for mode, key in _LEGACY_KEYS.items()}
    pooled = {"word_embedding_dimension": config.dim, **modes}
    safely.write_json(folder / places["Pooling"] / CONFIG_FILE, pooled)
    length = {"max_seq_length": pooling.max_seq_length, "do_lower_case": False}
    safely.write_json(folder / LENGTH_FILES[0], length)
    if pooling.dense is not None:
        _write_dense(folder / places["Dense"], config, pooling, pooling.dense, dtypes, read_one)
    if pooling.normalize:
        safely.write_json(folder / places["Normalize"] / CONFIG_FILE, {})
    safely.write_json(folder / MODULES_FILE, modules)


def _write_dense(
    folder: Path,
    config: DistilBertConfig,
    pooling: PoolingConfig,
    dense: DenseConfig,
    dtypes: Mapping[str, str],
    read_one: Callable[[str], Array],
) -> None:
    specs = {spec.stored_name(SENTENCE): spec for spec in dense_specs(config, pooling).values()}
    info = {stored: TensorInfo(spec.shape, dtypes[spec.name]) for stored, spec in specs.items()}
    safetensors.write(folder / FORMATS[DENSE_FORMAT].file, info, lambda stored: read_one(specs[stored].name))
    settings = {
        "in_features": config.dim,
        "out_features": dense.out_features,
        "bias": dense.bias,
        "activation_function": _ACTIVATIONS[dense.activation],
    }
    safely.write_json(folder / CONFIG_FILE, settings)

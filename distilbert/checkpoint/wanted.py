"""Which files of a model are needed: config, weights in one format, tokenizer, the modules of sentence-transformers.

Names are looked up exactly: those that we know, the folders that modules.json names, the shards that an index names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from distilbert.checkpoint import safely
from distilbert.checkpoint.folder import FORMATS
from distilbert.checkpoint.hub import MissingFileError, Source, first_of
from distilbert.checkpoint.keras_hub_config import METADATA_FILE, PREPROCESSOR_FILE
from distilbert.checkpoint.manifest import MANIFEST_FILE
from distilbert.checkpoint.manifest import read as read_manifest
from distilbert.checkpoint.sentence_transformers import LENGTH_FILES, MODULES_FILE, SETTINGS_FILE, read_modules
from distilbert.checkpoint.sharding import MAX_INDEX_BYTES
from distilbert.config import CONFIG_FILE
from distilbert.errors import CheckpointError
from distilbert.tokenization import PRESET_VOCABULARY_FILE, TOKENIZER_FILE, TOKENIZER_FILES, VOCABULARY_FILE

_PRESET_FILES = (METADATA_FILE, PREPROCESSOR_FILE, PRESET_VOCABULARY_FILE)  # of KerasHub
_SMALL_FILES = (CONFIG_FILE, *TOKENIZER_FILES, *LENGTH_FILES, *_PRESET_FILES)
_ROOT_FILES = (MODULES_FILE, SETTINGS_FILE)
_WITH_WEIGHTS = ("Transformer", "Dense")  # types of modules


def model_files(source: Source) -> list[str]:
    """What a model of any class needs; its tokenizer too, if it has one."""
    return [*_needed(source), *_present(source, "", _ROOT_FILES), *_listed(source)]


def encoder_files(source: Source) -> list[str]:
    """What a model and its tokenizer need."""
    prefix = next((place for kind, place in _modules(source) if kind == "Transformer"), "")
    return [*model_files(source), first_of(source, prefix + TOKENIZER_FILE, prefix + VOCABULARY_FILE)]


def _listed(source: Source) -> list[str]:
    """The manifest, and the files that it lists, which a load compares with it."""
    if not source.has(MANIFEST_FILE):
        return []
    return [MANIFEST_FILE, *_present(source, "", (*(read_manifest(source.get(MANIFEST_FILE).parent) or {}),))]


def _needed(source: Source) -> list[str]:
    names: list[str] = []
    for kind, prefix in _modules(source):
        if kind in _WITH_WEIGHTS:
            names += [first_of(source, prefix + CONFIG_FILE), *_weight_files(source, prefix)]
        names += _present(source, prefix, _SMALL_FILES)
    return names


def _modules(source: Source) -> list[tuple[str, str]]:
    """Type and prefix ("" or "folder/") of each module; without a modules.json, the encoder alone."""
    if not source.has(MODULES_FILE):
        return [("Transformer", "")]
    root = source.get(MODULES_FILE).parent
    return [(kind, _prefix(place.relative_to(root))) for kind, place in read_modules(root).items()]


def _prefix(place: Path) -> str:
    return f"{place.as_posix()}/" if place.parts else ""


def _weight_files(source: Source, prefix: str) -> list[str]:
    """The weights in the preferred format of those that a folder has: one file, or an index and its shards."""
    for entry in FORMATS.values():
        if source.has(prefix + entry.file):
            return [prefix + entry.file, *_present(source, prefix, entry.companions)]
        index = prefix + entry.index
        if source.has(index):
            return [index, *(prefix + shard for shard in _shards(source.get(index)))]
    raise MissingFileError(f"weights (none of {', '.join(prefix + entry.file for entry in FORMATS.values())})")


def _shards(index: Path) -> list[str]:
    places = safely.read_json(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(places, dict):
        raise CheckpointError(index, "HeaderInvalid", "has no weight_map of tensors to files")
    return sorted({str(name) for name in cast("dict[str, Any]", places).values()})


def _present(source: Source, prefix: str, names: tuple[str, ...]) -> list[str]:
    return [prefix + name for name in names if source.has(prefix + name)]

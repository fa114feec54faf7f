"""The configuration of a DistilBERT model: typed, range-checked, the same for every framework.

Field names and defaults are those of the released checkpoints (Sanh et al. 2019, arXiv 1910.01108). Reads the
config.json files of transformers 4 and 5, keeps what it does not know through a round trip, and never acts on a field
that names code.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import math
import operator
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from distilbert.checkpoint import safely
from distilbert.checkpoint.hub import Source, find_folder, first_of
from distilbert.errors import ConfigError

CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_LABELS = 100_000
LAYER_NORM_EPS = 1e-12  # not a field: every DistilBERT has it

ACTIVATIONS = ("gelu", "gelu_new", "quick_gelu", "relu", "silu", "swish", "tanh")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
POOLING_MODES = ("mean", "cls", "max", "mean_sqrt_len")
DENSE_ACTIVATIONS = ("identity", "tanh", "relu", "gelu", "silu")
ALIASES = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
# Fields by which other software fetches or selects code: dropped on reading, neither acted on nor passed on.
CODE_FIELDS = (
    "auto_map",
    "custom_pipelines",
    "trust_remote_code",
    "_attn_implementation",
    "attn_implementation",
)

Check = Callable[[str, Any], Any]


def _integer(low: int, high: int) -> Check:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigError(f"{name} must be an integer from {low} to {high}, got {value!r}.")
        return value

    return check


def _optional_integer(low: int, high: int) -> Check:
    return lambda name, value: None if value is None else _integer(low, high)(name, value)


def _number(name: str, value: Any, valid: bool, interval: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not valid:
        raise ConfigError(f"{name} must be a number in {interval}, got {value!r}.")
    return float(value)


def _probability(name: str, value: Any) -> float:
    return _number(name, value, isinstance(value, int | float) and 0 <= value < 1, "[0, 1)")


def _positive(name: str, value: Any) -> float:
    return _number(name, value, isinstance(value, int | float) and 0 < value <= 100, "(0, 100]")


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}.")
    return value


def _one_of(*choices: str | None) -> Check:
    def check(name: str, value: Any) -> str | None:
        if not (value is None or isinstance(value, str)) or value not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}.")
        return value

    return check


def _id2label(name: str, value: Any) -> dict[int, str]:
    labels = _labels(2) if value is None else _integer_keys(name, value)
    if sorted(labels) != list(range(len(labels))) or not labels:
        raise ConfigError(f"{name} must name the labels 0, 1, ..., n-1, got the keys {sorted(labels)[:10]}.")
    return {i: str(labels[i]) for i in sorted(labels)}


def _label2id(name: str, value: Any) -> dict[str, int] | None:
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a mapping from label to index, got {value!r}.")
    return None if value is None else {str(k): _integer(0, 1 << 24)(f"{name}[{k!r}]", v) for k, v in value.items()}


def _pruned_heads(name: str, value: Any) -> dict[int, tuple[int, ...]]:
    layers = {} if value is None else _integer_keys(name, value)
    if not all(isinstance(heads, Iterable) for heads in layers.values()):
        raise ConfigError(f"{name} must map a layer to a list of heads, got {value!r}.")
    check = _integer(0, 1 << 16)
    return {layer: tuple(sorted({check(f"{name}[{layer}]", h) for h in layers[layer]})) for layer in sorted(layers)}


def _integer_keys(name: str, value: Any) -> dict[int, Any]:
    """A mapping whose keys are integers; JSON makes strings of them."""
    try:
        return {int(key) if isinstance(key, str) else operator.index(key): item for key, item in value.items()}
    except (AttributeError, TypeError, ValueError):
        raise ConfigError(f"{name} must be a mapping with integer keys, got {value!r}.") from None


def _labels(n: int) -> dict[int, str]:
    return {i: f"LABEL_{i}" for i in range(n)}


def _checked(default: Any, check: Check, *, written: bool = True) -> Any:
    """A field with its check. With `written=False`, config.json names it only when it is not the default."""
    return field(default=default, metadata={"check": check, "written": written})


@dataclass(frozen=True, init=False, eq=False)
class DistilBertConfig:
    """Architecture, regularisation and labels of a model. Immutable: `replace` makes a changed copy.

    Accepts the field names below, the aliases `hidden_size`, `num_hidden_layers` and `num_attention_heads`,
    and `num_labels` instead of `id2label`. `extra` holds what else a config.json said.

    Raises:
        ConfigError: names the field, what must hold, and what came.
    """

    vocab_size: int = _checked(30522, _integer(1, 1 << 24))
    max_position_embeddings: int = _checked(512, _integer(1, 1 << 20))
    sinusoidal_pos_embds: bool = _checked(False, _boolean)  # decides initialisation and trainability only
    n_layers: int = _checked(6, _integer(1, 1024))
    n_heads: int = _checked(12, _integer(1, 1024))
    dim: int = _checked(768, _integer(1, 1 << 16))
    hidden_dim: int = _checked(3072, _integer(1, 1 << 20))
    dropout: float = _checked(0.1, _probability)
    attention_dropout: float = _checked(0.1, _probability)
    activation: str = _checked("gelu", _one_of(*ACTIVATIONS))
    initializer_range: float = _checked(0.02, _positive)
    qa_dropout: float = _checked(0.1, _probability)
    seq_classif_dropout: float = _checked(0.2, _probability)
    pad_token_id: int | None = _checked(0, _optional_integer(0, 1 << 24))
    tie_word_embeddings: bool = _checked(True, _boolean)
    id2label: dict[int, str] = _checked(None, _id2label, written=False)  # None: LABEL_0 and LABEL_1
    label2id: dict[str, int] = _checked(None, _label2id, written=False)  # None: the inverse of id2label
    problem_type: str | None = _checked(None, _one_of(*PROBLEM_TYPES, None), written=False)
    pruned_heads: dict[int, tuple[int, ...]] = _checked(None, _pruned_heads, written=False)  # layer -> heads
    output_hidden_states: bool = _checked(False, _boolean, written=False)
    output_attentions: bool = _checked(False, _boolean, written=False)
    extra: dict[str, Any] = field(default_factory=dict[str, Any])  # what a file held beside the fields above

    model_type: ClassVar[str] = "distilbert"

    def __init__(self, **values: Any) -> None:
        given = _resolve_names(values)
        object.__setattr__(self, "extra", given.pop("extra", {}))
        for entry in _fields():
            value = given.pop(entry.name, entry.default)
            object.__setattr__(self, entry.name, entry.metadata["check"](entry.name, value))
        for name in given:
            raise ConfigError(f"{name} is not a field of DistilBertConfig{_suggestion(name)}")
        if self.label2id is None:  # pyright: ignore[reportUnnecessaryComparison]
            object.__setattr__(self, "label2id", {label: i for i, label in self.id2label.items()})
        self._check_together()

    def _check_together(self) -> None:
        if self.dim % self.n_heads:
            raise ConfigError(f"dim must be a multiple of n_heads, got dim={self.dim} and n_heads={self.n_heads}.")
        if self.sinusoidal_pos_embds and self.dim % 2:
            raise ConfigError(f"dim must be even with sinusoidal_pos_embds, got dim={self.dim}.")
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ConfigError(
                f"pad_token_id must lie below vocab_size, got {self.pad_token_id} with vocab_size={self.vocab_size}."
            )
        for layer, heads in self.pruned_heads.items():
            exist = 0 <= layer < self.n_layers and all(head < self.n_heads for head in heads)
            if not exist or len(heads) >= self.n_heads:
                raise ConfigError(
                    f"pruned_heads must leave a head in each of {self.n_layers} layers of {self.n_heads} heads, "
                    f"got {layer}: {list(heads)}."
                )

    @property
    def num_labels(self) -> int:
        """The number of labels of a classification head."""
        return len(self.id2label)

    @property
    def head_dim(self) -> int:
        """The width of one attention head."""
        return self.dim // self.n_heads

    def heads_of(self, layer: int) -> int:
        """The number of attention heads that a layer has left after pruning."""
        return self.n_heads - len(self.pruned_heads.get(layer, ()))

    @property
    def hidden_size(self) -> int:
        """Alias of `dim`."""
        return self.dim

    @property
    def num_hidden_layers(self) -> int:
        """Alias of `n_layers`."""
        return self.n_layers

    @property
    def num_attention_heads(self) -> int:
        """Alias of `n_heads`."""
        return self.n_heads

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DistilBertConfig) and vars(self) == vars(other)

    def __hash__(self) -> int:
        sizes = (self.vocab_size, self.max_position_embeddings, self.n_layers, self.n_heads, self.dim, self.hidden_dim)
        return hash((*sizes, self.activation, self.dropout, self.attention_dropout))  # cheap: JAX asks at every call

    def replace(self, **changes: Any) -> Self:
        """A copy with `changes` (field names and aliases) applied and checked.

        `num_labels` alone names new labels only where their number changes.
        """
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        if "id2label" not in changes and changes.get("num_labels") == self.num_labels:
            del changes["num_labels"]
        resolved = _resolve_names(changes)
        if "id2label" in resolved and "label2id" not in resolved:
            resolved["label2id"] = None
        return type(self)(**values | resolved)

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds: the fields, `model_type`, and the unknown keys that were read."""
        default = DistilBertConfig()
        names = [
            e.name for e in _fields() if e.metadata["written"] or getattr(self, e.name) != getattr(default, e.name)
        ]
        values = {name: getattr(self, name) for name in names}
        return _with_string_keys({**self.extra, **values, "model_type": self.model_type})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A config from the contents of a config.json.

        Raises:
            ConfigError: a value is wrong, or `model_type` is another architecture's.
        """
        if "registered_name" in values:
            raise ConfigError("this is a KerasHub preset's config; load its model, or convert it, instead.")
        kept = {k: v for k, v in values.items() if not k.startswith(CODE_FIELDS)}
        if len(kept) < len(values):
            names = ", ".join(sorted(values.keys() - kept.keys()))
            warnings.warn(f"config.json: ignored the code-bearing fields {names}.", stacklevel=2)
        model_type = kept.pop("model_type", cls.model_type)
        if model_type != cls.model_type:
            hint = "; convert it first: `distilbert convert SRC DST --to safetensors`" if model_type == "bert" else ""
            raise ConfigError(f"model_type must be {cls.model_type!r}, got {model_type!r}{hint}.")
        names = {entry.name for entry in _fields()} | ALIASES.keys() | {"num_labels"}
        unknown = {k: v for k, v in kept.items() if k not in names}
        return cls(**{k: v for k, v in kept.items() if k in names}, extra=unknown)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> Self:
        """Read config.json; `overrides` win over the file.

        Args:
            folder_or_hub_id: a folder, or the id of a model on the hub (needs the extra `hub`).
            revision: of the hub model: a branch, a tag or a commit hash; default its main branch.
            local_files_only: take a hub model from the cache, without the network.
            overrides: config fields.

        Raises:
            CheckpointError: the file is missing or not a JSON object. ConfigError: a value is wrong.
        """
        folder = find_folder(folder_or_hub_id, _files, revision=revision, local_files_only=local_files_only)
        path = folder / CONFIG_FILE
        values = safely.read_json(path, MAX_CONFIG_BYTES)
        try:
            config = cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        return config.replace(**overrides) if overrides else config

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `folder`/config.json, all or nothing; transformers 4 and 5 read it."""
        safely.write_json(Path(folder) / CONFIG_FILE, self.to_dict(), sort_keys=True)


@dataclass(frozen=True)
class DenseConfig:
    """A dense layer behind a pooling: the sentence vector's width, whether there is a bias, and what follows it."""

    out_features: int
    bias: bool = True
    activation: str = "tanh"

    def __post_init__(self) -> None:
        _integer(1, 1 << 16)("out_features", self.out_features)
        _boolean("bias", self.bias)
        _one_of(*DENSE_ACTIVATIONS)("dense activation", self.activation)


@dataclass(frozen=True)
class PoolingConfig:
    """How token vectors become one sentence vector.

    `mode` is mean (over the kept tokens), cls (the first token), max, or mean_sqrt_len (sum over the square root of
    the count); `normalize` scales the result to length 1; `max_seq_length` is where a tokenizer cuts, in tokens;
    `dense` is a layer between the two, None for none.
    """

    mode: str = "mean"
    normalize: bool = False
    max_seq_length: int | None = None
    dense: DenseConfig | None = None

    def __post_init__(self) -> None:
        _one_of(*POOLING_MODES)("pooling mode", self.mode)
        _boolean("normalize", self.normalize)
        _optional_integer(1, 1 << 20)("max_seq_length", self.max_seq_length)
        if not isinstance(self.dense, DenseConfig | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"dense must be a DenseConfig or None, got {self.dense!r}.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The settings that `dataclasses.asdict` made a dict of."""
        dense: dict[str, Any] | None = values.get("dense")
        return cls(**dict(values, dense=None if dense is None else DenseConfig(**dense)))

    def width(self, dim: int) -> int:
        """Of a sentence vector, when token vectors have the width `dim`."""
        return dim if self.dense is None else self.dense.out_features


def _resolve_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Aliases under their own names, `num_labels` as `id2label`; two spellings that disagree are refused."""
    given = dict(values)
    for alias, name in ALIASES.items():
        if alias in given:
            value = given.pop(alias)
            if given.setdefault(name, value) != value:
                raise ConfigError(f"{alias} and {name} mean the same, got {value!r} and {given[name]!r}.")
    if "num_labels" in given:
        n = _integer(1, MAX_LABELS)("num_labels", given.pop("num_labels"))
        labels = given.get("id2label")
        if labels is None:
            given["id2label"] = _labels(n)
        elif len(_id2label("id2label", labels)) != n:
            raise ConfigError(f"num_labels must be the number of labels in id2label, got {n} and {labels!r}.")
    return given


def _files(source: Source) -> list[str]:
    """What a config needs of a model."""
    return [first_of(source, CONFIG_FILE)]


def _fields() -> list[dataclasses.Field[Any]]:
    return [entry for entry in dataclasses.fields(DistilBertConfig) if entry.name != "extra"]


def _with_string_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as JSON has them: keys are strings, tuples are lists."""
    return json.loads(json.dumps(values))


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name, [entry.name for entry in _fields()], n=1)
    return f"; did you mean {close[0]}?" if close else "."


def _signature() -> inspect.Signature:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature([inspect.Parameter(e.name, kind, default=e.default, annotation=e.type) for e in _fields()])


DistilBertConfig.__signature__ = _signature()  # pyright: ignore[reportAttributeAccessIssue]
